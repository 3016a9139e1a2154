"""Exercise 03.one_hot_slots: dispatch and combine as two one-hot tensors, with a slot for every choice."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, choices

Pair = tuple[Tensor, Tensor]


def one_hot_slots(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> Pair:
    """Give each choice a slot of its expert: ids and weights (T, K) to dispatch and combine, both (T, E, C).

    C is the load of the busiest expert.
    """
    num_tokens = len(expert_ids)
    position = _positions(expert_ids, num_experts)
    capacity = int(position.max()) + 1 if position.numel() else 0
    slots = expert_weights.new_zeros(num_tokens, num_experts * capacity)
    slot_ids = expert_ids * capacity + position
    dispatch = slots.scatter(1, slot_ids, 1.0)
    combine = slots.scatter(1, slot_ids, expert_weights)
    shape = (num_tokens, num_experts, capacity)
    return dispatch.view(shape), combine.view(shape)


def _positions(expert_ids: Tensor, num_experts: int) -> Tensor:
    """The place of each choice in its expert's queue, (T, K)."""
    chosen = F.one_hot(expert_ids.flatten(), num_experts)
    return (chosen.cumsum(0) - 1).gather(1, expert_ids.reshape(-1, 1)).view_as(expert_ids)


def _in_token_order(pair: Pair) -> Pair:
    """Which slot of its expert a token takes is free: sort each expert's slots by token, unused ones last."""
    dispatch, combine = pair
    num_tokens = dispatch.shape[0]
    used = dispatch.detach() != 0
    first = torch.where(used.any(0), used.int().argmax(0), num_tokens) if num_tokens else used.sum(0)
    order = first.argsort(dim=-1, stable=True).expand_as(dispatch)
    return dispatch.gather(-1, order), combine.gather(-1, order)


def _three_tokens_by_hand(generator: Generator) -> Inputs:
    return {
        "expert_ids": torch.tensor([[0, 1], [1, 2], [1, 0]]),
        "expert_weights": torch.tensor([[0.75, 0.25], [0.5, 0.125], [0.625, 0.375]]),
        "num_experts": 3,
    }


def _choices(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    without: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
    transposed: bool = False,
) -> Make:
    def make(generator: Generator) -> Inputs:
        expert_ids, weights = choices(num_tokens, num_experts, top_k, generator, without)
        if transposed:
            expert_ids, weights = expert_ids.T.contiguous().T, weights.T.contiguous().T
        return {"expert_ids": expert_ids, "expert_weights": weights.to(dtype), "num_experts": num_experts}

    return make


def _all_to_one(generator: Generator) -> Inputs:
    return _choices(5, 3, 1)(generator) | {"expert_ids": torch.full((5, 1), 1)}


def _lost_choices(inputs: Inputs, pair: Pair) -> str | None:
    found, wanted = int((pair[0] != 0).sum()), inputs["expert_ids"].numel()
    return None if found == wanted else f"{found} slots are taken by the {wanted} choices of the tokens"


def _shared_slots(inputs: Inputs, pair: Pair) -> str | None:
    taken = (pair[0] != 0).sum(0)
    if taken.numel() == 0 or taken.max() <= 1:
        return None
    expert, slot = (taken > 1).nonzero()[0].tolist()
    return f"slot {slot} of expert {expert} holds {int(taken[expert, slot])} tokens, which the einsum would add up"


# Right answers in other words.


