"""Inputs for the cases of this lesson: routers with favourites, and padding that would change every mean."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

Inputs = dict[str, Any]
Make = Callable[[Generator], Inputs]


def skewed_logits(num_tokens: int, num_experts: int, generator: Generator, unused: tuple[int, ...] = ()) -> Tensor:
    """(T, E): early experts are favoured, no two logits of a token are closer than 0.25, `unused` ones come last."""
    ranks = torch.rand(num_tokens, num_experts, generator=generator) + torch.linspace(0.3, 0, num_experts)
    ranks[:, list(unused)] -= 2.0
    order = ranks.argsort(dim=-1).argsort(dim=-1)
    level = torch.randn(num_tokens, 1, generator=generator)
    return order * 0.4 + torch.rand(num_tokens, num_experts, generator=generator) * 0.15 + level


def padding(num_tokens: int, padded: int, generator: Generator) -> Tensor:
    """A mask (T,), False for `padded` tokens somewhere."""
    return torch.rand(num_tokens, generator=generator).argsort() >= padded


def pad_logits(logits: Tensor, token_mask: Tensor) -> Tensor:
    """Logits whose padded rows all lean strongly to the last expert, as rows of one repeated token would."""
    lean = torch.linspace(-2, 2, logits.shape[-1])
    return torch.where(token_mask[:, None], logits, lean + 0.1 * logits)


def routed(
    num_tokens: int, num_experts: int, top_k: int, padded: int | None = None, unused: tuple[int, ...] = ()
) -> Callable[[Generator], tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """Draws logits, their softmax, the ids of the K best experts, and a mask (None without padding)."""

    def make(generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        logits = skewed_logits(num_tokens, num_experts, generator, unused)
        token_mask = None
        if padded is not None:
            token_mask = padding(num_tokens, padded, generator)
            logits = pad_logits(logits, token_mask)
        return logits, logits.softmax(dim=-1), logits.topk(top_k, dim=-1).indices, token_mask

    return make


# What misconceptions and alternatives are made of.


def keep_of(token_mask: Tensor | None, rows: Tensor) -> Tensor:
    """1 for the tokens that count, 0 for padding, (T,), in the dtype of `rows`."""
    return rows.new_ones(len(rows)) if token_mask is None else token_mask.to(rows.dtype)


def fraction_of(expert_ids: Tensor, num_experts: int, keep: Tensor) -> Tensor:
    """The number of choices of each expert over that of tokens, (E,); sums to K."""
    one_hot = torch.nn.functional.one_hot(expert_ids, num_experts).sum(1).to(keep.dtype)
    return (one_hot * keep[:, None]).sum(0) / keep.sum().clamp(min=1)


def mean_of(rows: Tensor, keep: Tensor) -> Tensor:
    """The mean of the rows that count; zeros where none does."""
    return (rows * keep[:, None]).sum(0) / keep.sum().clamp(min=1)
