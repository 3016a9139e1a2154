"""Exercise 09.gradient_noise: how much of an expert's gradient is the luck of the batch."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make, normal


def gradient_noise(gradients: Tensor) -> Tensor:
    """Gradients (N, E, P) of E experts from N batches to noise over signal, (E,); inf where no signal is seen."""
    noise = gradients.var(dim=0).sum(-1)  # trace of the covariance of one batch's gradient
    signal = gradients.mean(dim=0).square().sum(-1) - noise / len(gradients)
    return torch.where(signal > 0, noise / signal.clamp(min=torch.finfo(signal.dtype).tiny), torch.inf)


def _experts(num_batches: int, num_parameters: int, *noises: float, starved: tuple[int, ...] = ()) -> Make:
    """One expert for each noise: every batch's gradient is the same vector plus noise of that size."""

    def make(generator: Generator) -> Inputs:
        signal = normal(generator, len(noises), num_parameters)
        signal = signal / signal.norm(dim=-1, keepdim=True)
        each = normal(generator, num_batches, len(noises), num_parameters) / num_parameters**0.5
        gradients = signal + torch.tensor(noises)[:, None] * each
        gradients[:, list(starved)] = 0
        return {"gradients": gradients}

    return make


def _by_hand(generator: Generator) -> Inputs:
    """Two batches. Expert 0: (2, 0), (4, 0). Expert 1: the same in both. The seed scales all of it."""
    size = 1 + torch.rand((), generator=generator)
    return {"gradients": size * torch.tensor([[[2.0, 0.0], [1.0, 1.0]], [[4.0, 0.0], [1.0, 1.0]]])}


def _by_squares(gradients: Tensor) -> Tensor:
    num_batches = gradients.shape[0]
    mean = gradients.mean(0, keepdim=True)
    noise = (gradients - mean).pow(2).sum((0, 2)) / (num_batches - 1)
    signal = mean.pow(2).sum((0, 2)) - noise / num_batches
    ratio = noise / signal
    return ratio.masked_fill(~(signal > 0), float("inf"))


def _expert_by_expert(gradients: Tensor) -> Tensor:
    ratios = []
    for each in gradients.unbind(1):
        noise = torch.cov(each.T).diagonal().sum()
        signal = each.mean(0).dot(each.mean(0)) - noise / len(each)
        ratios.append(noise / signal if signal > 0 else torch.full_like(noise, torch.inf))
    return torch.stack(ratios)


def _ratio(noise: Tensor, signal: Tensor) -> Tensor:
    return torch.where(signal > 0, noise / signal.clamp(min=torch.finfo(signal.dtype).tiny), torch.inf)


def _parts(gradients: Tensor, correction: int = 1) -> tuple[Tensor, Tensor]:
    """Noise and signal, (E,) each; the signal without its correction."""
    return gradients.var(dim=0, correction=correction).sum(-1), gradients.mean(dim=0).square().sum(-1)


def _from(combine: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[[Tensor], Tensor]:
    """`combine(noise, uncorrected signal, N)`."""
    return lambda gradients: combine(*_parts(gradients), len(gradients))


def _mean_of_norms(gradients: Tensor) -> Tensor:
    noise, _ = _parts(gradients)
    return _ratio(noise, gradients.square().sum(-1).mean(0) - noise / len(gradients))


def _over_n(gradients: Tensor) -> Tensor:
    noise, signal = _parts(gradients, correction=0)
    return _ratio(noise, signal - noise / len(gradients))


def _one_for_all(gradients: Tensor) -> Tensor:
    noise, signal = (part.sum() for part in _parts(gradients))
    return _ratio(noise, signal - noise / len(gradients)).expand(gradients.shape[1])


GRADIENT_NOISE = Exercise(
    id="09.gradient_noise",
    entry="gradient_noise",
    title="Noise of an expert's gradient",
    points=3,
    difficulty=2,
    minutes=15,
    hints=(
        "Average over the batches what stays, and measure what changes. Which of the two is the mean gradient, and "
        "which is the variance around it?",
        "Noise: `var` over the batches, with N − 1, summed over the parameters. Signal: the squared length of the "
        "*mean* gradient; but a mean of N noisy gradients is long by noise / N even without any signal: subtract it.",
        "`noise = gradients.var(dim=0).sum(-1)`; `signal = gradients.mean(dim=0).square().sum(-1) - noise / "
        "len(gradients)`; `torch.where(signal > 0, noise / signal, torch.inf)`.",
    ),
    reference=gradient_noise,
    cases=(
        Case("two batches, two experts", _by_hand),
        Case("from quiet to loud", _experts(40, 12, 0.1, 0.5, 1.0, 2.0)),
        Case("few batches", _experts(4, 200, 0.5, 1.0)),
        Case("a starved expert", _experts(20, 10, 0.5, 1.0, 0.8, starved=(1,))),
        Case("noise that hides the signal", _experts(3, 300, 40.0, 0.4)),
    ),
    misconceptions=(
        Misconception(
            "signal-not-corrected",
            "Your signal is the squared length of the mean gradient as it is. The mean of N noisy gradients is "
            "noise / N too long, so that pure noise seems to have a signal. Subtract it.",
            _from(lambda noise, signal, n: _ratio(noise, signal)),
        ),
        Misconception(
            "mean-of-the-squares",
            "Your signal is the mean of the gradients' squared lengths. That contains the noise: average the "
            "gradients first, then take the length.",
            _mean_of_norms,
        ),
        Misconception(
            "divided-by-n",
            "Your variance divides by N. The mean was estimated from the same batches: divide by N − 1, which is what "
            "`var` does by default.",
            _over_n,
        ),
        Misconception(
            "root-of-the-ratio",
            "You took the root of the ratio. Asked for are squares, noise and signal alike: then twice the tokens "
            "halve it.",
            _from(lambda noise, signal, n: _ratio(noise, signal - noise / n).sqrt()),
        ),
        Misconception(
            "signal-over-noise",
            "You divided the signal by the noise. It is the noise that is large for a starved expert.",
            _from(lambda noise, signal, n: torch.where(signal > noise / n, (signal - noise / n) / noise, 0.0)),
        ),
        Misconception(
            "mean-over-parameters",
            "You averaged the variances over the parameters but summed the squares of the mean. Sum both: else the "
            "ratio depends on how many parameters an expert has.",
            lambda gradients: _ratio(
                gradients.var(dim=0).mean(-1), _parts(gradients)[1] - _parts(gradients)[0] / len(gradients)
            ),
        ),
        Misconception(
            "all-experts-together",
            "You computed one number for all experts. The busy ones then hide the starved.",
            _one_for_all,
        ),
        Misconception(
            "nan-for-the-starved",
            "An expert without gradient gives 0/0, NaN, and one whose noise hides the signal a negative number. "
            "Nothing is known of their signal: return infinity for both.",
            _from(lambda noise, signal, n: noise / (signal - noise / n)),
        ),
    ),
    alternatives=(_by_squares, _expert_by_expert),
)
