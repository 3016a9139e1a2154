"""What `bench layer` measured, as tables, verdicts, remarks and a figure."""

import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from moe_course.bench.peers import DENSE, OURS, has_transformers
from moe_course.bench.report import Bar, Report, Table, Verdict
from moe_course.bench.targets import FORWARD, MEMORY_BARS, PEER_BARS, SCALING, SIZES, TIME_BARS, TRAIN

if TYPE_CHECKING:  # plotly takes a second to import, and only --plot needs it
    import plotly.graph_objects as go

Measurement = dict[str, Any]


def present(measurements: list[Measurement]) -> Report:
    """Turn measurements into a report."""
    return Report(
        what="layer",
        tables=list(_tables(measurements)),
        notes=list(_notes(measurements)),
        measurements=measurements,
        verdicts=list(judge(measurements)),
        figure=lambda: figure(measurements),
    )


def judge(measurements: list[Measurement]) -> Iterable[Verdict]:
    """Hold our layer's measurements against the bars of their sizes."""
    for m in measurements:
        if m["kind"] == "time" and m["layer"] == OURS["gelu"] and m["mode"] == TRAIN:
            yield Verdict(TIME_BARS[m["size"]], m["cpu_ratio"])
        if m["kind"] == "time" and "over_transformers" in m and m["size"] in SIZES:
            yield Verdict(PEER_BARS[m["size"], m["mode"], m["activation"]], m["over_transformers"])
        if m["kind"] == "memory" and m["layer"] == OURS["gelu"]:
            yield Verdict(MEMORY_BARS[m["size"]], m["over_minimum"])


def _tables(measurements: list[Measurement]) -> Iterable[Table]:
    times = [m for m in measurements if m["kind"] == "time"]
    for mode in (TRAIN, FORWARD):
        rows = [m for m in times if m["mode"] == mode and m["size"] in SIZES]
        bars = TIME_BARS if mode == TRAIN else {}
        yield from _pivot(f"CPU time, {mode}: dense FFN of equal active FLOPs = 1", rows, "cpu_ratio", bars)
        ours = [m for m in rows if m["layer"] in OURS.values()]
        yield from _pivot(f"The same on the clock, {mode}", ours, "wall_ratio", {})
    rows = [m for m in times if m["size"] in SCALING]
    yield from _pivot(
        "CPU time as experts are added, forward + backward: constant active compute", rows, "cpu_ratio", TIME_BARS
    )
    rows = [m | {"MB": m["bytes"] / 1e6} for m in measurements if m["kind"] == "memory"]
    yield from _pivot("MB saved for backward, without input and weights", rows, "MB", {}, digits=0)
    yield from _pivot("The same over its minimum, the pre-activations", rows, "over_minimum", MEMORY_BARS)


def _pivot(
    title: str, measurements: list[Measurement], value: str, bars: dict[str, Bar], digits: int = 2
) -> Iterable[Table]:
    """One row a layer, one column a size, and the bars below; nothing for no measurements."""
    if not measurements:
        return
    sizes = list(dict.fromkeys(m["size"] for m in measurements))
    cells = {(m["layer"], m["size"]): f"{m[value]:.{digits}f}" for m in measurements}
    names = dict.fromkeys(m["layer"] for m in measurements)
    rows = [[name, *(cells.get((name, size), "–") for size in sizes)] for name in names]
    if bars:
        rows.append(["bar", *(f"{bars[size].limit:.{digits}f}" for size in sizes)])
    if any(bar.stretch for bar in bars.values() if bar in [bars[size] for size in sizes]):
        rows.append(["stretch", *(f"{bars[size].stretch:.{digits}f}" for size in sizes)])
    yield Table(title, ["", *sizes], rows)


