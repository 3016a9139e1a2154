"""A sweep and its notebooks, as a list of runs, each with a key that says what its result depends on."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from moe_course.batch.lessons import Lesson, LessonError, find_lessons, read_lesson
from moe_course.batch.parameters import WrongType
from moe_course.batch.sweep import Entry, Sweep, nearest


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one notebook.

    Args:
        id: its name in the batch's folder.
        key: hash of the notebook's code, of what the notebook imports, and of its parameters.
        lesson: the notebook's name.
        parameters: those that the sweep sets, but for the seed.
        seed: value of the notebook's parameter `seed`; None leaves its own.
    """

    id: str
    key: str
    lesson: str
    parameters: dict[str, Any]
    seed: int | None

    @property
    def given(self) -> dict[str, Any]:
        """What the notebook is given."""
        return self.parameters if self.seed is None else self.parameters | {"seed": self.seed}

    def __str__(self) -> str:
        given = "  ".join(f"{name}={value!r}" for name, value in self.given.items())
        return f"{self.lesson}  {given}" if given else self.lesson


@dataclass(frozen=True)
class Plan:
    """All that a sweep asks for.

    Args:
        sweep: the sweep.
        lessons: its notebooks, by name.
        runs: in order, none twice.
        repeated: how many were there twice.
    """

    sweep: Sweep
    lessons: dict[str, Lesson]
    runs: list[Run]
    repeated: int


def make_plan(sweep: Sweep) -> Plan:
    """The runs of a sweep; every name and value is checked before anything runs.

    Raises:
        SweepError: a notebook is not there, has no such parameter, or cannot take such a value.
    """
    lessons: dict[str, Lesson] = {}
    runs: dict[str, Run] = {}
    repeated = 0
    for entry in sweep.entries:
        for lesson in _lessons_of(sweep, entry, lessons):
            for run in _runs_of(sweep, entry, lesson):
                repeated += run.id in runs
                runs.setdefault(run.id, run)
    _check_records(sweep, lessons)
    return Plan(sweep, lessons, list(runs.values()), repeated)


def _lessons_of(sweep: Sweep, entry: Entry, known: dict[str, Lesson]) -> list[Lesson]:
    found = []
    try:
        for path in find_lessons(entry.lessons, sweep.path.resolve().parent):
            lesson = known.get(path.stem) or known.setdefault(path.stem, read_lesson(path))
            if lesson.path != path:
                raise LessonError(f"two notebooks are called {path.stem}, {lesson.path} and {path}; rename one")
            found.append(lesson)
    except LessonError as error:
        sweep.fail(str(error), "lessons", entry.table, entry.number)
    return found


def _runs_of(sweep: Sweep, entry: Entry, lesson: Lesson) -> Iterator[Run]:
    fixed = {name: _fit(sweep, entry, lesson, name, value, "") for name, value in entry.parameters.items()}
    grid = {
        name: [_fit(sweep, entry, lesson, name, value, "grid") for value in values]
        for name, values in entry.grid.items()
    }
    seeds: tuple[int | None, ...] = (None,)
    if entry.seeds is not None:
        if "seed" in entry.grid or "seed" in entry.parameters:
            sweep.fail("both `seeds` and the parameter `seed` are given; leave one out", "seeds", "", 0)
        _fit(sweep, entry, lesson, "seed", entry.seeds[0], "seeds")
        seeds = entry.seeds
    about = json.dumps([lesson.digest, lesson.packages], sort_keys=True)
    for values in itertools.product(*grid.values()):
        for seed in seeds:
            parameters = fixed | dict(zip(grid, values, strict=True))
            if seed is None and type(parameters.get("seed")) is int:
                parameters, own = {n: v for n, v in parameters.items() if n != "seed"}, parameters["seed"]
            else:
                own = seed
            key = hashlib.sha256(f"{about}{json.dumps([parameters, own], sort_keys=True)}".encode()).hexdigest()
            yield Run(f"{lesson.name}-{key[:12]}", key, lesson.name, parameters, own)


def _fit(sweep: Sweep, entry: Entry, lesson: Lesson, name: str, value: Any, kind: str) -> Any:
    """A value as the lesson takes it."""
    own = entry.table and kind != "grid"
    table = ".".join(filter(None, (entry.table, "grid" if kind == "grid" else ""))) or "parameters"
    place = ("seeds", entry.table, entry.number) if kind == "seeds" else (name, table, entry.number)
    if lesson.parameters is None:
        sweep.fail(f"{lesson.path} has no cell tagged `parameters`, so nothing can be set in it", *place)
    if name not in lesson.parameters:
        known = list(lesson.parameters)
        hint = nearest(name, known) or f"it has {', '.join(known) or 'none'}"
        if own and name in ("timeout", "retries", "memory_mb", "record", "name"):
            hint = f"`{name}` belongs at the top of the file"
        several = "; settings that only some lessons have go into a [[runs]] of their own" if not entry.table else ""
        sweep.fail(f"lesson {lesson.name} has no parameter {name!r}; {hint}{several}", *place)
    try:
        return lesson.parameters[name].fit(value)
    except WrongType as error:
        extra = ""
        if kind == "grid" and type(value) is not list and "a list" in str(error):
            extra = f"; its values in a grid are lists themselves: {name} = [[{value!r}]]"
        sweep.fail(f"parameter {name} of {lesson.name}: {error}{extra}", *place)


def _check_records(sweep: Sweep, lessons: dict[str, Lesson]) -> None:
    """Refuse a name to record that no lesson records, where that can be told."""
    known: set[str] = set()
    for lesson in lessons.values():
        if lesson.records is None:
            return
        known |= lesson.records
    for name in sweep.record:
        if name not in known:
            names = sorted(known)
            hint = nearest(name, names) or (f"they record {', '.join(names)}" if names else "they record nothing")
            sweep.fail(f"none of the lessons records {name!r}; {hint}", "record")


def estimate(plan: Plan, todo: list[Run], rows: dict[str, list[float]], jobs: int) -> float | None:
    """Seconds that the runs still to do will take, from runs there have been; None where there are none to go by.

    Args:
        plan: the plan.
        todo: the runs still to do.
        rows: seconds of earlier runs, by lesson.
        jobs: how many run at once.
    """
    total = 0.0
    for run in todo:
        seconds = rows.get(run.lesson)
        if not seconds:
            return None
        total += sum(seconds) / len(seconds)
    return total / max(1, min(jobs, len(todo)))
