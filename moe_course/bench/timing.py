"""Timing on a machine that others use too: interleaved samples, a ratio in every round, the median of the ratios.

An absolute time on a shared machine means nothing. Two calls timed one right after the other meet the same
machine, so their ratio means something; the median over rounds drops the rounds in which they did not.
"""

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Sample:
    """Seconds of one call, averaged over one sample: of this process's CPU time, and of the clock on the wall."""

    cpu: float
    wall: float


def interleave(
    calls: dict[str, Call],
    *,
    rounds: int,
    min_seconds: float = 0.02,
    on_round: Callable[[int], None] = lambda round_: None,
) -> dict[str, list[Sample]]:
    """Time every call once a round, in turn (A B C A B C …).

    Args:
        calls: what to time, by name.
        rounds: samples of each.
        min_seconds: how long one sample lasts at least; a short call is repeated within the sample.
        on_round: told the number of each round, from 1, before it starts.

    Returns:
        The samples of each call, in the order of the rounds.
    """
    repeats = {name: _repeats(call, min_seconds) for name, call in calls.items()}  # warms each call up as well
    samples: dict[str, list[Sample]] = {name: [] for name in calls}
    with _no_garbage_collection():
        for round_ in range(1, rounds + 1):
            on_round(round_)
            for name, call in calls.items():
                samples[name].append(_sample(call, repeats[name]))
    return samples


def ratios(samples: list[Sample], baseline: list[Sample], clock: str = "cpu") -> list[float]:
    """Time over the baseline's time, round by round, on one clock ("cpu" or "wall")."""
    return [getattr(a, clock) / getattr(b, clock) for a, b in zip(samples, baseline, strict=True)]


def median_ratio(samples: list[Sample], baseline: list[Sample], clock: str = "cpu") -> float:
    """Median over the rounds of the time over the baseline's time in the same round."""
    return statistics.median(ratios(samples, baseline, clock))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _sample(call: Call, repeats: int) -> Sample:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        call()
    return Sample((time.process_time() - cpu) / repeats, (time.perf_counter() - wall) / repeats)


def _repeats(call: Call, min_seconds: float) -> int:
    """How often to repeat a call so that it computes for min_seconds; doubles until it does."""
    first = _sample(call, 1)  # it allocates and initialises, and so counts only if it was long
    if first.cpu >= 10 * min_seconds:
        return 1
    repeats = 1
    while True:
        sample = _sample(call, repeats)
        # CPU time, since a process that is kept waiting has not computed; the clock ends calls that only wait.
        if sample.cpu * repeats >= min_seconds or sample.wall * repeats >= 10 * min_seconds:
            return repeats
        repeats *= 2


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
