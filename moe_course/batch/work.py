"""What a thread or a cluster's worker does: one job, from a notebook's text to a row of the table.

A job carries all it needs, and its outcome comes back by value, so a cluster needs no file system in common.
"""

import os
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat
import psutil

from moe_course.batch.execute import Limits, execute
from moe_course.batch.executors import available_cores
from moe_course.batch.lessons import package_digest
from moe_course.batch.record import recorded

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_MAX_THREADS")
SHARE_OF_MEMORY = 0.9  # of the machine, for all kernels together

stopped: set[str] = set()  # batches of this process that nobody waits for any more


class Unfit(Exception):
    """This machine would give other results than the one that planned; the message says what to do."""


@dataclass(frozen=True)
class Job:
    """A run, and all that is needed to do it anywhere.

    Args:
        batch: names the batch, so that it can be stopped.
        row: the run's id, key, lesson, parameters and seed.
        text: the notebook as JSON.
        given: the parameters, the seed among them.
        folder: of the notebook; the kernel works there, where it exists.
        timeout: seconds.
        memory_mb: None for an equal share of the machine.
        warm: whether a forked kernel may be used.
        jobs: how many run at once on this machine; None asks the cluster's worker.
        package: hash of moe_course where the batch was planned; "" where the notebook does not use it.
    """

    batch: str
    row: dict[str, Any]
    text: str
    given: dict[str, Any]
    folder: str
    timeout: float
    memory_mb: float | None
    warm: bool
    jobs: int | None
    package: str


@dataclass(frozen=True)
class Outcome:
    """The row that a run adds to the table, and its notebook; both None where nobody waited for it any more."""

    row: dict[str, Any] | None
    notebook: str | None


def work(job: Job) -> Outcome:
    """Do a job.

    Raises:
        Unfit: the moe_course here is not the one that the batch was planned with.
    """
    if job.package not in ("", package_digest()):
        raise Unfit(
            f"{socket.gethostname()} has another moe_course than the machine "
            "that runs the batch; install the same on both, and restart the workers"
        )
    here, is_unwanted = _worker(job)
    started = datetime.now(UTC)
    with ExitStack() as stack:
        folder = job.folder
        if not Path(folder).is_dir():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="moe-"))
        ended = execute(
            nbformat.reads(job.text, as_version=4),
            job.given,
            Limits(job.timeout, job.memory_mb or here.memory_mb),
            folder=folder,
            environment=_environment(here.threads),
            warm=job.warm,
            is_unwanted=is_unwanted,
        )
    if ended.notebook is None:
        return Outcome(None, None)
    run = job.row | {
        "status": ended.status,
        "seconds": ended.seconds,
        "cpu_seconds": ended.cpu_seconds,
        "peak_memory_mb": ended.peak_memory_mb,
        "attempts": 1,
        "started": started.isoformat(),
        "finished": datetime.now(UTC).isoformat(),
        "kernel": ended.kernel,
        "error": ended.error,
        "slowest_cell": ended.slowest_cell,
    }
    ended.notebook.metadata.setdefault("moe_course", {})["run"] = run
    return Outcome(run | {"results": recorded(ended.notebook)}, nbformat.writes(ended.notebook) + "\n")


@dataclass(frozen=True)
class Here:
    """What a kernel on this machine may have: threads, and MB of memory."""

    threads: int
    memory_mb: float


def _worker(job: Job) -> tuple[Here, Callable[[], bool]]:
    """What there is for a kernel, and how to learn that its run is not wanted any more."""
    memory = psutil.virtual_memory().total
    if job.jobs is not None:
        here = Here(max(1, available_cores() // job.jobs), SHARE_OF_MEMORY * _within_limits(memory) / job.jobs / 2**20)
        return here, lambda: job.batch in stopped
    from distributed import get_worker

    worker = get_worker()
    task = worker.get_current_task()
    jobs = worker.state.nthreads
    memory = getattr(worker.memory_manager, "memory_limit", None) or _within_limits(memory)
    here = Here(max(1, available_cores() // jobs), SHARE_OF_MEMORY * memory / jobs / 2**20)

    def is_unwanted() -> bool:
        # Dask cannot stop a thread, but notes here that the batch cancelled the task, or is no more.
        state = worker.state.tasks.get(task)
        return state is None or state.state in ("cancelled", "released", "forgotten")

    return here, is_unwanted


def _within_limits(memory: int) -> int:
    """The memory that a container or a batch system allows, if that is less."""
    try:
        return min(memory, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return memory


def _environment(threads: int) -> dict[str, str]:
    """Of the kernel: that of this process, with the threads shared out, so that kernels don't fight for cores."""
    environment = dict(os.environ)
    for name in THREADS:
        environment.setdefault(name, str(threads))
    return environment
