"""A course is built, found stale and built again."""

import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest

from moe_course.notebooks import build as build_module
from moe_course.notebooks.build import build, stale
from moe_course.notebooks.chromium import find_chromium
from moe_course.notebooks.outputs import PLOTLY, WIDGET_VIEW, figures
from moe_course.notebooks.source import SourceError
from tests.notebooks.conftest import EXERCISES


@pytest.fixture
def course(built_course, tmp_path) -> Path:
    """A built course to change."""
    return Path(shutil.copytree(built_course, tmp_path / "course"))


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """The lessons that are run from now on."""
    names = []
    execute = build_module.execute

    def noted(notebook, folder, name, *rest):
        names.append(name)
        execute(notebook, folder, name, *rest)

    monkeypatch.setattr(build_module, "execute", noted)
    return names


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def contents(course: Path) -> dict[str, bytes]:
    return {str(path.relative_to(course)): path.read_bytes() for path in sorted(course.rglob("*.ipynb"))}


def solved(course: Path, name: str) -> nbformat.NotebookNode:
    return nbformat.read(course / "solutions" / f"{name}.ipynb", as_version=4)


def test_a_lesson_asked_for_is_run_again_and_no_other(course, ran):
    edit(course / "solutions" / "90_second.py", "seed + 1", "seed + 2")

    assert build(course, only=["02"]).written == ["02_first"]
    assert ran == ["02_first"]
    with pytest.raises(SourceError, match="no lesson is called '77'; choose from 02_first, 90_second"):
        build(course, only=["77"])


def test_a_built_course_is_not_stale(course, ran):
    before = contents(course)

    assert stale(course) == []
    assert build(course) == build_module.Built([], [], "")
    assert ran == []
    assert contents(course) == before
    assert not [path.name for path in course.rglob("*") if path.suffix not in (".py", ".ipynb", "")]


def test_building_again_writes_the_same_bytes(course, ran):
    before = contents(course)
    for path in course.rglob("90_second.ipynb"):
        path.unlink()

    assert build(course, jobs=1).written == ran == ["90_second"]
    assert contents(course) == before


def test_all_means_all(course, monkeypatch):
    ran = []
    monkeypatch.setattr(build_module, "execute", lambda notebook, folder, name, *rest: ran.append(name))

    build(course, everything=True, jobs=1)

    assert ran == ["02_first", "90_second"]


def test_every_exercise_passes_in_the_solved_notebook(course):
    statuses = {
        output.metadata["moe_course"]["exercise"]: output.metadata["moe_course"]["status"]
        for cell in solved(course, "02_first").cells
        for output in cell.get("outputs", [])
        if "moe_course" in output.get("metadata", {})
    }

    assert statuses == {exercise.id: "passed" for exercise in EXERCISES}


def test_outputs_hold_no_widgets_and_nothing_random(course):
    text = (course / "solutions" / "90_second.ipynb").read_text(encoding="utf-8")

    assert len(figures(solved(course, "90_second"))) == 2  # one of them from sliders
    assert WIDGET_VIEW not in text and '"widgets"' not in text and '"uid"' not in text
    assert "iopub" not in text  # times of execution
    assert len(text) < 500_000


@pytest.mark.skipif(find_chromium() is None, reason="no browser to draw with")
def test_figures_have_pictures_beside_them(course):
    for bundle in figures(solved(course, "90_second")):
        assert bundle["image/png"].startswith("iVBORw0KGgo")  # PNG's signature in base64
        assert {PLOTLY, "text/plain"} < bundle.keys()


def test_pictures_of_figures_that_did_not_change_stay(course, monkeypatch):
    monkeypatch.setattr("moe_course.notebooks.pictures.find_chromium", lambda: None)
    before = [bundle["image/png"] for bundle in figures(solved(course, "90_second"))]
    edit(course / "solutions" / "90_second.py", "# %%\nsliders", "# %%\n1 + 1\nsliders")

    assert build(course).no_pictures == ""
    assert [bundle["image/png"] for bundle in figures(solved(course, "90_second"))] == before


