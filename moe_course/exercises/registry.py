"""Finds the exercises of every `lesson_NN` module of this package."""

import importlib
import pkgutil
from pathlib import Path

from .spec import Exercise

LESSONS: dict[str, tuple[Exercise, ...]] = {
    info.name.removeprefix("lesson_"): importlib.import_module(f"{__package__}.{info.name}").EXERCISES
    for info in pkgutil.iter_modules([str(Path(__file__).parent)])
    if info.name.startswith("lesson_")
}
EXERCISES: tuple[Exercise, ...] = tuple(exercise for lesson in LESSONS.values() for exercise in lesson)

_BY_ENTRY = {exercise.entry: exercise for exercise in EXERCISES}
_BY_ID = {exercise.id: exercise for exercise in EXERCISES}


def by_entry(name: str) -> Exercise | None:
    """The exercise whose function or class has this name."""
    return _BY_ENTRY.get(name)


def by_id(exercise_id: str) -> Exercise | None:
    """The exercise with this id, such as "02.top_k_routing"."""
    return _BY_ID.get(exercise_id)
