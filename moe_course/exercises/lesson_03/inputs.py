"""Inputs for the cases of this lesson: tokens, choices of experts and stacked weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

Inputs = dict[str, Any]
Make = Callable[[Generator], Inputs]


def stacked_weights(
    num_experts: int, d_model: int, d_ff: int, generator: Generator, transposed: bool = False
) -> tuple[Tensor, Tensor]:
    """w_in (E, F, D) and w_out (E, D, F), each matrix scaled to its fan-in.

    Args:
        transposed: not contiguous: each expert's matrices are stored the other way round.
    """

    def weight(rows: int, columns: int) -> Tensor:
        drawn = torch.randn(num_experts, rows, columns, generator=generator) * columns**-0.5
        return drawn.mT.contiguous().mT if transposed else drawn

    return weight(d_ff, d_model), weight(d_model, d_ff)


def choices(
    num_tokens: int, num_experts: int, top_k: int, generator: Generator, without: tuple[int, ...] = ()
) -> tuple[Tensor, Tensor]:
    """Random expert_ids (T, K), distinct in a row, and expert_weights (T, K), whose rows do not sum to 1.

    Args:
        without: experts that no token chooses.
    """
    scores = torch.rand(num_tokens, num_experts, generator=generator)
    scores[:, list(without)] = -1.0
    expert_ids = scores.argsort(dim=-1, descending=True)[:, :top_k].contiguous()
    return expert_ids, torch.rand(num_tokens, top_k, generator=generator) * 0.6 + 0.2
