"""`moe-course bench grade`: a class of 100 answering lesson 02, graded by us and by nbgrader's autograde.

Both get the same notebooks. nbgrader runs a notebook from top to bottom in a kernel of its own; ours runs the answers.
Each round grades in fresh processes, one after the other, so that all they need counts: interpreter, torch, sandbox.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_course.bench.grade_class import hand_in
from moe_course.bench.report import Bar, Report, Table, Verdict

if TYPE_CHECKING:  # plotly takes a second to import, and only --plot needs it
    import plotly.graph_objects as go

SIZES = {"20": 20, "100": 100}  # students
SIZE_NAMES = tuple(SIZES)
NBGRADER_STUDENTS = 3  # of them that nbgrader grades each round: it takes seconds for one
OURS, THEIRS = "moe-course grade", "nbgrader autograde"

RATE_BAR = Bar("CPU seconds a submission, class of 100 (300 a minute and core)", 60 / 300)
PEER_BAR = Bar("CPU time of a submission over nbgrader's", 1 / 8)
MEMORY_BAR = Bar("peak memory, class of 100 over class of 20", 1.1, noise=0)

Measurement = dict[str, Any]


def run(sizes: list[str], repeats: int, progress: Callable[[str], None]) -> Report:
    """Grade classes of the given sizes, each one of SIZE_NAMES; an empty list means all."""
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in sizes or SIZE_NAMES:
            hand_in(Path(scratch) / name, SIZES[name])
        contestants = [(OURS, name) for name in sizes or SIZE_NAMES] + [(THEIRS, (sizes or SIZE_NAMES)[-1])]
        for round_ in range(1, repeats + 1):
            for who, name in contestants:
                progress(f"round {round_} of {repeats}: {who}, {name} students")
                measurements.append(_measure(who, name, Path(scratch), round_))
    return _present(measurements)


def _measure(who: str, name: str, scratch: Path, round_: int) -> Measurement:
    """One contestant grading one class, in a process of its own that tells what it used."""
    students = NBGRADER_STUDENTS if who == THEIRS else SIZES[name]
    command = [sys.executable, "-m", "moe_course.bench.grade_once", who, str(scratch / name), str(students)]
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run([*command, out], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{who} failed: {done.stderr[-2000:]}")
    return {"who": who, "size": name, "round": round_, "students": students} | json.loads(done.stdout.splitlines()[-1])


def _present(measurements: list[Measurement]) -> Report:
    rows = []
    for who, name in dict.fromkeys((m["who"], m["size"]) for m in measurements):
        cpu = _median(measurements, who, name, "cpu")
        peak = _median(measurements, who, name, "peak_bytes") / 1e6
        students = next(m["students"] for m in measurements if (m["who"], m["size"]) == (who, name))
        rate = f"{60 * students / cpu:.0f}"
        rows.append([f"{who}, {students} graded", f"{cpu / students:.3f}", rate, f"{peak:.0f}"])
    columns = ["", "CPU s a submission", "a minute and core", "peak MB of one process"]
    return Report(
        what="grade",
        tables=[Table("Lesson 02, six exercises: start-up included", columns, rows)],
        notes=[
            "nbgrader runs whole notebooks, training included, which is how it knows an answer; ours runs the answers.",
            "Its scores are those of the checks' visible inputs, ours those of inputs drawn afresh.",
        ],
        measurements=measurements,
        verdicts=list(_judge(measurements)),
        figure=lambda: _figure(measurements),
    )


def _judge(measurements: list[Measurement]) -> list[Verdict]:
    sizes = list(dict.fromkeys(m["size"] for m in measurements if m["who"] == OURS))
    largest = sizes[-1]
    ours = _each(measurements, OURS, largest)
    theirs = _each(measurements, THEIRS, largest)
    verdicts = [Verdict(PEER_BAR, statistics.median(a / b for a, b in zip(ours, theirs, strict=True)))]
    if largest == "100":
        verdicts.insert(0, Verdict(RATE_BAR, statistics.median(ours)))
    if len(sizes) == len(SIZES):
        peaks = [_median(measurements, OURS, name, "peak_bytes") for name in ("100", "20")]
        verdicts.append(Verdict(MEMORY_BAR, peaks[0] / peaks[1]))
    return verdicts


def _each(measurements: list[Measurement], who: str, name: str) -> list[float]:
    """CPU seconds a submission, round by round."""
    return [m["cpu"] / m["students"] for m in measurements if (m["who"], m["size"]) == (who, name)]


def _median(measurements: list[Measurement], who: str, name: str, what: str) -> float:
    return float(statistics.median(m[what] for m in measurements if (m["who"], m["size"]) == (who, name)))


def _figure(measurements: list[Measurement]) -> "go.Figure":
    """CPU time of one submission, on a logarithmic axis."""
    import plotly.graph_objects as go

    from moe_course.figures.style import PALETTE

    kinds = list(dict.fromkeys((m["who"], m["size"]) for m in measurements))
    labels = [f"{who}, {name} students" for who, name in kinds]
    seconds = [statistics.median(_each(measurements, *kind)) for kind in kinds]
    drawn = go.Figure(go.Bar(x=seconds, y=labels, orientation="h", marker={"color": PALETTE[0]}))
    drawn.update_xaxes(type="log", title="CPU seconds a submission")
    drawn.update_yaxes(title="grader and size of the class", autorange="reversed")
    drawn.update_layout(title="Grading lesson 02: CPU time of one submission", template="moe_course", height=360)
    return drawn
