"""`moe-course bench batch`: a small notebook over many seeds, run by us, by a shell loop and by a pool of processes.

Each round starts every contestant once, in processes of its own, so that all it needs counts: interpreters, imports,
kernels, what it writes. The shell loop does LOOP_RUNS a round only, for each run of it starts from nothing.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat

from moe_course.bench.batch_once import LOOP, ONE_BY_ONE, OURS, POOL
from moe_course.bench.report import Bar, Report, Table, Verdict

if TYPE_CHECKING:  # plotly takes a second to import, and only --plot needs it
    import plotly.graph_objects as go

SIZES = {"8": 8, "32": 32}  # runs
SIZE_NAMES = tuple(SIZES)
LOOP_RUNS = 4

LOOP_BAR = Bar("time of a run over the shell loop's", 1 / 15)
POOL_BAR = Bar("time of a run over the process pool's", 1 / 6)
OVERHEAD_BAR = Bar("seconds between the end of a run and the start of the next", 0.1)
MEMORY_BAR = Bar("peak memory of the batch, 32 runs over 8", 1.1, noise=0)

CELLS = [
    "seed: int = 0  # of the weights and the data",
    "import torch\nimport torch.nn.functional as F",
    """\
torch.manual_seed(seed)
net = torch.nn.Sequential(torch.nn.Linear(16, 64), torch.nn.GELU(), torch.nn.Linear(64, 16))
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
for _ in range(30):
    x = torch.randn(64, 16)
    loss = F.mse_loss(net(x), x.roll(1, 1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()""",
    "print(f'loss {loss.item():.4f}')",
]

Measurement = dict[str, Any]


def run(sizes: list[str], repeats: int, progress: Callable[[str], None]) -> Report:
    """Run batches of the given sizes, each one of SIZE_NAMES; an empty list means all."""
    sizes = sorted(sizes or SIZE_NAMES, key=SIZES.__getitem__)
    contestants = [(OURS, SIZES[name]) for name in sizes] + [(ONE_BY_ONE, SIZES[sizes[0]])]
    contestants += [(LOOP, LOOP_RUNS), (POOL, SIZES[sizes[-1]])]
    measurements: list[Measurement] = []
    with tempfile.TemporaryDirectory() as scratch:
        for round_ in range(1, repeats + 1):
            for who, runs in contestants:
                progress(f"round {round_} of {repeats}: {who}, {runs} runs")
                measurements.append(_measure(who, runs, Path(scratch), round_))
    return _present(measurements)


def _measure(who: str, runs: int, scratch: Path, round_: int) -> Measurement:
    """One contestant, in a process of its own that tells what it used."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    write_notebook(folder)
    script = Path(__file__).with_name("batch_once.py")  # as a file: the package spares jsonschema a slow import
    done = subprocess.run([sys.executable, script, who, folder, str(runs)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{who} failed: {(done.stderr or done.stdout)[-2000:]}")
    losses = sorted(_loss(path) for path in (folder / "out").glob("**/*.ipynb"))
    if len(losses) != runs or "" in losses:
        raise RuntimeError(f"{who} was to make {runs} notebooks with a loss each and made {losses}")
    measured = {"who": who, "runs": runs, "round": round_} | json.loads(done.stdout.splitlines()[-1])
    return measured | {"losses": losses}


def write_notebook(folder: Path) -> None:
    """Write the small notebook, and a sweep over its seed without saying how many."""
    cells = [nbformat.v4.new_code_cell(source, id=f"cell-{number}") for number, source in enumerate(CELLS)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "small.ipynb")


def _loss(path: Path) -> str:
    outputs = nbformat.read(path, as_version=4).cells[-1].outputs
    return next((output.text.strip() for output in outputs if output.output_type == "stream"), "")


def _present(measurements: list[Measurement]) -> Report:
    rows = []
    for who, runs in dict.fromkeys((m["who"], m["runs"]) for m in measurements):
        wall, cpu = (statistics.median(_each(measurements, who, runs, what)) for what in ("wall", "cpu"))
        against = statistics.median(_each(measurements, LOOP, LOOP_RUNS, "wall")) / wall
        rows.append([f"{who}, {runs} runs", f"{wall:.2f}", f"{cpu:.2f}", f"{against:.1f}×"])
    rounds = max(m["round"] for m in measurements)
    title = f"A small notebook that imports torch and trains for 30 steps: medians of {rounds} round(s)"
    return Report(
        what="batch",
        tables=[Table(title, ["", "wall s a run", "CPU s a run", "speed, loop = 1"], rows)],
        notes=[
            f"The shell loop ran {LOOP_RUNS} notebooks a round: each of its runs starts from nothing.",
            "All start-up counts, ours and theirs. Ratios are of the same round; only they mean something on a "
            "machine that others use.",
        ],
        measurements=measurements,
        verdicts=list(_judge(measurements)),
        figure=lambda: _figure(measurements),
    )


def _judge(measurements: list[Measurement]) -> list[Verdict]:
    sizes = sorted({m["runs"] for m in measurements if m["who"] == OURS})
    ours = _each(measurements, OURS, sizes[-1], "wall")
    verdicts = []
    for bar, who, runs in ((LOOP_BAR, LOOP, LOOP_RUNS), (POOL_BAR, POOL, sizes[-1])):
        theirs = _each(measurements, who, runs, "wall")
        verdicts.append(Verdict(bar, statistics.median(a / b for a, b in zip(ours, theirs, strict=True))))
    between = statistics.median(m["between"] for m in measurements if m["who"] == ONE_BY_ONE)
    verdicts.append(Verdict(OVERHEAD_BAR, between))
    if len(sizes) == len(SIZES):
        few, many = (
            statistics.median(m["peak_bytes"] for m in measurements if (m["who"], m["runs"]) == (OURS, runs))
            for runs in sizes
        )
        verdicts.append(Verdict(MEMORY_BAR, many / few))
    return verdicts


def _each(measurements: list[Measurement], who: str, runs: int, what: str) -> list[float]:
    """Seconds a run, round by round."""
    return [m[what] / runs for m in measurements if (m["who"], m["runs"]) == (who, runs)]


def _figure(measurements: list[Measurement]) -> "go.Figure":
    """Wall time of one run, on a logarithmic axis."""
    import plotly.graph_objects as go

    from moe_course.figures.style import PALETTE

    kinds = list(dict.fromkeys((m["who"], m["runs"]) for m in measurements))
    seconds = [statistics.median(_each(measurements, *kind, "wall")) for kind in kinds]
    labels = [f"{who}, {runs} runs" for who, runs in kinds]
    drawn = go.Figure(go.Bar(x=seconds, y=labels, orientation="h", marker={"color": PALETTE[0]}))
    drawn.update_xaxes(type="log", title="wall seconds a run")
    drawn.update_yaxes(title="who runs the notebooks", autorange="reversed")
    drawn.update_layout(title="Running a small notebook: time of one run", template="moe_course", height=360)
    return drawn
