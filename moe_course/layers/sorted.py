"""The fast dispatch: `grouped_dispatch` for few tokens; for many, on a CPU, block by block with its own backward.

What makes the blocks fast:

- Consecutive experts are taken together up to BLOCK_ROWS rows, so that a block's gathered tokens and hidden
  activations are still in cache when the next step reads them, and the same memory serves the next block.
- Little is saved for backward: the pre-activation of every choice. Backward gathers x again and applies the
  activation again, which is cheaper than writing both to main memory and reading them back. It would not be if they
  stayed in cache: so few tokens are left to `grouped_dispatch`.
- The gradient of an expert weight is dout · y. With y = h · w_outᵀ it is also h · (dout · w_out), whose second factor
  backward needs anyway: y is never kept.
- The expert weight is multiplied into the narrower of h and y.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from moe_course.layers.dispatch import check_dispatch, grouped_dispatch, grouped_mm
from moe_course.layers.ffn import Activation, activate

BLOCK_ROWS = 4096


def sorted_dispatch(
    x: Float[Tensor, "T D"],
    expert_ids: Int64[Tensor, "T K"],
    expert_weights: Float[Tensor, "T K"],
    w_in: Float[Tensor, "E F_in D"],
    w_out: Float[Tensor, "E D F"],
    activation: Activation = "gelu",
) -> Float[Tensor, "T D"]:
    """`grouped_dispatch`, but walking many rows block by block on a CPU, which is faster and saves less.

    Up to BLOCK_ROWS choices, and on a GPU, there is nothing to walk: this is `grouped_dispatch`.

    Args, Returns, Raises: as `loop_dispatch`. Can be differentiated once.
    """
    if torch.compiler.is_compiling():
        # Runs as written. As a decorator, `disable` would import dynamo, 1.5 s, in every process that uses the layer.
        run = torch.compiler.disable(sorted_dispatch)
        return run(x, expert_ids, expert_weights, w_in, w_out, activation)
    device = x.device.type
    if torch.is_autocast_enabled(device):
        # Here, where autograd sees it: every gradient comes back in its own tensor's dtype.
        dtype = torch.get_autocast_dtype(device)
        x, w_in, w_out = x.to(dtype), w_in.to(dtype), w_out.to(dtype)
    expert_weights = expert_weights.to(x.dtype)
    if device != "cpu" or expert_ids.numel() <= BLOCK_ROWS:
        return grouped_dispatch(x, expert_ids, expert_weights, w_in, w_out, activation)
    check_dispatch(x, expert_ids, expert_weights, w_in, w_out, activation)
    return _SortedDispatch.apply(x, expert_ids, expert_weights, w_in, w_out, activation)


class _SortedDispatch(torch.autograd.Function):
    """Names as in `grouped_dispatch`; dout, dx, dh, … are gradients of the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        expert_ids: Tensor,
        expert_weights: Tensor,
        w_in: Tensor,
        w_out: Tensor,
        activation: Activation,
    ) -> Tensor:
        order, tokens, blocks = _plan(expert_ids, len(w_in))
        weights = expert_weights.reshape(-1, 1).index_select(0, order)
        out = x.new_zeros(x.shape)
        saved = []
        for block, block_tokens, block_weights in zip(blocks, *_split(blocks, tokens, weights), strict=True):
            rows = x.index_select(0, block_tokens)
            pre = grouped_mm(rows, w_in[block.experts].mT, block.ends)
            h = activate(pre, activation)
            if _h_is_narrower(w_out):
                h.mul_(block_weights)
            y = grouped_mm(h, w_out[block.experts].mT, block.ends)
            if not _h_is_narrower(w_out):
                y.mul_(block_weights)
            out.index_add_(0, block_tokens, y)
            saved.append(pre)
        ctx.save_for_backward(x, w_in, w_out, order, tokens, weights, *saved)
        ctx.blocks, ctx.activation, ctx.choices = blocks, activation, expert_ids.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, w_in, w_out, order, tokens, weights, *saved = ctx.saved_tensors
        blocks: list[_Block] = ctx.blocks
        dx = x.new_zeros(x.shape)
        dweights = torch.empty_like(weights)
        # Every expert is in one block, so the blocks write all of these; an expert without rows gets zeros.
        dw_in, dw_out = w_in.new_empty(w_in.shape), w_out.new_empty(w_out.shape)
        parts = _split(blocks, tokens, weights, dweights)
        for block, pre, block_tokens, block_weights, block_dweights in zip(blocks, saved, *parts, strict=True):
            dy = dout.index_select(0, block_tokens)
            h = activate(pre, ctx.activation)
            dh = grouped_mm(dy, w_out[block.experts], block.ends)
            torch.sum(h * dh, dim=1, keepdim=True, out=block_dweights)
            dh.mul_(block_weights)
            (h if _h_is_narrower(w_out) else dy).mul_(block_weights)
            _outer(dy, h, block.sizes, dw_out[block.experts])
            dpre = _activation_backward(dh, pre, ctx.activation)
            rows = x.index_select(0, block_tokens)
            _outer(dpre, rows, block.sizes, dw_in[block.experts])
            dx.index_add_(0, block_tokens, grouped_mm(dpre, w_in[block.experts], block.ends))
        dexpert_weights = torch.empty_like(dweights).index_copy_(0, order, dweights).view(ctx.choices)
        return dx, None, dexpert_weights, dw_in, dw_out, None


