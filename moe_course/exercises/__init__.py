"""Exercises as data, and `check`, which tells a learner how their answer fares."""

from .checking import check
from .drive import call_function, call_module
from .registry import EXERCISES, LESSONS, by_entry, by_id
from .spec import Case, Exercise, Misconception, Property

__all__ = [
    "EXERCISES",
    "LESSONS",
    "Case",
    "Exercise",
    "Misconception",
    "Property",
    "by_entry",
    "by_id",
    "call_function",
    "call_module",
    "check",
]
