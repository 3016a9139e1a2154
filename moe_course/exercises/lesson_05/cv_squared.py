"""Exercise 05.cv_squared: how uneven a list of numbers is, whatever its scale."""

import torch
from torch import Generator, Tensor

from ...layers import cv_squared
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make


def _values(*values: float) -> Make:
    """The same values in an order drawn anew."""

    def make(generator: Generator) -> Inputs:
        order = torch.rand(len(values), generator=generator).argsort()
        return {"values": torch.tensor(values)[order]}

    return make


def _drawn(num_experts: int, scale: float) -> Make:
    return lambda generator: {"values": scale * (0.1 + torch.rand(num_experts, generator=generator))}


def _out_of_bounds(inputs: Inputs, output: Tensor) -> str | None:
    value, most = output.item(), len(inputs["values"]) - 1
    if -1e-4 <= value <= most + 1e-3:
        return None
    return f"{value:.4g} is not within 0 and E - 1 = {most}, where one expert has everything"


def _by_shares(values: Tensor, eps: float = 1e-10) -> Tensor:
    mean = values.mean()
    return (values.square().mean() - mean * mean).clamp(min=0) / (mean * mean + eps)


def _by_deviations(values: Tensor, eps: float = 1e-10) -> Tensor:
    mean = values.sum() / len(values)
    return ((values - mean) ** 2).sum() / len(values) / (mean**2 + eps)


def _sample_variance(values: Tensor, eps: float = 1e-10) -> Tensor:
    return values.var() / (values.mean() ** 2 + eps)


CV_SQUARED = Exercise(
    id="05.cv_squared",
    entry="cv_squared",
    title="Uneven, in one number",
    points=2,
    difficulty=1,
    minutes=6,
    hints=(
        "Variance over the square of the mean. Both are over all E values.",
        "Divide the squared deviations by E, not by E - 1: these are all the experts there are, not a sample of them. "
        "`values.var(correction=0)` does so.",
        "`values.var(correction=0) / (values.mean() ** 2 + eps)`. With `eps` outside the square, an empty batch "
        "gives 0/eps = 0.",
    ),
    reference=cv_squared,
    cases=(
        Case("three quarters and one quarter", _values(3.0, 1.0)),
        Case("all equal", _values(2.0, 2.0, 2.0)),
        Case("one expert", _drawn(1, 5.0)),
        Case("one expert has everything", _values(0.0, 6.0, 0.0, 0.0)),
        Case("eight experts", _drawn(8, 1.0), grad=("values",)),
        Case("eight experts, a large batch", _drawn(8, 1000.0)),
        Case("an empty batch: all zeros", _values(0.0, 0.0, 0.0)),
    ),
    properties=(Property("between 0 and E - 1", _out_of_bounds),),
    misconceptions=(
        Misconception(
            "not-squared",
            "You returned the coefficient of variation itself, σ/μ. The loss uses its square, which is smooth where "
            "all are equal; the root has no gradient there.",
            lambda values, eps=1e-10: values.std(correction=0) / (values.mean() ** 2 + eps).sqrt(),
        ),
        Misconception(
            "variance-of-a-sample",
            "You divided the squared deviations by E - 1, which is what `var()` does unless told otherwise. With one "
            "expert that is 0/0. The E experts are all there are: `var(correction=0)`.",
            _sample_variance,
        ),
        Misconception(
            "mean-not-squared",
            "You divided the variance by the mean instead of its square. Then the number grows with the batch: twice "
            "as many tokens, twice the loss.",
            lambda values, eps=1e-10: values.var(correction=0) / (values.mean() + eps),
        ),
        Misconception(
            "variance-alone",
            "This is the variance. It grows with the square of the batch size; divided by the square of the mean, it "
            "does not depend on it.",
            lambda values, eps=1e-10: values.var(correction=0),
        ),
        Misconception(
            "nothing-over-nothing",
            "With an empty batch your mean is 0 and you return 0/0, a NaN that would spread through the model. Add "
            "`eps` to the denominator.",
            lambda values, eps=1e-10: values.var(correction=0) / values.mean() ** 2,
        ),
        Misconception(
            "max-over-mean",
            "You compared the largest value with the mean. That is a good number to report, but its gradient reaches "
            "only one expert. The loss needs the variance, which moves all of them.",
            lambda values, eps=1e-10: values.max() / (values.mean() + eps),
        ),
    ),
    alternatives=(_by_shares, _by_deviations),
)