def test_without_a_browser_the_build_goes_on_and_says_so(course, monkeypatch):
    monkeypatch.setattr("moe_course.notebooks.pictures.find_chromium", lambda: None)
    edit(course / "solutions" / "90_second.py", '"text": "A line"', '"text": "A new line"')

    built = build(course)

    assert built.written == ["90_second"] and built.problems == []
    assert "no Chromium" in built.no_pictures
    assert all("image/png" not in bundle for bundle in figures(solved(course, "90_second")))


def test_a_solution_that_fails_its_check_is_told_and_not_written(course):
    before = contents(course)
    edit(course / "solutions" / "02_first.py", "    return solved_by_the_reference(*args, **kwargs)", "    return 0")

    built = build(course)

    assert built.written == [] and contents(course) == before
    assert "the check of 02." in built.problems[0] and "'failed'" in built.problems[0]


def test_one_edited_solution_line_is_stale(course):
    edit(course / "solutions" / "02_first.py", "return solved_by_the_reference(", "return  solved_by_the_reference(")

    student, solution = stale(course)

    assert student.startswith("--- lessons/02_first.ipynb on disk") and "source_sha256" in student
    assert "@@ cell 6, code exercise-02-router_logits @@" in solution
    assert "-     return solved_by_the_reference(*args, **kwargs)" in solution.splitlines()
    assert "+     return  solved_by_the_reference(*args, **kwargs)" in solution.splitlines()


def test_a_notebook_edited_by_hand_is_stale(course):
    for folder in ("lessons", "solutions"):
        before = contents(course)
        path = course / folder / "90_second.ipynb"
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[1].metadata["editable"] = False
        nbformat.write(notebook, path)

        (problem,) = stale(course)

        assert f"{folder}/90_second.ipynb" in problem and "- editable: false" in problem
        path.write_bytes(before[f"{folder}/90_second.ipynb"])


def test_a_hint_that_changed_is_stale(course, monkeypatch):
    from dataclasses import replace

    from moe_course.exercises import registry

    changed = replace(EXERCISES[0], hints=("a new hint", "b", "c"))
    monkeypatch.setitem(registry._BY_ID, EXERCISES[0].id, changed)

    assert all("a new hint" in problem for problem in stale(course))
    assert len(stale(course)) == 2


def test_missing_and_unreadable_notebooks_are_stale(course):
    (course / "lessons" / "90_second.ipynb").unlink()
    (course / "solutions" / "90_second.ipynb").write_text("{")

    assert stale(course) == [
        f"{folder}/90_second.ipynb is missing or cannot be read" for folder in ("lessons", "solutions")
    ]


def test_a_notebook_without_a_source_is_found(course):
    shutil.copy(course / "lessons" / "90_second.ipynb", course / "lessons" / "91_gone.ipynb")
    shutil.copy(course / "lessons" / "90_second.ipynb", course / "lessons" / "start.ipynb")

    assert stale(course) == ["lessons/91_gone.ipynb has no source solutions/91_gone.py; delete it"]


@pytest.mark.parametrize(("key", "value"), [("outputs", []), ("execution_count", None)])
def test_outputs_that_are_missing_are_found(course, key, value):
    path = course / "solutions" / "90_second.ipynb"
    notebook = solved(course, "90_second")
    notebook.cells[2][key] = value
    nbformat.write(notebook, path)

    (problem,) = stale(course)

    assert problem.startswith("solutions/90_second.ipynb: cell 2,") and "no saved output" in problem


def test_prose_alone_is_built_without_running(course, ran):
    outputs = [cell.get("outputs") for cell in solved(course, "02_first").cells]
    edit(course / "solutions" / "02_first.py", "# Same text.", "# Another text.")

    built = build(course)

    assert built.written == ["02_first"] and ran == []
    assert stale(course) == []
    assert [cell.get("outputs") for cell in solved(course, "02_first").cells] == outputs
    assert "Another text." in (course / "lessons" / "02_first.ipynb").read_text(encoding="utf-8")


