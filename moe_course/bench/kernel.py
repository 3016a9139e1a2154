"""`moe-course bench kernel`: what the compiler makes of the Triton kernels, and how fast they could be at best.

No GPU is needed: Triton compiles for one that is not there, and the bytes that move follow from the schedule. Where
there is a GPU, the layer is timed on it as well, against other people's.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch

from moe_course.bench.report import Bar, Report, Table, Verdict
from moe_course.kernels.report import CompiledKernel, compile_report, defects
from moe_course.kernels.schedule import WORKLOADS, Routing, Workload, padding_efficiency, random_routing
from moe_course.kernels.traffic import Traffic, runs_at, traffic

if TYPE_CHECKING:  # plotly takes a second to import, and only --plot needs it
    import plotly.graph_objects as go

SIZE_NAMES = tuple(WORKLOADS)

DEFECTS = Bar("configurations with a defect", 0, noise=0)
BYTES = 1.15  # moved, over those that are needed once
TILE_ROWS = 1 / 0.9  # rows of tiles over rows, where arithmetic is the limit


def run(sizes: list[str], repeats: int, progress: Callable[[str], None]) -> Report:
    """Compile all configurations, and estimate at the given sizes, each one of SIZE_NAMES; an empty list means all."""
    workloads = [WORKLOADS[name] for name in sizes or SIZE_NAMES]
    progress("compiling for sm_80 and sm_90: a minute or two the first time")
    kernels = compile_report()
    estimates: list[Traffic] = []
    verdicts = [Verdict(DEFECTS, sum(bool(defects(kernel)) for kernel in kernels))]
    for workload in workloads:
        progress(f"counting bytes: {workload.name}")
        routing = random_routing(workload)
        here = [kernel for kernel in kernels if runs_at(kernel, workload)]
        estimates += [traffic(kernel, workload, routing) for kernel in here]
        verdicts += judge(workload, routing, here, estimates)
    tables = [*_compiled_tables(kernels), *_estimate_tables(estimates)]
    notes = [
        *(f"{k.kernel}, {k.dtype}, {k.config}, {k.target}: {defect}" for k in kernels for defect in defects(k)),
        "Times are lower bounds: tensor cores or memory fully used. They predict nothing, they only exclude.",
    ]
    timings = []
    if torch.cuda.is_available():
        from moe_course.bench.kernel_gpu import time_layers, timing_table

        timings = [row for workload in workloads for row in time_layers(workload, repeats, progress, notes)]
        tables.append(timing_table(timings))
    else:
        notes.append("There is no GPU here, so nothing was timed.")
    measurements = [
        *({"kind": "compiled", **asdict(kernel), "defects": defects(kernel)} for kernel in kernels),
        *({"kind": "estimate", **asdict(estimate), "over_least": estimate.over_least} for estimate in estimates),
        *timings,
    ]
    return Report("kernel", tables, notes, measurements, verdicts, figure=lambda: figure(estimates))


def judge(
    workload: Workload, routing: Routing, kernels: list[CompiledKernel], estimates: list[Traffic]
) -> Iterable[Verdict]:
    """Hold one workload's estimates against their bars: the worst configuration of each kernel counts."""
    worst: dict[tuple[str, str], float] = {}
    for estimate in estimates:
        if estimate.workload == workload.name:
            key = (estimate.kernel, estimate.gpu)
            worst[key] = max(worst.get(key, 0.0), estimate.over_least)
    for (kernel, gpu), ratio in worst.items():
        yield Verdict(Bar(f"{workload.name}, {gpu}, {kernel}: bytes over the least", BYTES, noise=0), ratio)
    if workload is not WORKLOADS["decode"]:  # where weights are the limit, tiles may be empty at no cost
        block_m = next(kernel.blocks["BLOCK_M"] for kernel in kernels if kernel.kernel == "down")
        bar = Bar(f"{workload.name}: rows of tiles over rows", TILE_ROWS, noise=0)
        yield Verdict(bar, 1 / padding_efficiency(routing, block_m))


