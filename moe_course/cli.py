"""The command line `moe-course`: its commands, its help and how it reports errors.

The commands themselves are in `moe_course/commands/`, one file each.
"""

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from moe_course import __version__
from moe_course.commands import USAGE, CommandError
from moe_course.commands.batch import batch
from moe_course.commands.bench import bench
from moe_course.commands.build import build
from moe_course.commands.check import check
from moe_course.commands.doctor import doctor
from moe_course.commands.grade import grade
from moe_course.commands.gradescope import gradescope
from moe_course.commands.lab import lab

EXIT_CODES = (
    "Exit codes: 0 all is well; 1 the command ran and found something wrong (a stale notebook, a missed bar, a "
    "missing requirement); 2 the command could not run (a wrong path or name); 130 interrupted."
)

app = typer.Typer(
    name="moe-course",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    epilog=EXIT_CODES,
)

PANELS: dict[str, list[Callable[..., None]]] = {
    "Learn": [lab, check, doctor],
    "Teach": [grade, gradescope, batch],
    "Make the course": [build, bench],
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)


def show_version(wanted: bool) -> None:
    """Print the version and stop."""
    if wanted:
        print(f"moe-course {__version__}")
        raise typer.Exit


@app.callback()
def moe_course(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and stop.", callback=show_version, is_eager=True),
    ] = False,
) -> None:
    """Learn Mixture-of-Experts by building one.

    Start with [bold]moe-course lab[/bold].
    """


def main() -> None:
    """Run the command line; what the user can put right is told in one sentence, without a traceback."""
    try:
        app()
    except CommandError as error:
        fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror}")


def fail(message: str) -> None:
    """Print one error and exit."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print("[bold red]Error:[/] ", end="")
    console.print(message, markup=False)
    sys.exit(USAGE)
