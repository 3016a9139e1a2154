"""Where the time of a training step goes: by part of the model, forward and backward, and by kind of work.

PyTorch's profiler lists operations. Here each is charged to the part of the model that it belongs to: in the forward
pass to the innermost part that runs, in the backward pass to the part whose forward pass made the autograd node. The
profiler gives both the same sequence number.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from moe_course.layers import DenseFFN, Experts, Router

PART = "part: "  # begins the names of the ranges set here
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
    """Time a training step on the CPU, by part, phase and kind; see `profile_steps`."""
    return profile_steps({"": (step, model)}, repeats=repeats)[""]


def profile_steps(
    steps: Mapping[str, tuple[Callable[[], Any], nn.Module]], *, repeats: int = 5
) -> dict[str, list[Cost]]:
    """Time the training steps of several models on the CPU, in turn, by part, phase and kind.

    Args:
        steps: for each name a step, which is forward pass, backward pass and update, and the model whose modules are
            the parts. Each is run once before anything is measured.
        repeats: rounds. Of each operation the least time counts: others use the machine as well.

    Returns:
        For each name a row for each part, phase and kind. Python code between the modules is in none of them.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler says on stderr that it starts and stops
    least: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in steps}
    for step, _ in steps.values():
        step()
    for _ in range(repeats):
        for name, (step, model) in steps.items():
            with _marks(model), profile(activities=[ProfilerActivity.CPU]) as profiler:
                step()
            met: Counter[tuple[str, ...]] = Counter()
            for part, phase, event in _charged(profiler.events()):
                operation = (part, phase, _kind(event), event.name)
                key = (*operation, str(met[operation]))  # the same operation of every round, as far as they agree
                met[operation] += 1
                milliseconds = event.self_cpu_time_total / 1000
                least[name][key] = min(milliseconds, least[name].get(key, milliseconds))
    return {name: _summed(of_name) for name, of_name in least.items()}


def _summed(times: Mapping[tuple[str, ...], float]) -> list[Cost]:
    costs: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for (part, phase, kind, *_), milliseconds in times.items():
        costs[part, phase, kind] += milliseconds
    return [Cost(*key, milliseconds) for key, milliseconds in sorted(costs.items())]


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


def _charged(events: list[FunctionEvent]) -> Iterator[tuple[str, str, FunctionEvent]]:
    """(part, phase, event) of every event."""
    maker: dict[int, str] = {}  # the part that made an autograd node, by its sequence number
    for event in sorted(events, key=lambda event: event.time_range.start):
        chain = list(_ancestors(event))
        names = [each.name for each in chain]
        part = next((name.removeprefix(PART) for name in names if name.startswith(PART)), None)
        node = next((each for each in chain if each.name.startswith(NODE)), None)
        if any(name.startswith("Optimizer.") for name in names):
            yield "optimizer", "update", event
        elif node is not None:
            # A part inside a node is activation checkpointing at work, which computes it again.
            yield part or maker.get(node.sequence_nr, REST), "backward", event
        else:
            # Every operation peeks at the number of the next node; the last one that sees it makes the node.
            if event.sequence_nr >= 0:
                maker[event.sequence_nr] = part or REST
            yield part or REST, "forward", event


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
