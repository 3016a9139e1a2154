"""Results as plain data: what a worker hands over, what the report is written from, what a resumed run reads again."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATUSES = ("graded", "not attempted", "timeout", "out of memory", "crashed", "unreadable", "missing")


@dataclass(frozen=True)
class ExerciseResult:
    """One row of the grades: one student, one exercise."""

    id: str
    title: str
    max_points: int
    status: str
    points: float = 0.0
    message: str = ""
    misconception: str = ""
    says: str = ""
    findings: list[dict[str, Any]] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    frames: list[list[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    fingerprint: str = ""
    like_reference: bool = False
    shingles: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Result:
    """One student's submission to one lesson."""

    student: str
    lesson: str
    name: str
    key: str  # of what it depends on; a resumed run trusts a result with the key it would get now
    level: str
    exercises: list[ExerciseResult]
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0  # seconds of processor time, of the student's process and the grader's
    before: int = 0  # results that the same report has had for other notebooks of this student and lesson

    @property
    def points(self) -> float:
        return round(sum(exercise.points for exercise in self.exercises), 2)

    @property
    def max_points(self) -> int:
        return sum(exercise.max_points for exercise in self.exercises)

    def as_json(self) -> dict[str, Any]:
        """What `read_result` reads. All that it holds is plain already, so nothing is copied."""
        return vars(self) | {"exercises": [vars(each) for each in self.exercises]}


def write_json(path: Path, data: Any) -> None:
    """Write a file that is either whole or not there."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(data), encoding="utf-8")
    os.replace(fresh, path)


def read_result(path: Path) -> Result | None:
    """A result of an earlier run; None where there is none, or not a whole one."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        exercises = [ExerciseResult(**each) for each in data.pop("exercises")]
        return Result(exercises=exercises, **data)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
