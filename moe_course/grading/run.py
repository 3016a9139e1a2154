"""A grading run: has the submissions graded, here or on a cluster, and keeps each result as soon as it is whole.

A run that was interrupted, however rudely, goes on where it stopped: results lie in REPORT/results, one file a
submission, and count only if they depend on the same notebook, lesson, seed, limits and code.
"""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_course import __version__
from moe_course.exercises import LESSONS

from .files import result_file
from .keys import code_hash, key_of
from .levels import LEVELS, WEAK
from .results import ExerciseResult, Result, read_result, write_json
from .seeds import fair_seed, unfair_to
from .stage import PACKAGE
from .submissions import Submission, find_submissions
from .work import Lost, share_out
from .workers import Job, NoWorker, Terms


class GradingError(Exception):
    """What keeps a run from starting; the message says what to do."""


@dataclass(frozen=True)
class Settings:
    """What a run's scores depend on, apart from the submissions."""

    seed: int
    seconds: float
    lessons: tuple[str, ...]


@dataclass
class Run:
    """A grading run.

    Args:
        settings: what the scores depend on.
        submissions: all that was handed in.
        results: those at hand, by student and lesson.
        reused: how many of them an earlier run had made.
        interrupted: whether it was stopped before it was through.
        cpu: seconds of processor time that grading took, this process apart.
    """

    settings: Settings
    submissions: list[Submission]
    results: dict[tuple[str, str], Result]
    reused: int = 0
    interrupted: bool = False
    cpu: float = 0.0

    @property
    def levels(self) -> list[str]:
        """The levels of isolation that were had, strongest first."""
        return [level for level in LEVELS if any(each.level == level for each in self.results.values())]


def grade(
    source: Path,
    out: Path,
    *,
    seed: int | None = None,
    seconds: float = 10.0,
    lessons: tuple[str, ...] = (),
    jobs: int = 1,
    scheduler: str | None = None,
    levels: tuple[str, ...] = tuple(LEVELS),
    fresh: bool = False,
    on_result: Callable[[Result, int], None] = lambda result, total: None,
) -> Run:
    """Grade all submissions; the results are in `out`/results when it returns.

    Args:
        source: a folder, a zip or one notebook.
        out: the report's folder; made if need be.
        seed: of the hidden inputs; None takes that of the run that `out` holds, or draws one.
        seconds: time limit of one exercise.
        lessons: numbers of lessons to grade; empty for those handed in.
        jobs: how many submissions at once, where this machine does the work.
        scheduler: address of a Dask scheduler, whose workers do it instead; those without a sandbox that keeps
            student code off the network are refused.
        levels: kinds of isolation to accept, the best first.
        fresh: grade everything, whatever results there are, and write none.
        on_result: called with each result and the number of all.

    Raises:
        GradingError, NothingHandedIn, Refused: it cannot start.
    """
    scratch = Path(tempfile.mkdtemp(prefix="moe-course-grade-"))
    try:
        (scratch / "unpacked").mkdir()
        submissions = find_submissions(source, scratch / "unpacked", lessons)
        numbers = tuple(sorted({each.lesson for each in submissions}))
        handouts = find_handouts(numbers)
        settings = _settings(out, seed, seconds, numbers)
        if not fresh:
            (out / "results").mkdir(parents=True, exist_ok=True)
            write_json(out / "run.json", _as_json(settings))
        run = Run(settings, submissions, {})

        def keep(result: Result, write: bool) -> None:
            if write and not fresh:
                write_json(result_file(out, result.student, result.lesson), dataclasses.asdict(result))
            run.results[result.student, result.lesson] = result
            on_result(result, len(submissions))

        handed_out = {number: path.read_bytes() for number, path in handouts.items()}
        todo = _without_done(run, out, handed_out, fresh, keep)
        accepted = tuple(level for level in levels if scheduler is None or level != WEAK)
        terms = Terms(settings.seed, settings.seconds, numbers, accepted)

        def job(todo: Todo) -> Job:
            lesson = todo.submission.lesson
            raw = todo.read(settings, handed_out[lesson])
            patience = 120 + len(LESSONS[lesson]) * (seconds + 5)
            return Job(terms, code_hash(), lesson, handed_out[lesson], raw, patience)

        try:
            for done, answer in share_out(todo, job, jobs, scheduler, scratch):
                run.cpu += answer.get("spent", 0.0)
                keep(_result(done, answer), write=True)
        except KeyboardInterrupt:
            run.interrupted = True
        except (NoWorker, Lost) as error:
            raise GradingError(str(error)) from error
        return run
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def find_handouts(numbers: tuple[str, ...]) -> dict[str, Path]:
    """The notebook of each lesson as students got it, which says what an answer may build on.

    Raises:
        GradingError: one is not there.
    """
    found = {}
    for number in numbers:
        if number not in LESSONS:
            raise GradingError(f"lesson {number} has no exercises; choose among {', '.join(LESSONS)}")
        places = [path for folder in (PACKAGE.parent, Path.cwd()) for path in folder.glob(f"lessons/{number}_*.ipynb")]
        if not places:
            raise GradingError(f"lessons/{number}_*.ipynb is not there; run this in the folder that holds the course")
        found[number] = places[0]
    return found


