"""Gradescope's autograder: its results.json, and the zip that it runs."""

from typing import Any

from .feedback import exercise_text
from .results import Result


def results_json(results: list[Result]) -> dict[str, Any]:
    """Results of one student in Gradescope's format.

    Source: https://gradescope-autograders.readthedocs.io/en/latest/specs/, "Output format".
    """
    tests = []
    for result in results:
        for number, each in enumerate(result.exercises, 1):
            solved = each.points >= each.max_points
            tests.append(
                {
                    "name": f"{each.id} {each.title}",
                    "number": f"{int(result.lesson)}.{number}",
                    "score": each.points,
                    "max_score": float(each.max_points),
                    "status": "passed" if solved else "failed",
                    "output": exercise_text(each),
                    "output_format": "text",
                    "visibility": "visible",
                    "tags": [each.status],
                }
            )
    notes = [f"Note: {note}." for result in results for note in result.notes]
    return {
        "score": round(sum(result.points for result in results), 2),
        "execution_time": round(sum(result.seconds for result in results), 2),
        "output": "\n".join(notes),
        "output_format": "text",
        "visibility": "visible",
        "tests": tests,
    }


def not_graded(reason: str) -> dict[str, Any]:
    """The same for a submission without results. Its reason is plain text: Gradescope's default would take HTML."""
    return {"score": 0.0, "output": reason, "output_format": "text", "visibility": "visible"}
