"""`ExpertMonitor` watches where a model's tokens go while it trains, without a change to the model.

with ExpertMonitor(model) as monitor:
    for step, batch in enumerate(batches):
        train_step(model, batch)
        if step % 100 == 99:
            print(monitor)
            monitor.reset()
"""

import html
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.module_tracker import ModuleTracker

from moe_course.layers import Routing, max_violation


@dataclass(frozen=True)
class LayerLoad:
    """What one MoE layer did since the last reset.

    Attributes:
        layer: name of the module in the model.
        tokens: tokens that were routed.
        tokens_per_expert: choices that fell on each expert; they sum to tokens · K.
        max_violation: MaxVio of these loads, 0 when even.
        dead_experts: experts that no token chose.
        router_entropy: mean entropy of a token's probabilities, as a share of ln E: 0 decided, 1 undecided.
        dropped: choices that found no room at their expert; None where no routing says so.
    """

    layer: str
    tokens: int
    tokens_per_expert: tuple[int, ...]
    max_violation: float
    dead_experts: tuple[int, ...]
    router_entropy: float
    dropped: int | None

    @property
    def busiest_share(self) -> float:
        """Share of the choices that fell on the busiest expert; 0 where there were none."""
        return max(self.tokens_per_expert) / max(sum(self.tokens_per_expert), 1)


