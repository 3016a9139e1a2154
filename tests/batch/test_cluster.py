"""A batch on a Dask cluster: a scheduler and workers started by hand, in other processes, on this machine."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack

import pytest

from moe_course.batch.drive import BatchError, Options, drive
from moe_course.batch.executors import cluster_threads, executor
from moe_course.batch.folder import Folder
from tests.batch.notebooks import plan_of, rows_in, write_notebook
from tests.batch.test_command import has_ended, kernel_of, wait_for

# The kernel's parent is the worker. Run 1 waits until there is a file `go`, wherever it is done.
WAITS = """
import os, pathlib, time
from moe_course import record
pathlib.Path(f"pid-{x}").write_text(str(os.getpid()))
while x == 1 and not pathlib.Path("go").exists():
    time.sleep(0.05)
record(worker=os.getppid(), threads=os.environ["OMP_NUM_THREADS"])
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Address of a scheduler with two workers of one thread each, and the workers' processes."""
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:

        def launch(module, *words):
            command = [sys.executable, "-m", f"distributed.cli.{module}", *words]
            with (folder / f"{module}.log").open("a") as log:
                process = stack.enter_context(subprocess.Popen(command, stdout=log, stderr=log, cwd=folder))
            stack.callback(process.kill)
            return process

        launch("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", "s.json")
        wait_for((folder / "s.json").exists)
        options = (
            "--scheduler-file",
            "s.json",
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
            "--local-directory",
            ".",
        )
        workers = [launch("dask_worker", *options) for _ in range(2)]
        address = next(
            word.strip('",') for word in (folder / "s.json").read_text().split() if word.startswith('"tcp://127')
        )
        yield address, workers


def go(plan, folder, address, **options):
    """Do the plan on the cluster; what came of it."""
    batch = Folder(folder / "out")
    with batch.open(plan), executor(1, address) as pool:
        wait_for(lambda: cluster_threads(pool) >= 1)
        return drive(plan, plan.runs, batch, pool, Options(jobs=None, warm=False, **options))


def test_runs_of_a_killed_worker_go_on_elsewhere(cluster, tmp_path):
    address, workers = cluster
    write_notebook(tmp_path, WAITS)
    plan = plan_of(tmp_path, "[grid]\nx = [1, 2, 3]")
    with executor(1, address) as pool:
        wait_for(lambda: cluster_threads(pool) == 2)
    killed = []

    def kill_a_worker():
        kernel = kernel_of(tmp_path, 1)
        killed.append(kernel.ppid())
        os.kill(kernel.ppid(), signal.SIGKILL)
        wait_for(lambda: has_ended(kernel))  # the kernel does not outlive its worker
        kernel_of(tmp_path, 1)  # and there is another one
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    tally = go(plan, tmp_path, address)
    killer.join()
    assert (tally.done, tally.failed) == (3, 0)
    rows = rows_in(tmp_path / "out")
    assert killed[0] in {worker.pid for worker in workers}
    (survivor,) = {worker.pid for worker in workers} - set(killed)
    assert rows["runs x=1"]["results"]["worker"] == survivor
    assert {row["results"]["worker"] for row in rows.values()} <= {worker.pid for worker in workers}


def test_a_run_that_is_cancelled_ends_on_the_worker_too(cluster, tmp_path):
    address, _ = cluster
    write_notebook(tmp_path, WAITS)
    plan = plan_of(tmp_path, "[grid]\nx = [1]")

    def interrupt(run, row, tally):
        if (tmp_path / "pid-1").exists():
            raise KeyboardInterrupt

    batch = Folder(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt), batch.open(plan), executor(1, address) as pool:
        drive(plan, plan.runs, batch, pool, Options(jobs=None, warm=False), interrupt)
    kernel = kernel_of(tmp_path, 1)
    wait_for(lambda: has_ended(kernel), seconds=20)


def test_a_worker_with_another_package_stops_the_batch(cluster, tmp_path, monkeypatch):
    address, _ = cluster
    monkeypatch.setattr("moe_course.batch.lessons.package_digest", lambda: "another")
    write_notebook(tmp_path, "import moe_course")
    with pytest.raises(BatchError, match="has another moe_course than the machine that runs the batch"):
        go(plan_of(tmp_path, ""), tmp_path, address)


def test_what_is_no_scheduler_is_told(monkeypatch):
    import socket

    from moe_course.batch import executors

    monkeypatch.setattr(executors, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        start = time.monotonic()
        with (
            pytest.raises(executors.ClusterError, match="is no Dask scheduler"),
            executor(1, f"tcp://127.0.0.1:{port}"),
        ):
            pass
        assert time.monotonic() - start < 5
