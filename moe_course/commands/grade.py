"""`moe-course grade`: a class's notebooks, graded."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moe_course.commands import FAILED, CommandError

if TYPE_CHECKING:
    from rich.console import Console

    from moe_course.grading.results import Result
    from moe_course.grading.run import Run

INTERRUPTED = 130


def grade(
    submissions: Annotated[
        Path, typer.Argument(metavar="SUBMISSIONS", help="A folder, a zip as Moodle, Canvas or Gradescope make it.")
    ],
    out: Annotated[Path, typer.Option(metavar="REPORT", help="The folder to write the report to.")],
    lesson: Annotated[
        list[str] | None,
        typer.Option(metavar="NN", help="Grade this lesson, such as 02; may be repeated. Default: those handed in."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Submissions at once; default: one for each core.")] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="A Dask scheduler, tcp://host:8786, whose workers do the grading."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.5, help="Seconds that the answer to one exercise may take.")] = 10.0,
    seed: Annotated[
        int | None, typer.Option(min=1, help="Of the hidden inputs. Default: drawn anew, and kept in the report.")
    ] = None,
    gradebook: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Also enter the scores in nbgrader's gradebook: sqlite:///gradebook.db."),
    ] = None,
    recheck: Annotated[
        bool,
        typer.Option("--recheck", help="Write nothing: grade again from the report's seed and compare the scores."),
    ] = False,
) -> None:
    """Grade a class's notebooks.

    Student code runs in a sandbox that knows no answers. The report holds grades.csv, a feedback page for each student,
    summary.html, junit.xml and Gradescope's results. Run the same command again to go on after an interruption.
    """
    from rich.console import Console

    from moe_course.batch.executors import available_cores
    from moe_course.grading.archive import Refused
    from moe_course.grading.handouts import GradingError
    from moe_course.grading.run import read_settings
    from moe_course.grading.submissions import NothingHandedIn

    if not submissions.exists():
        raise CommandError(f"there is no {submissions}; give the folder or zip that holds the submissions")
    if recheck and read_settings(out) is None:
        raise CommandError(f"{out} holds no grading run to recheck; grade first, without --recheck")
    console = Console(highlight=False, soft_wrap=True)
    try:
        settings: dict[str, Any] = {"seed": seed, "seconds": timeout, "lessons": _numbers(lesson or [])}
        places: dict[str, Any] = {"jobs": jobs or available_cores(), "scheduler": scheduler}
        run = _run(submissions, out, console, **settings, **places, fresh=recheck)
    except (GradingError, NothingHandedIn, Refused) as error:
        raise CommandError(str(error)) from None
    if recheck:
        _compare(run, out, console)
        return
    from moe_course.grading.report import write_report

    write_report(run, out)
    _tell(run, out, console)
    if gradebook:
        from moe_course.grading.gradebook import NoGradebook, record

        try:
            console.print(f"{record(run.results.values(), gradebook)} scores entered in {gradebook}.")
        except NoGradebook as error:
            raise CommandError(f"the scores did not get into the gradebook: {error}") from None
    if run.interrupted:
        raise typer.Exit(INTERRUPTED)


def _numbers(lessons: list[str]) -> tuple[str, ...]:
    return tuple(f"{int(each):02}" if each.isdecimal() else each for each in lessons)


def _run(submissions: Path, out: Path, console: "Console", **options: Any) -> "Run":
    """The grading run, with its progress on screen."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from moe_course.grading.run import grade as grade_all

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("Reading the submissions", total=None)

        def on_result(result: "Result", total: int) -> None:
            progress.update(task, description="Grading", total=total, advance=1)

        return grade_all(submissions, out, **options, on_result=on_result)


def _tell(run: "Run", out: Path, console: "Console") -> None:
    from moe_course.grading.levels import LEVELS, WEAK

    results = list(run.results.values())
    reused = f", {run.reused} of them from an earlier run" if run.reused else ""
    console.print(f"{len(results)} of {len(run.submissions)} submissions graded{reused}. Seed {run.settings.seed}.")
    for level in run.levels:
        if level == WEAK:
            console.print(f"[bold red]Weak isolation ({level}):[/] student code ran with {LEVELS[level]}.")
            console.print("Install bubblewrap (`apt install bubblewrap`), and grade again into another folder.")
    odd = sum(each.status not in ("graded", "not attempted") for result in results for each in result.exercises)
    if odd:
        console.print(f"{odd} answers were not graded as usual; summary.html and the column `status` say why.")
    if run.interrupted:
        console.print("[bold]Interrupted.[/] The report holds what is done. Run the same command to go on.")
    console.print(f"Open {out / 'summary.html'}; all scores are in {out / 'grades.csv'}.")


def _compare(run: "Run", out: Path, console: "Console") -> None:
    """Show where a repetition differs from the report; exit with 1 if it does anywhere."""
    from moe_course.grading.files import result_file
    from moe_course.grading.pages import printable
    from moe_course.grading.results import read_result

    different = 0
    for (student, lesson), result in sorted(run.results.items()):
        before = read_result(result_file(out, student, lesson))
        old = {e.id: (e.status, e.points) for e in before.exercises} if before else {}
        for each in result.exercises:
            if old.get(each.id) != (each.status, each.points):
                different += 1
                was = " with {1:g} points".format(*old[each.id]) if each.id in old else " absent"
                said = f"{student}, {each.id}: {each.points:g} points ({each.status}); the report has it{was}."
                console.print(printable(said), markup=False)
    console.print(
        f"{len(run.results)} submissions graded again with seed {run.settings.seed}: {different} differences."
    )
    if different or run.interrupted:
        raise typer.Exit(INTERRUPTED if run.interrupted else FAILED)
