"""Logits for the cases of this lesson: no accidental ties, whatever the seed and the dtype."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator

Inputs = dict[str, Any]
Make = Callable[[Generator], Inputs]


def spread_logits(*shape: int, dtype: torch.dtype = torch.float32, transposed: bool = False, **arguments: Any) -> Make:
    """Logits of which no two in a row are closer than 0.3, each row about a level of its own.

    Args:
        *shape: (…, E).
        dtype: also bfloat16: the gaps survive its rounding.
        transposed: not contiguous in memory.
        **arguments: further inputs of the case, passed on as they are.
    """

    def make(generator: Generator) -> Inputs:
        ranks = torch.rand(shape, generator=generator).argsort(dim=-1)
        jitter = torch.rand(shape, generator=generator) * 0.2
        level = torch.randn(*shape[:-1], 1, generator=generator) - 0.25 * shape[-1]
        logits = (ranks * 0.5 + jitter + level).to(dtype)
        return {"logits": logits.mT.contiguous().mT if transposed else logits, **arguments}

    return make


def far_logits(scale: float, **arguments: Any) -> Make:
    """Two rows of three logits, near +scale and near -scale: one overflows in `exp`, the other vanishes."""

    def make(generator: Generator) -> Inputs:
        near = torch.tensor([[0.0, -2.0, -1.0], [-3.0, 0.0, -1.0]])
        near = near + torch.rand(2, 3, generator=generator) * 0.2
        return {"logits": near + torch.tensor([[scale], [-scale]]), **arguments}

    return make