def _compiled_tables(kernels: list[CompiledKernel]) -> Iterable[Table]:
    columns = ["", "tile", "GPU", "regs", "stack", "KB", "HMMA", "HGMMA", "copies", "stores"]
    for dtype in ("bf16", "fp32", "int32"):
        rows = []
        for k in kernels:
            if k.dtype == dtype:
                # Of a kernel whose machine code was not read, what PTX says.
                copies = k.ptx_async_copies if k.async_copies is None else k.async_copies
                stores = k.ptx_wide_stores if k.wide_stores is None else k.wide_stores
                numbers = (k.registers, k.stack_bytes, k.shared_bytes // 1024, k.mma, k.wgmma, copies, stores)
                rows.append([k.kernel, _short(k.config), k.target, *("–" if n is None else str(n) for n in numbers)])
        yield Table(
            f"Compiled kernels, {dtype}: registers and bytes of stack a thread, KB of shared memory a program, numbers "
            "of tensor-core instructions, asynchronous copies and 16-byte stores",
            columns,
            rows,
        )


def _estimate_tables(estimates: list[Traffic]) -> Iterable[Table]:
    columns = ["", "tile", "GPU", "MB", "over least", "GB to SMs", "µs ≥", "TFLOP/s ≤"]
    for workload in dict.fromkeys(estimate.workload for estimate in estimates):
        rows = [
            [
                e.kernel,
                _short(e.config),
                e.gpu.split()[0],
                f"{e.moved_bytes / 1e6:.0f}",
                f"{e.over_least:.2f}",
                f"{e.loaded_bytes / 1e9:.1f}",
                f"{e.seconds * 1e6:.0f}",
                f"{e.flops / e.seconds / 1e12:.0f}",
            ]
            for e in estimates
            if e.workload == workload
        ]
        yield Table(f"Bytes to and from memory, into the SMs, and the roofline, bf16, {workload}", columns, rows)


def _short(config: str) -> str:
    """A configuration that fits a column: "128×128×64 8w3s"."""
    return config.replace(", ", " ").replace(" warps ", "w").replace(" stages", "s")


def figure(estimates: list[Traffic]) -> "go.Figure":
    """Each GEMM on the roofline of its GPU: arithmetic per byte moved against the speed that it allows."""
    from plotly.subplots import make_subplots

    from moe_course.figures.style import INK, PALETTE
    from moe_course.kernels.traffic import GPUS

    drawn = make_subplots(cols=len(GPUS), subplot_titles=[gpu.name for gpu in GPUS.values()])
    names = list(dict.fromkeys(estimate.workload for estimate in estimates))
    for column, gpu in enumerate(GPUS.values(), start=1):
        ridge = gpu.flops / gpu.bandwidth
        roof = [(i, min(i * gpu.bandwidth, gpu.flops) / 1e12) for i in (1, ridge, 10_000)]
        line = {"color": INK, "dash": "dot"}
        x, y = zip(*roof, strict=True)
        common = {"row": 1, "col": column, "showlegend": column == 1}
        drawn.add_scatter(x=x, y=y, mode="lines", line=line, name="roofline", legendgroup="roof", **common)
        for i, name in enumerate(names):
            here = [e for e in estimates if e.workload == name and e.gpu == gpu.name]
            drawn.add_scatter(
                x=[e.flops / e.moved_bytes for e in here],
                y=[e.flops / e.seconds / 1e12 for e in here],
                text=[f"{e.kernel}, {e.config}" for e in here],
                mode="markers",
                marker={"color": PALETTE[i], "size": 9},
                name=name,
                legendgroup=name,
                **common,
            )
        drawn.update_xaxes(type="log", title="FLOP per byte moved", row=1, col=column)
        drawn.update_yaxes(type="log", title="TFLOP/s at most", row=1, col=column)
    drawn.update_layout(
        title="GEMMs of the Triton kernels on the roofline (upper bounds, not predictions)",
        height=520,
        margin={"t": 96},
        legend={"orientation": "h", "y": -0.2},
        template="moe_course",
    )
    return drawn
