"""Exercise 09.scaled_start: weights whose variance is a scale over the fan-in."""

from collections.abc import Callable

from torch import Generator, Tensor

from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make, normal


def scaled_start(noise: Tensor, scale: float) -> Tensor:
    """Draws of variance 1, (…, fan_out, fan_in), to weights of variance scale / fan_in."""
    return noise * (scale / noise.shape[-1]) ** 0.5


def _weight(scale: float, *shape: int) -> Make:
    def make(generator: Generator) -> Inputs:
        return {"noise": normal(generator, *shape), "scale": scale}

    return make


def _by_division(noise: Tensor, scale: float) -> Tensor:
    fan_in = noise.size(-1)
    return noise * scale**0.5 / fan_in**0.5


def _by_std(noise: Tensor, scale: float) -> Tensor:
    return noise.mul(pow(scale / noise.shape[noise.dim() - 1], 0.5))


def _std(std: Callable[[Tensor, float], float]) -> Callable[..., Tensor]:
    return lambda noise, scale: noise * std(noise, scale)


SCALED_START = Exercise(
    id="09.scaled_start",
    entry="scaled_start",
    title="A small start",
    points=2,
    difficulty=1,
    minutes=6,
    hints=(
        "If you multiply a random number by c, what happens to its variance?",
        "The factor is a standard deviation, the square root of scale / fan_in. fan_in is the number of inputs of "
        "*one* matrix: the last dimension, also where several matrices are stacked.",
        "`return noise * (scale / noise.shape[-1]) ** 0.5`.",
    ),
    reference=scaled_start,
    cases=(
        Case("a router, scale 0.1", _weight(0.1, 8, 16), grad=("noise",)),
        Case("a router, scale 1", _weight(1.0, 4, 32)),
        Case("three stacked experts, scale 0.1", _weight(0.1, 3, 10, 6)),
        Case("one expert more than inputs, scale 2", _weight(2.0, 5, 4)),
        Case("scale 0", _weight(0.0, 4, 4)),
    ),
    misconceptions=(
        Misconception(
            "scale-of-the-standard-deviation",
            "You multiplied the standard deviation by the scale. It is the variance that is scaled: with 0.1 the "
            "weights shrink by √10 = 3.2, not by 10.",
            _std(lambda noise, scale: scale / noise.shape[-1] ** 0.5),
        ),
        Misconception(
            "root-missing",
            "You multiplied by scale / fan_in, the variance. The factor is its square root.",
            _std(lambda noise, scale: scale / noise.shape[-1]),
        ),
        Misconception(
            "root-of-the-scale-only",
            "You took the root of the scale but divided by the whole fan_in: √scale / fan_in. The root goes over both.",
            _std(lambda noise, scale: scale**0.5 / noise.shape[-1]),
        ),
        Misconception(
            "fan-out",
            "You divided by the number of outputs. What adds up in a logit are its inputs: the last dimension.",
            _std(lambda noise, scale: (scale / noise.shape[-2]) ** 0.5),
        ),
        Misconception(
            "fan-in-of-the-stack",
            "For stacked experts you counted rows times columns as the fan-in, as `nn.init.kaiming_uniform_` does. "
            "Each expert is a matrix of its own; its fan-in is the last dimension.",
            _std(
                lambda noise, scale: (scale / noise[0].numel() if noise.dim() == 3 else scale / noise.shape[-1]) ** 0.5
            ),
        ),
        Misconception(
            "average-of-fans",
            "You divided by the mean of fan-in and fan-out, as Glorot does. Here it is the fan-in alone.",
            _std(lambda noise, scale: (scale / (0.5 * (noise.shape[-1] + noise.shape[-2]))) ** 0.5),
        ),
        Misconception(
            "scale-forgotten",
            "Your weights have variance 1 / fan_in whatever the scale is.",
            _std(lambda noise, scale: noise.shape[-1] ** -0.5),
        ),
    ),
    alternatives=(_by_division, _by_std),
)
