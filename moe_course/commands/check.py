"""`moe-course check`: how far a learner is, from the terminal, in the grader's words."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_course.commands import FAILED, CommandError

if TYPE_CHECKING:
    from rich.console import Console

    from moe_course.grading.results import ExerciseResult


def check(
    notebooks: Annotated[
        list[str],
        typer.Argument(metavar="NOTEBOOK…", help="Files, or lessons by number: lessons/02_router.ipynb or 02."),
    ],
    hints: Annotated[bool, typer.Option("--hints", help="Show the hints of what does not pass yet.")] = False,
    saved: Annotated[
        bool, typer.Option("--saved", help="Run nothing; read the verdicts that were saved with the notebook.")
    ] = False,
) -> None:
    """Show which exercises of a notebook are solved, and what is wrong with the others.

    Grades your answers as `moe-course grade` does, on the inputs that the lesson's checks show. Exits with 0 if all
    exercises pass and with 1 if not.
    """
    from rich.console import Console

    console = Console(highlight=False)
    paths = [_find(name) for name in notebooks]
    # The grader forks; where there is no fork (Windows), the notebook itself is run, and its checks speak.
    show = _show_saved if saved else _show_graded if hasattr(os, "fork") else _show_run
    solved = [show(path, console, hints) for path in paths]
    if not all(solved):
        raise typer.Exit(FAILED)


def _find(name: str) -> Path:
    """The notebook at a path, or the lesson of a number, such as "2" or "02"."""
    path = Path(name)
    if path.is_file():
        return path
    if name.isdecimal():
        for folder in (Path("lessons"), Path(".")):
            for found in sorted(folder.glob(f"{int(name):02}_*.ipynb")):
                return found
    raise CommandError(
        f"there is no notebook {name}; give a path such as lessons/02_router.ipynb, or a lesson's number"
    )


def _show_graded(path: Path, console: "Console", hints: bool) -> bool:
    """Grade a notebook and print the feedback; whether all exercises pass."""
    from moe_course.grading.notebook import Unreadable
    from moe_course.grading.own import grade_own
    from moe_course.grading.sandbox import SandboxError

    with console.status(f"Grading {path.name}"):
        try:
            results, notes = grade_own(path)
        except Unreadable as error:
            raise CommandError(f"{path} is not a notebook that can be read ({error})") from None
        except SandboxError as error:
            raise CommandError(f"your answers cannot be run: {error}; try `moe-course doctor`") from None
    if not results:
        return _no_exercises(path, console)
    points, most = sum(each.points for each in results), sum(each.max_points for each in results)
    console.print(f"{path.name}: {points:g} of {most} points", style="bold", markup=False)
    for note in notes:
        console.print(f"Note: {note}.", markup=False)
    for each in results:
        _show_exercise(each, console, hints)
    passed = all(each.points >= each.max_points for each in results)
    if not (passed or hints):
        console.print("\n--hints shows the hints.")
    return passed


def _show_exercise(each: "ExerciseResult", console: "Console", hints: bool) -> None:
    from rich.padding import Padding
    from rich.text import Text

    from moe_course.grading.feedback import exercise_text, mark

    colour, sign = mark(each)
    head = Text.assemble((sign, {"good": "green", "bad": "red"}.get(colour, "")), f" {each.title} · {each.id}, ")
    console.print(head.append(f"{each.points:g} of {each.max_points}", "bold"))
    lines = [exercise_text(each)]
    if hints:
        lines += [f"Hint {number}: {hint}" for number, hint in enumerate(each.hints, 1)]
    console.print(Padding(Text("\n".join(lines)), (0, 0, 0, 2), expand=False))


def _show_run(path: Path, console: "Console", hints: bool) -> bool:
    """Run a copy of a notebook and print its checks' verdicts; whether all exercises pass."""
    from moe_course.notebooks.execute import ExecutionError, execute

    notebook, stopped = _read(path), ""
    with console.status(f"Running {path.name}"):
        try:
            execute(notebook, path.parent.absolute(), path.name, past_errors=True)
            stopped = _first_error(notebook)
        except ExecutionError as error:
            stopped = str(error)
    passed = _show_verdicts(notebook, path, console)
    if stopped:
        console.print(f"Not all cells ran. {stopped}", style="red", markup=False)
    return passed and not stopped


def _show_saved(path: Path, console: "Console", hints: bool) -> bool:
    """Print the verdicts that were saved with a notebook; whether all exercises pass."""
    return _show_verdicts(_read(path), path, console)


def _read(path: Path) -> Any:
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # nbformat and json raise many kinds for files that are no notebooks
        raise CommandError(f"{path} is not a notebook that can be read ({_first_line(error)})") from None
    return notebook


def _show_verdicts(notebook: Any, path: Path, console: "Console") -> bool:
    from rich.table import Table

    from moe_course.notebooks.verdicts import read_verdicts

    table = Table(title=path.name, title_justify="left", title_style="bold")
    for heading in ("exercise", "", "points", "what the check says"):
        table.add_column(heading, overflow="fold")
    verdicts = read_verdicts(notebook)
    if not verdicts:
        return _no_exercises(path, console)
    for verdict in verdicts:
        sign = {"passed": "[green]✓ passed[/]", "failed": "[red]✗ not yet[/]"}.get(
            verdict.status, f"○ {verdict.status}"
        )
        table.add_row(verdict.exercise, sign, f"{verdict.points:g}/{verdict.max_points:g}", verdict.message)
    console.print(table)
    return all(verdict.status == "passed" for verdict in verdicts)


def _no_exercises(path: Path, console: "Console") -> bool:
    console.print(f"{path.name} holds no exercises; open a lesson from the folder lessons/.", markup=False)
    return False


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
