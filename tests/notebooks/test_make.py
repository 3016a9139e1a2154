"""What both notebooks of a lesson look like before anything is run."""

import json
import re
from pathlib import Path

import nbformat
import pytest

from moe_course.notebooks.make import solved_notebook, student_notebook
from moe_course.notebooks.regions import solution_lines, without_solutions
from moe_course.notebooks.source import Lesson, read_lessons
from tests.notebooks.conftest import EXERCISES

ROOT = Path(__file__).parents[2]
TRIVIAL = (
    30  # characters: a shorter line, such as `out = torch.zeros_like(x)`, may stand in a lesson for another reason
)
LESSONS = read_lessons(ROOT / "solutions")


@pytest.fixture
def lessons(course) -> list[Lesson]:
    return read_lessons(course / "solutions")


def test_stub_replaces_the_solution_at_its_indentation():
    source = "class A:\n    def f(self):\n        ### BEGIN SOLUTION\n        return 1\n        ### END SOLUTION\n"

    assert without_solutions(source) == "class A:\n    def f(self):\n        raise NotImplementedError"


def test_starter_code_is_uncommented_by_one_level():
    source = "\n".join(
        [
            "def f(x):",
            "    ### BEGIN SOLUTION",
            "    return secret(x)",
            "    ### STUB",
            "    # for row in x:",
            "    #     pass  # your turn",
            "    #",
            "    # # a comment",
            "    # raise NotImplementedError",
            "    ### END SOLUTION",
            "",
            "# given",
        ]
    )

    assert without_solutions(source).splitlines() == [
        "def f(x):",
        "    for row in x:",
        "        pass  # your turn",
        "    ",
        "    # a comment",
        "    raise NotImplementedError",
        "",
        "# given",
    ]
    assert solution_lines(source) == ["    return secret(x)"]


def test_every_region_of_a_cell_is_replaced():
    region = "    ### BEGIN SOLUTION\n    return {}\n    ### END SOLUTION\n"
    source = f"def f():\n{region.format(1)}\ndef g():\n{region.format(2)}"

    assert "return" not in without_solutions(source)
    assert without_solutions(source).count("raise NotImplementedError") == 2


def test_the_two_notebooks_differ_in_exercise_cells_only(lessons):
    student, solved = student_notebook(lessons[0], lessons), solved_notebook(lessons[0], lessons)

    differing = [a.id for a, b in zip(student.cells, solved.cells, strict=True) if a != b]

    assert differing == [f"exercise-02-{exercise.entry}" for exercise in EXERCISES]
    assert student.metadata == solved.metadata


def test_ids_are_valid_unique_and_stable(lessons):
    first, again = student_notebook(lessons[0], lessons), student_notebook(lessons[0], lessons)
    ids = [cell.id for cell in first.cells]

    nbformat.validate(first)
    assert len(set(ids)) == len(ids)  # "Same text." stands twice
    assert ids == [cell.id for cell in again.cells]
    assert nbformat.writes(first) == nbformat.writes(again)


def test_inserting_a_cell_changes_no_other_id(lessons):
    before = {cell.id for cell in student_notebook(lessons[0], lessons).cells}
    lessons[0].cells.insert(2, nbformat.v4.new_markdown_cell("New."))

    after = {cell.id for cell in student_notebook(lessons[0], lessons).cells}

    assert before < after


def test_learners_may_edit_answers_and_parameters_and_delete_nothing(lessons):
    cells = student_notebook(lessons[0], lessons).cells
    editable = [cell.id for cell in cells if cell.metadata.get("editable", True)]
    parameters = [cell.id for cell in cells if "parameters" in cell.metadata.get("tags", [])]

    assert sorted(editable) == sorted(parameters + [f"exercise-02-{exercise.entry}" for exercise in EXERCISES])
    assert all(cell.metadata["deletable"] is False for cell in cells)


def test_tags_reach_the_notebook(lessons):
    first, second = (student_notebook(lesson, lessons).cells for lesson in lessons)
    hidden = [cell.source for cell in second if cell.metadata.get("jupyter", {}).get("source_hidden")]
    compared = [cell for cell in (*first, *second) if "nbval-check-output" in cell.metadata.get("tags", [])]

    assert len(hidden) == 1 and "show(line(1.0))" in hidden[0]
    assert [cell.id for cell in compared[:-1]] == [f"check-02-{exercise.entry}" for exercise in EXERCISES]
    assert compared[-1].source == "print(seed + 1)"


def test_nbgrader_finds_answers_and_points(lessons):
    cells = {cell.id: cell.metadata for cell in student_notebook(lessons[0], lessons).cells}

    for exercise in EXERCISES:
        answer, grade = cells[f"exercise-02-{exercise.entry}"], cells[f"check-02-{exercise.entry}"]
        assert answer["moe_course"] == {"exercise": exercise.id}
        assert grade["moe_course"] == {"check": exercise.id}
        assert (answer["nbgrader"]["solution"], answer["nbgrader"]["grade"]) == (True, False)
        assert (grade["nbgrader"]["solution"], grade["nbgrader"]["locked"]) == (False, True)
        assert grade["nbgrader"]["points"] == exercise.points


def test_a_task_carries_facts_and_three_folded_hints(lessons):
    cells = student_notebook(lessons[0], lessons).cells
    for index, cell in enumerate(cells):
        for exercise in EXERCISES:
            if cell.id == f"exercise-02-{exercise.entry}":
                task = cells[index - 1].source
                dots = "●" * exercise.difficulty + "○" * (3 - exercise.difficulty)
                assert task.startswith(f"Write `{exercise.entry}`.")
                assert dots in task and f"{exercise.points} point" in task and f"{exercise.minutes} minutes" in task
                assert task.count("<details>") == 3
                assert [hint in task for hint in exercise.hints] == [True] * 3


def test_first_and_last_cell_say_what_the_lesson_is_and_what_is_next(lessons):
    first, second = (student_notebook(lesson, lessons).cells for lesson in lessons)

    for says in ("# 02 · The first", "A promise.", "- Do this", "Patience", "10 minutes", "●●○"):
        assert says in first[0].source
    assert "](90_second.ipynb)" in first[0].source and "](90_second.ipynb)" in first[-1].source
    assert "Previous" not in first[0].source
    assert "](02_first.ipynb)" in second[0].source
    assert "Next" not in second[-1].source


def test_the_notebook_knows_its_lesson(lessons):
    about = student_notebook(lessons[0], lessons).metadata["moe_course"]

    assert about["title"] == "The first" and about["minutes"] == 10
    assert about["exercises"] == [exercise.id for exercise in EXERCISES]
    assert re.fullmatch(r"[0-9a-f]{64}", about["source_sha256"])


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.name)
def test_no_solution_reaches_the_student(lesson):
    page = json.dumps(student_notebook(lesson, LESSONS), ensure_ascii=False)
    page = re.sub(r"<details>.*?</details>", "", page)  # a hint may quote a line: it is there to give it away
    exercises = [cell for cell in lesson.cells if "exercise" in cell.metadata]
    secrets = {line.strip() for cell in exercises for line in solution_lines(cell.source)}

    leaks = [line for line in secrets if len(line) >= TRIVIAL and json.dumps(line, ensure_ascii=False)[1:-1] in page]

    assert exercises
    assert leaks == []
    assert "SOLUTION" not in page and "### STUB" not in page
