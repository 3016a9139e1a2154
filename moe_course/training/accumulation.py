"""Gradient accumulation that gives the gradient of the whole step, its balance loss included.

The loss of the task is a mean over tokens, so it falls apart into micro-batches, if each counts by its share of the
*step's* tokens. The balance loss E · Σ_i f_i · P_i is a product of two means and does not fall apart, unless one of
them is known beforehand. f needs no gradient, so a first pass without autograd can count it; then the loss is linear
in P.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moe_course.layers import Routing, load_fraction, mean_probability

Forward = Callable[[Tensor], tuple[Tensor, Sequence[Routing]]]


@dataclass(frozen=True)
class StepLoss:
    """The losses of one step; its gradient is in the parameters.

    Attributes:
        task: mean over the tokens of the step.
        balance: mean over the layers, each over all tokens of the step; α is not in it.
    """

    task: float
    balance: float


def accumulate(forward: Forward, micro_batches: Sequence[Tensor], *, balance_weight: float) -> StepLoss:
    """Backpropagate the loss of a step, one micro-batch at a time, with the gradient of one large batch.

    Costs a second forward pass, which must route as the first one does: no dropout or router noise before or in a
    router, unless seeded alike.

    Args:
        forward: micro-batch → the mean loss of its tokens, and the routing of each MoE layer.
        micro_batches: those of one step; sizes may differ.
        balance_weight: α.

    Returns:
        The losses of the step. Its gradient is added to what the parameters have.

    Raises:
        ValueError: there is no micro-batch, or no MoE layer.
    """
    if not micro_batches:
        raise ValueError("micro_batches is empty; pass at least one")
    fractions, shares = count_first(forward, micro_batches)
    task = balance = 0.0
    for micro_batch, share in zip(micro_batches, shares, strict=True):
        loss, routings = forward(micro_batch)
        parts = [balance_part(routing, f) for routing, f in zip(routings, fractions, strict=True)]
        part = torch.stack(parts).mean()
        (share * (loss + balance_weight * part)).backward()  # type: ignore[no-untyped-call]
        task += share * loss.item()
        balance += share * part.item()
    return StepLoss(task, balance)


@torch.no_grad()
def count_first(forward: Forward, micro_batches: Sequence[Tensor]) -> tuple[list[Tensor], list[float]]:
    """A pass without autograd over the micro-batches of a step.

    Returns:
        f of each layer over all of them, each (E,), and the share of each in the step's tokens.

    Raises:
        ValueError: there is no MoE layer.
    """
    passes = [forward(micro_batch)[1] for micro_batch in micro_batches]
    if not passes[0]:
        raise ValueError("forward returned no routing; a model without MoE layers has no balance loss to accumulate")
    sizes = [len(routings[0].probs) for routings in passes]
    fractions = [
        load_fraction(torch.cat([routing.expert_ids for routing in layer]), layer[0].logits.shape[-1])
        for layer in zip(*passes, strict=True)
    ]
    return fractions, [size / max(sum(sizes), 1) for size in sizes]


def balance_part(routing: Routing, fraction: Tensor) -> Tensor:
    """E · Σ_i f_i · P_i with P of some tokens and the f of the step that they belong to."""
    mean = mean_probability(routing.probs)
    return len(fraction) * (fraction.to(mean.dtype) * mean).sum()
