"""Instructors who use nbgrader can release, validate and autograde a lesson: tried with nbgrader itself."""

import copy
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbgrader.apps import NbGraderAPI
from nbgrader.validator import Validator
from traitlets.config import Config

from moe_course.exercises import by_id
from moe_course.notebooks.make import solved_notebook, student_notebook
from moe_course.notebooks.source import Header, Lesson
from moe_course.notebooks.warm import kernel_name
from tests.notebooks.conftest import EXERCISE, HEADER, OPENING

EXERCISES = [by_id("02.router_logits"), by_id("02.tokens_per_expert")]
TIMEOUT = 180  # seconds; nbgrader's own 30 are short for the first import of torch on a busy machine
SOLUTION = "solved_by_the_reference"  # a name that stands in every solution of the small lesson


def small_lesson() -> Lesson:
    """A lesson with two exercises, so that it runs in a few seconds."""
    exercises = "".join(EXERCISE.format(id=exercise.id, entry=exercise.entry) for exercise in EXERCISES)
    text = HEADER.format(title="Small") + OPENING + exercises
    header = Header("Small", "A promise.", ["Do this"], ["Patience"], 10, 1)
    return Lesson(Path("02_small.py"), header, jupytext.reads(text, fmt="py:percent").cells, text)


@pytest.fixture(scope="module")
def notebooks() -> dict[str, nbformat.NotebookNode]:
    """What three students hand in: everything solved, only the first exercise solved, nothing."""
    lesson = small_lesson()
    solved, unsolved = solved_notebook(lesson, [lesson]), student_notebook(lesson, [lesson])
    half = student_notebook(lesson, [lesson])
    first = "exercise-" + EXERCISES[0].id.replace(".", "-")
    (source,) = [cell.source for cell in solved.cells if cell.id == first]
    for cell in half.cells:
        cell.source = source if cell.id == first else cell.source
    return {"solved": solved, "half": half, "unsolved": unsolved}


@pytest.fixture(scope="module")
def course(tmp_path_factory, notebooks) -> Iterator[NbGraderAPI]:
    """An nbgrader course whose one assignment is the solved lesson, handed in by three students and graded."""
    root = tmp_path_factory.mktemp("nbgrader")
    config = Config()
    config.Execute.timeout = TIMEOUT
    config.CourseDirectory.root = str(root)
    config.CourseDirectory.db_url = f"sqlite:///{root}/gradebook.db"
    config.Exchange.root = str(root / "exchange")
    api = NbGraderAPI(config=config)
    warm = {student: in_warm_kernel(notebook) for student, notebook in notebooks.items()}
    with pytest.MonkeyPatch.context() as patch:  # nbgrader calls the program alembic
        patch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
        write(warm["solved"], root / "source" / "small")
        succeeds(api.generate_assignment("small"))
        for student, notebook in warm.items():
            write(notebook, root / "submitted" / student / "small")
            succeeds(api.autograde("small", student))
        yield api


def in_warm_kernel(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The same notebook, which nbgrader runs sooner; the tests of `validate` keep to the kernel that learners have."""
    warm = copy.deepcopy(notebook)
    warm.metadata.kernelspec.name = kernel_name()
    return warm


def write(notebook: nbformat.NotebookNode, folder: Path) -> Path:
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / "02_small.ipynb")
    return folder / "02_small.ipynb"


def succeeds(result: dict) -> None:
    assert result["success"], result["log"] + (result["error"] or "")


def test_the_released_version_holds_stubs_and_no_solution(course):
    path = Path(course.coursedir.root) / "release" / "small" / "02_small.ipynb"
    released = nbformat.read(path, as_version=4)

    stubs = [cell for cell in released.cells if cell.id.startswith("exercise-")]
    assert [cell.metadata.moe_course.exercise for cell in stubs] == [exercise.id for exercise in EXERCISES]
    assert all("raise NotImplementedError" in cell.source for cell in stubs)
    assert SOLUTION not in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("student", "points"),
    [
        ("solved", [EXERCISES[0].points, EXERCISES[1].points]),
        ("half", [EXERCISES[0].points, 0]),
        ("unsolved", [0, 0]),
    ],
)
def test_points(course, student, points):
    submission = course.get_submission("small", student)
    assert submission["max_score"] == sum(exercise.points for exercise in EXERCISES)
    assert submission["score"] == sum(points)
    assert not submission["needs_manual_grade"]
    with course.gradebook as gradebook:
        grades = gradebook.find_submission_notebook("02_small", "small", student).grades
        assert {grade.name: grade.auto_score for grade in grades} == {
            "check-" + exercise.id.replace(".", "-"): score for exercise, score in zip(EXERCISES, points, strict=True)
        }


@pytest.mark.parametrize(("student", "failing"), [("solved", 0), ("half", 1)])
def test_nbgrader_validate(tmp_path, monkeypatch, notebooks, student, failing):
    monkeypatch.chdir(tmp_path)
    config = Config()
    config.Execute.timeout = TIMEOUT
    results = Validator(config=config).validate(str(write(notebooks[student], tmp_path / "mine")))

    assert len(results.get("failed", [])) == failing
    assert results.keys() <= {"failed"}
    if failing:
        assert "tokens_per_expert is not attempted" in results["failed"][0]["error"]
