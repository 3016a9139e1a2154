"""Exercise 07.slot_usage: which slots hold a token, which are computed for nothing, and which choices find none."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ...layers import slot_usage as layers_slot_usage
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make

Usage = tuple[Tensor, Tensor, Tensor]


def slot_usage(tokens_per_expert: Tensor, capacity: int) -> Usage:
    """Loads (E,) and C to used and padded slots and dropped choices, each (E,)."""
    return layers_slot_usage(tokens_per_expert, capacity)


def _loads(loads: list[int], capacity: int) -> Make:
    return lambda generator: {"tokens_per_expert": torch.tensor(loads), "capacity": capacity}


def _random_loads(num_experts: int, choices: int, capacity: int) -> Make:
    def make(generator: Generator) -> Inputs:
        odds = torch.linspace(2.0, 0.4, num_experts)
        chosen = odds.multinomial(choices, replacement=True, generator=generator)
        return {"tokens_per_expert": torch.bincount(chosen, minlength=num_experts), "capacity": capacity}

    return make


def _slots_do_not_add_up(inputs: Inputs, usage: Usage) -> str | None:
    used, padded, _ = usage
    for expert, total in enumerate((used + padded).tolist()):
        if total != inputs["capacity"]:
            return f"expert {expert} has {inputs['capacity']} slots; yours are {used[expert]} + {padded[expert]}"
    return None


def _choices_do_not_add_up(inputs: Inputs, usage: Usage) -> str | None:
    used, _, dropped = usage
    for expert, load in enumerate(inputs["tokens_per_expert"].tolist()):
        if used[expert] + dropped[expert] != load:
            return f"{load} choices fell on expert {expert}; yours are {used[expert]} + {dropped[expert]}"
    return None


# Right answers in other words.


def _by_minimum(tokens_per_expert: Tensor, capacity: int) -> Usage:
    slots = torch.full_like(tokens_per_expert, capacity)
    used = torch.minimum(tokens_per_expert, slots)
    return used, slots - used, tokens_per_expert - used


def _by_difference(tokens_per_expert: Tensor, capacity: int) -> Usage:
    over = tokens_per_expert - capacity
    return tokens_per_expert - over.clamp(min=0), (-over).clamp(min=0), over.relu()


# Wrong answers.


def _moved(tokens_per_expert: Tensor, capacity: int) -> Usage:
    """What finds no slot takes a free one of the next experts."""
    used, padded, dropped = slot_usage(tokens_per_expert, capacity)
    waiting, moved = int(dropped.sum()), torch.zeros_like(used)
    for expert, free in enumerate(padded.tolist()):
        moved[expert] = min(free, waiting)
        waiting -= int(moved[expert])
    found = int(dropped.sum()) - waiting
    left = dropped.clone()
    for expert, lost in enumerate(dropped.tolist()):
        left[expert] = lost - min(lost, found)
        found -= min(lost, found)
    return used + moved, padded - moved, left


def _overflow_loses_all(tokens_per_expert: Tensor, capacity: int) -> Usage:
    fits = tokens_per_expert <= capacity
    used = torch.where(fits, tokens_per_expert, 0)
    return used, capacity - used, tokens_per_expert - used


def _to_the_busiest(tokens_per_expert: Tensor, capacity: int) -> Usage:
    used, _, dropped = slot_usage(tokens_per_expert, capacity)
    return used, tokens_per_expert.max() - used, dropped


def _changed(finish: Callable[[Tensor, Tensor, Tensor], Usage]) -> Callable[[Tensor, int], Usage]:
    return lambda tokens_per_expert, capacity: finish(*slot_usage(tokens_per_expert, capacity))


SLOT_USAGE = Exercise(
    id="07.slot_usage",
    entry="slot_usage",
    title="Used, padded, dropped",
    points=2,
    difficulty=1,
    minutes=6,
    hints=(
        "Look at one expert with load n. If n ≤ C, it has C − n slots too many; if n > C, it has n − C choices too "
        "many. Never both.",
        "The used slots are the smaller of load and capacity. The other two follow by subtraction.",
        "`used = tokens_per_expert.clamp(max=capacity)`, then `capacity - used` and `tokens_per_expert - used`.",
    ),
    reference=slot_usage,
    cases=(
        Case("four experts by hand", _loads([5, 2, 0, 9], 4)),
        Case("an even load", _loads([6, 6, 6], 6)),
        Case("room for all", _loads([3, 1, 4, 1], 7)),
        Case("all to one expert", _loads([12, 0, 0, 0], 5)),
        Case("one slot each", _loads([2, 0, 3, 1], 1)),
        Case("no tokens", _loads([0, 0, 0], 2)),
        Case("eight experts, 64 choices", _random_loads(8, 64, 9)),
        Case("sixteen experts, 64 choices", _random_loads(16, 64, 4)),
    ),
    properties=(
        Property("used and padded slots add up to the capacity", _slots_do_not_add_up),
        Property("used slots and dropped choices add up to the load", _choices_do_not_add_up),
    ),
    returns=("used", "padded", "dropped"),
    misconceptions=(
        Misconception(
            "negative-counts",
            "Some of your counts are negative: below the capacity nothing is dropped, above it nothing is padded. "
            "Clamp at 0.",
            lambda tokens_per_expert, capacity: (
                tokens_per_expert.clamp(max=capacity),
                capacity - tokens_per_expert,
                tokens_per_expert - capacity,
            ),
        ),
        Misconception(
            "moved-to-free-slots",
            "You gave the overflow free slots of other experts. Those are other networks: the router wants this token "
            "in *this* expert, and what finds no slot there is dropped, while slots elsewhere stay empty.",
            _moved,
        ),
        Misconception(
            "overflow-loses-all",
            "You dropped all choices of an expert that overflows. It keeps the first C; only the rest finds no slot.",
            _overflow_loses_all,
        ),
        Misconception(
            "padded-to-the-busiest",
            "You padded to the load of the busiest expert, as lesson 03 did when nothing was dropped. Here every "
            "expert has C slots, whatever the loads are.",
            _to_the_busiest,
        ),
        Misconception(
            "padded-and-dropped-swapped",
            "You swapped the last two: padded slots are those without a token, dropped choices those without a slot.",
            _changed(lambda used, padded, dropped: (used, dropped, padded)),
        ),
        Misconception(
            "one-slot-too-many",
            "You seated C + 1 choices. Places count from 0: the last one that fits is C − 1.",
            lambda tokens_per_expert, capacity: slot_usage(tokens_per_expert, capacity + 1),
        ),
    ),
    alternatives=(_by_minimum, _by_difference),
)
