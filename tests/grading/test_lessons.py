"""Each lesson of the course can be graded: its solved notebook gets full marks, its handout none."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_course.exercises import LESSONS
from moe_course.grading.answers import Program
from moe_course.grading.examine import Examiner
from moe_course.grading.notebook import read_notebook
from moe_course.grading.sandbox import Sandbox
from tests.grading.conftest import ROOT


@pytest.fixture(scope="module")
def examiner() -> Iterator[Examiner]:
    with Sandbox(modules=("moe_course.exercises.with_triton",)) as sandbox:
        yield Examiner(sandbox, seed=1, seconds=60)


@pytest.mark.parametrize("handout", sorted((ROOT / "lessons").glob("[0-9][0-9]_*.ipynb")), ids=lambda path: path.stem)
def test_full_marks_for_the_solution_and_none_for_the_handout(examiner: Examiner, handout: Path):
    exercises = LESSONS[handout.name[:2]]
    lesson = Program(read_notebook(handout.read_bytes()))
    solved = Program(read_notebook((ROOT / "solutions" / handout.name).read_bytes()), lesson)
    for exercise, outcome in zip(exercises, examiner.examine(solved, lesson, exercises).values(), strict=True):
        assert outcome.passed, (exercise.id, outcome.status, outcome.verdict and outcome.verdict.message)
        assert not outcome.notes
    for outcome in examiner.examine(lesson, lesson, exercises).values():
        assert (outcome.status, outcome.points) == ("not attempted", 0)
