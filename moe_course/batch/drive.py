"""Drives a batch: hands its runs to an executor, few at a time, and keeps each as soon as it is whole.

Threads and clusters are driven alike. One thread, this one, writes; so a full disk or Ctrl-C meets one place.
"""

import errno
import queue
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from dataclasses import dataclass
from typing import Any

from moe_course.batch import work as working
from moe_course.batch.executors import cluster_threads
from moe_course.batch.folder import Folder
from moe_course.batch.plan import Plan, Run
from moe_course.batch.work import Job, Outcome, Unfit, work

LOST = "the connection to the cluster is lost; once it is back, the same command goes on"
AHEAD = 32  # runs that a cluster is given beyond those it can start at once; it grows by what it sees waiting


class BatchError(Exception):
    """What keeps a batch from going on; the message says what to do."""


@dataclass
class Tally:
    """How far a batch is.

    Args:
        total: runs that are to be done now.
        done: of these, how many went well.
        failed: and how many did not, retries included.
        in_flight: and how many are being done, or are about to be.
        at_once: how many can be done at once.
    """

    total: int
    done: int = 0
    failed: int = 0
    in_flight: int = 0
    at_once: int = 1

    @property
    def running(self) -> int:
        """How many are being done now."""
        return min(self.in_flight, self.at_once)


@dataclass(frozen=True)
class Options:
    """How to do the runs.

    Args:
        jobs: how many at once on this machine; None leaves that to the cluster.
        retries: how often a run that failed is tried again.
        fail_fast: start no more runs once one has failed for good.
        warm: whether forked kernels may be used.
    """

    jobs: int | None
    retries: int = 0
    fail_fast: bool = False
    warm: bool = True


def drive(
    plan: Plan,
    todo: list[Run],
    folder: Folder,
    pool: Executor,
    options: Options,
    on_row: Callable[[Run | None, dict[str, Any], Tally], None] = lambda run, row, tally: None,
    do: Callable[[Job], Outcome] = work,
) -> Tally:
    """Do the runs; each is in the folder before `on_row` hears of it.

    Args:
        plan: whose runs they are.
        todo: the runs to do.
        folder: to keep them in; open.
        pool: does them.
        options: how.
        on_row: called with each run that is through, its row, and how far the batch is; now and then without a run.
        do: what does a job; for tests.

    Raises:
        BatchError: the batch cannot go on: the disk is full, or the cluster is gone or does not fit.
        KeyboardInterrupt: from the keyboard. Kernels on this machine end; what is done is kept.
    """
    batch = uuid.uuid4().hex
    waiting = deque((run, 1) for run in todo)
    ended: queue.SimpleQueue[Future[Outcome]] = queue.SimpleQueue()
    tally = Tally(len(todo))
    started: dict[Future[Outcome], tuple[Run, int]] = {}
    try:
        while True:
            tally.at_once = options.jobs or _workers_threads(pool)
            room = 2 * tally.at_once + (0 if options.jobs else AHEAD)
            while waiting and len(started) < room and not (options.fail_fast and tally.failed):
                run, attempt = waiting.popleft()
                future = pool.submit(do, _job(batch, plan, run, options))
                started[future] = run, attempt
                future.add_done_callback(ended.put)
            tally.in_flight = len(started)
            if not started:
                return tally
            if options.fail_fast and tally.failed:
                for each in list(started):
                    each.cancel()  # of this machine's, those that have not begun
            try:
                future = ended.get(timeout=1.0)
            except queue.Empty:
                on_row(None, {}, tally)
                continue
            run, attempt = started.pop(future)
            tally.in_flight = len(started)
            if future.cancelled() and options.fail_fast and tally.failed:
                continue
            row, notebook = _outcome(future, run)
            if row["status"] != "done" and attempt <= options.retries:
                waiting.appendleft((run, attempt + 1))
                continue
            row["attempts"] = attempt
            folder.save(row, notebook)
            tally.done += row["status"] == "done"
            tally.failed += row["status"] != "done"
            on_row(run, row, tally)
    except OSError as error:
        raise BatchError(told(error, folder)) from error
    finally:
        working.stopped.add(batch)  # ends the kernels of threads; what a cluster has is cancelled
        for future in started:
            future.cancel()


def _workers_threads(pool: Executor) -> int:
    try:
        return cluster_threads(pool)
    except Exception as error:  # of many kinds, once the scheduler is gone
        raise BatchError(LOST) from error


def _job(batch: str, plan: Plan, run: Run, options: Options) -> Job:
    lesson = plan.lessons[run.lesson]
    return Job(
        batch=batch,
        row={"id": run.id, "key": run.key, "lesson": run.lesson, "parameters": run.parameters, "seed": run.seed},
        text=lesson.text,
        given=run.given,
        folder=str(lesson.path.parent),
        timeout=plan.sweep.timeout,
        memory_mb=plan.sweep.memory_mb,
        warm=options.warm,
        jobs=options.jobs,
        package=lesson.packages.get("moe_course", "").partition(" ")[2],
    )


def _outcome(future: Future[Outcome], run: Run) -> tuple[dict[str, Any], str | None]:
    """A run's row and notebook, whatever came of it."""
    try:
        outcome = future.result()
    except CancelledError:
        raise BatchError(LOST) from None
    except Unfit as error:
        raise BatchError(str(error)) from None
    except OSError:
        raise
    except Exception as error:
        if type(error).__name__ == "KilledWorker":
            return _died(run, str(error)), None
        if isinstance(error, ModuleNotFoundError) or "deserializ" in str(error):
            cause = error.__cause__ or error
            raise BatchError(
                f"a worker of the cluster cannot do the runs ({cause}); install moe-course there as it is here"
            ) from error
        raise
    if outcome.row is None:
        raise BatchError("a run was given up on the cluster, which lost touch with this machine; run the same command")
    return outcome.row, outcome.notebook


def _died(run: Run, why: str) -> dict[str, Any]:
    message = (
        "every worker of the cluster that tried this run died; a run that needs more memory than a worker has can "
        f"do that ({why.splitlines()[0][:200]})"
    )
    return {
        "id": run.id,
        "key": run.key,
        "lesson": run.lesson,
        "parameters": run.parameters,
        "seed": run.seed,
        "status": "died",
        "seconds": 0.0,
        "cpu_seconds": 0.0,
        "peak_memory_mb": 0.0,
        "attempts": 1,
        "started": None,
        "finished": None,
        "kernel": "cold",
        "error": {"cell": None, "first_line": None, "name": "WorkerDied", "message": message, "traceback": message},
        "slowest_cell": None,
        "results": {},
    }


def told(error: OSError, folder: Folder) -> str:
    """What the system refused, and what to do."""
    where = error.filename or folder.path
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space is left on the disk ({where}); make some, then the same command goes on"
    return f"{where}: {error.strerror or error}; once that is mended, the same command goes on"
