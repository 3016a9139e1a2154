"""The grouped GEMM: each row times the matrix of its expert. A program makes one tile of rows and columns.

It serves three times: forward as the second projection, with each row's weight multiplied in before the store; and
backward twice, once with the gather in the load. `projection.py` says more about tiles, offsets and masks.
"""

import triton
import triton.language as tl
from torch import Tensor

from moe_course.kernels.configs import choose_block_m, dot_precision, gemm_configs
from moe_course.kernels.launch import launch
from moe_course.kernels.permutation import Permutation
from moe_course.kernels.tiles import TileMap, grouped_grid, locate_tile, tile_map


def grouped_gemm(
    rows: Tensor,
    weights: Tensor,
    permutation: Permutation,
    tiles: TileMap | None = None,
    *,
    gather: bool = False,
    transposed: bool = False,
    expert_weights: Tensor | None = None,
) -> Tensor:
    """Multiply each row with its expert's matrix.

    Args:
        rows: (T·K, A) sorted by expert; with gather, tokens (T, A).
        weights: (E, A, B); transposed, (E, B, A).
        permutation: the choices in the order of their experts.
        tiles: the tile map, if it is there already.
        gather: take each row's token instead of the row.
        transposed: multiply with the transpose of each matrix.
        expert_weights: if given, (T, K), each row is multiplied with its choice's.

    Returns:
        (T·K, B), its rows sorted by expert.
    """
    rows, weights = rows.contiguous(), weights.contiguous()
    num_rows, num_experts, width_in = len(permutation.choice_of_row), len(weights), rows.shape[1]
    width_out = weights.shape[1 if transposed else 2]
    out = rows.new_empty(num_rows, width_out)
    if num_rows == 0:
        return out
    tiles = tiles or tile_map(permutation.expert_starts, num_rows, choose_block_m(num_rows, num_experts, rows.dtype))
    launch(
        _grouped_gemm_kernel,
        grouped_grid(tiles, width_out),
        gemm_configs("plain", tiles.block_m, rows.dtype),
        rows_ptr=rows,
        weights_ptr=weights,
        out_ptr=out,
        expert_weights_ptr=rows if expert_weights is None else expert_weights.contiguous(),
        choice_of_row_ptr=permutation.choice_of_row,
        expert_starts_ptr=permutation.expert_starts,
        tile_to_expert_ptr=tiles.tile_to_expert,
        first_tile_ptr=tiles.first_tile,
        width_in=width_in,
        width_out=width_out,
        TOP_K=permutation.row_of_choice.shape[1],
        GATHER=gather,
        TRANSPOSED=transposed,
        WEIGHTED=expert_weights is not None,
        PRECISION=dot_precision(rows.dtype),
    )
    return out


@triton.jit
def _grouped_gemm_kernel(
    rows_ptr,
    weights_ptr,
    out_ptr,
    expert_weights_ptr,
    choice_of_row_ptr,
    expert_starts_ptr,
    tile_to_expert_ptr,
    first_tile_ptr,
    width_in,
    width_out,
    TOP_K: tl.constexpr,
    GATHER: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    expert, first_row, num_rows, column_block = locate_tile(
        tile_to_expert_ptr, first_tile_ptr, expert_starts_ptr, width_out, BLOCK_M, BLOCK_N, GROUP_M
    )
    if expert < 0:
        return
    m = tl.arange(0, BLOCK_M)
    n = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)

    choice = tl.load(choice_of_row_ptr + first_row + m, mask=m < num_rows, other=0)
    if GATHER:
        rows_tile = rows_ptr + (choice // TOP_K).to(tl.int64)[:, None] * width_in + k[None, :]
    else:
        row = tl.minimum(m, num_rows - 1)
        rows_tile = rows_ptr + first_row.to(tl.int64) * width_in + (row[:, None] * width_in + k[None, :])
    w_expert = weights_ptr + expert.to(tl.int64) * width_in * width_out
    if TRANSPOSED:
        w_tile = w_expert + (n % width_out)[None, :] * width_in + k[:, None]
        step = 1
    else:
        w_tile = w_expert + (n % width_out)[None, :] + k[:, None] * width_out
        step = width_out

    out = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k0 in range(0, width_in, BLOCK_K):
        inside = k0 + k < width_in
        rows = tl.load(rows_tile + k0, mask=inside[None, :], other=0)
        w = tl.load(w_tile + k0 * step, mask=inside[:, None], other=0)
        out = tl.dot(rows, w, out, input_precision=PRECISION)

    if WEIGHTED:
        out *= tl.load(expert_weights_ptr + choice).to(tl.float32)[:, None]
    out_tile = out_ptr + first_row.to(tl.int64) * width_out + (m[:, None] * width_out + n[None, :])
    keep = (m < num_rows)[:, None] & (n < width_out)[None, :]
    tl.store(out_tile, out.to(out_ptr.dtype.element_ty), mask=keep)
