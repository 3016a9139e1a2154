"""`moe-course batch`: a grid of notebooks and settings, run and gathered."""

import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moe_course.commands import FAILED, CommandError

if TYPE_CHECKING:
    from rich.console import Console

    from moe_course.batch.drive import Options, Tally
    from moe_course.batch.folder import Folder
    from moe_course.batch.plan import Plan, Run

INTERRUPTED = 130
EXAMPLE = Path("sweep.toml")
SHOWN = 12  # runs that a plan lists one by one


def batch(
    sweep: Annotated[
        Path, typer.Argument(metavar="SWEEP", help="The sweep's file, or the word init, which writes an example.")
    ],
    example: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="With init: where to; default: sweep.toml.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="RUNS", help="The folder for notebooks, table and report.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Run nothing; show the plan, with an estimate.")] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once here; default: one for each core.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on a Dask cluster, such as tcp://10.0.0.5:8786.")
    ] = None,
    retries: Annotated[
        int | None, typer.Option(min=0, help="Tries more for a run that failed; default: what the sweep says, or 0.")
    ] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Start no more runs once one has failed.")] = False,
    no_warm: Annotated[
        bool, typer.Option("--no-warm", help="Start each kernel from nothing; slower, for comparison.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what goes wrong.")] = False,
) -> None:
    """Run notebooks over a grid of settings.

    moe-course batch init writes an example of a sweep; moe-course batch SWEEP --dry-run shows what it would run.
    RUNS gets the executed notebooks, results.csv, results.parquet and report.html. Run the same command again to go on
    after an interruption: it repeats only what is missing, has failed, or has changed since.
    """
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    if str(sweep) == "init":
        _init(example or EXAMPLE, console)
        return
    if example is not None:
        raise CommandError(f"{example} is one file too many; a batch has one sweep")
    if out is None and not dry_run:
        raise CommandError("where to? Add --out RUNS, the folder for notebooks, table and report")
    if jobs is not None and scheduler is not None:
        raise CommandError("with --scheduler the cluster decides how many run at once; leave --jobs out")
    from moe_course.batch.executors import available_cores
    from moe_course.batch.plan import make_plan
    from moe_course.batch.sweep import SweepError, read_sweep

    try:
        plan = make_plan(read_sweep(sweep))
    except SweepError as error:
        raise CommandError(str(error)) from None
    jobs = None if scheduler else jobs or available_cores()
    if dry_run:
        _show(plan, out, jobs, console)
        return
    from moe_course.batch.drive import Options

    assert out is not None
    tries = plan.sweep.retries if retries is None else retries
    _run(plan, out, Options(jobs, tries, fail_fast, not no_warm), scheduler, quiet, console)


