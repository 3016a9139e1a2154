"""Exercise 07.expert_capacity: how many slots an expert has."""

import math
from collections.abc import Callable
from fractions import Fraction

from torch import Generator

from ...layers import expert_capacity
from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make


def _of(num_tokens: int, num_experts: int, top_k: int, capacity_factor: float) -> Make:
    # Every factor here is exact in binary, so no order of multiplying rounds to another ceiling.
    def make(generator: Generator) -> Inputs:
        return {
            "num_tokens": num_tokens,
            "num_experts": num_experts,
            "top_k": top_k,
            "capacity_factor": capacity_factor,
        }

    return make


def _by_fractions(num_tokens: int, num_experts: int, top_k: int, capacity_factor: float) -> int:
    slots = Fraction(num_tokens * top_k, num_experts) * Fraction(capacity_factor)
    return min(-(-slots.numerator // slots.denominator), num_tokens)


def _share_times_factor(num_tokens: int, num_experts: int, top_k: int, capacity_factor: float) -> int:
    return min(num_tokens, math.ceil(num_tokens * top_k / num_experts * capacity_factor))


def _capped(slots: Callable[[int, int, int, float], float]) -> Callable[..., int]:
    """A wrong number of slots, rounded up and limited to T."""
    return lambda num_tokens, num_experts, top_k, capacity_factor: min(
        math.ceil(slots(num_tokens, num_experts, top_k, capacity_factor)), num_tokens
    )


EXPERT_CAPACITY = Exercise(
    id="07.expert_capacity",
    entry="expert_capacity",
    title="How many slots",
    points=2,
    difficulty=1,
    minutes=8,
    hints=(
        "An even load gives each expert the T·K choices divided by E. The factor stretches that share. Slots are "
        "whole: what does one half of a slot become?",
        "Multiply everything first, round once, and round up: `math.ceil`. Then ask how many tokens can want one and "
        "the same expert at most.",
        "`min(math.ceil(num_tokens * top_k * capacity_factor / num_experts), num_tokens)`.",
    ),
    reference=expert_capacity,
    cases=(
        Case("64 tokens, 8 experts, top-1, factor 1", _of(64, 8, 1, 1.0)),
        Case("factor 1.25", _of(64, 8, 1, 1.25)),
        Case("top-2, factor 1.25", _of(64, 8, 2, 1.25)),
        Case("factor 0.75", _of(64, 8, 1, 0.75)),
        Case("half a slot", _of(60, 8, 1, 1.0)),
        Case("a quarter of a slot", _of(10, 8, 1, 1.0)),
        Case("a share that is no whole number", _of(9, 4, 1, 1.25)),
        Case("K = E", _of(10, 4, 4, 1.0)),
        Case("more slots than tokens", _of(40, 6, 3, 2.5)),
        Case("fewer tokens than experts", _of(3, 16, 2, 1.0)),
        Case("no tokens", _of(0, 8, 2, 1.25)),
        Case("a large batch, top-2 of 8", _of(4096, 8, 2, 1.25)),
    ),
    misconceptions=(
        Misconception(
            "rounded-down",
            "You rounded down. Mesh TensorFlow does, most other code rounds up, and here a small batch shows why: with "
            "fewer choices than experts, no expert would have any slot.",
            lambda num_tokens, num_experts, top_k, capacity_factor: min(
                int(num_tokens * top_k * capacity_factor / num_experts), num_tokens
            ),
        ),
        Misconception(
            "rounded-to-nearest",
            "You rounded to the nearest whole number. If that is the lower one, an even load does not fit: round up.",
            lambda num_tokens, num_experts, top_k, capacity_factor: min(
                round(num_tokens * top_k * capacity_factor / num_experts), num_tokens
            ),
        ),
        Misconception(
            "factor-made-whole",
            "You made the capacity factor an integer before multiplying: 1.25 becomes 1, and 0.75 becomes 0. Round "
            "once, at the end.",
            _capped(lambda t, e, k, factor: t * k * int(factor) / e),
        ),
        Misconception(
            "share-rounded-up-first",
            "You rounded the even share up before you applied the factor, so you round twice, and both times up. "
            "Multiply first, round once.",
            _capped(lambda t, e, k, factor: math.ceil(t * k / e) * factor),
        ),
        Misconception(
            "share-rounded-down-first",
            "You rounded the even share down, as `//` does, before you applied the factor. Multiply first, round once.",
            _capped(lambda t, e, k, factor: t * k // e * factor),
        ),
        Misconception(
            "k-forgotten",
            "You divided T tokens among the experts. Each token makes K choices, and each choice wants a slot: T·K of "
            "them. Switch's formula has no K because its K is 1.",
            _capped(lambda t, e, k, factor: t * factor / e),
        ),
        Misconception(
            "divided-by-k",
            "You divided by E·K. K does not give you more experts, it gives every token more choices: it belongs in "
            "the numerator.",
            _capped(lambda t, e, k, factor: t * factor / (e * k)),
        ),
        Misconception(
            "slots-of-all-experts",
            "That is the number of slots of all experts together. Divide by E for the slots of one.",
            _capped(lambda t, e, k, factor: t * k * factor),
        ),
        Misconception(
            "more-slots-than-tokens",
            "You gave an expert more slots than there are tokens. A token takes at most one slot of an expert, so "
            "those beyond T stay empty for certain, and a `topk` of C among T tokens crashes.",
            lambda num_tokens, num_experts, top_k, capacity_factor: math.ceil(
                num_tokens * top_k * capacity_factor / num_experts
            ),
        ),
    ),
    alternatives=(_by_fractions, _share_times_factor),
)
