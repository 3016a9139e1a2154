"""Exercise 05.selection_probability: how likely an expert is to be chosen, had its noise been drawn anew."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ...layers import kth_excluding
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, noisy


def selection_probability(clean_logits: Tensor, noisy_logits: Tensor, noise_scale: Tensor, top_k: int) -> Tensor:
    """P(x, i) of Shazeer et al., eq. 9: three tensors (T, E) to probabilities (T, E)."""
    return torch.special.ndtr((clean_logits - kth_excluding(noisy_logits, top_k)) / noise_scale)


def _drawn(num_tokens: int, num_experts: int, top_k: int, training: bool = True) -> Make:
    def make(generator: Generator) -> Inputs:
        noisy_logits, clean_logits, noise_scale = noisy(num_tokens, num_experts, generator)
        return {
            "clean_logits": clean_logits if training else noisy_logits,
            "noisy_logits": noisy_logits,
            "noise_scale": noise_scale,
            "top_k": top_k,
        }

    return make


def _one_token(generator: Generator) -> Inputs:
    return {
        "clean_logits": torch.tensor([[2.0, 1.0, 0.0]]),
        "noisy_logits": torch.tensor([[1.0, 1.5, -0.5]]),
        "noise_scale": torch.tensor([[0.5, 0.5, 0.5]]),
        "top_k": 1,
    }


def _far_apart(generator: Generator) -> Inputs:
    """A gate that is sure: probabilities of 1 and 0."""
    inputs = _drawn(3, 4, 2)(generator)
    return inputs | {name: 50 * inputs[name] for name in ("clean_logits", "noisy_logits")}


def _no_probability(inputs: Inputs, output: Tensor) -> str | None:
    for name, wrong in (("below 0", output < -1e-6), ("above 1", output > 1 + 1e-6)):
        if wrong.any():
            return f"{output[wrong][0].item():.3g} is no probability: it is {name}"
    return None


def _margin(clean_logits: Tensor, noisy_logits: Tensor, noise_scale: Tensor, top_k: int) -> Tensor:
    return (clean_logits - kth_excluding(noisy_logits, top_k)) / noise_scale


def _of_margin(function: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A right margin in units of the noise, then another function than Φ, or the same in other words."""
    return lambda **inputs: function(_margin(**inputs))