def _first_choices_first(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> Pair:
    """GShard's order: all first choices are seated before any second choice."""
    num_tokens, top_k = expert_ids.shape
    chosen = F.one_hot(expert_ids, num_experts)
    queue = chosen.transpose(0, 1).reshape(top_k * num_tokens, num_experts)
    position = (queue.cumsum(0) - 1).view(top_k, num_tokens, num_experts).transpose(0, 1)
    capacity = int(chosen.sum((0, 1)).max())
    seats = F.one_hot(position.clamp(min=0, max=max(capacity - 1, 0)), max(capacity, 1))[..., :capacity]
    choice = (chosen[..., None] * seats).to(expert_weights.dtype)
    return choice.sum(1), (choice * expert_weights[..., None, None]).sum(1)


def _seat_by_seat(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> Pair:
    load = torch.bincount(expert_ids.flatten(), minlength=num_experts)
    combine = torch.zeros(len(expert_ids), num_experts, int(load.max()), dtype=expert_weights.dtype)
    dispatch = torch.zeros_like(combine)
    taken = [0] * num_experts
    for t, row in enumerate(expert_ids.tolist()):
        for k, e in enumerate(row):
            dispatch[t, e, taken[e]] = 1
            combine[t, e, taken[e]] = expert_weights[t, k]
            taken[e] += 1
    return dispatch, combine


# Wrong answers.


def _placed(expert_ids: Tensor, expert_weights: Tensor, position: Tensor, shape: tuple[int, int, int]) -> Pair:
    """Dispatch and combine for given positions; a choice whose position is beyond the capacity is dropped."""
    combine = expert_weights.new_zeros(shape)
    dispatch = torch.zeros_like(combine)
    token = torch.arange(shape[0])[:, None].expand_as(expert_ids)
    fits = position < shape[2]
    where = (token[fits], expert_ids[fits], position[fits])
    dispatch = dispatch.index_put(where, torch.ones_like(expert_weights[fits]))
    return dispatch, combine.index_put(where, expert_weights[fits])


def _seating(
    position: Callable[[Tensor, int], Tensor], capacity: Callable[[Tensor, int], int]
) -> Callable[[Tensor, Tensor, int], Pair]:
    """A wrong answer that seats choices by another `position`, with room for another `capacity`."""

    def wrong(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> Pair:
        shape = (len(expert_ids), num_experts, capacity(expert_ids, num_experts))
        return _placed(expert_ids, expert_weights, position(expert_ids, num_experts), shape)

    return wrong


def _busiest(expert_ids: Tensor, num_experts: int) -> int:
    return int(torch.bincount(expert_ids.flatten(), minlength=num_experts).max())


def _queue_per_choice(expert_ids: Tensor, num_experts: int) -> Tensor:
    return torch.cat([_positions(column[:, None], num_experts) for column in expert_ids.unbind(1)], dim=1)


def _first_choice_only(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> Pair:
    return one_hot_slots(expert_ids[:, :1], expert_weights[:, :1], num_experts)


def _unweighted(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> Pair:
    dispatch, _ = one_hot_slots(expert_ids, expert_weights, num_experts)
    return dispatch, dispatch.clone()


def _weights_in_dispatch(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> Pair:
    return one_hot_slots(expert_ids, expert_weights, num_experts)[::-1]


def _detached(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> Pair:
    return one_hot_slots(expert_ids, expert_weights.detach(), num_experts)


ONE_HOT_SLOTS = Exercise(
    id="03.one_hot_slots",
    entry="one_hot_slots",
    title="A slot for every choice",
    points=4,
    difficulty=2,
    minutes=15,
    hints=(
        "Each choice needs a number in its expert's queue: how many choices before it went to the same "
        "expert. With the K choices of token 0 first, then those of token 1, and so on, that is a running "
        "count.",
        "`F.one_hot(expert_ids.flatten(), num_experts)` is (T·K, E). Its `cumsum` over dimension 0 counts, "
        "at each choice, how many came so far *including* this one: subtract 1, and read the column of the "
        "choice's own expert with `gather`. C is the largest such number plus 1, or 0 when there are no "
        "tokens.",
        "Now fill two zero tensors of shape (T, E, C) at [token, expert, position]: `dispatch` with 1, "
        "`combine` with the weight, both in the dtype of `expert_weights`. Index with three (T, K) tensors: "
        "`torch.arange(T)[:, None].expand(T, K)`, `expert_ids` and the positions.",
    ),
    reference=one_hot_slots,
    cases=(
        Case("three tokens by hand", _three_tokens_by_hand),
        Case("top-1", _choices(6, 3, 1)),
        Case("top-2 of four", _choices(7, 4, 2), grad=("expert_weights",)),
        Case("top-3 of six", _choices(9, 6, 3)),
        Case("an expert without tokens", _choices(6, 4, 2, without=(3,))),
        Case("every expert, K = E", _choices(4, 3, 3)),
        Case("one expert, E = 1", _choices(4, 1, 1)),
        Case("all tokens to one expert", _all_to_one),
        Case("no tokens at all", _choices(0, 3, 2)),
        Case("not contiguous", _choices(6, 4, 2, transposed=True)),
        Case("bfloat16", _choices(7, 4, 2, dtype=torch.bfloat16)),
    ),
    properties=(
        Property("every choice has a slot", _lost_choices),
        Property("no slot holds two tokens", _shared_slots),
    ),
    returns=("dispatch", "combine"),
    normalise=_in_token_order,
    misconceptions=(
        Misconception(
            "counted-from-one",
            "Your positions start at 1: `cumsum` counts the choice itself. Slot 0 of every expert stays "
            "empty and one slot too many is needed; subtract 1.",
            _seating(lambda ids, e: _positions(ids, e) + 1, lambda ids, e: _busiest(ids, e) + 1),
        ),
        Misconception(
            "a-queue-for-each-choice",
            "You count first and second choices apart, so both start at slot 0 and two tokens land in the "
            "same slot. All K choices of an expert share one queue.",
            _seating(_queue_per_choice, _busiest),
        ),
        Misconception(
            "everyone-in-slot-zero",
            "All tokens of an expert are in its slot 0, and the einsum would add them up. Each choice needs "
            "the next free slot.",
            _seating(lambda ids, e: torch.zeros_like(ids), _busiest),
        ),
        Misconception(
            "a-slot-for-every-token",
            "Each expert has T slots, as if every token might choose it. It needs as many as the busiest "
            "expert has tokens; the rest is computed for nothing.",
            _seating(_positions, lambda ids, e: len(ids)),
        ),
        Misconception(
            "room-for-the-average",
            "Each expert has room for T·K/E choices, the average load, and what comes later is lost. "
            "Choosing a capacity and dropping tokens is lesson 07; here no choice may be dropped.",
            _seating(_positions, lambda ids, e: -(-ids.numel() // e)),
        ),
        Misconception(
            "first-choice-only",
            "Only the first column of `expert_ids` is seated. A token occupies K slots, one in each expert it chose.",
            _first_choice_only,
        ),
        Misconception(
            "combine-without-weights",
            "`combine` is a copy of `dispatch`. It must hold the weight of each choice, so that the second "
            "einsum is the weighted sum.",
            _unweighted,
        ),
        Misconception(
            "weights-in-dispatch",
            "The weights are in `dispatch`, so they scale what enters the expert. They belong to the "
            "output, in `combine`: an expert is not linear.",
            _weights_in_dispatch,
        ),
        Misconception(
            "weights-detached",
            "The numbers are right, but no gradient reaches `expert_weights`: `combine` was filled from "
            "detached values. The router would never learn.",
            _detached,
        ),
    ),
    alternatives=(_first_choices_first, _seat_by_seat),
)
