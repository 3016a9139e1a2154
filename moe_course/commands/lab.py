"""`moe-course lab`: JupyterLab in the lessons' folder, open on a start page with the learner's own progress."""

import os
from pathlib import Path
from typing import Annotated

import typer

from moe_course.commands import CommandError

# Defaults of JupyterLab's settings for this launch alone; what a learner sets in JupyterLab still wins.
SETTINGS = Path(__file__).with_name("jupyter_config")


def lab(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of the lessons.", show_default="lessons/ of the course")
    ] = None,
    port: Annotated[int, typer.Option(help="First port to try; if it is taken, the next free one is used.")] = 8888,
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    ip: Annotated[str, typer.Option(help="Address to listen on.")] = "localhost",
) -> None:
    """Open the course in JupyterLab, on a page with the lessons and your progress."""
    from moe_course.notebooks.start_page import START_PAGE, write_start_page

    folder = folder or default_folder()
    if not folder.is_dir():
        raise CommandError(f"there is no folder {folder}; name the one that holds the lessons' notebooks")
    write_start_page(folder)
    print("Opening the course in JupyterLab. Press Ctrl-C here to stop it.", flush=True)
    try:
        from jupyterlab.labapp import LabApp
    except ImportError as error:
        raise CommandError(f"JupyterLab is not installed here ({error}); run `make setup`") from None
    use_settings()
    LabApp.launch_instance(
        [
            f"--ServerApp.root_dir={folder.resolve()}",
            f"--ServerApp.ip={ip}",
            f"--ServerApp.port={port}",
            f"--LabApp.default_url=/lab/tree/{START_PAGE}",
            f"--LabApp.open_browser={browser}",
            "--Application.log_level=WARN",  # else a hundred lines hide the address
            "--ServerApp.answer_yes=True",  # Ctrl-C stops it without a question
            f"--ServerApp.allow_root={is_root()}",  # in a container, where there is nobody else
        ]
    )


def is_root() -> bool:
    """Whether we are the superuser, for whom Jupyter refuses to start unless told."""
    return hasattr(os, "geteuid") and os.geteuid() == 0


def default_folder() -> Path:
    """`lessons/` of the clone that the package is installed from, or of the folder we are in."""
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if (root / "lessons").is_dir():
            return root / "lessons"
    raise CommandError("there is no folder `lessons` here; run this in the course's folder")


def use_settings() -> None:
    """Put our defaults in front of the places where JupyterLab looks for settings."""
    places = [str(SETTINGS), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(filter(None, places))
