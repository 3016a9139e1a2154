"""Puts scores into nbgrader's gradebook, through its own API, next to those that nbgrader computes itself."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .results import Result


class NoGradebook(Exception):
    """nbgrader is not installed, or its gradebook cannot be opened."""


def record(results: Iterable[Result], url: str) -> int:
    """Enter the points of each exercise as the automatic score of its check cell.

    Args:
        results: of a run; the student's name becomes nbgrader's student id.
        url: of the database, such as "sqlite:///gradebook.db"; made if need be.

    Returns:
        How many scores were entered.

    Raises:
        NoGradebook: it cannot be had.
    """
    try:
        from nbgrader.api import Gradebook
    except ImportError:
        raise NoGradebook("nbgrader is not installed; run `pip install nbgrader`") from None
    # To make a new database nbgrader starts the program alembic, which lies next to this Python.
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before])
    try:
        with Gradebook(url) as gradebook:
            return sum(_record(gradebook, result) for result in results)
    except Exception as error:  # SQLAlchemy's many kinds, for a wrong URL or a damaged file
        raise NoGradebook(f"{url} cannot be used: {(str(error).splitlines() or ['?'])[0][:200]}") from error
    finally:
        os.environ["PATH"] = before


def _record(gradebook: Any, result: Result) -> int:
    assignment, notebook = _names(gradebook, result)
    gradebook.update_or_create_student(result.student)
    for each in result.exercises:
        cell = {"max_score": each.max_points, "cell_type": "code"}
        gradebook.update_or_create_grade_cell(_cell(each.id), notebook, assignment, **cell)
    gradebook.update_or_create_submission(assignment, result.student)
    for each in result.exercises:
        grade = gradebook.find_grade(_cell(each.id), notebook, assignment, result.student)
        grade.auto_score, grade.needs_manual_grade = each.points, False
    gradebook.db.commit()
    return len(result.exercises)


def _names(gradebook: Any, result: Result) -> tuple[str, str]:
    """Assignment and notebook: those that hold the lesson's check cells, or new ones with the lesson's name."""
    wanted = _cell(result.exercises[0].id)
    for assignment in gradebook.assignments:
        for notebook in assignment.notebooks:
            if any(cell.name == wanted for cell in notebook.grade_cells):
                return assignment.name, notebook.name
    name = f"lesson_{result.lesson}"
    gradebook.update_or_create_assignment(name)
    gradebook.update_or_create_notebook(name, name)
    return name, name


def _cell(exercise_id: str) -> str:
    """The name of an exercise's check cell, as the notebooks have it."""
    return "check-" + exercise_id.replace(".", "-")
