"""Inputs for the cases of this lesson."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

Inputs = dict[str, Any]
Make = Callable[[Generator], Inputs]


def normal(generator: Generator, *shape: int) -> Tensor:
    """Draws of a standard normal distribution, in float32."""
    return torch.randn(shape, generator=generator)


def in_bfloat16(tensor: Tensor) -> Tensor:
    """The nearest values that bfloat16 has, in float32."""
    return tensor.bfloat16().float()
