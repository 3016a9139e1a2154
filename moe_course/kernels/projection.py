"""The two grouped GEMMs of a forward pass. A program multiplies one tile of one expert's rows with a block of columns.

    up_project     h = act(x[token] · w_in[expert]ᵀ): the gather is in the load, the activation before the store
    down_project   y = weight · (h · w_out[expert]ᵀ): the expert weight is multiplied in before the store

All tensors are contiguous: strides would be five more arguments a kernel. Offsets of tokens, rows and experts are
int64, since T·D, T·K·F and E·F·D may exceed 2³¹; within a tile they are int32, which takes half the registers.
"""

import triton
import triton.language as tl
from torch import Tensor

from moe_course.kernels.activation import gelu, silu
from moe_course.kernels.configs import choose_block_m, dot_precision, gemm_configs
from moe_course.kernels.grouped_gemm import grouped_gemm
from moe_course.kernels.launch import launch
from moe_course.kernels.permutation import Permutation
from moe_course.kernels.tiles import TileMap, grouped_grid, locate_tile, tile_map


def up_project(
    x: Tensor, w_in: Tensor, permutation: Permutation, activation: str = "gelu", *, tiles: TileMap | None = None
) -> Tensor:
    """Gather each choice's token, multiply it with its expert's first weight, and apply the activation.

    Args:
        x: tokens, (T, D).
        w_in: (E, F, D); (E, 2F, D) for swiglu: the gate's rows, then the up projection's.
        permutation: the choices in the order of their experts.
        activation: "gelu" or "swiglu".
        tiles: the tile map, if it is there already.

    Returns:
        h, (T·K, F), its rows sorted by expert.
    """
    return up_project_and_save(x, w_in, permutation, activation, tiles, save=False)[0]


def up_project_and_save(
    x: Tensor, w_in: Tensor, permutation: Permutation, activation: str, tiles: TileMap | None, save: bool
) -> tuple[Tensor, Tensor]:
    """`up_project`, and what backward needs: the pre-activation (T·K, F or 2F), or (0, …) if it is not to be saved."""
    x, w_in = x.contiguous(), w_in.contiguous()
    gated = activation == "swiglu"
    (num_experts, f_in, d_model), num_rows = w_in.shape, len(permutation.choice_of_row)
    d_ff = f_in // 2 if gated else f_in
    h = x.new_empty(num_rows, d_ff)
    pre = x.new_empty(num_rows if save else 0, f_in)
    if num_rows == 0:
        return h, pre
    tiles = tiles or tile_map(permutation.expert_starts, num_rows, choose_block_m(num_rows, num_experts, x.dtype))
    launch(
        _up_kernel,
        grouped_grid(tiles, d_ff),
        gemm_configs("up gated" if gated else "up", tiles.block_m, x.dtype),
        x_ptr=x,
        w_in_ptr=w_in,
        h_ptr=h,
        pre_ptr=pre,
        choice_of_row_ptr=permutation.choice_of_row,
        expert_starts_ptr=permutation.expert_starts,
        tile_to_expert_ptr=tiles.tile_to_expert,
        first_tile_ptr=tiles.first_tile,
        d_model=d_model,
        d_ff=d_ff,
        TOP_K=permutation.row_of_choice.shape[1],
        GATED=gated,
        SAVE_PRE=save,
        PRECISION=dot_precision(x.dtype),
    )
    return h, pre


def down_project(
    h: Tensor, w_out: Tensor, permutation: Permutation, expert_weights: Tensor, *, tiles: TileMap | None = None
) -> Tensor:
    """Multiply each row with its expert's second weight and with the router's weight for that choice.

    Args:
        h: hidden activations sorted by expert, (T·K, F).
        w_out: (E, D, F).
        permutation: the choices in the order of their experts.
        expert_weights: the router's weights, (T, K).
        tiles: the tile map, if it is there already.

    Returns:
        y, (T·K, D), its rows sorted by expert.
    """
    return grouped_gemm(h, w_out, permutation, tiles, transposed=True, expert_weights=expert_weights)


@triton.jit
def _up_kernel(
    x_ptr,
    w_in_ptr,
    h_ptr,
    pre_ptr,
    choice_of_row_ptr,
    expert_starts_ptr,
    tile_to_expert_ptr,
    first_tile_ptr,
    d_model,
    d_ff,
    TOP_K: tl.constexpr,
    GATED: tl.constexpr,
    SAVE_PRE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    expert, first_row, num_rows, column_block = locate_tile(
        tile_to_expert_ptr, first_tile_ptr, expert_starts_ptr, d_ff, BLOCK_M, BLOCK_N, GROUP_M
    )
    if expert < 0:
        return
    m = tl.arange(0, BLOCK_M)
    f = column_block * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.arange(0, BLOCK_K)

    # Rows and columns beyond the end read something else instead, which is cheaper than a mask and never stored.
    choice = tl.load(choice_of_row_ptr + first_row + m, mask=m < num_rows, other=0)
    x_tile = x_ptr + (choice // TOP_K).to(tl.int64)[:, None] * d_model + d[None, :]
    rows_of_expert = 2 * d_ff if GATED else d_ff
    w_expert = w_in_ptr + expert.to(tl.int64) * rows_of_expert * d_model
    w_tile = w_expert + (f % d_ff)[None, :] * d_model + d[:, None]

    pre = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)  # of the gate, where there is one
    up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for d0 in range(0, d_model, BLOCK_K):
        inside = d0 + d < d_model  # here a mask is needed: what lies beyond would be added to the sum
        x = tl.load(x_tile + d0, mask=inside[None, :], other=0)
        w = tl.load(w_tile + d0, mask=inside[:, None], other=0)
        pre = tl.dot(x, w, pre, input_precision=PRECISION)
        if GATED:
            w = tl.load(w_tile + d_ff * d_model + d0, mask=inside[:, None], other=0)
            up = tl.dot(x, w, up, input_precision=PRECISION)

    keep = (m < num_rows)[:, None] & (f < d_ff)[None, :]
    if SAVE_PRE:
        pre_tile = pre_ptr + first_row.to(tl.int64) * rows_of_expert + (m[:, None] * rows_of_expert + f[None, :])
        tl.store(pre_tile, pre.to(pre_ptr.dtype.element_ty), mask=keep)
        if GATED:
            tl.store(pre_tile + d_ff, up.to(pre_ptr.dtype.element_ty), mask=keep)
    h = silu(pre) * up if GATED else gelu(pre)
    h_tile = h_ptr + first_row.to(tl.int64) * d_ff + (m[:, None] * d_ff + f[None, :])
    tl.store(h_tile, h.to(h_ptr.dtype.element_ty), mask=keep)
