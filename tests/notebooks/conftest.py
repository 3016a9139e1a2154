"""A small course to build: a lesson with the real exercises of lesson 02, and one with figures."""

import sys
from pathlib import Path

import pytest

from moe_course.exercises import LESSONS
from moe_course.notebooks.build import build

collect_ignore_glob = [] if sys.platform == "linux" else ["test_warm*.py"]  # there are no warm kernels elsewhere

HEADER = """\
# ---
# jupyter:
#   moe_course:
#     title: {title}
#     promise: A promise.
#     objectives: [Do this, Do that]
#     prerequisites: [Patience]
#     minutes: 10
#     difficulty: 2
# ---

# %% tags=["parameters"]
seed: int = 0  # of everything

"""
OPENING = """\
# %%
from moe_course import check
from moe_course.exercises import by_id

# %% [markdown]
# Same text.

# %% [markdown]
# Same text.

"""
EXERCISE = """\
# %% [markdown]
# Write `{entry}`.

# %% exercise="{id}"
def {entry}(*args, **kwargs):
    \"\"\"Args and returns as the task says.\"\"\"
    ### BEGIN SOLUTION
    solved_by_the_reference = by_id("{id}").reference
    return solved_by_the_reference(*args, **kwargs)
    ### END SOLUTION

# %% check="{id}"
{entry} = check({entry})

"""
FIGURES = """\
# %% tags=["nbval-check-output"]
print(seed + 1)

# %% tags=["hide-input"]
import plotly.graph_objects as go
from moe_course import show, sliders
from moe_course.figures.style import BLUE

def line(slope):
    return go.Figure(go.Scatter(x=[0, 1], y=[0, slope], line={"color": BLUE}), {"title": {"text": "A line"}})

show(line(1.0))

# %%
sliders(line, slope=(0.0, 2.0, 0.5, 1.0))
"""
EXERCISES = LESSONS["02"]


@pytest.fixture
def course(tmp_path: Path) -> Path:
    """The sources of a course that is not built."""
    return write_sources(tmp_path / "course")


@pytest.fixture(scope="session")
def built_course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A course that is built. Copy it before changing anything."""
    root = write_sources(tmp_path_factory.mktemp("built") / "course")
    assert build(root).problems == []
    return root


def write_sources(root: Path) -> Path:
    (root / "solutions").mkdir(parents=True)
    (root / "solutions" / "02_first.py").write_text(first_lesson(), encoding="utf-8")
    (root / "solutions" / "90_second.py").write_text(second_lesson(), encoding="utf-8")
    return root


def first_lesson() -> str:
    exercises = "".join(EXERCISE.format(id=exercise.id, entry=exercise.entry) for exercise in EXERCISES)
    return HEADER.format(title="The first") + OPENING + exercises


def second_lesson() -> str:
    return HEADER.format(title="The second") + FIGURES
