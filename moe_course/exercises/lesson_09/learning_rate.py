"""Exercise 09.learning_rate: linear warm-up, then a cosine down to a floor."""

import math
from collections.abc import Callable

import torch
from torch import Generator

from ..spec import Case, Exercise, Misconception
from ..training_drive import call_at_each_step
from .inputs import Inputs, Make

Schedule = Callable[[int, int, int, float, float], float]


def learning_rate(step: int, steps: int, warm_up: int, peak: float, floor: float) -> float:
    """The rate of one step, counted from 0: up to `peak` in `warm_up` steps, then along a cosine to `floor`."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return floor + (peak - floor) * _fall((step + 1 - warm_up) / max(steps - warm_up, 1))


def _fall(progress: float) -> float:
    """1 at 0, 0 from 1 on."""
    return (1 + math.cos(math.pi * min(progress, 1.0))) / 2


def _at(steps: int, warm_up: int, relative_floor: float, *at: int) -> Make:
    """The peak is drawn; the floor is a share of it. Without `at`, every step."""

    def make(generator: Generator) -> Inputs:
        peak = 0.5 + torch.rand((), generator=generator).item()
        return {
            "at_steps": torch.tensor(at or range(steps)),
            "steps": steps,
            "warm_up": warm_up,
            "peak": peak,
            "floor": relative_floor * peak,
        }

    return make


def _two_halves(step: int, steps: int, warm_up: int, peak: float, floor: float) -> float:
    done = step + 1
    if done <= warm_up:
        return done / warm_up * peak
    share = min((done - warm_up) / (steps - warm_up), 1)
    return floor + (peak - floor) * math.cos(share * math.pi / 2) ** 2


def _by_tensors(step: int, steps: int, warm_up: int, peak: float, floor: float) -> float:
    done = torch.tensor(step + 1.0, dtype=torch.float64)
    rise = done / max(warm_up, 1)
    progress = ((done - warm_up) / max(steps - warm_up, 1)).clamp(0, 1)
    fall = floor + (peak - floor) * 0.5 * (1 + torch.cos(torch.pi * progress))
    return float(torch.where(done <= warm_up, rise * peak, fall))


def _rising(rise: Callable[[int, int], float]) -> Schedule:
    def wrong(step: int, steps: int, warm_up: int, peak: float, floor: float) -> float:
        return peak * rise(step, warm_up) if step < warm_up else learning_rate(step, steps, warm_up, peak, floor)

    return wrong


def _falling(fall: Schedule) -> Schedule:
    def wrong(step: int, steps: int, warm_up: int, peak: float, floor: float) -> float:
        if step < warm_up:
            return peak * (step + 1) / warm_up
        return fall(step, steps, warm_up, peak, floor)

    return wrong


def _progress(step: int, steps: int, warm_up: int) -> float:
    return min((step + 1 - warm_up) / max(steps - warm_up, 1), 1.0)


def _counted_from_zero(step: int, steps: int, warm_up: int, peak: float, floor: float) -> float:
    """Both halves one step late: 0 in the first step."""
    if step < warm_up:
        return peak * step / warm_up
    return floor + (peak - floor) * _fall((step - warm_up) / max(steps - warm_up, 1))


def _rises_again(step: int, steps: int, warm_up: int, peak: float, floor: float) -> float:
    progress = (step + 1 - warm_up) / max(steps - warm_up, 1)
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2


LEARNING_RATE = Exercise(
    id="09.learning_rate",
    entry="learning_rate",
    title="Warm-up and cosine",
    points=2,
    difficulty=1,
    minutes=10,
    hints=(
        "Two formulas, one for `step < warm_up` and one for the rest. What should the very first step have: 0, or one "
        "`warm_up`-th of the peak?",
        "Rise: `peak * (step + 1) / warm_up`. For the fall you need the progress, from 0 at the end of the warm-up to "
        "1 at the last step and no further: `(step + 1 - warm_up) / (steps - warm_up)`.",
        "`progress = min((step + 1 - warm_up) / max(steps - warm_up, 1), 1)`; return "
        "`floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2`.",
    ),
    reference=learning_rate,
    cases=(
        Case("10 of 50 steps to warm up", _at(50, 10, 0.0)),
        Case("a floor at a tenth of the peak", _at(30, 5, 0.1)),
        Case("the first step", _at(100, 20, 0.0, 0)),
        Case("where the two halves meet", _at(40, 8, 0.2, 6, 7, 8, 9)),
        Case("the last step and after it", _at(24, 4, 0.1, 22, 23, 24, 30, 40)),
        Case("no warm-up", _at(20, 0, 0.1)),
        Case("nothing but warm-up", _at(6, 6, 0.0)),
    ),
    misconceptions=(
        Misconception(
            "first-step-at-zero",
            "Your first step has a rate of 0: a whole batch is computed and thrown away. Count from the first step's "
            "end, `(step + 1) / warm_up`.",
            _rising(lambda step, warm_up: step / warm_up),
        ),
        Misconception(
            "one-step-late",
            "Your whole schedule is one step late: the first step has a rate of 0, and the last one does not reach "
            "the floor. After `step`, counted from 0, `step + 1` steps are done.",
            _counted_from_zero,
        ),
        Misconception(
            "peak-never-reached",
            "You divided by `warm_up + 1`: the last step of the warm-up falls short of the peak.",
            _rising(lambda step, warm_up: (step + 1) / (warm_up + 1)),
        ),
        Misconception(
            "warm-up-counted-in-the-cosine",
            "Your cosine began at step 0, under the warm-up. When the warm-up ends the rate jumps down. Measure the "
            "progress from the end of the warm-up.",
            _falling(lambda step, steps, warm_up, peak, floor: floor + (peak - floor) * _fall((step + 1) / steps)),
        ),
        Misconception(
            "floor-added",
            "You added the floor to a cosine of the full height. The fall is from the peak to the floor: its height is "
            "`peak - floor`.",
            _falling(lambda step, steps, warm_up, peak, floor: floor + peak * _fall(_progress(step, steps, warm_up))),
        ),
        Misconception(
            "floor-as-a-limit",
            "You took the larger of the cosine and the floor. The rate then lies flat for the last part of training. "
            "Let the cosine itself end at the floor.",
            _falling(
                lambda step, steps, warm_up, peak, floor: max(floor, peak * _fall(_progress(step, steps, warm_up)))
            ),
        ),
        Misconception(
            "floor-forgotten",
            "Your cosine ends at 0, not at the floor.",
            _falling(lambda step, steps, warm_up, peak, floor: peak * _fall(_progress(step, steps, warm_up))),
        ),
        Misconception(
            "rises-again",
            "After the last step your rate rises again: a cosine goes on. Keep the progress at 1; a run that is made "
            "longer, or resumed with the old number of steps, would be lost.",
            _rises_again,
        ),
        Misconception(
            "straight-line",
            "Your rate falls on a straight line. Asked for is half a period of a cosine.",
            _falling(lambda step, steps, warm_up, peak, floor: peak - (peak - floor) * _progress(step, steps, warm_up)),
        ),
        Misconception(
            "whole-period",
            "Your cosine runs through a whole period, 2π, and ends at the peak. Half a period, π, goes from the top to "
            "the bottom.",
            _falling(
                lambda step, steps, warm_up, peak, floor: (
                    floor + (peak - floor) * (1 + math.cos(2 * math.pi * _progress(step, steps, warm_up))) / 2
                )
            ),
        ),
    ),
    alternatives=(_two_halves, _by_tensors),
    drive=call_at_each_step,
)
