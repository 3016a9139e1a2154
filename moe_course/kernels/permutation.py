"""Sort the T·K choices by expert, so that an expert's rows are neighbours: a stable counting sort in three steps.

    histogram   each program counts the experts in its own block of choices
    offsets     a prefix sum over (expert, block) says where each block's choices of each expert start
    positions   each program looks up where its block starts, and ranks its choices within the block

No program adds to a number that another one adds to, so there are no atomics, and the order never varies.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_course.kernels.launch import Config, launch

CONFIGS = (Config((("BLOCK", 512), ("BLOCK_E", 16)), num_warps=4, num_stages=1),)


class Permutation(NamedTuple):
    """The order of T·K choices sorted by expert, and within an expert by token.

    Attributes:
        row_of_choice: sorted row of each choice, (T, K), int32; -1 for an id that names no expert.
        choice_of_row: which choice each sorted row is, (T·K,), int32; its token is choice // K.
        expert_starts: rows expert_starts[e] to expert_starts[e + 1] are expert e's, (E + 1,), int32.
    """

    row_of_choice: Tensor
    choice_of_row: Tensor
    expert_starts: Tensor


def permute(expert_ids: Tensor, num_experts: int) -> Permutation:
    """Sort choices by expert, stably.

    Args:
        expert_ids: the K experts of each token, (T, K), any integer type.
        num_experts: number of experts E.

    Returns:
        A `Permutation`.
    """
    expert_ids = expert_ids.contiguous()
    num_choices = expert_ids.numel()
    row_of_choice = torch.empty(expert_ids.shape, dtype=torch.int32, device=expert_ids.device)
    choice_of_row = torch.empty(num_choices, dtype=torch.int32, device=expert_ids.device)
    expert_starts = torch.zeros(num_experts + 1, dtype=torch.int32, device=expert_ids.device)
    if num_choices == 0:
        return Permutation(row_of_choice, choice_of_row, expert_starts)

    num_blocks = triton.cdiv(num_choices, dict(CONFIGS[0].blocks)["BLOCK"])
    counts = torch.empty(num_experts, num_blocks, dtype=torch.int32, device=expert_ids.device)
    sizes = {"num_choices": num_choices, "num_experts": num_experts, "num_blocks": num_blocks}
    launch(_histogram_kernel, _one_a_block, CONFIGS, expert_ids_ptr=expert_ids, counts_ptr=counts, **sizes)
    # Small, and a prefix sum is what PyTorch does well: nothing to win with a kernel of our own.
    ends = counts.flatten().cumsum(0, dtype=torch.int32)
    offsets = ends - counts.flatten()
    expert_starts[1:] = ends[num_blocks - 1 :: num_blocks]
    launch(
        _positions_kernel,
        _one_a_block,
        CONFIGS,
        expert_ids_ptr=expert_ids,
        offsets_ptr=offsets,
        row_of_choice_ptr=row_of_choice,
        choice_of_row_ptr=choice_of_row,
        **sizes,
    )
    return Permutation(row_of_choice, choice_of_row, expert_starts)


def _one_a_block(meta: dict) -> tuple[int, ...]:
    return (triton.cdiv(meta["num_choices"], meta["BLOCK"]),)


@triton.jit
def _histogram_kernel(
    expert_ids_ptr, counts_ptr, num_choices, num_experts, num_blocks, BLOCK: tl.constexpr, BLOCK_E: tl.constexpr
):
    """counts[e, pid] = how many of this program's BLOCK choices went to expert e."""
    pid = tl.program_id(0)
    choice = pid * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(expert_ids_ptr + choice, mask=choice < num_choices, other=-1)
    for first in range(0, num_experts, BLOCK_E):  # a few experts at a time: the one-hot matrix stays in registers
        expert = first + tl.arange(0, BLOCK_E)
        one_hot = (ids[:, None] == expert[None, :]).to(tl.int32)
        tl.store(counts_ptr + expert * num_blocks + pid, tl.sum(one_hot, 0), mask=expert < num_experts)


@triton.jit
def _positions_kernel(
    expert_ids_ptr,
    offsets_ptr,
    row_of_choice_ptr,
    choice_of_row_ptr,
    num_choices,
    num_experts,
    num_blocks,
    BLOCK: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """A choice's row: where its expert's choices of this block start, plus how many of them come before it."""
    pid = tl.program_id(0)
    choice = pid * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(expert_ids_ptr + choice, mask=choice < num_choices, other=-1)
    row = tl.full((BLOCK,), -1, tl.int32)
    for first in range(0, num_experts, BLOCK_E):
        expert = first + tl.arange(0, BLOCK_E)
        one_hot = (ids[:, None] == expert[None, :]) & (expert < num_experts)[None, :]
        start = tl.load(offsets_ptr + expert * num_blocks + pid, mask=expert < num_experts, other=0)
        rank = tl.cumsum(one_hot.to(tl.int32), 0)  # 1 for the first
        # At most one entry of a line is not 0, and no expert's chunk meets a choice twice: this sum is a lookup.
        row += tl.sum(tl.where(one_hot, start[None, :] + rank, 0), 1)
    tl.store(row_of_choice_ptr + choice, row, mask=choice < num_choices)
    tl.store(choice_of_row_ptr + row, choice, mask=(choice < num_choices) & (row >= 0))
