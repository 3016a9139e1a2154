"""Shows how far a batch is: a bar on a terminal, a line for each run in a log, nothing when it is to be quiet."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from moe_course.batch.drive import Tally
from moe_course.batch.plan import Run


class Display:
    """A batch's progress; a context manager.

    Args:
        console: to write to.
        total: runs to do.
        quiet: show only what goes wrong.
    """

    def __init__(self, console: Console, total: int, quiet: bool = False) -> None:
        self.console = console
        self.quiet = quiet
        self.started = time.monotonic()
        columns = (BarColumn(), TextColumn("{task.completed} of {task.total} runs"), _Counts())
        self.bar = Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal)
        self.task = self.bar.add_task("", total=total, tally=Tally(total), left=None)

    def __enter__(self) -> "Display":
        self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.bar.stop()

    def update(self, run: Run | None, row: dict[str, Any], tally: Tally) -> None:
        """Show a run that is through; without a row, only how far all is."""
        through = tally.done + tally.failed
        left = time_left(time.monotonic() - self.started, tally)
        self.bar.update(self.task, completed=through, tally=tally, left=left)
        if not row:
            return
        failed = row["status"] != "done"
        if failed:
            # On a terminal the line stands above the bar.
            self.console.print(f"[red]✗[/] {through}/{tally.total}", end="  ")
            self.console.print(f"{run}: {row['status']}. {short_error(row)}", markup=False)
        elif not self.quiet and not self.console.is_terminal:
            timing = f"{row['seconds']:.1f} s"
            ends = "" if left is None else f", {spell(left)} left"
            self.console.print(f"✓ {through}/{tally.total}  {run}: done in {timing}{ends}", markup=False)


class _Counts(ProgressColumn):
    """Running, failed, and the time left."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        tally, left = task.fields["tally"], task.fields["left"]
        text = Text(f"{tally.running} running")
        if tally.failed:
            text.append(f", {tally.failed} failed", style="red")
        if tally.running == 0 and tally.at_once == 0:
            text.append(", waiting for the cluster's workers")
        elif left is not None:
            text.append(f", {spell(left)} left")
        return text


def time_left(passed: float, tally: Tally) -> float | None:
    """Seconds until all runs are through, if they go on as they did; None before the first is."""
    through = tally.done + tally.failed
    return passed / through * (tally.total - through) if through else None


def spell(seconds: float) -> str:
    """A length of time, for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def short_error(row: dict[str, Any]) -> str:
    """Where a run failed, and of what, in one line."""
    error = row["error"] or {}
    where = f"Cell {error['cell']} (`{error['first_line']}`): " if error.get("cell") is not None else ""
    message = " ".join(str(error.get("message") or "").split())
    return f"{where}{error.get('name')}: {message[:300]}"
