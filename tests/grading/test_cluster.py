"""Grading on a Dask cluster: a scheduler and workers started by hand, one of which is killed with work in hand."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from moe_course.grading import run as running
from moe_course.grading import worker, workers
from moe_course.grading.handouts import GradingError
from moe_course.grading.run import grade
from moe_course.grading.work import Lost, _answer
from moe_course.grading.workers import Job, NoWorker, Terms, WorkerFailed, grade_on_cluster
from tests.grading.conftest import ROOT, hand_in, notebook

DASK = [sys.executable, "-m", "distributed.cli.dask_{}", "--host", "127.0.0.1", "--no-dashboard"]


@dataclass
class Cluster:
    """A scheduler at an address; machines join it when they are started."""

    address: str
    folder: Path
    stack: ExitStack

    def machine(self) -> "subprocess.Popen[str]":
        options = ("--nthreads", "1", "--no-nanny", "--local-directory", str(self.folder / "dask"))
        return start(self.stack, self.folder, "worker", self.address, *options)

    def is_grading(self) -> bool:
        return any(self.folder.glob("moe-course-grade-*/*/notebook"))


def start(stack: ExitStack, folder: Path, what: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [part.format(what) for part in DASK] + list(arguments)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)

    def end() -> None:
        process.kill()
        process.communicate()

    stack.callback(end)
    return process


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """A cluster without machines yet."""
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        scheduler = start(stack, folder, "scheduler", "--port", "0")
        assert scheduler.stderr is not None
        address = next(found[0] for line in scheduler.stderr if (found := re.search(r"tcp://[\d.]+:\d+", line)))
        yield Cluster(address, folder, stack)


def test_a_cluster_grades_and_a_dead_machines_work_is_done_elsewhere(tmp_path, solved, cluster):
    wrong = {"02.route": "def route(*a, **k): return None"}
    for student, answers in (("ada", solved), ("bob", solved | wrong), ("cy", {})):
        hand_in(tmp_path / "class", student, notebook(answers))
    seen: list[str] = []
    killed: list[bool] = []

    def kill_the_first() -> None:
        first = cluster.machine()
        while not cluster.is_grading():
            time.sleep(0.02)
        first.kill()
        killed.append(not seen)
        cluster.machine()

    thread = threading.Thread(target=kill_the_first)
    thread.start()
    run = grade(
        tmp_path / "class",
        tmp_path / "report",
        scheduler=cluster.address,
        seed=7,
        on_result=lambda result, total: seen.append(result.student),
    )
    thread.join()
    points = {student: result.points for (student, _), result in run.results.items()}
    assert points == {"ada": 12, "bob": 9, "cy": 0} and sorted(seen) == ["ada", "bob", "cy"]
    assert run.levels == ["bubblewrap"] and run.cpu > 0 and killed == [True]
    assert len(list((tmp_path / "report" / "results").iterdir())) == 3


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
