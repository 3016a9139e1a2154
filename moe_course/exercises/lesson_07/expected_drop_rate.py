"""Exercise 07.expected_drop_rate: what a perfectly balanced random router drops, by the binomial law."""

import math
from collections.abc import Callable, Iterator

from torch import Generator

from ...layers import expected_drop_rate
from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make


def _of(num_tokens: int, num_experts: int, top_k: int, capacity: int) -> Make:
    def make(generator: Generator) -> Inputs:
        return {"num_tokens": num_tokens, "num_experts": num_experts, "top_k": top_k, "capacity": capacity}

    return make


def _binomial(trials: int, p: float) -> Iterator[tuple[int, float]]:
    """Each load and its probability."""
    return ((n, math.comb(trials, n) * p**n * (1 - p) ** (trials - n)) for n in range(trials + 1))


def _by_loop(num_tokens: int, num_experts: int, top_k: int, capacity: int) -> float:
    loads = _binomial(num_tokens, top_k / num_experts)
    dropped = sum(max(n - capacity, 0) * p for n, p in loads)
    return dropped * num_experts / (num_tokens * top_k)


def _by_what_is_kept(num_tokens: int, num_experts: int, top_k: int, capacity: int) -> float:
    kept = sum(min(n, capacity) * p for n, p in _binomial(num_tokens, top_k / num_experts))
    return 1 - kept / (num_tokens * top_k / num_experts)


def _with(lost: Callable[[int, int], float], p_of: Callable[[int, int], float] | None = None) -> Callable[..., float]:
    """The rate with another `lost(load, capacity)`, or another probability `p_of(num_experts, top_k)`."""

    def wrong(num_tokens: int, num_experts: int, top_k: int, capacity: int) -> float:
        p = p_of(num_experts, top_k) if p_of else top_k / num_experts
        dropped = sum(lost(n, capacity) * probability for n, probability in _binomial(num_tokens, p))
        return dropped * num_experts / (num_tokens * top_k)

    return wrong


def _of_the_average(num_tokens: int, num_experts: int, top_k: int, capacity: int) -> float:
    return max(num_tokens * top_k / num_experts - capacity, 0.0) * num_experts / (num_tokens * top_k)


def _chance_of_overflow(num_tokens: int, num_experts: int, top_k: int, capacity: int) -> float:
    return sum(p for n, p in _binomial(num_tokens, top_k / num_experts) if n > capacity)


def _independent_choices(num_tokens: int, num_experts: int, top_k: int, capacity: int) -> float:
    dropped = sum(max(n - capacity, 0) * p for n, p in _binomial(num_tokens * top_k, 1 / num_experts))
    return dropped * num_experts / (num_tokens * top_k)


def _by_normal(num_tokens: int, num_experts: int, top_k: int, capacity: int) -> float:
    p = top_k / num_experts
    mean, deviation = num_tokens * p, math.sqrt(num_tokens * p * (1 - p))
    if deviation == 0:
        return max(mean - capacity, 0.0) / mean
    z = (capacity - mean) / deviation
    density, above = math.exp(-z * z / 2) / math.sqrt(2 * math.pi), math.erfc(z / math.sqrt(2)) / 2
    return deviation * (density - z * above) / mean


EXPECTED_DROP_RATE = Exercise(
    id="07.expected_drop_rate",
    entry="expected_drop_rate",
    title="What chance alone drops",
    points=4,
    difficulty=3,
    minutes=15,
    hints=(
        "One expert first. Its load N is a sum of T yes-or-no questions, one for each token, each yes with "
        "probability K/E. If N turns out to be n, it drops max(n − C, 0).",
        "Sum `max(n - capacity, 0)` times the probability of n, for n from 0 to T. `math.comb(T, n)` counts the ways. "
        "That is the mean of one expert. How many experts are there, and how many choices to share the loss?",
        "With `p = top_k / num_experts`: sum over n of `max(n - capacity, 0) * math.comb(num_tokens, n) * p**n * "
        "(1 - p)**(num_tokens - n)`, times `num_experts / (num_tokens * top_k)`.",
    ),
    reference=expected_drop_rate,
    cases=(
        Case("two tokens, two experts, one slot each", _of(2, 2, 1, 1)),
        Case("64 tokens, factor 1", _of(64, 8, 1, 8)),
        Case("64 tokens, factor 1.25", _of(64, 8, 1, 10)),
        Case("256 tokens, factor 1", _of(256, 8, 1, 32)),
        Case("top-2", _of(48, 6, 2, 16)),
        Case("top-3, hardly any room", _of(20, 5, 3, 7)),
        Case("fewer slots than the even share", _of(30, 6, 1, 3)),
        Case("room for all", _of(12, 4, 1, 12)),
        Case("every expert, K = E", _of(6, 3, 3, 5)),
        Case("one expert, E = 1", _of(5, 1, 1, 3)),
    ),
    misconceptions=(
        Misconception(
            "drops-of-the-average",
            "You took the excess of the average load, and that is 0 whenever the factor is at least 1. What counts is "
            "the average of the excess: experts above the mean drop, and those below cannot make up for it.",
            _of_the_average,
        ),
        Misconception(
            "chance-of-overflow",
            "That is the probability that an expert overflows. An overflow by one choice costs less than one by ten: "
            "weigh each load n with its excess, n − C.",
            _chance_of_overflow,
        ),
        Misconception(
            "per-token-not-per-choice",
            "You divided by T. There are T·K choices to drop, so with K > 1 your rate is K times too large.",
            lambda num_tokens, num_experts, top_k, capacity: _by_loop(num_tokens, num_experts, top_k, capacity) * top_k,
        ),
        Misconception(
            "of-one-expert",
            "You counted what *one* expert drops, and divided by the choices of all. Multiply by E.",
            lambda num_tokens, num_experts, top_k, capacity: (
                _by_loop(num_tokens, num_experts, top_k, capacity) / num_experts
            ),
        ),
        Misconception(
            "choices-independent",
            "You drew T·K choices with probability 1/E each. But a token's K choices are different experts: an expert "
            "gets at most one of them. Ask T tokens, each says yes with probability K/E.",
            _independent_choices,
        ),
        Misconception(
            "k-forgotten",
            "Your probability is 1/E. A token chooses K of E experts, so each is among them with probability K/E.",
            _with(lambda n, capacity: max(n - capacity, 0), lambda num_experts, top_k: 1 / num_experts),
        ),
        Misconception(
            "padding-not-drops",
            "You weighed each load with the slots it leaves *empty*, C − n. That is the padding.",
            _with(lambda n, capacity: max(capacity - n, 0)),
        ),
        Misconception(
            "normal-approximation",
            "You put a normal distribution in place of the binomial. It comes close for large T, and it is not the "
            "law: loads are whole numbers, and their distribution is skewed.",
            _by_normal,
        ),
    ),
    alternatives=(_by_loop, _by_what_is_kept),
)
