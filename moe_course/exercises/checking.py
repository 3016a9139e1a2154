"""`check`, the line under every exercise."""

import os
from collections.abc import Callable
from typing import Any

from .judge import Verdict, judge
from .observe import observe
from .registry import EXERCISES, by_entry
from .show import show_message, show_verdict
from .spec import Exercise

SEED = 0


def check(answer: Callable[..., Any]) -> Callable[..., Any]:
    """Tries the exercise that `answer` belongs to and shows how it fares.

    Args:
        answer: your function or class; its name says which exercise it answers.

    Returns:
        `answer` itself if it is right, otherwise the reference, so that the rest of the lesson runs either way.

    Raises:
        AssertionError: only under nbgrader, which knows an unsolved exercise by an exception.
    """
    exercise = by_entry(getattr(answer, "__name__", ""))
    if exercise is None or not callable(answer):
        show_message(_unknown(answer))
        return answer
    if answer is exercise.reference:
        # What an earlier check handed out in place of an answer that failed.
        message = f"This {exercise.entry} is the reference, not yours. Run the cell with your answer again, then this."
        show_message(message)
        _fail_under_nbgrader(message)
        return answer
    verdict = evaluate(exercise, answer, SEED)
    show_verdict(verdict)
    if verdict.passed:
        return answer
    _fail_under_nbgrader(verdict.message or f"{exercise.entry} is not attempted")
    return exercise.reference


def evaluate(exercise: Exercise, answer: Callable[..., Any], seed: int) -> Verdict:
    """The verdict on `answer`, on inputs drawn from `seed`."""
    return judge(exercise, observe(exercise, answer, exercise.inputs(seed)), seed)


def _fail_under_nbgrader(message: str) -> None:
    if os.environ.get("NBGRADER_EXECUTION"):
        raise AssertionError(message)


def _unknown(answer: Any) -> str:
    name = getattr(answer, "__name__", None)
    if not callable(answer) or not name:
        return (
            f"check() got a {type(answer).__name__}, not a function or class. "
            "Write the name without calling it: check(route), not check(route(x))."
        )
    entries = ", ".join(exercise.entry for exercise in EXERCISES)
    return f"There is no exercise named {name}. Keep the name that the exercise gives you; there are: {entries}."
