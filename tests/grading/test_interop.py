"""Other systems take the results: Gradescope runs the zip, nbgrader's gradebook holds the scores."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from nbgrader.api import Gradebook
from typer.testing import CliRunner

from moe_course.cli import app
from moe_course.exercises import LESSONS
from moe_course.grading.gradebook import NoGradebook, record
from moe_course.grading.results import ExerciseResult, Result
from tests.grading.conftest import notebook
from tests.grading.test_run import check_gradescope


def as_gradescope(root: Path, archive: Path) -> dict:
    """Run an autograder as Gradescope does, in a folder laid out like its /autograder; the results."""
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            opened.extract(member, root / "source")
    run = root / "run_autograder"
    shutil.copy(root / "source" / "run_autograder", run)
    run.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "MOE_COURSE_PYTHON": sys.executable}
    done = subprocess.run([str(run)], cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads((root / "results" / "results.json").read_text(encoding="utf-8"))


def test_the_autograder_grades_in_gradescopes_folders(tmp_path, solved):
    archive, root = tmp_path / "autograder.zip", tmp_path / "autograder"
    done = CliRunner().invoke(app, ["gradescope", "02", "--out", str(archive)])
    assert done.exit_code == 0 and "Upload it in Gradescope" in done.output
    (root / "submission").mkdir(parents=True)
    (root / "results").mkdir()
    answers = solved | {"02.route": "def route(*args, **kwargs):\n    return None"}
    (root / "submission" / "My notebook (1).ipynb").write_text(json.dumps(notebook(answers)), encoding="utf-8")
    data = as_gradescope(root, archive)
    assert check_gradescope(data) == 6
    assert data["score"] == 9  # route is worth 3, and nothing of it is right
    assert data["extra_data"]["isolation"] == "bubblewrap"
    outputs = {test["name"].split()[0]: test["output"] for test in data["tests"]}
    assert "All checks pass." in outputs["02.router_logits"] and "is a `return` missing?" in outputs["02.route"]


def test_the_zip_holds_no_solutions_and_is_the_same_each_time(tmp_path):
    for name in ("one.zip", "two.zip"):
        assert CliRunner().invoke(app, ["gradescope", "2", "--out", str(tmp_path / name)]).exit_code == 0
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as opened:
        names = opened.namelist()
        needs = opened.read("moe-course/needs.txt").decode()
        setup = opened.read("setup.sh").decode()
    assert {"setup.sh", "run_autograder", "moe-course/lessons/02_router.ipynb"} <= set(names)
    assert not [name for name in names if "solutions" in name or "tests" in name]
    assert "torch" in needs and "needs.txt" in setup and "bubblewrap" in setup
    assert subprocess.run(["bash", "-n"], input=setup, text=True).returncode == 0


def result(student: str, points: float) -> Result:
    rows = [ExerciseResult(e.id, e.title, e.points, "graded", points=points * e.points) for e in LESSONS["02"]]
    return Result(student, "02", "02_router.ipynb", "", "bubblewrap", rows)


def test_nbgraders_gradebook_holds_the_scores(tmp_path):
    url = f"sqlite:///{tmp_path}/gradebook.db"
    most = sum(exercise.points for exercise in LESSONS["02"])
    for _ in range(2):  # entering them again changes nothing
        assert record([result("ada", 1), result("bob", 0.5)], url) == 2 * len(LESSONS["02"])
    with Gradebook(url) as gradebook:
        (assignment,) = gradebook.assignments
        scores = {s.student.id: (s.score, s.max_score) for s in gradebook.assignment_submissions(assignment.name)}
        assert scores == {"ada": (most, most), "bob": (most / 2, most)}
        assert not any(s.needs_manual_grade for s in gradebook.assignment_submissions(assignment.name))


def test_an_assignment_that_nbgrader_knows_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    url = f"sqlite:///{tmp_path}/gradebook.db"
    with Gradebook(url) as gradebook:
        gradebook.add_assignment("homework 2")
        gradebook.add_notebook("02_router", "homework 2")
        cells = [f"check-{exercise.id.replace('.', '-')}" for exercise in LESSONS["02"]]
        gradebook.add_grade_cell(cells[0], "02_router", "homework 2", max_score=1, cell_type="code")
    record([result("ada", 1)], url)
    with Gradebook(url) as gradebook:
        assert [each.name for each in gradebook.assignments] == ["homework 2"]
        grades = gradebook.find_submission_notebook("02_router", "homework 2", "ada").grades
        assert {grade.name for grade in grades} == set(cells) and all(grade.auto_score for grade in grades)


def test_a_gradebook_that_cannot_be_had_is_told(tmp_path):
    with pytest.raises(NoGradebook, match="cannot be used"):
        record([result("ada", 1)], "nonsense:///x")