def _run(plan: "Plan", out: Path, options: "Options", scheduler: str | None, quiet: bool, console: "Console") -> None:
    from moe_course.batch.drive import BatchError, Tally, drive, told
    from moe_course.batch.executors import ClusterError, executor
    from moe_course.batch.folder import Folder, FolderError
    from moe_course.batch.progress import Display

    folder = Folder(out)
    start = time.monotonic()
    stopped = ""
    tally = Tally(0)
    # SIGTERM comes from a batch system whose time is up.
    before = {each: signal.signal(each, _interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with folder.open(plan):
            todo = [run for run in plan.runs if not folder.is_done(run)]
            if not quiet:
                _announce(plan, todo, folder, options, console)
            tally = Tally(len(todo))
            try:
                with Display(console, len(todo), quiet) as display:

                    def on_row(run: "Run | None", row: dict[str, object], now: Tally) -> None:
                        nonlocal tally
                        tally = now
                        display.update(run, row, now)

                    if todo:
                        with executor(options.jobs or 1, scheduler) as pool:
                            tally = drive(plan, todo, folder, pool, options, on_row)
            except KeyboardInterrupt:
                stopped = "interrupted"
            except BatchError as error:
                stopped = str(error)
            for each in before:
                signal.signal(each, signal.SIG_IGN)  # what follows takes a moment, and is the result
            _tell(plan, out, tally, stopped, time.monotonic() - start, quiet, console)
    except (FolderError, ClusterError) as error:
        raise CommandError(str(error)) from None
    except OSError as error:
        raise CommandError(told(error, folder)) from None
    except KeyboardInterrupt:  # before there was anything to gather
        raise typer.Exit(INTERRUPTED) from None
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    if stopped == "interrupted":
        raise typer.Exit(INTERRUPTED)
    if stopped:
        raise CommandError(stopped)
    if tally.failed:
        raise typer.Exit(FAILED)


def _announce(plan: "Plan", todo: "list[Run]", folder: "Folder", options: "Options", console: "Console") -> None:
    from moe_course.batch.plan import estimate
    from moe_course.batch.progress import spell

    done = len(plan.runs) - len(todo)
    again = sum(folder.has_failed(run) for run in todo)
    parts = [f"{plan.sweep.name}: {len(plan.runs)} runs"]
    parts += [f"{done} are there already"] if done else []
    parts += [f"{again} failed before and run again"] if again else []
    seconds = estimate(plan, todo, folder.seconds(), options.jobs or 1)
    parts += [f"about {spell(seconds)}"] if seconds and todo else []
    console.print(", ".join(parts) + ".", markup=False)


def _tell(
    plan: "Plan", out: Path, tally: "Tally", stopped: str, seconds: float, quiet: bool, console: "Console"
) -> None:
    """Gather the results, and say what there is and how to go on."""
    from moe_course.batch.progress import spell
    from moe_course.batch.results import write_results

    try:
        report = write_results(out)
    except OSError as error:
        console.print(f"The table and the report could not be written: {error}.", style="red", markup=False)
        report = None
    left = tally.total - tally.done - tally.failed
    if not quiet:
        console.print(f"{tally.done} done, {tally.failed} failed, {left} left, in {spell(seconds)}.")
    if tally.done and _package_changed(plan):
        console.print("moe_course changed while the batch ran; the same command repeats the runs with what it is now.")
    if tally.failed:
        console.print("The report lists what failed, with cell and traceback; the same command tries it again.")
    if left:
        what = "Interrupted." if stopped == "interrupted" else "Stopped."
        console.print(f"[bold]{what}[/] What is done is kept. Run the same command to go on.")
    if report is not None and not quiet:
        console.print(f"Open {report}; the table is {out / 'results.csv'}.", markup=False)


def _package_changed(plan: "Plan") -> bool:
    from moe_course.batch.lessons import package_digest

    uses_it = any("moe_course" in lesson.packages for lesson in plan.lessons.values())
    return uses_it and package_digest.__wrapped__() != package_digest()


def _show(plan: "Plan", out: Path | None, jobs: int | None, console: "Console") -> None:
    """Print what would run."""
    from moe_course.batch.folder import Folder
    from moe_course.batch.plan import estimate
    from moe_course.batch.progress import spell

    folder = Folder(out) if out is not None and out.is_dir() else None
    done = {run.id for run in plan.runs if folder and folder.is_done(run)}
    todo = [run for run in plan.runs if run.id not in done]
    for run in plan.runs[:SHOWN]:
        console.print(f"{'done ' if run.id in done else 'to do'}  {run}", markup=False)
    if len(plan.runs) > SHOWN:
        console.print(f"… and {len(plan.runs) - SHOWN} more")
    repeated = f" ({plan.repeated} that were there twice are left out)" if plan.repeated else ""
    console.print(f"{len(plan.runs)} runs{repeated}: {len(done)} done, {len(todo)} to do.", markup=False)
    if not todo:
        return
    seconds = estimate(plan, todo, folder.seconds() if folder else {}, jobs or 1)
    if seconds is None:
        console.print("How long they take is unknown until each lesson has run once in --out.")
    elif jobs is None:
        console.print(f"They take about {spell(seconds)} in all, divided by the cluster's threads.")
    else:
        console.print(f"They take about {spell(seconds)}, {jobs} at a time.")


def _init(path: Path, console: "Console") -> None:
    """Write the commented example."""
    template = (Path(__file__).parents[1] / "batch" / "example.toml").read_text("utf-8")
    text = template.replace("{file}", str(path)).replace("{name}", path.stem)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise CommandError(f"{path} is there already; name another file: moe-course batch init FILE") from None
    console.print(f"{path} is written. Look at it, then: moe-course batch {path} --dry-run", markup=False)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
