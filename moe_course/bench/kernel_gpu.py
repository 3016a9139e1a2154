"""The part of `moe-course bench kernel` that needs a GPU: the Triton layer timed against other people's.

bf16, GELU experts, forward and backward. Everybody gets the same tokens; scattermoe and megablocks have weights of
their own, and megablocks a router of its own, so only times are compared.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from moe_course.bench.report import Table
from moe_course.bench.timing import interleave, median_ratio
from moe_course.kernels import triton_dispatch
from moe_course.kernels.schedule import Workload
from moe_course.layers import grouped_dispatch, loop_dispatch

BASELINE = "torch, grouped GEMM"
Call = Callable[[], object]


def time_layers(
    workload: Workload, repeats: int, progress: Callable[[str], None], notes: list[str]
) -> list[dict[str, Any]]:
    """Time every layer that is installed at one workload, as ratios to PyTorch's grouped GEMM."""
    progress(f"timing on {torch.cuda.get_device_name(0)}: {workload.name}")
    calls: dict[str, Call] = {}
    for name, build in CONTENDERS.items():
        try:
            call = _synchronised(build(workload))
            call()
        except Exception as error:  # somebody else's package, at a version we have not seen
            notes.append(f"{workload.name}: {name} was left out, because it raised {type(error).__name__}: {error}")
        else:
            calls[name] = call
    samples = interleave(calls, rounds=repeats)
    return [
        {
            "kind": "time",
            "workload": workload.name,
            "layer": name,
            "ratio": median_ratio(samples[name], samples[BASELINE], "wall"),
            "wall_ms": 1000 * sorted(sample.wall for sample in samples[name])[repeats // 2],
        }
        for name in calls
    ]


def timing_table(timings: list[dict[str, Any]]) -> Table:
    """One row a layer, one column a workload."""
    workloads = list(dict.fromkeys(row["workload"] for row in timings))
    cells = {(row["layer"], row["workload"]): f"{row['ratio']:.2f}" for row in timings}
    layers = dict.fromkeys(row["layer"] for row in timings)
    rows = [[layer, *(cells.get((layer, workload), "–") for workload in workloads)] for layer in layers]
    title = f"Time on {torch.cuda.get_device_name(0)}, forward + backward, over {BASELINE} = 1"
    return Table(title, ["", *workloads], rows)


def _synchronised(call: Call) -> Call:
    """The call, waiting for the GPU: else the clock would only see how long the CPU takes to ask."""

    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def _tokens(workload: Workload) -> tuple[Tensor, Tensor, Tensor]:
    """x, expert_ids and expert_weights of a random, balanced router."""
    torch.manual_seed(0)
    x = torch.randn(workload.num_tokens, workload.d_model, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    scores = torch.rand(workload.num_tokens, workload.num_experts, device="cuda")
    weights, ids = scores.topk(workload.top_k)
    return x, ids, weights.softmax(-1).to(x.dtype).requires_grad_()


def _train(forward: Callable[[], Tensor], wanted: list[Tensor]) -> Call:
    cotangent = torch.randn_like(forward())
    return lambda: torch.autograd.grad(forward(), wanted, cotangent, allow_unused=True)


def _ours(dispatch: Callable[..., Tensor]) -> Callable[[Workload], Call]:
    def build(workload: Workload) -> Call:
        x, ids, weights = _tokens(workload)
        shape = (workload.num_experts, workload.d_ff, workload.d_model)
        w_in = torch.randn(shape, device="cuda", dtype=x.dtype) / workload.d_model**0.5
        w_out = torch.randn(shape, device="cuda", dtype=x.dtype).mT.contiguous() / workload.d_ff**0.5
        wanted = [x, weights, w_in.requires_grad_(), w_out.requires_grad_()]
        return _train(lambda: dispatch(x, ids, weights, w_in, w_out, "gelu"), wanted)

    return build


def _scattermoe(workload: Workload) -> Call:
    from scattermoe.mlp import MLP

    x, ids, weights = _tokens(workload)
    sizes = (workload.d_model, workload.d_ff, workload.num_experts, workload.top_k)
    layer = MLP(*sizes, activation=nn.GELU()).to("cuda", x.dtype)
    return _train(lambda: layer(x, weights, ids), [x, weights, *layer.parameters()])


def _megablocks(workload: Workload) -> Call:
    from megablocks.layers.arguments import Arguments
    from megablocks.layers.dmoe import dMoE

    x, _, _ = _tokens(workload)
    arguments = Arguments(
        hidden_size=workload.d_model,
        ffn_hidden_size=workload.d_ff,
        moe_num_experts=workload.num_experts,
        moe_top_k=workload.top_k,
        bias=False,
        return_bias=False,
        fp16=False,
        bf16=True,
    )
    layer = dMoE(arguments).to("cuda", x.dtype)
    first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731
    return _train(lambda: first(layer(x[None])), [x, *layer.parameters()])


CONTENDERS: dict[str, Callable[[Workload], Call]] = {
    BASELINE: _ours(grouped_dispatch),
    "moe_course.kernels": _ours(triton_dispatch),
    "loop over experts": _ours(loop_dispatch),
} | {
    name: build
    for name, build in (("scattermoe", _scattermoe), ("megablocks", _megablocks))
    if find_spec(name) is not None
}
