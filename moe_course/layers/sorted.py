"""The fast dispatch on a CPU: sort choices by expert, walk them in blocks that fit in cache, own backward."""

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import once_differentiable

from moe_course.layers.dispatch import check_dispatch, grouped_dispatch
from moe_course.layers.ffn import Activation, activate

BLOCK_ROWS = 4096


@torch.compiler.disable
def sorted_dispatch(
    x: Float[Tensor, "T D"],
    expert_ids: Int64[Tensor, "T K"],
    expert_weights: Float[Tensor, "T K"],
    w_in: Float[Tensor, "E F_in D"],
    w_out: Float[Tensor, "E D F"],
    activation: Activation = "gelu",
) -> Float[Tensor, "T D"]:
    """As `grouped_dispatch`, fast on a CPU.

    Args, Returns, Raises: as `loop_dispatch`.
    """
    if x.device.type != "cpu":
        return grouped_dispatch(x, expert_ids, expert_weights, w_in, w_out, activation)
    check_dispatch(x, expert_ids, expert_weights, w_in, w_out, activation)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, expert_weights, w_in, w_out = (t.to(dtype) for t in (x, expert_weights, w_in, w_out))
    return _SortedDispatch.apply(x, expert_ids, expert_weights.to(x.dtype), w_in, w_out, activation)


class _SortedDispatch(torch.autograd.Function):
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
        ids, order = expert_ids.flatten().sort(stable=True)
        counts = torch.bincount(ids, minlength=len(w_in)).tolist()
        tokens = order // expert_ids.shape[1]
        gate = expert_weights.flatten()[order, None]
        pre = x.new_empty(len(order), w_in.shape[1])
        out = torch.zeros_like(x, memory_format=torch.contiguous_format)
        for start, stop, experts in _blocks(counts):
            rows = x[tokens[start:stop]]
            for e, a, b in experts:
                torch.mm(rows[a - start : b - start], w_in[e].T, out=pre[a:b])
            h = activate(pre[start:stop], activation)
            y = torch.empty_like(rows)
            for e, a, b in experts:
                torch.mm(h[a - start : b - start], w_out[e].T, out=y[a - start : b - start])
            out.index_add_(0, tokens[start:stop], y.mul_(gate[start:stop]))
        ctx.save_for_backward(x, expert_ids, gate, w_in, w_out, order, pre)
        ctx.counts, ctx.activation = counts, activation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, expert_ids, gate, w_in, w_out, order, pre = ctx.saved_tensors
        tokens = order // expert_ids.shape[1]
        dx, dw_in, dw_out = torch.zeros_like(x), torch.zeros_like(w_in), torch.zeros_like(w_out)
        dgate = gate.new_empty(len(order))
        for start, stop, experts in _blocks(ctx.counts):
            rows, g = x[tokens[start:stop]], grad_out[tokens[start:stop]]
            with torch.enable_grad():
                p = pre[start:stop].detach().requires_grad_()
                h = activate(p, ctx.activation)
            dh = torch.empty_like(h)
            for e, a, b in experts:
                torch.mm(g[a - start : b - start], w_out[e], out=dh[a - start : b - start])
            dgate[start:stop] = (h.detach() * dh).sum(-1)
            g, dh = g * gate[start:stop], dh * gate[start:stop]
            (dp,) = torch.autograd.grad(h, p, dh)
            drows = torch.empty_like(rows)
            for e, a, b in experts:
                s = slice(a - start, b - start)
                torch.mm(g[s].T, h.detach()[s], out=dw_out[e])
                torch.mm(dp[s].T, rows[s], out=dw_in[e])
                torch.mm(dp[s], w_in[e], out=drows[s])
            dx.index_add_(0, tokens[start:stop], drows)
        dweights = torch.empty_like(dgate).index_copy_(0, order, dgate).view_as(expert_ids)
        return dx, None, dweights, dw_in, dw_out, None


def _blocks(counts: list[int]) -> list[tuple[int, int, list[tuple[int, int, int]]]]:
    """Runs of consecutive experts of up to BLOCK_ROWS rows: (start, stop, [(expert, start, stop), ...])."""
    blocks: list[tuple[int, int, list[tuple[int, int, int]]]] = []
    start, stop, experts = 0, 0, []
    for e, count in enumerate(counts):
        if not count:
            continue
        if experts and stop + count - start > BLOCK_ROWS:
            blocks.append((start, stop, experts))
            start, experts = stop, []
        experts.append((e, stop, stop + count))
        stop += count
    return [*blocks, (start, stop, experts)] if experts else blocks
