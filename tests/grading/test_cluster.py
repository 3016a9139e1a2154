"""Grading on a Dask cluster: a scheduler and two workers started by hand, one of which is killed on the way."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from moe_course.grading import run as running
from moe_course.grading import worker, workers
from moe_course.grading.handouts import GradingError
from moe_course.grading.results import Result
from moe_course.grading.run import grade
from moe_course.grading.work import Lost, _answer
from moe_course.grading.workers import Job, NoWorker, Terms, WorkerFailed, grade_on_cluster
from tests.grading.conftest import ROOT, hand_in, notebook

DASK = [sys.executable, "-m", "distributed.cli.dask_{}", "--host", "127.0.0.1", "--no-dashboard"]


def start(stack: ExitStack, what: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [part.format(what) for part in DASK] + list(arguments)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    def end() -> None:
        process.kill()
        process.communicate()

    stack.callback(end)
    return process


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[tuple[str, list["subprocess.Popen[str]"]]]:
    """Its scheduler's address, and its workers."""
    with ExitStack() as stack:
        scheduler = start(stack, "scheduler", "--port", "0")
        assert scheduler.stderr is not None
        address = next(found[0] for line in scheduler.stderr if (found := re.search(r"tcp://[\d.]+:\d+", line)))
        folder = str(tmp_path_factory.mktemp("dask"))
        options = ("--nthreads", "1", "--no-nanny", "--local-directory", folder)
        yield address, [start(stack, "worker", address, *options) for _ in range(2)]


def test_a_cluster_grades_and_a_dead_machines_work_is_done_elsewhere(tmp_path, solved, cluster):
    address, machines = cluster
    wrong = {"02.route": "def route(*a, **k): return None"}
    for student, answers in (("ada", solved), ("bob", solved | wrong), ("cy", solved), ("dan", {}), ("eve", solved)):
        hand_in(tmp_path / "class", student, notebook(answers))
    seen: list[str] = []

    def kill_one(result: Result, total: int) -> None:
        seen.append(result.student)
        if len(seen) == 1:
            machines[0].kill()

    run = grade(tmp_path / "class", tmp_path / "report", scheduler=address, seed=7, on_result=kill_one)
    assert {student: result.points for (student, _), result in run.results.items()} == {
        "ada": 12,
        "bob": 9,
        "cy": 12,
        "dan": 0,
        "eve": 12,
    }
    assert run.levels == ["bubblewrap"] and run.cpu > 0 and sorted(seen) == ["ada", "bob", "cy", "dan", "eve"]
    # What was done on the cluster is done for good, here as well.
    again = grade(tmp_path / "class", tmp_path / "report")
    assert again.reused == 5


@pytest.fixture
def told_here(monkeypatch):
    """What a run asks a worker before it begins, this process answers: it has loaded torch already."""

    def ask(_, levels, request, patience=0):
        return getattr(worker.Grader(None), request.pop("ask"))(**request) | {"cpu": 0.0}

    monkeypatch.setattr(workers.Workers, "ask", ask)


def test_no_cluster_is_told(tmp_path, solved, told_here):
    hand_in(tmp_path / "class", "ada", notebook(solved))
    with pytest.raises(GradingError, match=r"nothing answers at tcp://127\.0\.0\.1:1"):
        grade(tmp_path / "class", tmp_path / "report", scheduler="tcp://127.0.0.1:1", seed=7)
    assert list((tmp_path / "report" / "results").iterdir()) == []


def test_machines_that_cannot_shut_student_code_in_are_not_accepted(tmp_path, solved, monkeypatch, told_here):
    """Their network is that of the scheduler, which does what anybody tells it."""
    asked: list[Job] = []

    def share_out(tasks, job, jobs, scheduler, scratch):
        asked.extend(map(job, tasks))
        return iter(())

    monkeypatch.setattr(running, "share_out", share_out)
    hand_in(tmp_path / "class", "ada", notebook(solved))
    grade(tmp_path / "class", tmp_path / "report", scheduler="tcp://here:1", seed=7)
    grade(tmp_path / "class", tmp_path / "report")
    assert ["process" in job.terms.levels for job in asked] == [False, True]


def test_a_machine_with_another_version_of_the_course_refuses():
    with pytest.raises(NoWorker, match="another version of moe-course"):
        grade_on_cluster(Job(Terms(1, 1, ("02",), ("bubblewrap",)), "other", "02", b"", b"", 1))


class Done:
    """A task that failed."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def result(self) -> None:
        raise self.error


KilledWorker = type("KilledWorker", (Exception,), {})


@pytest.mark.parametrize(
    ("error", "says"),
    [(KilledWorker(), "its machine died each time"), (WorkerFailed("status 3"), "grading it failed twice: status 3")],
)
def test_what_kills_its_graders_is_a_problem_of_that_submission(error, says):
    answer = _answer(Done(error))
    assert answer["problem"] == "crashed" and says in answer["notes"][0]


@pytest.mark.parametrize("error", [ConnectionError("gone"), ModuleNotFoundError("no moe_course")])
def test_what_is_wrong_with_the_cluster_is_nobodys_problem(error):
    with pytest.raises(Lost, match="cluster"):
        _answer(Done(error))


def test_workers_that_were_closed_start_nothing(tmp_path):
    closed = workers.Workers(Path(tmp_path))
    closed.close(at_once=True)
    with pytest.raises(NoWorker, match="has stopped"):
        closed.grade(Job(Terms(1, 1, ("02",), ("bubblewrap",)), "", "02", b"", b"", 1))
