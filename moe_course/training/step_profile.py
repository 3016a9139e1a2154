"""Where the time of a training step goes: by part of the model, forward and backward, and by kind of work.

PyTorch's profiler lists operations. Here each is charged to the part of the model that it belongs to: in the forward
pass to the innermost part that runs, in the backward pass to the part whose forward pass made the autograd node. The
profiler gives both the same sequence number.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from moe_course.layers import DenseFFN, Experts, Router

PART, STEP = "part: ", "step: "  # names of the ranges set here
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "_grouped_mm"}
MOVES = {"index_select", "index_add_", "index_add", "index", "gather", "scatter", "scatter_add", "sort", "argsort",
         "bincount", "cumsum", "_index_put_impl_", "index_put_", "index_copy_"}  # fmt: skip
NODE = "autograd::engine::evaluate_function: "
REST = "the rest"


class Cost(NamedTuple):
    """Time of one kind of work in one part of the model, in one phase of a training step.

    Attributes:
        part: "attention", "dense FFN", "router", "experts", "optimizer" or "the rest".
        phase: "forward", "backward" or "update".
        kind: "matrix products", "moving tokens" or "other".
        milliseconds: in one step.
    """

    part: str
    phase: str
    kind: str
    milliseconds: float


def profile_step(step: Callable[[], Any], model: nn.Module, *, repeats: int = 5) -> list[Cost]:
    """Time a training step on the CPU, by part, phase and kind.

    Args:
        step: forward pass, backward pass and update; it is run once before anything is measured.
        model: whose modules are the parts.
        repeats: steps measured. Of each kind of operation the least time counts: others use the machine as well.

    Returns:
        A row for each part, phase and kind. Python code between the modules is in none of them.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler says on stderr that it starts and stops
    step()
    with _marks(model), profile(activities=[ProfilerActivity.CPU]) as profiler:
        for repeat in range(repeats):
            with record_function(f"{STEP}{repeat}"):
                step()
    times: defaultdict[tuple[str, ...], dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for repeat_name, part, phase, event in _charged(profiler.events()):
        times[part, phase, _kind(event), event.name][repeat_name] += event.self_cpu_time_total / 1000
    costs: defaultdict[tuple[str, ...], float] = defaultdict(float)
    for (part, phase, kind, _), of_step in times.items():
        costs[part, phase, kind] += min(of_step.values())
    return [Cost(part, phase, kind, costs[part, phase, kind]) for part, phase, kind in sorted(costs)]


def part_of(module: nn.Module) -> str | None:
    """The part of the model that a module is, or None if it only holds others."""
    for kind, part in ((Router, "router"), (Experts, "experts"), (DenseFFN, "dense FFN")):
        if isinstance(module, kind):
            return part
    return "attention" if "Attention" in type(module).__name__ else None


@contextmanager
def _marks(model: nn.Module) -> Iterator[None]:
    """Every forward pass of a part stands in a profiler range of its name, while the block runs."""
    handles = []
    for module in model.modules():
        part = part_of(module)
        if part is None:
            continue
        open_ranges: list[record_function] = []

        def begin(_module: nn.Module, _inputs: Any, part: str = part, ranges: list[Any] = open_ranges) -> None:
            ranges.append(record_function(PART + part))
            ranges[-1].__enter__()

        def end(_module: nn.Module, _inputs: Any, _output: Any, ranges: list[Any] = open_ranges) -> None:
            ranges.pop().__exit__(None, None, None)

        handles += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _charged(events: list[FunctionEvent]) -> Iterator[tuple[str, str, str, FunctionEvent]]:
    """(step, part, phase, event) of every event within a step."""
    maker: dict[int, str] = {}  # the part that made an autograd node, by its sequence number
    for event in sorted(events, key=lambda event: event.time_range.start):
        chain = list(_ancestors(event))
        names = [each.name for each in chain]
        step = next((name for name in names if name.startswith(STEP)), None)
        part = next((name.removeprefix(PART) for name in names if name.startswith(PART)), None)
        node = next((each for each in chain if each.name.startswith(NODE)), None)
        if step is None or event.name == step:
            continue
        if any(name.startswith("Optimizer.") for name in names):
            yield step, "optimizer", "update", event
        elif node is not None:
            # A part inside a node is activation checkpointing at work, which computes it again.
            yield step, part or maker.get(node.sequence_nr, REST), "backward", event
        else:
            # Every operation peeks at the number of the next node; the last one that sees it makes the node.
            maker[event.sequence_nr] = part or REST
            yield step, part or REST, "forward", event


def _ancestors(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """The event itself, what called it, and so on."""
    at: FunctionEvent | None = event
    while at is not None:
        yield at
        at = at.cpu_parent


def _kind(event: FunctionEvent) -> str:
    name = event.name.removeprefix("aten::")
    if name in PRODUCTS:
        return "matrix products"
    return "moving tokens" if name in MOVES else "other"