def _notes(measurements: list[Measurement]) -> Iterable[str]:
    times = [m for m in measurements if m["kind"] == "time"]
    waits = statistics.median(m["wall_ms"] / m["cpu_ms"] for m in times)
    busy = "" if waits < 1.1 else ": other processes wanted the CPU, so trust the CPU time"
    yield f"Time on the clock was {waits:.2f} × CPU time{busy}."
    if not has_transformers():
        yield "transformers is not installed, so its rows are missing; pip install 'moe-course\\[hf]' adds them."


def figure(measurements: list[Measurement]) -> "go.Figure":
    """Ratios at each size, and as experts are added; GELU experts, forward + backward. No data, no panel."""
    from plotly.subplots import make_subplots

    from moe_course.figures.style import PALETTE

    shown = [m for m in measurements if m["kind"] == "time" and m["mode"] == TRAIN and m["activation"] == "gelu"]
    panels = {
        "Cost at each size": [m for m in shown if m["size"] in SIZES],
        "Cost as experts are added": [m for m in shown if m["size"] in SCALING],
    }
    panels = {title: rows for title, rows in panels.items() if rows}
    layers = [name for name in dict.fromkeys(m["layer"] for m in shown) if name != DENSE["gelu"]]
    drawn = make_subplots(cols=len(panels), subplot_titles=list(panels))
    for column, rows in enumerate(panels.values(), start=1):
        _draw_bars_to_clear(drawn, column, list(dict.fromkeys(m["size"] for m in rows)))
        for i, layer in enumerate(layers):
            points = {m["size"]: m["cpu_ratio"] for m in rows if m["layer"] == layer}
            _draw(drawn, column, layer, PALETTE[i % len(PALETTE)], points)
        drawn.add_hline(y=1, line={"color": PALETTE[-1], "dash": "dot"}, row=1, col=column)
        ticks = [1, 1.5, 2, 3, 5, 10, 20, 50]
        drawn.update_yaxes(type="log", tickvals=ticks, title="CPU time, dense FFN = 1", row=1, col=column)
    drawn.update_layout(
        title="MoE layers against the dense FFN of equal active FLOPs, forward + backward, one thread",
        height=560,
        margin={"t": 96},
        legend={"orientation": "h", "y": -0.2},
        template="moe_course",
    )
    return drawn


def _draw(drawn: "go.Figure", column: int, layer: str, colour: str, points: dict[str, float]) -> None:
    """One layer in one panel: bars by size, or a line over the number of experts."""
    common: dict[str, Any] = dict(name=layer, legendgroup=layer, showlegend=column == 1, row=1, col=column)
    y = list(points.values())
    if points.keys() <= SCALING.keys():
        x = [SCALING[size].num_experts for size in points]
        drawn.add_scatter(x=x, y=y, line={"color": colour}, **common)
        axis = {"title": "experts (2 per token)", "type": "log", "tickvals": x if len(x) > 3 else None}
        drawn.update_xaxes({key: value for key, value in axis.items() if value}, row=1, col=column)
    else:
        drawn.add_bar(x=list(points), y=y, marker={"color": colour}, **common)
        drawn.update_xaxes(title="size", type="category", row=1, col=column)


def _draw_bars_to_clear(drawn: "go.Figure", column: int, sizes: list[str]) -> None:
    """What MoELayer should cost: hollow bars next to its own, or ticks around its line."""
    from moe_course.figures.style import INK

    y = [TIME_BARS[size].limit for size in sizes]
    common: dict[str, Any] = dict(name="bar to clear", y=y, legendgroup="bar", row=1, col=column)
    common["showlegend"] = column == 1
    if sizes[0] in SIZES:
        hollow = {"color": "rgba(0, 0, 0, 0)", "line": {"width": 1.5, "color": INK}}
        drawn.add_bar(x=sizes, marker=hollow, **common)
    else:
        tick = {"symbol": "line-ew", "size": 26, "line": {"width": 2, "color": INK}}
        x = [SCALING[size].num_experts for size in sizes]
        drawn.add_scatter(x=x, mode="markers", marker=tick, **common)
