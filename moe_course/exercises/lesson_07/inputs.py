"""Inputs for the cases of this lesson: choices that crowd at the first experts, and what wrong answers are made of."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

Inputs = dict[str, Any]
Make = Callable[[Generator], Inputs]


def choices(
    num_tokens: int, num_experts: int, top_k: int, generator: Generator, without: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Random expert_ids (T, K), distinct in a row, early experts favoured, and weights (T, K), the largest first.

    Args:
        without: experts that no token chooses.
    """
    logits = torch.randn(num_tokens, num_experts, generator=generator) + torch.linspace(0.8, -0.8, num_experts)
    logits[:, list(without)] -= 20.0
    best = logits.topk(top_k, dim=-1)
    # Weights of different tokens are as good as never equal, and their rows do not sum to 1.
    weights = best.values.softmax(dim=-1) * (0.7 + 0.3 * torch.rand(num_tokens, 1, generator=generator))
    return best.indices, weights


def other_layout(tensor: Tensor) -> Tensor:
    """The same values, not contiguous."""
    return tensor.T.contiguous().T


def first_choices_first(expert_ids: Tensor) -> Tensor:
    """The queue: all first choices, then all second ones, (K·T,)."""
    return expert_ids.T.flatten()


def count_along(queue: Tensor, num_experts: int) -> Tensor:
    """How many entries before each one of a queue name the same expert."""
    chosen = F.one_hot(queue, num_experts)
    return (chosen.cumsum(0) - 1).gather(1, queue[:, None]).squeeze(1)


def along_order(expert_ids: Tensor, num_experts: int, order: Tensor) -> Tensor:
    """Positions (T, K) when the choices of `first_choices_first` are served in `order`, a permutation of them."""
    position = torch.empty_like(order)
    position[order] = count_along(first_choices_first(expert_ids)[order], num_experts)
    return as_choices(position, expert_ids)


def as_choices(position: Tensor, expert_ids: Tensor) -> Tensor:
    """Positions in the order of `first_choices_first` back to (T, K)."""
    return position.view(expert_ids.shape[1], -1).T


def token_by_token(expert_ids: Tensor, num_experts: int) -> Tensor:
    """Positions (T, K) when a token's K choices are served together, before the next token's."""
    return count_along(expert_ids.flatten(), num_experts).view_as(expert_ids)


def queue_per_choice(expert_ids: Tensor, num_experts: int) -> Tensor:
    """Positions (T, K) when first, second, … choices have queues of their own."""
    return torch.stack([count_along(column, num_experts) for column in expert_ids.unbind(1)], dim=1)
