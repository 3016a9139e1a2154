"""Slots: a capped layer as two one-hot tensors, what becomes of its slots, and what chance alone drops."""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from moe_course.layers.capacity import CappedRouting
from moe_course.layers.dispatch import check_dispatch
from moe_course.layers.ffn import Activation, activate
from moe_course.layers.router import check_top_k


def capped_einsum_dispatch(
    x: Float[Tensor, "T D"],
    routing: CappedRouting,
    w_in: Float[Tensor, "E F_in D"],
    w_out: Float[Tensor, "E D F"],
    activation: Activation = "gelu",
) -> Float[Tensor, "T D"]:
    """A capped layer as GShard runs it: E·C rows go through an expert, whatever the router decides.

    The same function as any other dispatch of `routing.expert_ids` with `routing.weights`.

    Args:
        x: tokens, (T, D).
        routing: who has which slot.
        w_in: first weights of all experts, (E, F, D); (E, 2F, D) for swiglu.
        w_out: second weights of all experts, (E, D, F).
        activation: "gelu" or "swiglu".

    Returns:
        (T, D); 0 for tokens without a slot.

    Source: Lepikhin et al. (GShard), arXiv 2006.16668, algorithm 2.
    """
    check_dispatch(x, routing.expert_ids, routing.weights, w_in, w_out, activation)
    dispatch, combine = (slots.to(x.dtype) for slots in dispatch_and_combine(routing))
    tokens = torch.einsum("tec,td->ecd", dispatch, x)
    h = activate(torch.einsum("ecd,efd->ecf", tokens, w_in), activation)
    y = torch.einsum("ecf,edf->ecd", h, w_out)
    return torch.einsum("tec,ecd->td", combine, y)


def dispatch_and_combine(routing: CappedRouting) -> tuple[Float[Tensor, "T E C"], Float[Tensor, "T E C"]]:
    """The two one-hot tensors of a capped layer.

    Returns:
        dispatch: (T, E, C), 1 where token t has slot c of expert e, in the dtype of the weights.
        combine: (T, E, C), the weight of the choice in the same place.

    Source: Lepikhin et al. (GShard), arXiv 2006.16668, algorithm 1.
    """
    (num_tokens, _), num_experts = routing.expert_ids.shape, routing.logits.shape[-1]
    num_slots = num_experts * routing.capacity
    # One column more than there are slots, for the dropped.
    slot = torch.where(routing.dropped, num_slots, routing.expert_ids * routing.capacity + routing.position)
    empty = routing.weights.new_zeros(num_tokens, num_slots + 1)
    shape = (num_tokens, num_experts, routing.capacity)
    dispatch = empty.scatter(1, slot, 1.0)[:, :num_slots].reshape(shape)
    combine = empty.scatter(1, slot, routing.weights)[:, :num_slots].reshape(shape)
    return dispatch, combine


def slot_usage(
    tokens_per_expert: Int64[Tensor, " E"], capacity: int
) -> tuple[Int64[Tensor, " E"], Int64[Tensor, " E"], Int64[Tensor, " E"]]:
    """What becomes of each expert's C slots and of the choices that wanted one.

    Args:
        tokens_per_expert: choices that fell on each expert, (E,).
        capacity: C.

    Returns:
        used: slots with a token, (E,).
        padded: slots without one, computed for nothing, (E,).
        dropped: choices without a slot, (E,).
    """
    used = tokens_per_expert.clamp(max=capacity)
    return used, capacity - used, tokens_per_expert - used


def expected_drop_rate(num_tokens: int, num_experts: int, top_k: int, capacity: int) -> float:
    """The share of choices that a perfectly balanced router drops by chance alone.

    Each token chooses K of E experts, all equally likely, independently of the others. Then an expert's load N is
    binomial, B(T, K/E), and the share is E · E[max(N − C, 0)] / (T·K). Exact, up to rounding.

    Args:
        num_tokens, num_experts, top_k: T, E, K.
        capacity: C.
    """
    check_top_k(top_k, num_experts)
    if num_tokens == 0:
        return 0.0
    load = torch.arange(capacity + 1, num_tokens + 1, dtype=torch.float64)
    p = torch.tensor(top_k / num_experts, dtype=torch.float64)
    others = num_tokens - load
    log_ways = math.lgamma(num_tokens + 1) - torch.lgamma(load + 1) - torch.lgamma(others + 1)
    probability = (log_ways + torch.xlogy(load, p) + torch.xlogy(others, 1 - p)).exp()
    overflow = ((load - capacity) * probability).sum()
    return num_experts * overflow.item() / (num_tokens * top_k)
