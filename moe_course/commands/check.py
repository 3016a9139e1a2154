"""`moe-course check`: how far a learner is, from the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_course.commands import FAILED, CommandError

if TYPE_CHECKING:
    from rich.console import Console


def check(
    notebooks: Annotated[
        list[str],
        typer.Argument(metavar="NOTEBOOK…", help="Files, or lessons by number: lessons/02_router.ipynb or 02."),
    ],
    saved: Annotated[
        bool, typer.Option("--saved", help="Run nothing; read the verdicts that were saved with the notebook.")
    ] = False,
) -> None:
    """Show which exercises of a notebook are solved.

    Runs a copy of the notebook (a minute at most) and shows each check's verdict. Exits with 0 if all exercises
    pass and with 1 if not.
    """
    from rich.console import Console

    console = Console(highlight=False)
    paths = [_find(name) for name in notebooks]
    solved = [_show(path, saved, console) for path in paths]
    if not all(solved):
        raise typer.Exit(FAILED)


def _find(name: str) -> Path:
    """The notebook at a path, or the lesson of a number, such as "2" or "02"."""
    path = Path(name)
    if path.is_file():
        return path
    if name.isdigit():
        for folder in (Path("lessons"), Path(".")):
            for found in sorted(folder.glob(f"{int(name):02}_*.ipynb")):
                return found
    raise CommandError(
        f"there is no notebook {name}; give a path such as lessons/02_router.ipynb, or a lesson's number"
    )


def _show(path: Path, saved: bool, console: "Console") -> bool:
    """Print one notebook's verdicts; whether all exercises pass."""
    import nbformat
    from rich.table import Table

    from moe_course.notebooks.execute import ExecutionError, execute
    from moe_course.notebooks.verdicts import read_verdicts

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat and json raise many kinds for files that are no notebooks
        raise CommandError(f"{path} is not a notebook that can be read ({_first_line(error)})") from None
    stopped = ""
    if not saved:
        with console.status(f"Running {path.name}"):
            try:
                execute(notebook, path.parent.absolute(), path.name, past_errors=True)
                stopped = _first_error(notebook)
            except ExecutionError as error:
                stopped = str(error)
    table = Table(title=path.name, title_justify="left", title_style="bold")
    for heading in ("exercise", "", "points", "what the check says"):
        table.add_column(heading, overflow="fold")
    verdicts = read_verdicts(notebook)
    for verdict in verdicts:
        sign = {"passed": "[green]✓ passed[/]", "failed": "[red]✗ not yet[/]"}.get(
            verdict.status, f"○ {verdict.status}"
        )
        table.add_row(verdict.exercise, sign, f"{verdict.points:g}/{verdict.max_points:g}", verdict.message)
    if verdicts:
        console.print(table)
    else:
        console.print(f"{path.name} holds no exercises; open a lesson from the folder lessons/.")
    if stopped:
        console.print(f"Not all cells ran. {stopped}", style="red", markup=False)
    return bool(verdicts) and not stopped and all(verdict.status == "passed" for verdict in verdicts)


def _first_error(notebook: Any) -> str:
    """The first cell that raised, and what."""
    from moe_course.notebooks.execute import cell_name

    for index, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                return f"{cell_name(notebook, index)}: {output.ename}: {output.evalue}"
    return ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
