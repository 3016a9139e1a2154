"""Reads verdicts from a notebook: the metadata of the outputs that `check` displayed."""

from dataclasses import dataclass
from typing import Any

STATUSES = ("passed", "failed", "not attempted")


@dataclass(frozen=True)
class SavedVerdict:
    """What a saved check says. `status` is "passed", "failed", "not attempted", or "not run"."""

    exercise: str
    status: str
    points: float = 0.0
    max_points: float = 0.0
    message: str = ""


def read_verdicts(notebook: Any) -> list[SavedVerdict]:
    """One verdict for each check cell, in order; "not run" where the cell has no saved output.

    Args:
        notebook: a notebook as JSON or nbformat reads it; anything malformed in it counts as not there.
    """
    found: dict[str, SavedVerdict] = {}
    for cell in _items(notebook, "cells"):
        name = _about(cell).get("check")
        if isinstance(name, str):
            found.setdefault(name, SavedVerdict(name, "not run"))
        for output in _items(cell, "outputs"):
            verdict = _verdict(_about(output))
            if verdict:
                found[verdict.exercise] = verdict
    return list(found.values())


def _verdict(about: dict[str, Any]) -> SavedVerdict | None:
    exercise, status = about.get("exercise"), about.get("status")
    if not isinstance(exercise, str) or status not in STATUSES:
        return None
    points, max_points = (_number(about.get(key)) for key in ("points", "max_points"))
    return SavedVerdict(exercise, status, points, max_points, str(about.get("message") or ""))


def _number(value: Any) -> float:
    return value if isinstance(value, int | float) else 0.0


def _about(holder: dict[str, Any]) -> dict[str, Any]:
    """What the course wrote into the metadata of a cell or an output."""
    metadata = holder.get("metadata")
    about = metadata.get("moe_course") if isinstance(metadata, dict) else None
    return about if isinstance(about, dict) else {}


def _items(holder: Any, key: str) -> list[dict[str, Any]]:
    items = holder.get(key) if isinstance(holder, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
