"""Exercise 05.jitter_input: Switch's noise, which multiplies what the router sees."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make


def jitter_input(x: Tensor, uniform: Tensor, jitter: float, training: bool) -> Tensor:
    """Multiply each feature by its own factor within 1 ± jitter: x and uniform (T, D) to (T, D)."""
    return x * (1 - jitter + 2 * jitter * uniform) if training else x.clone()


def _tokens(*shape: int, jitter: float = 0.1, training: bool = True) -> Make:
    def make(generator: Generator) -> Inputs:
        return {
            "x": 1 + torch.randn(shape, generator=generator),
            "uniform": torch.rand(shape, generator=generator),
            "jitter": jitter,
            "training": training,
        }

    return make


def _corners(generator: Generator) -> Inputs:
    """Lowest, middle and nearly highest draw."""
    return {
        "x": torch.tensor([[2.0, 2.0, 2.0, -2.0]]),
        "uniform": torch.tensor([[0.0, 0.5, 1.0, 1.0]]),
        "jitter": 0.1,
        "training": True,
    }


def _out_of_bounds(inputs: Inputs, output: Tensor) -> str | None:
    x, allowed = inputs["x"], inputs["jitter"] * inputs["training"]
    change = ((output - x).abs() / x.abs()).max().item() if x.numel() else 0.0
    if change <= allowed + 1e-3:
        return None
    return f"a feature changed by {change:.1%}; {allowed:.0%} is the most"


def _factor(factor: Callable[[Tensor, float], Tensor], always: bool = False) -> Callable[..., Tensor]:
    """x times `factor(uniform, jitter)`, in training or always."""

    def answer(x: Tensor, uniform: Tensor, jitter: float, training: bool) -> Tensor:
        return x * factor(uniform, jitter) if training or always else x

    return answer


def _in_place(x: Tensor, uniform: Tensor, jitter: float, training: bool) -> Tensor:
    return x.mul_(1 - jitter + 2 * jitter * uniform) if training else x


JITTER_INPUT = Exercise(
    id="05.jitter_input",
    entry="jitter_input",
    title="Switch's input jitter",
    points=2,
    difficulty=1,
    minutes=7,
    hints=(
        "A factor for each feature, and x times the factors. In evaluation x comes back as it is.",
        "`uniform` runs from 0 to 1. Stretch it by 2·jitter and shift it so that it runs from 1 - jitter to "
        "1 + jitter.",
        "`x * (1 - jitter + 2 * jitter * uniform)` if `training`, else `x`. No `*=`: the experts still need x.",
    ),
    reference=jitter_input,
    cases=(
        Case("the ends and the middle", _corners),
        Case("training", _tokens(5, 4), grad=("x",)),
        Case("a batch of sequences", _tokens(2, 3, 4)),
        Case("Switch's own size, 0.01", _tokens(5, 4, jitter=0.01)),
        Case("evaluation", _tokens(5, 4, training=False), grad=("x",)),
        Case("no tokens", _tokens(0, 4)),
    ),
    properties=(Property("no feature changes by more than the jitter", _out_of_bounds),),
    misconceptions=(
        Misconception(
            "jitter-in-evaluation",
            "You disturb the input in evaluation, too. Noise is for training; an evaluated router must give the same "
            "answer each time.",
            _factor(lambda uniform, jitter: 1 - jitter + 2 * jitter * uniform, always=True),
        ),
        Misconception(
            "added-not-multiplied",
            "You added noise. Switch multiplies: a feature changes in proportion to its size, and a zero stays zero.",
            lambda x, uniform, jitter, training: x + (2 * uniform - 1) * jitter if training else x,
        ),
        Misconception(
            "upwards-only",
            "Your factors run from 1 to 1 + jitter, so every feature grows. They should lie evenly on both sides of 1.",
            _factor(lambda uniform, jitter: 1 + jitter * uniform),
        ),
        Misconception(
            "half-the-width",
            "Your factors run from 1 - jitter/2 to 1 + jitter/2. The whole range is 2·jitter wide.",
            _factor(lambda uniform, jitter: 1 - jitter / 2 + jitter * uniform),
        ),
        Misconception(
            "factor-without-the-one",
            "You multiplied by the noise itself, which is near 0, so the router sees next to nothing. The factor is 1 "
            "plus or minus a little.",
            _factor(lambda uniform, jitter: (2 * uniform - 1) * jitter),
        ),
        Misconception(
            "one-factor-for-a-token",
            "You multiplied all features of a token by one factor. That stretches the token without turning it, so "
            "every logit grows alike and no choice ever changes. Each feature needs a factor of its own.",
            _factor(lambda uniform, jitter: 1 - jitter + 2 * jitter * uniform[..., :1]),
        ),
        Misconception(
            "jittered-in-place",
            "You changed x in place. The experts get the same tensor and would work on the disturbed tokens; only the "
            "router may see them. Write `x * factor`, not `x *= factor`.",
            _in_place,
        ),
    ),
    alternatives=(
        _factor(
            lambda uniform, jitter: torch.lerp(torch.tensor(1 - jitter), torch.tensor(1 + jitter), uniform.float())
        ),
        lambda x, uniform, jitter, training: x + x * jitter * (2 * uniform - 1) * training,
    ),
)
