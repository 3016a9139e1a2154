"""Expert capacity: every expert owns C slots, and a choice that finds none free is dropped.

    layer.router = CapacityRouter(layer.router, capacity_factor=1.25, eval_capacity_factor=2.0)

makes a layer drop, whatever its dispatch: the weight of a dropped choice is 0.
"""

import math
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from moe_course.layers.ffn import check_positive
from moe_course.layers.router import Router, Routing, check_top_k

Priority = Literal["first_come", "score"]


@dataclass(frozen=True)
class CappedRouting(Routing):
    """What is left of a routing when every expert has C slots.

    `expert_ids`, `probs` and `tokens_per_expert` are the router's: they say what was wanted, which is what a balance
    loss needs.

    Attributes:
        weights: the router's, (T, K), with 0 for dropped choices. The others are *not* renormalised.
        position: how many choices stand before this one in its expert's queue, (T, K).
        dropped: True for choices whose position is C or more, (T, K).
        capacity: slots of each expert, C.
        uncapped: the routing as the router made it.
    """

    position: Int64[Tensor, "T K"]
    dropped: Bool[Tensor, "T K"]
    capacity: int
    uncapped: Routing


class CapacityRouter(nn.Module):
    """A router whose experts have room for so many tokens and no more.

    The tokens of one call are one group: they share the slots. Capacity 2.0 in evaluation, or `math.inf`, which drops
    nothing, suits a model trained at 1.25, as in ST-MoE.

    Args:
        router: decides as before.
        capacity_factor: slots of an expert in training, as a multiple of an even share of the choices.
        eval_capacity_factor: the same in evaluation; None: as in training.
        priority: who gets a slot where they are short: "first_come" or "score", as in `position_in_expert`.

    Raises:
        ValueError: a capacity factor is not positive, or the priority is unknown.

    Source: Fedus et al. (Switch), arXiv 2101.03961, section 2.2; Zoph et al. (ST-MoE), arXiv 2202.08906.
    """

    def __init__(
        self,
        router: Router,
        *,
        capacity_factor: float,
        eval_capacity_factor: float | None = None,
        priority: Priority = "first_come",
    ) -> None:
        super().__init__()
        self.router = router
        self.capacity_factor = _check_factor(capacity_factor)
        self.eval_capacity_factor = _check_factor(
            capacity_factor if eval_capacity_factor is None else eval_capacity_factor
        )
        self.priority: Priority = _check_priority(priority)

    @property
    def weight(self) -> Tensor:
        """The gate's weight, (E, D)."""
        return cast(Tensor, self.router.weight)

    def forward(self, x: Float[Tensor, "*tokens D"]) -> CappedRouting:
        routing = self.router(x)
        (num_tokens, top_k), num_experts = routing.expert_ids.shape, routing.logits.shape[-1]
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        return cap_routing(routing, expert_capacity(num_tokens, num_experts, top_k, factor), self.priority)

    def extra_repr(self) -> str:
        return (
            f"capacity_factor={self.capacity_factor}, eval_capacity_factor={self.eval_capacity_factor}, "
            f"priority={self.priority!r}"
        )


def expert_capacity(num_tokens: int, num_experts: int, top_k: int, capacity_factor: float) -> int:
    """C = ⌈T·K/E · capacity factor⌉ slots for each expert, and T at most: a token takes one slot of an expert.

    Rounded up, as DeepSpeed, Megatron and V-MoE do; Mesh TensorFlow rounds down. An empty batch needs none.

    Args:
        num_tokens: T, of one group of tokens.
        num_experts: E.
        top_k: K.
        capacity_factor: 1 leaves room for a perfectly even load; `math.inf` for any load.

    Raises:
        ValueError: a size is out of range, or the capacity factor is not positive.

    Source: Fedus et al. (Switch), arXiv 2101.03961, eq. 3, which has K = 1.
    """
    check_positive(num_experts=num_experts)
    check_top_k(top_k, num_experts)
    if num_tokens == 0:
        return 0
    # Without the rounding 100 · 1.1 / 10 is 11.000000000000002, whose ceiling is 12.
    slots = round(num_tokens * top_k * _check_factor(capacity_factor) / num_experts, 9)
    return math.ceil(min(slots, num_tokens))


def position_in_expert(
    expert_ids: Int64[Tensor, "T K"], num_experts: int, scores: Float[Tensor, "T K"] | None = None
) -> Int64[Tensor, "T K"]:
    """How many choices stand before each one in its expert's queue.

    First come: all first choices before all second ones, and so on; tokens in their order, as in GShard. So a token's
    favourite expert is less likely to drop it than its second.
    By score: the choice with the higher score goes first, whichever choice of its token it is, as "probs" in Megatron
    and DeepSpeed. Equal scores: first come.

    Args:
        expert_ids: the K experts of each token, (T, K).
        num_experts: number of experts E.
        scores: None for first come, else what decides, (T, K).

    Source: Lepikhin et al. (GShard), arXiv 2006.16668, algorithm 1; Riquelme et al. (V-MoE), arXiv 2106.05974, which
    sorts tokens, not choices, by score.
    """
    top_k = expert_ids.shape[1]
    queue = expert_ids.T.flatten()  # the order of first come, (K·T,)
    order = torch.arange(len(queue), device=queue.device)
    if scores is not None:
        order = scores.T.flatten().argsort(descending=True, stable=True)
    # Sorted by expert, a choice's position is its distance from the first row of its expert.
    ids, by_expert = queue[order].sort(stable=True)
    start = torch.searchsorted(ids, torch.arange(num_experts, device=ids.device))
    place = torch.arange(len(ids), device=ids.device) - start[ids]
    position = torch.empty_like(place).index_copy(0, order[by_expert], place)
    return position.view(top_k, -1).T.contiguous()


def cap_routing(routing: Routing, capacity: int, priority: Priority = "first_come") -> CappedRouting:
    """Drop the choices that find no slot: their weight becomes 0, so they add nothing to the output.

    Where all K choices of a token are dropped its output is 0, and the residual connection alone carries it on.

    Args:
        routing: what a router decided.
        capacity: slots of each expert, C.
        priority: "first_come", or "score": the choices with the least weight are dropped.

    Raises:
        ValueError: the priority is unknown.
    """
    scores = routing.weights.detach() if _check_priority(priority) == "score" else None
    position = position_in_expert(routing.expert_ids, routing.logits.shape[-1], scores)
    dropped = position >= capacity
    weights = routing.weights.masked_fill(dropped, 0)
    return CappedRouting(
        routing.logits, routing.probs, weights, routing.expert_ids, position, dropped, capacity, routing
    )


def _check_factor(capacity_factor: float) -> float:
    if not capacity_factor > 0:
        raise ValueError(f"capacity_factor={capacity_factor} leaves no slot; choose capacity_factor > 0")
    return capacity_factor


def _check_priority(priority: Priority) -> Priority:
    if priority not in get_args(Priority):
        known = " or ".join(map(repr, get_args(Priority)))
        raise ValueError(f"priority={priority!r} is unknown; choose {known}")
    return priority
