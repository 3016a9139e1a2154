"""The kernels as three operators of `torch.library`: what makes autograd and torch.compile accept them.

Each operator has an implementation, a fake one that only knows shapes (for torch.compile), and `expert_ffn` a formula
for its gradient. To torch.compile they are opaque: it compiles what is around them, without breaking the graph.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from moe_course.kernels import permutation
from moe_course.kernels.availability import is_interpreting
from moe_course.kernels.configs import choose_block_m
from moe_course.kernels.gradient import activation_gradient, weight_gradient
from moe_course.kernels.grouped_gemm import grouped_gemm
from moe_course.kernels.permutation import Permutation
from moe_course.kernels.projection import down_project, up_project_and_save
from moe_course.kernels.reduction import combine
from moe_course.kernels.tiles import TileMap, tile_map


@torch.library.custom_op("moe_course::permute", mutates_args=())
def permute(expert_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """`permutation.permute`; the three tensors are a `Permutation`."""
    with _device_of(expert_ids):
        row_of_choice, choice_of_row, expert_starts = permutation.permute(expert_ids, num_experts)
    return row_of_choice, choice_of_row, expert_starts


@torch.library.custom_op("moe_course::expert_ffn", mutates_args=())
def expert_ffn(
    x: Tensor,
    expert_weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    row_of_choice: Tensor,
    choice_of_row: Tensor,
    expert_starts: Tensor,
    activation: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """The layer's output (T, D), and the pre-activations (T·K, F or 2F) if `save`, else none of them (0, F or 2F)."""
    order = Permutation(row_of_choice, choice_of_row, expert_starts)
    with _device_of(x):
        c = _as_computed
        out, pre = run_forward(c(x), c(expert_weights), c(w_in), c(w_out), order, activation, save)
    return out.to(x.dtype), pre.to(x.dtype)


@torch.library.custom_op("moe_course::expert_ffn_backward", mutates_args=())
def expert_ffn_backward(
    dout: Tensor,
    x: Tensor,
    expert_weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    pre: Tensor,
    row_of_choice: Tensor,
    choice_of_row: Tensor,
    expert_starts: Tensor,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, expert_weights, w_in and w_out."""
    order = Permutation(row_of_choice, choice_of_row, expert_starts)
    inputs = (x, expert_weights, w_in, w_out)
    if x.shape[0] == 0:
        dx, dexpert_weights, dw_in, dw_out = (torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in inputs)
        return dx, dexpert_weights, dw_in, dw_out
    with _device_of(x):
        c = _as_computed
        grads = run_backward(c(dout), c(x), c(expert_weights), c(w_in), c(w_out), c(pre), order, activation)
    dx, dexpert_weights, dw_in, dw_out = (grad.to(t.dtype) for grad, t in zip(grads, inputs, strict=True))
    return dx, dexpert_weights, dw_in, dw_out


def run_forward(
    x: Tensor,
    expert_weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    order: Permutation,
    activation: str,
    save: bool,
    block_m: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The kernels of a forward pass, one after another: (output, pre-activations). block_m: else the best guess."""
    tiles = _tiles(order, x.dtype, block_m)
    h, pre = up_project_and_save(x, w_in, order, activation, tiles, save)
    y = down_project(h, w_out, order, expert_weights, tiles=tiles)
    return combine(y, order), pre


def run_backward(
    dout: Tensor,
    x: Tensor,
    expert_weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    pre: Tensor,
    order: Permutation,
    activation: str,
    block_m: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The kernels of a backward pass: the gradients of x, expert_weights, w_in and w_out."""
    dout, x, expert_weights, w_in, w_out = (t.contiguous() for t in (dout, x, expert_weights, w_in, w_out))
    tiles = _tiles(order, x.dtype, block_m)
    dh = grouped_gemm(dout, w_out, order, tiles, gather=True)
    dpre, weighted_h, dexpert_weights = activation_gradient(dh, pre, expert_weights, order, activation)
    dw_in = weight_gradient(dpre, x, order, gather_a=False)
    dw_out = weight_gradient(dout, weighted_h, order, gather_a=True)
    dx = combine(grouped_gemm(dpre, w_in, order, tiles), order)
    return dx, dexpert_weights, dw_in, dw_out


@permute.register_fake
def _(expert_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    def empty(*shape: int) -> Tensor:
        return expert_ids.new_empty(shape, dtype=torch.int32)

    return empty(*expert_ids.shape), empty(expert_ids.numel()), empty(num_experts + 1)


@expert_ffn.register_fake
def _(
    x: Tensor,
    expert_weights: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    row_of_choice: Tensor,
    choice_of_row: Tensor,
    expert_starts: Tensor,
    activation: str,
    save: bool,
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(choice_of_row.shape[0] if save else 0, w_in.shape[1])


@expert_ffn_backward.register_fake
def _(dout: Tensor, x: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (x, expert_weights, w_in, w_out))


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, activation, _ = inputs
    _, pre = output
    ctx.save_for_backward(*tensors, pre)
    ctx.mark_non_differentiable(pre)
    ctx.set_materialize_grads(False)
    ctx.activation = activation


def _backward(ctx: Any, dout: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 9
    x, expert_weights, w_in, w_out, *order, pre = ctx.saved_tensors
    grads = expert_ffn_backward(dout, x, expert_weights, w_in, w_out, pre, *order, ctx.activation)
    return *grads, None, None, None, None, None


expert_ffn.register_autograd(_backward, setup_context=_save_for_backward)


def _tiles(order: Permutation, dtype: torch.dtype, block_m: int | None) -> TileMap:
    num_rows, num_experts = len(order.choice_of_row), len(order.expert_starts) - 1
    return tile_map(order.expert_starts, num_rows, block_m or choose_block_m(num_rows, num_experts, dtype))


def _as_computed(tensor: Tensor) -> Tensor:
    """The tensor as kernels take it: Triton's interpreter takes bfloat16's bits for integers when it multiplies."""
    return tensor.float() if is_interpreting() and tensor.dtype == torch.bfloat16 else tensor


def _device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current GPU, which need not be the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
