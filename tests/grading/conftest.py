"""A class that hands in lesson 02: notebooks made from the handout, by replacing single answers."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
HANDOUT = ROOT / "lessons" / "02_router.ipynb"
SOLVED = ROOT / "solutions" / "02_router.ipynb"


def solutions() -> dict[str, str]:
    """The solved cell of each exercise of lesson 02, by its id."""
    cells = nbformat.read(SOLVED, as_version=4).cells
    return {c.metadata.moe_course.exercise: c.source for c in cells if "exercise" in c.metadata.get("moe_course", {})}


def notebook(answers: dict[str, str]) -> dict[str, Any]:
    """The handout with some of its exercise cells replaced, by the exercise's id."""
    data = json.loads(HANDOUT.read_text(encoding="utf-8"))
    for cell in data["cells"]:
        exercise = cell["metadata"].get("moe_course", {}).get("exercise")
        if exercise in answers:
            cell["source"] = answers[exercise]
    return data


def hand_in(folder: Path, student: str, data: Any) -> Path:
    """Write a student's notebook into a tree `student/02_router.ipynb`."""
    path = folder / student / "02_router.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return path


@pytest.fixture(scope="session", autouse=True)
def bubblewrap() -> None:
    """The sandbox's program; installed where that is possible, as Chromium is for the browser's tests."""
    if sys.platform != "linux" or shutil.which("bwrap"):
        return
    if shutil.which("apt-get") and os.geteuid() == 0:
        for command in (["update"], ["install", "--yes", "--no-install-recommends", "bubblewrap"]):
            subprocess.run(["apt-get", "-qq", *command], check=False, timeout=600, capture_output=True)
    if not shutil.which("bwrap"):
        pytest.fail("the grader's tests need bubblewrap; Debian and Ubuntu: `sudo apt install bubblewrap`")


@pytest.fixture(scope="session")
def solved() -> dict[str, str]:
    return solutions()