class ExpertMonitor:
    """Loads, MaxVio, dead experts, router entropy and dropped tokens of every MoE layer of a model.

    A layer is any module that returns a `Routing`, alone or in a tuple. Where several modules hand on the same
    routing, as a router does to its layer, it counts once, under the name of the innermost.

    - Loads add up until `reset()`: over the micro-batches of gradient accumulation, and over steps.
    - Only calls in training mode count, or with `training=False` only those in evaluation mode.
    - What activation checkpointing computes a second time, in the backward pass, does not count again.
    - Memory is E + 3 numbers a layer, however long it runs. They stay on the layer's device until you ask.
    - `torch.compile` works, with a graph break after each router. Make the monitor before the first compiled call.
    - Padding counts as any token does. In distributed training each process sees its own tokens.

    Dropped choices appear where a routing has an attribute `dropped`, a Boolean mask (T, K) of the choices that found
    no slot, as that of a `CapacityRouter` (lesson 07). Loads are what was wanted, dropped choices included.

    Args:
        model: watched until `close()`, or to the end of the `with` block.
        training: watch the model in training (True) or in evaluation (False).
    """

    def __init__(self, model: nn.Module, *, training: bool = True) -> None:
        self._training = training
        self._sums: dict[str, _Sums] = {}
        self._seen: dict[int, _Seen] = {}
        # Torch's own modules compute no routing; a hook on each of them would only cost time.
        self._handles = [
            module.register_forward_hook(self._hook(name.replace("_orig_mod.", ""), module))
            for name, module in model.named_modules()
            if not type(module).__module__.startswith("torch.")
        ]

    def layers(self) -> list[LayerLoad]:
        """One row for each MoE layer that was called since the last reset, in the order of their first calls."""
        return [sums.row(name) for name, sums in self._sums.items()]

    def reset(self) -> None:
        """Forget all counts and keep watching."""
        self._sums.clear()
        self._seen.clear()

    def close(self) -> None:
        """Stop watching; the counts stay."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> "ExpertMonitor":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        header, *rows = self._table()
        if not rows:
            return f"ExpertMonitor: no MoE layer was called in {'training' if self._training else 'evaluation'} mode"
        widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)
        ]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        header, *rows = self._table()
        if not rows:
            return html.escape(repr(self))
        head = "".join(f"<th style='text-align: left'>{cell}</th>" for cell in header)
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align: left'>{html.escape(cell)}</td>" for cell in row) + "</tr>"
            for row in rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _table(self) -> list[list[str]]:
        layers = self.layers()
        some_dropped = any(layer.dropped is not None for layer in layers)
        table = [["layer", "tokens", "load of each expert", "busiest", "MaxVio", "dead experts", "router entropy"]]
        table[0] += ["dropped"] if some_dropped else []
        for layer in layers:
            dead = ", ".join(map(str, layer.dead_experts[:8])) + (", …" if len(layer.dead_experts) > 8 else "")
            row = [layer.layer, f"{layer.tokens:,}".replace(",", " "), _bars(layer.tokens_per_expert)]
            row += [f"{layer.busiest_share:.0%}", f"{layer.max_violation:.2f}", dead or "none"]
            row += [f"{layer.router_entropy:.2f}"]
            row += [f"{(layer.dropped or 0) / max(sum(layer.tokens_per_expert), 1):.1%}"] if some_dropped else []
            table.append(row)
        return table

    def _hook(self, name: str, watched: nn.Module) -> Callable[[nn.Module, Any, Any], None]:
        def after_forward(module: nn.Module, _inputs: Any, output: Any) -> None:
            # Counted as written, not compiled. As a decorator, `disable` would import dynamo, 1.5 s, in every process.
            count = torch.compiler.disable(self._count) if torch.compiler.is_compiling() else self._count
            for part in output if isinstance(output, tuple) else (output,):
                if isinstance(part, Routing):
                    count(name, watched, module, part)

        return after_forward

    @torch.no_grad()
    def _count(self, name: str, watched: nn.Module, module: nn.Module, routing: Routing) -> None:
        # A deep copy of the model, such as a moving average of its weights, copies the hook as well.
        if module is not watched or module.training != self._training:
            return
        # A forward pass inside a backward pass is activation checkpointing at work: these tokens were counted.
        if ModuleTracker().is_bw:
            return
        # The same logits are the same decision, however many modules return it.
        key = id(routing.logits)
        seen = self._seen.get(key)
        if seen is None:
            label = name or type(module).__name__
            sums = self._sums.setdefault(label, _Sums())
            sums.add(routing)
            forget = weakref.ref(routing.logits, lambda _: self._seen.pop(key, None))
            seen = self._seen[key] = _Seen(forget, sums)
        dropped = getattr(routing, "dropped", None)
        if dropped is not None and not seen.dropped_counted:
            seen.sums.dropped = dropped.sum() + (0 if seen.sums.dropped is None else seen.sums.dropped)
            seen.dropped_counted = True


@dataclass
class _Seen:
    """A decision that was counted. It is forgotten when its logits are: ids of dead objects are used again."""

    logits: weakref.ref[Tensor]
    sums: "_Sums"
    dropped_counted: bool = False


class _Sums:
    """What is kept of one layer. Sums are made anew, not changed in place: inference mode allows nothing else."""

    def __init__(self) -> None:
        self.tokens = 0
        self.counts: Tensor | None = None  # (E,)
        self.entropy: Tensor | float = 0.0  # mean over the tokens so far, in nats
        self.dropped: Tensor | None = None

    def add(self, routing: Routing) -> None:
        num_tokens, num_experts = routing.probs.shape
        chosen = routing.expert_ids.flatten()
        # scatter_add, not bincount, which makes the CPU wait for the GPU.
        counts = chosen.new_zeros(num_experts).scatter_add(0, chosen, torch.ones_like(chosen))
        self.counts = counts if self.counts is None else self.counts + counts
        self.tokens += num_tokens
        if num_tokens:
            # Sigmoid scores need not sum to 1.
            probs = routing.probs / routing.probs.sum(dim=-1, keepdim=True)
            mean = torch.special.entr(probs).sum(dim=-1).mean()
            self.entropy = self.entropy + (mean - self.entropy) * (num_tokens / self.tokens)

    def row(self, name: str) -> LayerLoad:
        assert self.counts is not None
        counts = self.counts.cpu()
        return LayerLoad(
            layer=name,
            tokens=self.tokens,
            tokens_per_expert=tuple(counts.tolist()),
            max_violation=float(max_violation(counts)),
            dead_experts=tuple((counts == 0).nonzero().flatten().tolist()),
            router_entropy=float(self.entropy) / math.log(len(counts)) if len(counts) > 1 else 0.0,
            dropped=None if self.dropped is None else int(self.dropped),
        )


def _bars(loads: tuple[int, ...]) -> str:
    """The loads as a row of blocks, the busiest expert's a full one and a dead expert's a dot."""
    if len(loads) > 64:
        return f"{len(loads)} experts"
    heights = "▁▂▃▄▅▆▇█"
    most = max(*loads, 1)
    return "".join(heights[math.ceil(load / most * len(heights)) - 1] if load else "·" for load in loads)
