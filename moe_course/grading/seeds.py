"""The seed of a grading run: fresh, so that nobody knows the inputs, and fair, so that right answers pass."""

import secrets

from moe_course.exercises.checking import evaluate
from moe_course.exercises.spec import Exercise


def fair_seed(exercises: list[Exercise]) -> int:
    """A seed that nobody could guess, on whose inputs the reference and every other known right answer pass.

    Rounding decides between experts whose logits are almost equal, so a rare draw is unfair; it is drawn again.
    """
    for _ in range(20):
        seed = 1 + secrets.randbelow(2**31 - 2)
        if not unfair_to(exercises, seed):
            return seed
    raise RuntimeError("no seed is fair: run `pytest tests/exercises` to see which right answer fails")


def unfair_to(exercises: list[Exercise], seed: int) -> list[str]:
    """The exercises of which a right answer does not pass on the inputs of a seed."""
    return [
        exercise.id
        for exercise in exercises
        if not all(evaluate(exercise, right, seed).passed for right in (exercise.reference, *exercise.alternatives))
    ]
