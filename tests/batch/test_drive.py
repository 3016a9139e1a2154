"""The loop that hands runs out and keeps them: retries, stops, faults, and what it costs."""

import errno
import json
import os
import threading
import time
import tracemalloc
from concurrent.futures import CancelledError, Future

import pytest

from moe_course.batch import drive as driving
from moe_course.batch.drive import BatchError, Options, drive
from moe_course.batch.executors import ClusterError, executor
from moe_course.batch.folder import Folder
from moe_course.batch.work import Outcome, Unfit
from tests.batch.notebooks import plan_of, rows_in, write_notebook


class Batch:
    """A batch of trivial runs, done by a function instead of a kernel."""

    def __init__(self, folder, text="[grid]\nx = [0, 1, 2, 3, 4, 5]"):
        write_notebook(folder, "x")
        self.plan = plan_of(folder, text)
        self.folder = Folder(folder / "out")
        self.heard = []

    def go(self, do, jobs=2, **options):
        with self.folder.open(self.plan), executor(jobs) as pool:
            todo = [run for run in self.plan.runs if not self.folder.is_done(run)]

            def on_row(run, row, tally):
                self.heard.append((row.get("status"), tally.done, tally.failed))

            return drive(self.plan, todo, self.folder, pool, Options(jobs, **options), on_row, do)

    @property
    def left(self):
        return [run.given["x"] for run in self.plan.runs if not self.folder.is_done(run)]


def outcome(job, status="done", notebook_size=0):
    row = job.row | {"status": status, "seconds": 0.0, "error": None}
    notebook = {"cells": "x" * notebook_size, "metadata": {"key": row["key"]}, "nbformat_minor": 5}
    return Outcome(row, json.dumps(notebook))


@pytest.fixture
def batch(tmp_path):
    return Batch(tmp_path)


def test_each_run_is_kept_before_it_is_told(batch):
    tally = batch.go(outcome)
    assert (tally.done, tally.failed, tally.in_flight, batch.left) == (6, 0, 0, [])
    assert batch.heard == [("done", n, 0) for n in range(1, 7)]


def test_a_failure_stops_no_other_run_and_is_tried_again_by_the_next_batch(batch):
    def do(job):
        return outcome(job, "error" if job.given["x"] in (1, 4) else "done")

    assert batch.go(do).failed == 2
    assert batch.left == [1, 4]
    assert {name for name in rows_in(batch.folder.path) if name.startswith("failed")} == {"failed x=1", "failed x=4"}
    did = []
    assert batch.go(lambda job: (did.append(job.given["x"]), outcome(job))[1]).total == 2
    assert sorted(did) == [1, 4]
    assert all(name.startswith("runs") for name in rows_in(batch.folder.path))


def test_retries_are_counted_and_the_last_attempt_counts(batch):
    tries = {}

    def do(job):
        x = job.given["x"]
        tries[x] = tries.get(x, 0) + 1
        return outcome(job, "done" if x == 0 or (x == 1 and tries[x] == 3) else "died")

    tally = batch.go(do, retries=2)
    rows = rows_in(batch.folder.path)
    assert (tally.done, tally.failed) == (2, 4)
    assert tries == {0: 1, 1: 3, 2: 3, 3: 3, 4: 3, 5: 3}
    assert (rows["runs x=0"]["attempts"], rows["runs x=1"]["attempts"], rows["failed x=5"]["attempts"]) == (1, 3, 3)


def test_fail_fast_starts_nothing_after_a_failure_and_keeps_what_was_running(batch):
    first_failed = threading.Event()

    def do(job):
        if job.given["x"] == 1:
            first_failed.set()
            return outcome(job, "error")
        first_failed.wait(10)
        time.sleep(1.0)
        return outcome(job)

    tally = batch.go(do, fail_fast=True)
    assert (tally.failed, tally.done) == (1, 2)  # the second's thread had the third before anybody knew
    assert batch.left == [1, 3, 4, 5]


def test_a_full_disk_stops_the_batch_and_the_same_command_goes_on(batch, monkeypatch):
    sync, written = os.fsync, []

    def fsync(handle):
        written.append(handle)
        if len(written) > 2 + 2 * 2 + 1:  # plan and sweep, two runs, and a row without its notebook
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(BatchError, match=r"no space is left on the disk .* then the same command goes on"):
        batch.go(outcome)
    assert len(batch.left) == 4
    monkeypatch.setattr(os, "fsync", sync)
    assert batch.go(outcome).done == 4


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (Unfit("install the same"), "install the same"),
        (CancelledError(), "the connection to the cluster is lost"),
        (ModuleNotFoundError("No module named 'moe_course'"), "install moe-course there"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space is left on the disk"),
    ],
)
def test_what_concerns_all_runs_stops_the_batch_with_a_remedy(batch, error, says):
    def do(job):
        raise error

    with pytest.raises(BatchError, match=says):
        batch.go(do)
    assert batch.left == [0, 1, 2, 3, 4, 5]


def test_a_run_that_kills_every_worker_is_a_failure_of_that_run(batch):
    class KilledWorker(Exception):
        """As Dask calls it."""

    def do(job):
        if job.given["x"] == 2:
            raise KilledWorker("Attempted to run task on 4 different workers")
        return outcome(job)

    assert batch.go(do).done == 5
    row = rows_in(batch.folder.path)["failed x=2"]
    assert (row["status"], row["error"]["name"]) == ("died", "WorkerDied")
    assert "4 different workers" in row["error"]["message"]


def test_an_interrupt_ends_what_runs_and_keeps_what_is_done(batch, monkeypatch):
    seen = []

    def do(job):
        seen.append(job.batch)
        while job.given["x"] == 1 and job.batch not in driving.working.stopped:
            time.sleep(0.01)
        return outcome(job)

    def interrupt(run, row, tally):
        if row:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), batch.folder.open(batch.plan), executor(2) as pool:
        drive(batch.plan, batch.plan.runs, batch.folder, pool, Options(2), interrupt, do)
    assert seen[0] in driving.working.stopped
    assert len(batch.left) == 5


def test_memory_is_flat_and_a_run_costs_little_however_many_there_are(tmp_path):
    peaks, seconds = [], []
    for number, runs in enumerate((5, 25, 125)):  # the first warms up
        folder = tmp_path / str(number)
        folder.mkdir()
        batch = Batch(folder, f"[grid]\nx = {list(range(runs))}")
        start = time.process_time()
        tracemalloc.start()
        batch.go(lambda job: outcome(job, notebook_size=100_000))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        seconds.append((time.process_time() - start) / runs)
        batch.heard.clear()
    assert peaks[2] - peaks[1] < 2e6  # 100 notebooks more are 10 MB
    assert max(seconds) < 0.1


def test_a_pool_that_is_left_by_an_error_drops_what_waits():
    ran = []
    with pytest.raises(RuntimeError), executor(1) as pool:
        first = pool.submit(time.sleep, 0.2)
        rest = [pool.submit(ran.append, n) for n in range(20)]
        raise RuntimeError
    assert isinstance(first, Future)
    assert all(each.cancelled() for each in rest[1:])
    assert len(ran) <= 1


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nonsense", "is no address of a scheduler; one looks like tcp://"),
        ("tcp://127.0.0.1:x", "is no address of a scheduler"),
        ("tcp://127.0.0.1:1", r"nothing answers at tcp://127.0.0.1:1 \(Connection refused\); start the scheduler"),
    ],
)
def test_no_cluster_is_told_at_once(address, says):
    with pytest.raises(ClusterError, match=says), executor(1, address):
        pass
