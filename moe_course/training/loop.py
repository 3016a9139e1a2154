"""One training run in one call: `Trainer` without its folder, and losses measured on text held out."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from moe_course.training.trainer import Trainer


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

    The learning rate rises over the first tenth of the steps and falls to zero on a cosine. So compare
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
    trainer = Trainer(
        model,
        loss,
        batches,
        steps=steps,
        learning_rate=learning_rate,
        clip=None,
        evaluate=lambda model: {"loss": loss(model, held_out)},
        evaluations=points,
        seed=None,
        progress=False,
    )
    history = trainer.fit()
    return Curve(
        [int(row["step"]) for row in history.evaluations],
        [row["loss"] for row in history.evaluations],
        sum(row["seconds"] for row in history.steps),
    )
