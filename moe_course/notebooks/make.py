"""Makes the two notebooks of a lesson from its source: the student's, and the solved one before it is run."""

import hashlib
import html
import re
from typing import Any

import nbformat
from nbformat import NotebookNode

from moe_course.exercises import Exercise
from moe_course.notebooks.regions import without_solutions
from moe_course.notebooks.source import Lesson, exercise_of, tags

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
NBGRADER = {"schema_version": 3, "task": False}


def student_notebook(lesson: Lesson, lessons: list[Lesson]) -> NotebookNode:
    """What a learner opens: every solution replaced by its stub, no outputs.

    Args:
        lesson: the lesson.
        lessons: all lessons in order, for the links to its neighbours.
    """
    return _notebook(lesson, lessons, without_solutions)


def solved_notebook(lesson: Lesson, lessons: list[Lesson]) -> NotebookNode:
    """The same notebook with the solutions, between their marks, as nbgrader's instructor version wants them."""
    return _notebook(lesson, lessons, lambda source: source)


def _notebook(lesson: Lesson, lessons: list[Lesson], solution: Any) -> NotebookNode:
    cells = [_given(nbformat.v4.new_markdown_cell(_opening(lesson, lessons)), "title")]
    used: dict[str, int] = {}
    for index, source_cell in enumerate(lesson.cells):
        following = lesson.cells[index + 1] if index + 1 < len(lesson.cells) else None
        cells.append(_cell(source_cell, following, solution, used))
    cells.append(_given(nbformat.v4.new_markdown_cell(_closing(lesson, lessons)), "next"))
    about = vars(lesson.header) | {
        "lesson": lesson.name,
        "exercises": [cell.metadata["exercise"] for cell in lesson.cells if "exercise" in cell.metadata],
        "source_sha256": hashlib.sha256(lesson.text.encode()).hexdigest(),
    }
    metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}, "moe_course": about}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata=metadata, nbformat_minor=5)
    nbformat.validate(notebook)
    return notebook


def _cell(cell: NotebookNode, following: NotebookNode | None, solution: Any, used: dict[str, int]) -> NotebookNode:
    exercise = exercise_of(cell)
    if cell.cell_type == "markdown":
        text = cell.source
        if following is not None and "exercise" in following.metadata:
            text += "\n\n" + _about(exercise_of(following))
        return _given(nbformat.v4.new_markdown_cell(text), _id(cell.source, used))
    if exercise and "exercise" in cell.metadata:
        made = nbformat.v4.new_code_cell(solution(cell.source))
        made.id = "exercise-" + _slug(exercise.id)
        made.metadata = _metadata(
            deletable=False,
            nbgrader=NBGRADER | {"grade": False, "grade_id": made.id, "locked": False, "solution": True},
            moe_course={"exercise": exercise.id},
        )
        return made
    made = _given(nbformat.v4.new_code_cell(cell.source), _id(cell.source, used))
    if exercise:
        made.id = "check-" + _slug(exercise.id)
        made.metadata.update(
            nbgrader=NBGRADER
            | {"grade": True, "grade_id": made.id, "locked": True, "points": exercise.points, "solution": False},
            moe_course={"check": exercise.id},
            tags=["nbval-check-output"],
        )
        return made
    if tags(cell):
        made.metadata["tags"] = tags(cell)
    if "parameters" in tags(cell):
        made.metadata["editable"] = True
    if "hide-input" in tags(cell):
        made.metadata["jupyter"] = {"source_hidden": True}
    return made


def _given(cell: NotebookNode, cell_id: str) -> NotebookNode:
    """A cell that is the course's own: JupyterLab keeps learners from editing or deleting it by accident."""
    cell.id = cell_id
    cell.metadata = _metadata(deletable=False, editable=False)
    return cell


def _metadata(**entries: Any) -> NotebookNode:
    return nbformat.from_dict(entries)


def _id(source: str, used: dict[str, int]) -> str:
    """An id from the cell's text, so that inserting a cell changes no other cell's id."""
    digest = hashlib.sha256(source.encode()).hexdigest()[:12]
    used[digest] = used.get(digest, 0) + 1
    return digest if used[digest] == 1 else f"{digest}-{used[digest]}"


def _slug(exercise_id: str) -> str:
    return re.sub(r"[^a-zA-Z0-9_-]", "-", exercise_id)


def _opening(lesson: Lesson, lessons: list[Lesson]) -> str:
    header = lesson.header
    bullets = "\n".join(f"- {objective}" for objective in header.objectives)
    before = "; ".join(header.prerequisites)
    return (
        f"# {lesson.number} · {header.title}\n\n*{header.promise}*\n\n"
        f"**After this lesson you can**\n\n{bullets}\n\n"
        f"**You need** {before}. **Time:** about {header.minutes} minutes. "
        f"**Difficulty:** {_dots(header.difficulty)}\n\n{_links(lesson, lessons)}"
    )


def _closing(lesson: Lesson, lessons: list[Lesson]) -> str:
    return f"---\n\n{_links(lesson, lessons)}"


def _links(lesson: Lesson, lessons: list[Lesson]) -> str:
    names = [other.name for other in lessons]
    here = names.index(lesson.name)
    links = []
    if here > 0:
        links.append(f"← Previous: [{_label(lessons[here - 1])}]({names[here - 1]}.ipynb)")
    if here + 1 < len(lessons):
        links.append(f"Next: [{_label(lessons[here + 1])}]({names[here + 1]}.ipynb) →")
    return " &nbsp;·&nbsp; ".join(links) or "This is the only lesson so far."


def _label(lesson: Lesson) -> str:
    return f"{lesson.number} · {lesson.header.title}"


def _about(exercise: Exercise | None) -> str:
    """Difficulty, points, minutes and hints, below an exercise's task."""
    assert exercise is not None
    hints = "\n".join(
        f"<details><summary>Hint {number}</summary>\n\n{hint}\n\n</details>"
        for number, hint in enumerate(exercise.hints, 1)
    )
    points = f"{exercise.points} point{'s' if exercise.points != 1 else ''}"
    facts = (
        f"`{html.escape(exercise.entry)}` · {_dots(exercise.difficulty)} · {points} · about {exercise.minutes} minutes"
    )
    return f"{facts}\n\n{hints}"


def _dots(filled: int, total: int = 3) -> str:
    return "●" * filled + "○" * (total - filled)
