"""Shares work out: to threads of this machine, or to the workers of a Dask cluster that is already there."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from itertools import islice
from typing import Any, TypeVar

from moe_course.batch.executors import ClusterError, cluster_threads, executor

from .workers import Job, NoWorker, WorkerFailed, Workers, grade_on_cluster

Task = TypeVar("Task")


class Lost(Exception):
    """The cluster went away, or was never there; the message says what to do."""


def share_out(
    tasks: Sequence[Task], job: Callable[[Task], Job], jobs: int, scheduler: str | None, here: Workers
) -> Iterator[tuple[Task, dict[str, Any]]]:
    """Grade notebooks; each task with its answer, as they come.

    Args:
        tasks: what is to be done.
        job: makes the job of a task; called only when its turn comes, so that not all notebooks are in memory at once.
        jobs: threads, where this machine does the work.
        scheduler: address of a Dask scheduler, or None. A task whose machine dies is done on another one.
        here: the workers of this machine; ended when this ends before its time.

    Raises:
        NoWorker: no grading process starts.
        Lost: there is no cluster, or no more.
    """
    if not tasks:
        return
    waiting = iter(tasks)
    running: dict[Future[dict[str, Any]], Task] = {}
    jobs = min(jobs, len(tasks))
    try:
        with executor(jobs, scheduler) as pool:
            grade = here.grade if scheduler is None else grade_on_cluster
            while True:
                room = 2 * (cluster_threads(pool) or jobs) - len(running)
                for task in islice(waiting, max(room, 0)):
                    running[pool.submit(grade, job(task))] = task
                if not running:
                    break
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for each in done:
                    yield running.pop(each), _answer(each)
    except ClusterError as error:
        raise Lost(str(error)) from None
    except BaseException:
        here.close(at_once=True)  # the threads wait for them
        raise


def _answer(done: "Future[dict[str, Any]]") -> dict[str, Any]:
    try:
        return done.result()
    except NoWorker:
        raise
    except (CancelledError, ConnectionError, TimeoutError) as error:
        raise Lost(
            f"the cluster is gone ({type(error).__name__}); what is done is kept, run the same command to go on"
        ) from error
    except WorkerFailed as error:
        return {"problem": "crashed", "notes": [f"grading it failed twice: {error}"]}
    except Exception as error:
        if type(error).__name__ == "KilledWorker":  # one machine after another died over it
            return {"problem": "crashed", "notes": ["grading it failed, its machine died each time"]}
        raise Lost(f"the cluster cannot grade: {type(error).__name__}: {str(error)[:300]}") from error
