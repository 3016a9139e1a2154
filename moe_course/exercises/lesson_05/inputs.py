"""Inputs for the cases of this lesson: logits far enough apart that no rounding changes a choice."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

Inputs = dict[str, Any]
Make = Callable[[Generator], Inputs]


def spread(*shape: int, generator: Generator, gap: float = 0.5) -> Tensor:
    """Rows of values, no two in a row closer than 0.6·gap, each row about a level of its own."""
    ranks = torch.rand(shape, generator=generator).argsort(dim=-1)
    jitter = 0.4 * torch.rand(shape, generator=generator)
    level = torch.randn(*shape[:-1], 1, generator=generator) - 0.25 * shape[-1]
    return gap * (ranks + jitter) + level


def noisy(num_tokens: int, num_experts: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy logits, far enough apart, the clean logits that they came from, and the scale of the noise."""
    noisy_logits = spread(num_tokens, num_experts, generator=generator)
    noise_scale = 0.4 + torch.rand(num_tokens, num_experts, generator=generator)
    noise = torch.randn(num_tokens, num_experts, generator=generator)
    return noisy_logits, noisy_logits - noise * noise_scale, noise_scale