def _settings(out: Path, seed: int | None, seconds: float, lessons: tuple[str, ...]) -> Settings:
    before = read_settings(out)
    if before is not None and seed not in (None, before.seed):
        raise GradingError(f"{out} holds a run with seed {before.seed}; choose another --out, or leave --seed out")
    if before is None and out.is_dir() and any(out.iterdir()):
        raise GradingError(f"{out} holds something else than a grading run; choose an empty folder, or a new one")
    exercises = [exercise for number in lessons for exercise in LESSONS[number]]
    if before is not None:
        return Settings(before.seed, seconds, lessons)
    if seed is not None and (unfair := unfair_to(exercises, seed)):
        raise GradingError(f"seed {seed} is unfair: known right answers to {', '.join(unfair)} fail; choose another")
    return Settings(fair_seed(exercises) if seed is None else seed, seconds, lessons)


def read_settings(out: Path) -> Settings | None:
    """The settings of the run that a folder holds."""
    try:
        data = json.loads((out / "run.json").read_text(encoding="utf-8"))
        return Settings(int(data["seed"]), float(data["seconds"]), tuple(data["lessons"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _as_json(settings: Settings) -> dict[str, Any]:
    return {**vars(settings), "version": __version__}


@dataclass
class Todo:
    """A submission that is still to be graded, and the key that its result will have."""

    submission: Submission
    key: str = ""

    def read(self, settings: Settings, handout: bytes) -> bytes:
        """What was handed in, which decides the key; nothing where it cannot be read any more."""
        one = self.submission
        try:
            raw = one.path.read_bytes() if one.path else b""
        except OSError:
            raw = b""
        about = (one.lesson, one.name, one.notes, one.problem)
        self.key = key_of(settings.seed, settings.seconds, *about, handout, raw)
        return raw


def _without_done(
    run: Run, out: Path, handouts: dict[str, bytes], fresh: bool, keep: Callable[[Result, bool], None]
) -> list[Todo]:
    """The submissions that are still to be graded; those with a result, and those with nothing to grade, are done."""
    todo = []
    for submission in run.submissions:
        each = Todo(submission)
        each.read(run.settings, handouts[submission.lesson])
        result = None if fresh else read_result(result_file(out, submission.student, submission.lesson))
        if result is not None and result.key == each.key and result.student == submission.student:
            run.reused += 1
            keep(result, False)
        elif submission.path is None:
            keep(_result(each, {"problem": submission.problem, "notes": []}), True)
        else:
            todo.append(each)
    return todo


def _result(todo: Todo, answer: dict[str, Any]) -> Result:
    """A result, from what a worker answered."""
    submission, key = todo.submission, todo.key
    if "problem" in answer:
        message = " ".join(answer["notes"])
        rows = [
            ExerciseResult(e.id, e.title, e.points, answer["problem"], message=message)
            for e in LESSONS[submission.lesson]
        ]
    else:
        rows = [ExerciseResult(**each) for each in answer["exercises"]]
    return Result(
        submission.student,
        submission.lesson,
        submission.name,
        key,
        answer.get("level", ""),
        rows,
        [*submission.notes, *answer["notes"]],
        answer.get("seconds", 0.0),
        answer.get("cpu", 0.0),
    )
