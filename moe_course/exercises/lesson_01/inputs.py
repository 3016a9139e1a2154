"""Tokens, weights and sizes for the cases of this lesson."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator

Inputs = dict[str, Any]
Make = Callable[[Generator], Inputs]


def weighted_tokens(
    *tokens: int,
    d_model: int,
    d_ff: int,
    rows_in: int = 1,
    scale: float = 1.5,
    dtype: torch.dtype = torch.float32,
    transposed: bool = False,
) -> Make:
    """Tokens x (…, D), w_in (rows_in · F, D) and w_out (D, F).

    Args:
        *tokens: leading dimensions of x; none for a single vector.
        d_model, d_ff: D and F.
        rows_in: 2 for SwiGLU, whose w_in holds two matrices.
        scale: standard deviation of the hidden values before the activation.
        dtype: of all three.
        transposed: x is not contiguous in memory.
    """

    def make(generator: Generator) -> Inputs:
        x = torch.randn(*tokens, d_model, generator=generator)
        w_in = torch.randn(rows_in * d_ff, d_model, generator=generator) * scale / d_model**0.5
        w_out = torch.randn(d_model, d_ff, generator=generator) / d_ff**0.5
        x = x.mT.contiguous().mT if transposed else x
        return {"x": x.to(dtype), "w_in": w_in.to(dtype), "w_out": w_out.to(dtype)}

    return make


def draw(generator: Generator, low: int, high: int) -> int:
    """A whole number, low ≤ n < high."""
    return int(torch.randint(low, high, (), generator=generator))
