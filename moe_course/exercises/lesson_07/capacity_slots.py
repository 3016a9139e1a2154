"""Exercise 07.capacity_slots: dispatch and combine when every expert has C slots and what is beyond them is dropped."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ...layers import position_in_expert
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, choices, other_layout

Pair = tuple[Tensor, Tensor]


def capacity_slots(
    expert_ids: Tensor, expert_weights: Tensor, position: Tensor, num_experts: int, capacity: int
) -> Pair:
    """Ids, weights and positions (T, K) to dispatch and combine, both (T, E, C)."""
    fits = position < capacity
    return _filled(fits, position, fits, position, expert_ids, expert_weights, num_experts, capacity)


def _filled(
    there: Tensor,
    place_there: Tensor,
    back: Tensor,
    place_back: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    num_experts: int,
    capacity: int,
) -> Pair:
    """Dispatch with the choices where `there` is True, at `place_there`; combine with those where `back` is."""
    empty = expert_weights.new_zeros(len(expert_ids), num_experts, capacity)
    token = torch.arange(len(expert_ids))[:, None].expand_as(expert_ids)
    dispatch = empty.index_put(
        (token[there], expert_ids[there], place_there[there]), torch.ones_like(expert_weights[there])
    )
    return dispatch, empty.index_put((token[back], expert_ids[back], place_back[back]), expert_weights[back])


def _three_tokens_by_hand(generator: Generator) -> Inputs:
    return {
        "expert_ids": torch.tensor([[0, 1], [1, 2], [1, 0]]),
        "expert_weights": torch.tensor([[0.75, 0.25], [0.5, 0.125], [0.625, 0.375]]),
        "position": torch.tensor([[0, 2], [0, 0], [1, 1]]),
        "num_experts": 3,
        "capacity": 2,
    }


def _choices(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    capacity: int,
    without: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
    transposed: bool = False,
) -> Make:
    def make(generator: Generator) -> Inputs:
        expert_ids, weights = choices(num_tokens, num_experts, top_k, generator, without)
        position = position_in_expert(expert_ids, num_experts)
        if transposed:
            expert_ids, weights, position = (other_layout(part) for part in (expert_ids, weights, position))
        return {
            "expert_ids": expert_ids,
            "expert_weights": weights.to(dtype),
            "position": position,
            "num_experts": num_experts,
            "capacity": capacity,
        }

    return make


def _shared_slots(inputs: Inputs, pair: Pair) -> str | None:
    taken = (pair[0] != 0).sum(0)
    if taken.numel() == 0 or taken.max() <= 1:
        return None
    expert, slot = (taken > 1).nonzero()[0].tolist()
    return f"slot {slot} of expert {expert} holds {int(taken[expert, slot])} tokens, which the einsum would add up"


def _weights_without_a_slot(inputs: Inputs, pair: Pair) -> str | None:
    stray = (pair[1] != 0) & (pair[0] == 0)
    if not stray.any():
        return None
    token, expert, slot = stray.nonzero()[0].tolist()
    return f"combine gives token {token} the output of slot {slot} of expert {expert}, where it does not sit"


# Right answers in other words.


def _by_one_hot(expert_ids: Tensor, expert_weights: Tensor, position: Tensor, num_experts: int, capacity: int) -> Pair:
    dtype = expert_weights.dtype
    # One class more than there are slots; its column is cut off.
    slots = F.one_hot(position.clamp(max=capacity), capacity + 1)[..., :capacity].to(dtype)
    choice = F.one_hot(expert_ids, num_experts).to(dtype)[..., None] * slots[:, :, None, :]
    return choice.sum(1), (choice * expert_weights[..., None, None]).sum(1)


def _choice_by_choice(
    expert_ids: Tensor, expert_weights: Tensor, position: Tensor, num_experts: int, capacity: int
) -> Pair:
    combine = torch.zeros(len(expert_ids), num_experts, capacity, dtype=expert_weights.dtype)
    dispatch = torch.zeros_like(combine)
    for t, row in enumerate(position.tolist()):
        for k, place in enumerate(row):
            if place < capacity:
                dispatch[t, expert_ids[t, k], place] = 1
                combine[t, expert_ids[t, k], place] = expert_weights[t, k]
    return dispatch, combine


# Wrong answers.


def _seating(place: Callable[[Tensor, int], Tensor]) -> Callable[..., Pair]:
    """Nothing is dropped: every choice sits at `place(position, capacity)`."""

    def wrong(expert_ids: Tensor, expert_weights: Tensor, position: Tensor, num_experts: int, capacity: int) -> Pair:
        all_of_them, where = torch.ones_like(position, dtype=torch.bool), place(position, capacity)
        return _filled(all_of_them, where, all_of_them, where, expert_ids, expert_weights, num_experts, capacity)

    return wrong


def _dropped_in_the_combine(
    expert_ids: Tensor, expert_weights: Tensor, position: Tensor, num_experts: int, capacity: int
) -> Pair:
    fits, everybody = position < capacity, torch.ones_like(position, dtype=torch.bool)
    last = position.clamp(max=capacity - 1)
    return _filled(fits, position, everybody, last, expert_ids, expert_weights, num_experts, capacity)


def _changed(finish: Callable[[Tensor, Tensor], Pair]) -> Callable[..., Pair]:
    return lambda *arguments, **named: finish(*capacity_slots(*arguments, **named))


def _detached(expert_ids: Tensor, expert_weights: Tensor, position: Tensor, num_experts: int, capacity: int) -> Pair:
    return capacity_slots(expert_ids, expert_weights.detach(), position, num_experts, capacity)


def _one_slot_too_many(
    expert_ids: Tensor, expert_weights: Tensor, position: Tensor, num_experts: int, capacity: int
) -> Pair:
    return capacity_slots(expert_ids, expert_weights, position, num_experts, capacity + 1)


CAPACITY_SLOTS = Exercise(
    id="07.capacity_slots",
    entry="capacity_slots",
    title="Slots for some",
    points=4,
    difficulty=2,
    minutes=12,
    hints=(
        "It is `one_hot_slots` of lesson 03 with one difference: a choice at place C or beyond gets no entry, neither "
        "in `dispatch` nor in `combine`.",
        "Make a mask `fits = position < capacity`. Index with the choices that fit: `expert_ids[fits]`, "
        "`position[fits]`, and the number of their token, `torch.arange(T)[:, None].expand(T, K)[fits]`.",
        "Two zero tensors of shape (T, E, C) in the weights' dtype; set `dispatch[token, expert, place] = 1` and "
        "`combine[token, expert, place] = expert_weights[fits]`.",
    ),
    reference=capacity_slots,
    cases=(
        Case("three tokens by hand", _three_tokens_by_hand),
        Case("top-1, short of slots", _choices(10, 4, 1, 2)),
        Case("top-2, short of slots", _choices(9, 4, 2, 3), grad=("expert_weights",)),
        Case("top-3, one slot each", _choices(8, 6, 3, 1)),
        Case("room for all, and more", _choices(5, 4, 2, 7)),
        Case("experts without tokens", _choices(8, 5, 2, 2, without=(0, 4))),
        Case("every expert, K = E", _choices(5, 3, 3, 3)),
        Case("one expert, E = 1", _choices(5, 1, 1, 3)),
        Case("no tokens", _choices(0, 3, 2, 2)),
        Case("not contiguous", _choices(8, 4, 2, 3, transposed=True)),
        Case("bfloat16", _choices(9, 4, 2, 3, dtype=torch.bfloat16)),
    ),
    properties=(
        Property("no slot holds two tokens", _shared_slots),
        Property("a token gets back only what it sent", _weights_without_a_slot),
    ),
    returns=("dispatch", "combine"),
    misconceptions=(
        Misconception(
            "overflow-in-the-last-slot",
            "Clamping the positions seats everybody who is late in slot C − 1. The einsum would add these tokens up "
            "before the expert sees them. Leave them out.",
            _seating(lambda position, capacity: position.clamp(max=capacity - 1)),
        ),
        Misconception(
            "overflow-starts-again",
            "Positions modulo C let the overflow begin again at slot 0, where a token already sits. A choice beyond "
            "the capacity has no slot.",
            _seating(lambda position, capacity: position % capacity),
        ),
        Misconception(
            "dropped-in-slot-zero",
            "Setting the position of a dropped choice to 0 does not drop it: 0 is a slot, the first one. Mask the "
            "entries, not only the positions.",
            _seating(lambda position, capacity: torch.where(position < capacity, position, 0)),
        ),
        Misconception(
            "dropped-in-the-combine",
            "`dispatch` leaves the dropped choices out, `combine` does not: a dropped token is given the output of the "
            "last slot, which another token sent there. The same places belong in both.",
            _dropped_in_the_combine,
        ),
        Misconception(
            "one-slot-too-many",
            "Each expert has C + 1 slots in your tensors. Positions count from 0: those below C fit.",
            _one_slot_too_many,
        ),
        Misconception(
            "combine-without-weights",
            "`combine` is a copy of `dispatch`. It must hold the weights, so that the second einsum is the weighted "
            "sum.",
            _changed(lambda dispatch, combine: (dispatch, dispatch.clone())),
        ),
        Misconception(
            "weights-in-dispatch",
            "The weights are in `dispatch`, so they scale what enters the expert. They belong to its output, in "
            "`combine`.",
            _changed(lambda dispatch, combine: (combine, dispatch)),
        ),
        Misconception(
            "weights-detached",
            "The numbers are right, but no gradient reaches `expert_weights`, and the router would never learn.",
            _detached,
        ),
    ),
    alternatives=(_by_one_hot, _choice_by_choice),
)
