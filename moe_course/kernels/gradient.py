"""What is new in the backward pass: the gradients of the activation and of the weights.

With g = dout[token] and a weight s for each row, where y = s · (h · w_outᵀ):

    grouped_gemm          dh = g · w_out
    activation_gradient   dpre = s · dh · act'(pre), ds = Σ_f h · dh, and s · h, which the next step needs
    weight_gradient       dw_in = Σ_rows dpreᵀ · x[token], dw_out = Σ_rows gᵀ · (s · h)
    grouped_gemm          dx of each row = dpre · w_in; `combine` then adds up each token's K rows

The output y is never needed: ds is g · (h · w_outᵀ), which is also h · dh. Only pre is saved, and h computed again.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_course.kernels.activation import gelu, gelu_slope, silu, silu_slope
from moe_course.kernels.configs import ACTIVATION_GRADIENT, dot_precision, outer_configs
from moe_course.kernels.launch import launch
from moe_course.kernels.permutation import Permutation


def activation_gradient(
    dh: Tensor, pre: Tensor, expert_weights: Tensor, permutation: Permutation, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Back through the expert weights and the activation.

    It could be fused into the GEMM that makes dh. But it needs so many registers that tiles would have to be a
    quarter as large, which costs the GEMM more than writing dh and reading it again.

    Args:
        dh: gradient of h, without the expert weight, (N, F).
        pre: saved pre-activation, (N, F), or (N, 2F) for swiglu.
        expert_weights: the router's weights, (T, K).
        permutation: the choices in the order of their experts.
        activation: "gelu" or "swiglu".

    Returns:
        dpre, shaped like pre; each row of h times its weight, (N, F); the gradient of expert_weights, (T, K).
    """
    num_rows, d_ff = dh.shape
    dpre = torch.empty_like(pre)
    weighted_h = torch.empty_like(dh)
    dweights = torch.zeros_like(expert_weights)
    launch(
        _activation_gradient_kernel,
        lambda meta: (triton.cdiv(num_rows, meta["BLOCK_M"]),),
        ACTIVATION_GRADIENT,
        dh_ptr=dh,
        pre_ptr=pre,
        expert_weights_ptr=expert_weights,
        dpre_ptr=dpre,
        weighted_h_ptr=weighted_h,
        dweights_ptr=dweights,
        choice_of_row_ptr=permutation.choice_of_row,
        num_rows_ptr=permutation.expert_starts[-1:],
        d_ff=d_ff,
        GATED=activation == "swiglu",
    )
    return dpre, weighted_h, dweights


def weight_gradient(a: Tensor, b: Tensor, permutation: Permutation, *, gather_a: bool) -> Tensor:
    """Σ over each expert's rows of aᵀ · b, (E, A, B): one of a, b holds rows, the other tokens to be gathered."""
    num_experts = len(permutation.expert_starts) - 1
    width_a, width_b = a.shape[1], b.shape[1]
    out = a.new_empty(num_experts, width_a, width_b)
    launch(
        _outer_kernel,
        lambda meta: (num_experts * triton.cdiv(width_a, meta["BLOCK_M"]) * triton.cdiv(width_b, meta["BLOCK_N"]),),
        outer_configs(a.dtype),
        a_ptr=a,
        b_ptr=b,
        out_ptr=out,
        choice_of_row_ptr=permutation.choice_of_row,
        expert_starts_ptr=permutation.expert_starts,
        width_a=width_a,
        width_b=width_b,
        TOP_K=permutation.row_of_choice.shape[1],
        GATHER_A=gather_a,
        PRECISION=dot_precision(a.dtype),
    )
    return out


