"""What a benchmark hands over: tables to read, measurements for machines, a figure, and a verdict on every bar."""

import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from rich.console import Console
from rich.table import Table as RichTable

if TYPE_CHECKING:  # plotly takes a second to import, and only --plot needs it
    import plotly.graph_objects as go

TIME_NOISE = 0.10  # two timings closer than this are a tie


@dataclass(frozen=True)
class Bar:
    """A figure that a measurement must not exceed by more than its noise."""

    name: str
    limit: float
    noise: float = TIME_NOISE  # 0 for what is counted rather than timed
    stretch: float | None = None  # the figure to dream of; never checked


@dataclass(frozen=True)
class Verdict:
    """A bar and what was measured against it."""

    bar: Bar
    measured: float

    @property
    def over(self) -> float:
        """How far above the bar, as a fraction of it; negative below. Of a bar at 0, the measurement itself."""
        return self.measured / self.bar.limit - 1 if self.bar.limit else self.measured

    @property
    def state(self) -> Literal["holds", "tie", "fails"]:
        if self.over <= 0:
            return "holds"
        return "tie" if self.over <= self.bar.noise else "fails"

    def __str__(self) -> str:
        over = f"{abs(100 * self.over):.1f} % "
        end = {"holds": "below: holds", "tie": "over: a tie, within noise", "fails": "over: fails"}[self.state]
        return f"{self.bar.name}: {self.measured:.2f} against {self.bar.limit:.2f}, {over}{end}"


@dataclass(frozen=True)
class Table:
    """A table of text: the first column names the row."""

    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Report:
    """The result of one benchmark."""

    what: str
    tables: list[Table]
    notes: list[str]  # one line each, below the tables
    measurements: list[dict[str, Any]]
    verdicts: list[Verdict]
    figure: "Callable[[], go.Figure]"

    @property
    def failures(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.state == "fails"]


def print_report(report: Report, console: Console) -> None:
    """Print the tables, the notes, and every bar that does not hold."""
    for table in report.tables:
        console.print(f"[bold]{table.title}[/]")
        rich = RichTable(box=None, pad_edge=False)
        for i, column in enumerate(table.columns):
            rich.add_column(column, justify="left" if i == 0 else "right")
        for row in table.rows:
            rich.add_row(*row)
        console.print(rich)
        console.print()
    for note in report.notes:
        console.print(note)
    held = sum(verdict.state == "holds" for verdict in report.verdicts)
    console.print(f"{held} of {len(report.verdicts)} bars hold. Times within 10 % of each other are a tie.")
    for verdict in report.verdicts:
        if verdict.state != "holds":
            console.print(f"[{'yellow' if verdict.state == 'tie' else 'bold red'}]{verdict}[/]")


def as_json(report: Report) -> str:
    """The report for machines: {"benchmark", "machine", "measurements", "bars", "failed"}."""
    bars = [asdict(v.bar) | {"measured": v.measured, "over": v.over, "state": v.state} for v in report.verdicts]
    content = {
        "benchmark": report.what,
        "machine": machine(),
        "measurements": report.measurements,
        "bars": bars,
        "failed": bool(report.failures),
    }
    return json.dumps(content, indent=2, allow_nan=False)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        transformers = version("transformers")
    except PackageNotFoundError:
        transformers = None
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers,
    }


def write_plot(report: Report, path: Path) -> None:
    """Write the report's figure as one HTML file that needs no network."""
    report.figure().write_html(path, include_plotlyjs=True)
