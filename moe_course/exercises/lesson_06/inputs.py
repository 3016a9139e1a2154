"""What the exercises of this lesson share: their kernels, choices of experts, and where sorted rows are."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from ..launch import KernelOf
from ..lesson_03.inputs import choices

Inputs = dict[str, Any]
Make = Callable[[Generator], Inputs]


def kernel(name: str, *edits: tuple[str, str]) -> KernelOf:
    """A kernel of this lesson, with mistakes worked in if there are edits."""
    return KernelOf(f"{__package__}.kernels", name, *edits)


def flat_choices(
    num_tokens: int, num_experts: int, top_k: int, generator: Generator, without: tuple[int, ...] = ()
) -> Tensor:
    """Random expert ids of T·K choices, (N,), token after token.

    Args:
        without: experts that no token chooses.
    """
    return choices(num_tokens, num_experts, top_k, generator, without)[0].flatten()


def offsets_of(expert_ids: Tensor, num_experts: int) -> Tensor:
    """Where each expert's rows begin, and after them N: (E + 1,)."""
    ends = torch.bincount(expert_ids, minlength=num_experts).cumsum(0)
    return torch.cat([ends.new_zeros(1), ends]).int()


def order_of(expert_ids: Tensor) -> Tensor:
    """The number of the choice that each sorted row belongs to, (N,)."""
    return expert_ids.argsort(stable=True).int()


def ceil_div(number: int, block: int) -> int:
    """How many blocks hold `number` things."""
    return -(-number // block)


def next_power_of_2(number: int) -> int:
    """The smallest power of two that is not less: how many lanes a block for `number` things has."""
    return 1 << max(number - 1, 0).bit_length()