def test_only_stale_lessons_are_run(course, ran):
    edit(course / "solutions" / "90_second.py", "seed + 1", "seed + 2")

    assert build(course).written == ran == ["90_second"]
    assert solved(course, "90_second").cells[2].outputs[0].text == "2\n"


def test_a_lesson_that_fails_keeps_its_notebooks(course):
    before = contents(course)
    edit(course / "solutions" / "90_second.py", "print(seed + 1)", "x = [seed]\n\n\nx[7]")
    edit(course / "solutions" / "02_first.py", "# Same text.", "# Another text.")

    built = build(course)

    assert built.written == ["02_first"]
    (problem,) = built.problems
    assert problem.startswith("90_second, cell 2 (`x = [seed]`):")
    assert "IndexError: list index out of range" in problem and len(problem.splitlines()) < 15
    after = contents(course)
    assert [name for name in before if before[name] != after[name]] == [
        "lessons/02_first.ipynb",
        "solutions/02_first.ipynb",
    ]


def test_a_kernel_that_dies_is_reported(course):
    edit(course / "solutions" / "90_second.py", "print(seed + 1)", "import os\nos._exit(1)")

    (problem,) = build(course).problems

    assert problem.startswith("90_second, cell 2 (`import os`): the kernel died")


UNPUBLISHABLE = {
    "import warnings\nwarnings.warn('old')": r"cell 2 writes to stderr .*UserWarning: old.*; mend what it warns of",
    "import sys\nprint(sys.executable)": r"cell 3 shows a path of this machine",
    "x = seed": r"cell 4 is tagged nbval-check-output but shows nothing",
    "show(go.Figure())": r"cell 5 is tagged nbval-check-output, but figures cannot be compared",
    "show(go.Figure(go.Scatter(y=list(range(60_000)))))": r"cell 6 draws a figure of \d+ kB \(.*\), over 300;",
}


def test_outputs_that_must_not_be_published_fail_the_build(course):
    before = contents(course)
    cells = '\n\n# %% tags=["nbval-check-output"]\n'.join(UNPUBLISHABLE)
    edit(course / "solutions" / "90_second.py", "print(seed + 1)", cells)
    edit(
        course / "solutions" / "90_second.py",
        "import warnings",
        "import warnings\nimport plotly.graph_objects as go\nfrom moe_course import show",
    )

    built = build(course)

    assert built.written == [] and contents(course) == before
    for says in UNPUBLISHABLE.values():
        assert re.search(f"90_second: {says}", built.problems[0])


def test_a_learners_work_is_not_overwritten(course):
    path = course / "lessons" / "02_first.ipynb"
    notebook = nbformat.read(path, as_version=4)
    answer = next(cell for cell in notebook.cells if cell.id == "exercise-02-router_logits")
    answer.source = answer.source.replace("raise NotImplementedError", "return 1")
    nbformat.write(notebook, path)
    before = contents(course)

    built = build(course)

    assert built.written == [] and contents(course) == before
    assert "lessons/02_first.ipynb holds somebody's work (answers)" in built.problems[0]
    assert "git checkout lessons/02_first.ipynb" in built.problems[0]


def test_a_lesson_with_outputs_is_stale_and_not_overwritten(course):
    path = course / "lessons" / "90_second.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].execution_count = 3
    nbformat.write(notebook, path)

    assert stale(course) == ["lessons/90_second.ipynb holds outputs; a learner's copy starts without any"]
    assert "holds somebody's work (outputs)" in build(course).problems[0]


def test_a_source_with_a_fault_writes_nothing(course):
    before = contents(course)
    edit(course / "solutions" / "90_second.py", 'tags=["parameters"]', "")

    with pytest.raises(SourceError, match=r"90_second\.py"):
        build(course)

    assert contents(course) == before


def test_notebooks_are_json_with_a_line_at_their_end(course):
    for name, data in contents(course).items():
        assert data.endswith(b"}\n"), name
        assert json.loads(data)["nbformat_minor"] == 5
