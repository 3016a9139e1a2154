"""A grading run: has the submissions graded, here or on a cluster, and keeps each result as soon as it is whole.

A run that was interrupted, however rudely, goes on where it stopped: results lie in REPORT/results, one file a
submission, and count only if they depend on the same notebook, lesson, seed, limits and code.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from moe_course import __version__

from .catalogue import Catalogue, Question
from .files import result_file
from .handouts import GradingError, find_handouts
from .keys import code_hash, key_of
from .levels import LEVELS, WEAK
from .results import ExerciseResult, Result, read_result, write_json
from .submissions import Submission, find_submissions
from .work import Lost, share_out
from .workers import Job, NoWorker, Terms, WorkerFailed, Workers


@dataclass(frozen=True)
class Settings:
    """What a run's scores depend on, apart from the submissions.

    Args:
        seed: of the hidden inputs.
        seconds: time limit of one exercise.
        lessons: numbers of the lessons that are graded.
        again: further seeds, for what a student hands in a second time, a third time and so on: an answer can put the
            inputs that it got into an error message, and the student reads that.
    """

    seed: int
    seconds: float
    lessons: tuple[str, ...]
    again: tuple[int, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.seed, *self.again


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
    find_handouts(lessons)
    before = _before(out, seed)
    scratch = Path(tempfile.mkdtemp(prefix="moe-course-grade-"))
    here = Workers(scratch)
    try:
        (scratch / "unpacked").mkdir()

        spent = []

        @cache
        def catalogue() -> Catalogue:
            told = here.ask(levels, {"ask": "catalogue"})
            spent.append(told["cpu"])
            return {number: tuple(Question(**each) for each in all_) for number, all_ in told["lessons"].items()}

        submissions = find_submissions(source, scratch / "unpacked", catalogue, lessons)
        numbers = tuple(sorted({each.lesson for each in submissions}))
        handouts = {number: path.read_bytes() for number, path in find_handouts(numbers).items()}
        if not before:
            told = here.ask(levels, {"ask": "seed", "lessons": numbers, "seed": seed})
            spent.append(told["cpu"])
            seed = _fair(told)
        settings = Settings(before.seed if before else seed or 0, seconds, numbers, before.again if before else ())
        if not fresh:
            (out / "results").mkdir(parents=True, exist_ok=True)
            _keep_settings(out, settings)
        run = Run(settings, submissions, {}, cpu=sum(spent))

        def keep(result: Result, write: bool) -> None:
            if write and not fresh:
                write_json(result_file(out, result.student, result.lesson), result.as_json())
            run.results[result.student, result.lesson] = result
            on_result(result, len(submissions))

        todo = _without_done(run, out, handouts, catalogue(), fresh, keep)
        while len(run.settings.seeds) <= max((each.before for each in todo), default=0):
            told = here.ask(levels, {"ask": "seed", "lessons": numbers, "seed": None})
            run.settings = replace(run.settings, again=(*run.settings.again, told["seed"]))
            run.cpu += told["cpu"]
            _keep_settings(out, run.settings)
        accepted = tuple(level for level in levels if scheduler is None or level != WEAK)

        def job(todo: Todo) -> Job:
            lesson = todo.submission.lesson
            raw = todo.read(run.settings, handouts[lesson])
            terms = Terms(run.settings.seeds[todo.before], seconds, numbers, accepted)
            patience = 120 + len(catalogue()[lesson]) * (seconds + 5)
            return Job(terms, code_hash(), lesson, handouts[lesson], raw, patience)

        try:
            for done, answer in share_out(todo, job, jobs, scheduler, here):
                run.cpu += answer.get("cpu", 0.0)
                keep(_result(done, answer, catalogue()), write=True)
        except KeyboardInterrupt:
            run.interrupted = True
        return run
    except (NoWorker, WorkerFailed, Lost) as error:
        raise GradingError(str(error)) from error
    finally:
        here.close()
        shutil.rmtree(scratch, ignore_errors=True)


def _before(out: Path, seed: int | None) -> Settings | None:
    """The settings of the run that `out` holds, which a run with this seed may continue."""
    before = read_settings(out)
    if before is not None and seed not in (None, before.seed):
        raise GradingError(f"{out} holds a run with seed {before.seed}; choose another --out, or leave --seed out")
    if before is None and out.is_dir() and any(out.iterdir()):
        raise GradingError(f"{out} holds something else than a grading run; choose an empty folder, or a new one")
    return before


def _fair(told: dict[str, Any]) -> int:
    if told["unfair"]:
        unfair = ", ".join(told["unfair"])
        raise GradingError(f"seed {told['seed']} is unfair: known right answers to {unfair} fail; choose another")
    return int(told["seed"])


def _keep_settings(out: Path, settings: Settings) -> None:
    write_json(out / "run.json", vars(settings) | {"version": __version__})


def read_settings(out: Path) -> Settings | None:
    """The settings of the run that a folder holds."""
    try:
        data = json.loads((out / "run.json").read_text(encoding="utf-8"))
        again = tuple(int(seed) for seed in data.get("again", ()))
        return Settings(int(data["seed"]), float(data["seconds"]), tuple(data["lessons"]), again)
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass
class Todo:
    """A submission that is still to be graded.

    Args:
        submission: what was handed in.
        before: how often it had a result in this report, of something else that was handed in.
        key: that its result will have.
    """

    submission: Submission
    before: int = 0
    key: str = ""

    def read(self, settings: Settings, handout: bytes) -> bytes:
        """What was handed in, which decides the key; nothing where it cannot be read any more."""
        one = self.submission
        try:
            raw = one.path.read_bytes() if one.path else b""
        except OSError:
            raw = b""
        about = (one.lesson, one.name, one.notes, one.problem)
        self.key = key_of(settings.seeds[self.before], settings.seconds, *about, handout, raw)
        return raw


def _without_done(
    run: Run,
    out: Path,
    handouts: dict[str, bytes],
    catalogue: Catalogue,
    fresh: bool,
    keep: Callable[[Result, bool], None],
) -> list[Todo]:
    """The submissions that are still to be graded; those with a result, and those with nothing to grade, are done."""
    todo = []
    for submission in run.submissions:
        result = read_result(result_file(out, submission.student, submission.lesson))
        each = Todo(submission, min(result.before, len(run.settings.again)) if result else 0)
        each.read(run.settings, handouts[submission.lesson])
        if not fresh and result and result.key == each.key and result.student == submission.student:
            run.reused += 1
            keep(result, False)
        elif submission.path is None:
            keep(_result(each, {"problem": submission.problem, "notes": []}, catalogue), True)
        else:
            each.before += bool(result and not fresh)
            todo.append(each)
    return sorted(todo, key=lambda each: each.before)  # a worker prepares inputs for one seed at a time


def _result(todo: Todo, answer: dict[str, Any], catalogue: Catalogue) -> Result:
    """A result, from what a worker answered."""
    submission, key = todo.submission, todo.key
    if "problem" in answer:
        message = " ".join(answer["notes"])
        rows = [
            ExerciseResult(e.id, e.title, e.points, answer["problem"], message=message)
            for e in catalogue[submission.lesson]
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
        todo.before,
    )