@triton.jit
def _activation_gradient_kernel(
    dh_ptr,
    pre_ptr,
    expert_weights_ptr,
    dpre_ptr,
    weighted_h_ptr,
    dweights_ptr,
    choice_of_row_ptr,
    num_rows_ptr,
    d_ff,
    GATED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """A program owns whole rows, so that the sum over F needs no other program."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    mine = row < tl.load(num_rows_ptr)
    choice = tl.load(choice_of_row_ptr + row, mask=mine, other=0)
    weight = tl.load(expert_weights_ptr + choice, mask=mine, other=0).to(tl.float32)[:, None]
    h_rows = row.to(tl.int64)[:, None] * d_ff
    pre_rows = 2 * h_rows if GATED else h_rows
    dweight = tl.zeros((BLOCK_M,), tl.float32)
    for f0 in range(0, d_ff, BLOCK_F):
        f = f0 + tl.arange(0, BLOCK_F)[None, :]
        keep = mine[:, None] & (f < d_ff)
        dh = tl.load(dh_ptr + h_rows + f, mask=keep, other=0).to(tl.float32)
        pre = tl.load(pre_ptr + pre_rows + f, mask=keep, other=0).to(tl.float32)
        if GATED:
            up = tl.load(pre_ptr + pre_rows + d_ff + f, mask=keep, other=0).to(tl.float32)
            h = silu(pre) * up
            dup = weight * dh * silu(pre)
            tl.store(dpre_ptr + pre_rows + d_ff + f, dup.to(dpre_ptr.dtype.element_ty), mask=keep)
            dpre = weight * dh * up * silu_slope(pre)
        else:
            h = gelu(pre)
            dpre = weight * dh * gelu_slope(pre)
        tl.store(dpre_ptr + pre_rows + f, dpre.to(dpre_ptr.dtype.element_ty), mask=keep)
        tl.store(weighted_h_ptr + h_rows + f, (weight * h).to(weighted_h_ptr.dtype.element_ty), mask=keep)
        dweight += tl.sum(h * dh, 1)
    tl.store(dweights_ptr + choice, dweight.to(dweights_ptr.dtype.element_ty), mask=mine)


@triton.jit
def _outer_kernel(
    a_ptr,
    b_ptr,
    out_ptr,
    choice_of_row_ptr,
    expert_starts_ptr,
    width_a,
    width_b,
    TOP_K: tl.constexpr,
    GATHER_A: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """A program owns a block of one expert's weight and walks all its rows: no other writes there, so no atomics."""
    blocks_a, blocks_b = tl.cdiv(width_a, BLOCK_M), tl.cdiv(width_b, BLOCK_N)
    expert = tl.program_id(0) // (blocks_a * blocks_b)
    local = tl.program_id(0) % (blocks_a * blocks_b)
    # A few blocks of the sorted rows meet all blocks of the tokens, which more experts want and the cache should keep.
    if GATHER_A:
        block_b, block_a = tl.swizzle2d(local // blocks_a, local % blocks_a, blocks_b, blocks_a, GROUP_M)
    else:
        block_a, block_b = tl.swizzle2d(local // blocks_b, local % blocks_b, blocks_a, blocks_b, GROUP_M)
    m = block_a * BLOCK_M + tl.arange(0, BLOCK_M)
    n = block_b * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)

    out = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    end = tl.load(expert_starts_ptr + expert + 1)
    for first_row in range(tl.load(expert_starts_ptr + expert), end, BLOCK_K):
        row = first_row + k
        mine = row < end
        token = tl.load(choice_of_row_ptr + row, mask=mine, other=0) // TOP_K
        row_a = (token if GATHER_A else row).to(tl.int64)
        row_b = (row if GATHER_A else token).to(tl.int64)
        a = tl.load(a_ptr + row_a[:, None] * width_a + (m % width_a)[None, :], mask=mine[:, None], other=0)
        b = tl.load(b_ptr + row_b[:, None] * width_b + (n % width_b)[None, :], mask=mine[:, None], other=0)
        out = tl.dot(tl.trans(a), b, out, input_precision=PRECISION)

    out_tile = out_ptr + expert.to(tl.int64) * width_a * width_b + (m[:, None] * width_b + n[None, :])
    keep = (m < width_a)[:, None] & (n < width_b)[None, :]
    # .cs: nobody reads this soon, so it should leave the cache before the tokens do.
    tl.store(out_tile, out.to(out_ptr.dtype.element_ty), mask=keep, cache_modifier=".cs")
