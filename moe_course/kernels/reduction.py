"""The end of the layer: each token adds up its K rows, wherever the sort has put them.

The other way round, rows adding themselves to their token, takes atomics, and float addition in an order that changes
from run to run. Here every program owns the tokens it writes, so the same input gives the same bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from moe_course.kernels.launch import Config, launch
from moe_course.kernels.permutation import Permutation

CONFIGS = (Config((("BLOCK_T", 8), ("BLOCK_D", 256)), num_warps=4, num_stages=1),)


def combine(rows: Tensor, permutation: Permutation) -> Tensor:
    """Undo the sort and add up the K rows of each token: out[t] = Σ_k rows[row_of_choice[t, k]].

    Args:
        rows: sorted by expert, (T·K, D), each multiplied with its weight already.
        permutation: the order they are in.

    Returns:
        (T, D), in rows' dtype, summed in float32.
    """
    rows = rows.contiguous()
    num_tokens, top_k = permutation.row_of_choice.shape
    width = rows.shape[1]
    out = rows.new_empty(num_tokens, width)
    if num_tokens == 0:
        return out
    launch(
        _combine_kernel,
        lambda meta: (triton.cdiv(num_tokens, meta["BLOCK_T"]), triton.cdiv(width, meta["BLOCK_D"])),
        CONFIGS,
        rows_ptr=rows,
        row_of_choice_ptr=permutation.row_of_choice,
        out_ptr=out,
        num_tokens=num_tokens,
        width=width,
        TOP_K=top_k,
    )
    return out


@triton.jit
def _combine_kernel(
    rows_ptr,
    row_of_choice_ptr,
    out_ptr,
    num_tokens,
    width,
    TOP_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    token = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    keep = (token < num_tokens)[:, None] & (d < width)[None, :]
    out = tl.zeros((BLOCK_T, BLOCK_D), tl.float32)
    for k in range(TOP_K):
        row = tl.load(row_of_choice_ptr + token * TOP_K + k, mask=token < num_tokens, other=-1)
        found = keep & (row >= 0)[:, None]  # -1 is a choice of no expert, and adds nothing
        out += tl.load(rows_ptr + row.to(tl.int64)[:, None] * width + d[None, :], mask=found, other=0).to(tl.float32)
    out_tile = out_ptr + token.to(tl.int64)[:, None] * width + d[None, :]
    tl.store(out_tile, out.to(out_ptr.dtype.element_ty), mask=keep)
