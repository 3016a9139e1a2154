"""A training loop small enough to trust: AdamW, one learning-rate schedule, losses measured on text held out."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

WARM_UP = 0.1  # share of the steps


@dataclass
class Curve:
    """Losses along one run.

    Attributes:
        steps: optimiser steps taken at each point.
        losses: held-out loss at each point.
        seconds: time spent in training steps alone, evaluations left out.
    """

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def train(
    model: nn.Module,
    loss: Callable[[nn.Module, Tensor], Tensor],
    batches: Iterable[Tensor],
    held_out: Tensor,
    *,
    steps: int,
    learning_rate: float,
    points: int = 5,
) -> Curve:
    """Train `model` in place and return its held-out losses.

    The learning rate rises over the first WARM_UP of the steps and falls to zero on a cosine. So compare
    runs at their last point: before it, a run with more steps still has a larger rate.

    Args:
        model: starts from the parameters it has.
        loss: (model, batch) → scalar.
        batches: at least `steps` of them.
        held_out: one batch that is never trained on.
        steps: optimiser steps.
        learning_rate: AdamW's largest rate.
        points: how many times to evaluate, at equal distances, the last after the last step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: _rise_and_fall((done + 1) / steps))
    measured_at = {round(steps * (point + 1) / points) for point in range(points)}
    curve = Curve()
    for step, batch in zip(range(1, steps + 1), batches, strict=False):
        start = time.perf_counter()
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
        schedule.step()
        curve.seconds += time.perf_counter() - start
        if step in measured_at:
            curve.steps.append(step)
            curve.losses.append(_evaluate(model, loss, held_out))
    return curve


def _rise_and_fall(progress: float) -> float:
    """The learning rate after a share of the steps, as a share of the largest."""
    return (
        progress / WARM_UP if progress < WARM_UP else (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP))) / 2
    )


@torch.no_grad()
def _evaluate(model: nn.Module, loss: Callable[[nn.Module, Tensor], Tensor], held_out: Tensor) -> float:
    was_training = model.training
    model.eval()
    value = loss(model, held_out).item()
    model.train(was_training)
    return value
