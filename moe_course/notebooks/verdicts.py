"""Reads verdicts from a notebook: the metadata of the outputs that `check` displayed."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SavedVerdict:
    """What a saved check says. `status` is "passed", "failed", "not attempted", or "not run"."""

    exercise: str
    status: str
    points: float = 0.0
    max_points: float = 0.0
    message: str = ""


def read_verdicts(notebook: dict[str, Any]) -> list[SavedVerdict]:
    """One verdict for each check cell, in order; "not run" where the cell has no saved output.

    Args:
        notebook: a notebook as JSON or nbformat reads it; anything malformed in it counts as not there.
    """
    found: dict[str, SavedVerdict] = {}
    for cell in _items(notebook, "cells"):
        name = _entry(cell, "check")
        if name:
            found.setdefault(name, SavedVerdict(name, "not run"))
        for output in _items(cell, "outputs"):
            about = output.get("metadata", {}).get("moe_course", {})
            if isinstance(about, dict) and isinstance(about.get("exercise"), str):
                known = {key: about[key] for key in SavedVerdict.__dataclass_fields__ if key in about}
                if "status" in known:
                    found[about["exercise"]] = SavedVerdict(**known)
    return list(found.values())


def _entry(cell: dict[str, Any], key: str) -> str | None:
    about = cell.get("metadata", {}).get("moe_course", {})
    return about.get(key) if isinstance(about, dict) else None


def _items(holder: dict[str, Any], key: str) -> list[dict[str, Any]]:
    items = holder.get(key)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
