"""What a `Trainer` leaves behind, each safe against being killed at any moment: checkpoints, tables, TensorBoard."""

import csv
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `checkpoint.pt` so that there is a whole one at any moment: beside the old one first, then in its place."""
    path, beside = folder / "checkpoint.pt", folder / "checkpoint.pt.new"
    with beside.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    if os.name == "posix":  # the new name, too, must be on the disk
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def load_checkpoint(folder: Path | None, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The checkpoint of a folder, None if there is none.

    Raises:
        ValueError: it belongs to a run with other settings.
    """
    path = None if folder is None else folder / "checkpoint.pt"
    if path is None or not path.exists():
        return None
    state = torch.load(path, map_location="cpu", weights_only=True)
    theirs = state["settings"]
    for name in [*settings, *theirs]:
        if theirs.get(name) != settings.get(name):
            raise ValueError(
                f"{path} is of another run: its {name} is {theirs.get(name)}, this one's {settings.get(name)}; "
                "choose another folder, or delete this one to start again"
            )
    return state


class Table:
    """Rows of numbers, in memory and, if there is a folder, appended to a CSV file as they come.

    Args:
        folder: where NAME.csv lies; None: in memory alone.
        name: of the file, without its ending.
        size: of the file when the checkpoint was written, in bytes; 0 without one. What comes after is of steps
            that were done and lost, and will come again.
    """

    def __init__(self, folder: Path | None, name: str, size: int) -> None:
        self.rows: list[dict[str, float]] = []
        self.path = None if folder is None else folder / f"{name}.csv"
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            if file.tell() < size:
                raise ValueError(f"{self.path} has lost rows since the checkpoint; delete the folder to start again")
            file.truncate(size)
        with self.path.open(newline="") as text:
            self.rows = [
                {k: float(v) if k != "step" else int(v) for k, v in row.items()} for row in csv.DictReader(text)
            ]

    def append(self, row: Mapping[str, float]) -> None:
        self.rows.append(dict(row))
        if self.path is not None:
            with self.path.open("a", newline="") as file:
                writer = csv.DictWriter(file, list(row))
                if len(self.rows) == 1:
                    writer.writeheader()
                writer.writerow(row)

    def sync(self) -> int:
        """The size of the file, once all of it is on the disk."""
        if self.path is None:
            return 0
        with self.path.open("ab") as file:
            os.fsync(file.fileno())
            return file.tell()


class TensorBoard:
    """Curves for TensorBoard, if it is installed and there is a folder."""

    def __init__(self, folder: Path | None, *, first_step: int) -> None:
        self.writer: Any = None
        if folder is not None:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                return
            self.writer = SummaryWriter(folder, purge_step=first_step)

    def add(self, group: str, row: Mapping[str, float]) -> None:
        if self.writer:
            for name, value in row.items():
                if name != "step":
                    self.writer.add_scalar(f"{group}/{name}", value, row["step"])

    def sync(self) -> None:
        if self.writer:
            self.writer.flush()

    def close(self) -> None:
        if self.writer:
            self.writer.close()


@contextmanager
def progress_bar(steps: int, done: int, show: bool | None) -> Iterator[Callable[[float], None]]:
    """A bar on the terminal, if there is one or `show` says so; yields what to call with the loss after each step."""
    if not (sys.stderr.isatty() if show is None else show):
        yield lambda loss: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("loss {task.fields[loss]:.3f}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=steps, completed=done, loss=float("nan"))
        yield lambda loss: progress.update(task, advance=1, loss=loss)
