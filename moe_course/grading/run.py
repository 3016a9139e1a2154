"""A grading run: shares the submissions out to workers, keeps each result as soon as it is whole, writes the report.

A run that was interrupted, however rudely, goes on where it stopped: results lie in REPORT/results, one file a
submission, and count only if they depend on the same notebook, lesson, seed, limits and code.
"""

import dataclasses
import json
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_course import __version__
from moe_course.exercises import LESSONS

from .files import result_file
from .keys import key_of
from .results import ExerciseResult, Result, read_result, write_json
from .sandbox import LEVELS
from .seeds import fair_seed, unfair_to
from .stage import PACKAGE
from .submissions import Submission, find_submissions
from .workers import Worker, WorkerFailed


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
        jobs: how many submissions at once.
        levels: kinds of isolation to accept, the best first.
        fresh: grade everything, whatever results there are, and write none.
        on_result: called with each result and the number of all, from any thread.

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
        todo = _without_done(run, out, handouts, fresh, on_result)
        _work(run, todo, out, handouts, jobs, levels, scratch, fresh, on_result)
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


def _without_done(
    run: Run, out: Path, handouts: dict[str, Path], fresh: bool, on_result: Callable[[Result, int], None]
) -> list[tuple[Submission, str]]:
    """Submissions that are still to be graded, with their keys; those with a result are done."""
    todo = []
    for submission in run.submissions:
        key = key_of(submission, handouts[submission.lesson], run.settings.seed, run.settings.seconds)
        result = None if fresh else read_result(result_file(out, submission.student, submission.lesson))
        if result is not None and result.key == key and result.student == submission.student:
            run.reused += 1
            run.results[submission.student, submission.lesson] = result
            on_result(result, len(run.submissions))
        else:
            todo.append((submission, key))
    return todo


def _work(
    run: Run,
    todo: list[tuple[Submission, str]],
    out: Path,
    handouts: dict[str, Path],
    jobs: int,
    levels: tuple[str, ...],
    scratch: Path,
    fresh: bool,
    on_result: Callable[[Result, int], None],
) -> None:
    waiting: queue.SimpleQueue[tuple[Submission, str]] = queue.SimpleQueue()
    for each in todo:
        waiting.put(each)
    failures: list[BaseException] = []
    stop = threading.Event()
    lock = threading.Lock()
    settings = vars(run.settings) | {"levels": levels, "lessons": {n: str(p) for n, p in handouts.items()}}
    workers = [Worker(settings, scratch) for _ in range(max(1, min(jobs, len(todo))))]

    def serve(worker: Worker) -> None:
        try:
            while not stop.is_set():
                submission, key = waiting.get_nowait()
                result = _graded(worker, submission, key, run.settings)
                if stop.is_set():
                    return
                with lock:
                    if not fresh:
                        write_json(result_file(out, result.student, result.lesson), dataclasses.asdict(result))
                    run.results[result.student, result.lesson] = result
                    on_result(result, len(run.submissions))
        except queue.Empty:
            pass
        except BaseException as error:
            failures.append(error)
            stop.set()
        finally:
            worker.close()

    threads = [threading.Thread(target=serve, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.2)
    except KeyboardInterrupt:
        run.interrupted = True
        stop.set()
        for worker in workers:
            worker.kill()
        for thread in threads:
            thread.join(10)
    run.cpu = sum(worker.cpu for worker in workers)
    if failures and not run.interrupted:
        raise GradingError(str(failures[0])) from failures[0]


def _graded(worker: Worker, submission: Submission, key: str, settings: Settings) -> Result:
    exercises = LESSONS[submission.lesson]
    data: dict[str, Any] = {"problem": submission.problem, "notes": []}
    level = ""
    if submission.path is not None:
        patience = 120 + len(exercises) * (settings.seconds + 5)
        try:
            data = worker.ask({"path": str(submission.path), "lesson": submission.lesson}, patience)
            level = worker.level
        except WorkerFailed as error:
            data = {"problem": "crashed", "notes": [f"grading it failed twice: {error}"]}
    if "problem" in data:
        rows = [
            ExerciseResult(e.id, e.title, e.points, data["problem"], message=" ".join(data["notes"])) for e in exercises
        ]
    else:
        rows = [ExerciseResult(**each) for each in data["exercises"]]
    notes = [*submission.notes, *data["notes"]]
    name = submission.name
    return Result(
        submission.student,
        submission.lesson,
        name,
        key,
        level,
        rows,
        notes,
        data.get("seconds", 0.0),
        data.get("cpu", 0.0),
    )