class _Block(NamedTuple):
    """Consecutive experts whose rows are worked on together."""

    experts: slice
    sizes: list[int]  # rows of each expert
    ends: Tensor  # the same, summed up, as `grouped_mm` wants them


def _plan(expert_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, list[_Block]]:
    """Sort the T·K choices by expert: (which choice each row is, which token that is, the blocks of rows).

    In numpy, whose calls cost less and whose stable sort of small integers is a radix sort.
    """
    ids = expert_ids.numpy().ravel()
    counts = np.bincount(ids, minlength=num_experts)
    order = ids.astype(np.min_scalar_type(num_experts - 1)).argsort(kind="stable")
    blocks: list[_Block] = []
    first = rows = 0
    sizes = counts.tolist()
    for expert, size in enumerate(sizes):
        if rows and rows + size > BLOCK_ROWS:
            blocks.append(_block(first, expert, sizes))
            first, rows = expert, 0
        rows += size
    blocks.append(_block(first, num_experts, sizes))
    return torch.from_numpy(order), torch.from_numpy(order // expert_ids.shape[1]), blocks


def _block(first: int, stop: int, sizes: list[int]) -> _Block:
    ends = torch.tensor(sizes[first:stop]).cumsum(0, dtype=torch.int32)
    return _Block(slice(first, stop), sizes[first:stop], ends)


def _split(blocks: list[_Block], *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Each tensor's rows, block by block."""
    rows = [sum(block.sizes) for block in blocks]
    return [tensor.split(rows) for tensor in tensors]


def _h_is_narrower(w_out: Tensor) -> bool:
    d_model, d_ff = w_out.shape[1:]
    return d_ff < d_model


def _outer(a: Tensor, b: Tensor, sizes: list[int], out: Tensor) -> None:
    """out[e] = a_eᵀ · b_e over the rows of each expert, written in place: stacking new ones would copy them all."""
    for a_e, b_e, out_e in zip(a.split(sizes), b.split(sizes), out.unbind(0), strict=True):
        torch.mm(a_e.t(), b_e, out=out_e)


def _activation_backward(dh: Tensor, pre: Tensor, activation: Activation) -> Tensor:
    """The gradient of the pre-activation, given that of h = activate(pre)."""
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(dh, pre)
    dpre = torch.empty_like(pre)
    (gate, up), (dgate, dup) = pre.chunk(2, dim=1), dpre.chunk(2, dim=1)
    torch.mul(dh, F.silu(gate), out=dup)
    torch.ops.aten.silu_backward.grad_input(dh * up, gate, grad_input=dgate)
    return dpre