def _over(threshold: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """Right but for the threshold, `threshold(clean_logits, noisy_logits, top_k)`."""

    def wrong(clean_logits: Tensor, noisy_logits: Tensor, noise_scale: Tensor, top_k: int) -> Tensor:
        return torch.special.ndtr((clean_logits - threshold(clean_logits, noisy_logits, top_k)) / noise_scale)

    return wrong


def _normal_above(clean_logits: Tensor, noisy_logits: Tensor, noise_scale: Tensor, top_k: int) -> Tensor:
    threshold = kth_excluding(noisy_logits, top_k)
    below = torch.distributions.Normal(clean_logits, noise_scale, validate_args=False).cdf(threshold)
    return 1 - below


SELECTION_PROBABILITY = Exercise(
    id="05.selection_probability",
    entry="selection_probability",
    title="The probability of being chosen",
    points=4,
    difficulty=3,
    minutes=15,
    hints=(
        "Expert i is chosen if its noisy logit, which is normal around its clean logit, beats `kth_excluding` of the "
        "noisy logits. How many standard deviations is it ahead?",
        "A normal variable with mean m and deviation s exceeds c with probability Φ((m - c)/s). Here m is the clean "
        "logit, s the noise scale and c the threshold. `torch.special.ndtr` is Φ.",
        "`torch.special.ndtr((clean_logits - kth_excluding(noisy_logits, top_k)) / noise_scale)`. Everything is a raw "
        "logit: no softmax anywhere.",
    ),
    reference=selection_probability,
    cases=(
        Case("one token, three experts, top-1", _one_token),
        Case("top-2 of five", _drawn(6, 5, 2), grad=("clean_logits", "noisy_logits", "noise_scale")),
        Case("top-1 of four", _drawn(6, 4, 1), grad=("clean_logits",)),
        Case("evaluation: noisy logits are the clean ones", _drawn(5, 4, 2, training=False)),
        Case("a gate that is sure", _far_apart),
        Case("every expert, K = E", _drawn(4, 3, 3)),
        Case("no tokens", _drawn(0, 4, 2)),
    ),
    properties=(Property("probabilities lie between 0 and 1", _no_probability),),
    misconceptions=(
        Misconception(
            "softmaxed-threshold",
            "You compare raw logits with a threshold that went through a softmax. The threshold then lies between 0 "
            "and 1 whatever the logits are, and the probabilities mean nothing. Compare logits with logits.",
            _over(lambda clean, noisy, top_k: kth_excluding(noisy.softmax(-1), top_k)),
        ),
        Misconception(
            "noisy-in-the-numerator",
            "You start from the expert's noisy logit. Its noise is what gets drawn anew, so its mean is the clean "
            "logit. Only the others keep their noise, inside the threshold.",
            lambda clean_logits, noisy_logits, noise_scale, top_k: selection_probability(
                noisy_logits, noisy_logits, noise_scale, top_k
            ),
        ),
        Misconception(
            "clean-threshold",
            "Your threshold comes from the clean logits. The other experts keep the noise they have: take "
            "`kth_excluding` of the noisy logits.",
            _over(lambda clean, noisy, top_k: kth_excluding(clean, top_k)),
        ),
        Misconception(
            "itself-included",
            "Your threshold is the k-th largest of all noisy logits, the expert's own among them. Use `kth_excluding`, "
            "or an expert at the border competes with itself.",
            _over(lambda clean, noisy, top_k: noisy.topk(top_k, dim=-1).values[:, -1:]),
        ),
        Misconception(
            "scale-forgotten",
            "You did not divide by the noise scale. A lead of 1 is safe with a little noise and nothing with a lot: "
            "measure it in standard deviations. Without the division W_noise also gets no gradient from here.",
            lambda clean_logits, noisy_logits, noise_scale, top_k: selection_probability(
                clean_logits, noisy_logits, torch.ones_like(noise_scale), top_k
            ),
        ),
        Misconception(
            "divided-by-the-variance",
            "You divided by the square of the scale. Φ wants the lead in standard deviations, not in variances.",
            lambda clean_logits, noisy_logits, noise_scale, top_k: selection_probability(
                clean_logits, noisy_logits, noise_scale.square(), top_k
            ),
        ),
        Misconception(
            "sigmoid-for-phi",
            "You used a sigmoid. It has the same shape and other numbers: noise from a normal distribution asks for "
            "its own distribution function, Φ, which is `torch.special.ndtr`.",
            _of_margin(torch.sigmoid),
        ),
        Misconception(
            "erf-without-root-two",
            "Φ(z) is (1 + erf(z/√2))/2, and the √2 is missing. Or use `torch.special.ndtr`.",
            _of_margin(lambda z: (1 + torch.erf(z)) / 2),
        ),
        Misconception(
            "the-wrong-tail",
            "These are the probabilities of *not* being chosen. The more an expert leads, the likelier it is: Φ of "
            "(clean - threshold), in this order.",
            _of_margin(lambda z: torch.special.ndtr(-z)),
        ),
        Misconception(
            "zero-or-one",
            "You report who was chosen, 0 or 1. That has no gradient, and giving the load a gradient is the whole "
            "purpose: return the probability.",
            lambda clean_logits, noisy_logits, noise_scale, top_k: (
                noisy_logits > kth_excluding(noisy_logits, top_k)
            ).to(clean_logits.dtype),
        ),
    ),
    alternatives=(
        _normal_above,
        _of_margin(lambda z: (1 + torch.erf(z / 2**0.5)) / 2),
        _of_margin(lambda z: torch.special.erfc(-z / 2**0.5) / 2),
    ),
)
