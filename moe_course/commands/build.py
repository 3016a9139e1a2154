"""`moe-course build`: the notebooks from their sources."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_course.commands import FAILED, CommandError

if TYPE_CHECKING:
    from rich.console import Console


def build(
    lessons: Annotated[
        list[str] | None, typer.Argument(help="Write and run only these, stale or not: 02, or 02_router.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; show what is stale and exit with 1 if anything is.")
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="Write and run every lesson, stale or not.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Notebooks run at once; default: one for each core.")] = None,
    root: Annotated[Path, typer.Option(help="The folder that holds lessons/ and solutions/.")] = Path("."),
) -> None:
    """Build lessons/ and the solved notebooks from solutions/*.py.

    Only lessons whose source changed are written, and only those whose code changed are run; after a change in
    moe_course/, name the lessons that it touches or use --all. A lesson that fails keeps the notebooks it had.
    """
    if not (root / "solutions").is_dir():
        raise CommandError(f"there is no folder {root / 'solutions'}; run this where the course was cloned")
    from rich.console import Console

    from moe_course.notebooks.source import SourceError

    console = Console(highlight=False, soft_wrap=True)
    try:
        _check(root, console) if check else _build(root, lessons or [], everything, jobs, console)
    except SourceError as error:
        raise CommandError(str(error)) from None


def _check(root: Path, console: "Console") -> None:
    from rich.markup import escape

    from moe_course.notebooks.build import stale

    problems = stale(root)
    for problem in problems:
        for line in problem.splitlines():
            colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
            console.print(f"[{colour}]{escape(line)}[/]" if colour else escape(line))
    if problems:
        console.print("The notebooks are stale: run `moe-course build` and commit what it writes.")
        raise typer.Exit(FAILED)
    console.print("The notebooks are what their sources make.")


def _build(root: Path, lessons: list[str], everything: bool, jobs: int | None, console: "Console") -> None:
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    from moe_course.notebooks.build import build as build_notebooks

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} cells"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        rows: dict[str, TaskID] = {}

        def progress(lesson: str, done: int, total: int) -> None:
            if lesson not in rows:
                rows[lesson] = bar.add_task(lesson, total=total)
                if not console.is_terminal:
                    console.print(f"{lesson}: running {total} cells")
            bar.update(rows[lesson], completed=done)

        built = build_notebooks(root, everything, jobs, progress, lessons)
    for name in built.written:
        console.print(f"{name}: written")
    if not (built.written or built.problems):
        console.print("Nothing is stale.")
    if built.no_pictures:
        console.print(f"New figures have no PNG for GitHub to show: {built.no_pictures}.", markup=False)
    for problem in built.problems:
        console.print(escape(problem), style="red")
    if built.problems:
        raise typer.Exit(FAILED)
