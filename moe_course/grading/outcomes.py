"""Outcomes as plain data.

What a student must not see is left out here already: expected values, and the inputs that an answer was called with.
"""

import inspect
import re
import textwrap
import zlib
from functools import cache
from typing import Any

from moe_course.exercises import by_id
from moe_course.exercises.judge import Finding

from .examine import Outcome
from .likeness import fingerprint, normalised
from .results import ExerciseResult

SHINGLE = 5  # tokens in a row, by which answers are compared


def result_of(outcomes: dict[str, Outcome], notes: list[str]) -> dict[str, Any]:
    """Outcomes as JSON."""
    return {"exercises": [vars(exercise_result(key, outcome)) for key, outcome in outcomes.items()], "notes": notes}


def exercise_result(exercise_id: str, outcome: Outcome, hidden: bool = True) -> ExerciseResult:
    """What is to be kept of an outcome; with hidden inputs, not what was expected of them."""
    tell = redacted if hidden else str
    exercise = by_id(exercise_id)
    assert exercise is not None
    verdict = outcome.verdict
    known = verdict.misconception if verdict else None
    text = outcome.answer.text
    message = outcome.message or (_first(verdict.findings) if verdict else "")
    return ExerciseResult(
        id=exercise.id,
        title=exercise.title,
        max_points=exercise.points,
        status=outcome.status,
        points=outcome.points,
        message=tell(message),
        misconception=known.id if known else "",
        says=known.says if known else "",
        findings=[_kept(finding, tell(finding.message)) for finding in verdict.findings] if verdict else [],
        hints=[] if outcome.passed else list(exercise.hints),
        frames=[] if outcome.status == "not attempted" else outcome.frames,
        notes=outcome.notes or list(outcome.answer.notes),
        fingerprint=fingerprint(text) if text else "",
        like_reference=bool(text) and fingerprint(text) == _reference_fingerprint(exercise_id),
        shingles=shingles(text),
    )


def redacted(message: str) -> str:
    """A check's message without the values that were expected: those are the answer to a hidden input."""
    message = re.sub(r"; first (?:\[[^\]]*\]|it): got .*", "", message, flags=re.DOTALL)
    return re.sub(r"( is )(?!a |an |None)([^;]*); expected (?!a |an |a$)\S.*$", r"\1\2, which is wrong", message)


def shingles(text: str) -> list[int]:
    """Hashes of all runs of some tokens of an answer, names normalised: what two similar answers share."""
    tokens = normalised(text)
    runs = {" ".join(tokens[i : i + SHINGLE]) for i in range(len(tokens) - SHINGLE + 1)}
    return sorted(zlib.crc32(run.encode()) for run in runs)[:2000]


def _kept(finding: Finding, message: str) -> dict[str, Any]:
    return {"check": finding.check, "passed": finding.passed, "message": message, "consequence": finding.consequence}


def _first(findings: tuple[Finding, ...]) -> str:
    failing = [f for f in findings if not f.passed]
    causes = [f for f in failing if not f.consequence] or failing
    return f"{causes[0].check}: {causes[0].message}" if causes else ""


@cache
def _reference_fingerprint(exercise_id: str) -> str:
    exercise = by_id(exercise_id)
    try:
        return fingerprint(textwrap.dedent(inspect.getsource(exercise.reference))) if exercise else ""
    except (OSError, TypeError):
        return ""
