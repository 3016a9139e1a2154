"""The grading processes of this machine: hand one a notebook, and it answers in time, or is started anew.

The same code serves a run, in threads of its own machine, and the tasks of a Dask cluster, on the workers' machines.
"""

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .keys import code_hash

START = 300  # seconds until a worker must be ready on a very busy machine


class WorkerFailed(Exception):
    """A worker died, or did not answer in time, twice over the same submission."""


class NoWorker(Exception):
    """Workers cannot be started at all, or the run has stopped."""


@dataclass(frozen=True)
class Terms:
    """What all submissions of a run have in common.

    Args:
        seed: of the hidden inputs.
        seconds: time limit of one exercise.
        lessons: numbers of the lessons that may be asked for.
        levels: kinds of isolation to accept, the best first.
    """

    seed: int
    seconds: float
    lessons: tuple[str, ...]
    levels: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """One notebook to grade: all that the machine that does it must know.

    Args:
        terms: of the run.
        code: hash of the code that scores depend on.
        lesson: its number.
        handout: the lesson's notebook as students got it.
        notebook: what was handed in.
        patience: seconds after which an answer will not come any more.
    """

    terms: Terms
    code: str
    lesson: str
    handout: bytes
    notebook: bytes
    patience: float


def grade_on_cluster(job: Job) -> dict[str, Any]:
    """The answer to a job, as a task of a cluster."""
    if job.code != code_hash():
        name = os.uname().nodename
        raise NoWorker(f"{name} has another version of moe-course; install the same one on all machines")
    return _of_this_process().grade(job)


@cache
def _of_this_process() -> "Workers":
    scratch = Path(tempfile.mkdtemp(prefix="moe-course-grade-"))
    workers = Workers(scratch)
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    atexit.register(workers.close, at_once=True)
    return workers


class Workers:
    """Grading processes, as many as threads ask at once. They end by themselves after a while without work.

    Args:
        scratch: a folder for temporary files, so that they go when the run ends however it ends.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._lock = threading.Lock()
        self._all: list[Worker] = []
        self._idle: list[Worker] = []
        self._closed = False

    def grade(self, job: Job) -> dict[str, Any]:
        """The answer to a job: what `worker` says, with the "cpu" seconds that it took.

        Raises:
            WorkerFailed: there is none, not even from a second worker.
            NoWorker: no worker starts, or none with the isolation asked for.
        """
        terms = job.terms
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            places = {"handout": Path(folder, "handout"), "notebook": Path(folder, "notebook")}
            places["handout"].write_bytes(job.handout)
            places["notebook"].write_bytes(job.notebook)
            request = {"seed": terms.seed, "seconds": terms.seconds, "lessons": terms.lessons, "lesson": job.lesson}
            paths = {name: str(path) for name, path in places.items()}
            return self.ask(terms.levels, {"ask": "grade"} | request | paths, job.patience)

    def ask(self, levels: tuple[str, ...], request: dict[str, Any], patience: float = START) -> dict[str, Any]:
        """The answer to any request that `worker` knows."""
        worker = self._take(levels)
        try:
            return worker.ask(request, patience)
        finally:
            with self._lock:
                self._idle.append(worker)

    def close(self, at_once: bool = False) -> None:
        """End all workers; at once, or after what they are at."""
        with self._lock:
            self._closed = True
            workers = list(self._all)
        for worker in workers:
            worker.close(at_once)

    def _take(self, levels: tuple[str, ...]) -> "Worker":
        with self._lock:
            if self._closed:
                raise NoWorker("the run has stopped")
            for worker in self._idle:
                if worker.levels == levels:
                    self._idle.remove(worker)
                    return worker
            worker = Worker(levels, self._scratch)
            self._all.append(worker)
            return worker


class Worker:
    """A process of `worker`; starts when it is first asked."""

    def __init__(self, levels: tuple[str, ...], scratch: Path) -> None:
        self.levels = levels
        self._scratch = scratch
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def ask(self, request: dict[str, Any], patience: float) -> dict[str, Any]:
        """The answer to one request; see `Workers.grade`."""
        reason = ""
        for _ in range(2):
            process = self._running() or self._start()
            with contextlib.suppress(OSError):
                assert process.stdin is not None
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.flush()
            answer = self._line(process, patience)
            if answer is not None and "error" in answer:
                raise NoWorker(answer["error"])
            if answer is not None:
                return answer
            reason = f"the grading process ended (status {process.poll()})"
            if said := self._said():
                reason = f"the grading process ended: {said}"
            self._kill()
        raise WorkerFailed(reason)

    def close(self, at_once: bool) -> None:
        """End it; it starts no more."""
        self._closed = True
        process = self._process
        if process is not None and process.stdin is not None and not at_once:
            with contextlib.suppress(OSError):
                process.stdin.write('{"ask": "end"}\n')
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        self._kill()

    def _running(self) -> "subprocess.Popen[str] | None":
        if self._process is not None and self._process.poll() is not None:
            self._kill()  # it had no work for long, and ended
        return self._process

    def _kill(self) -> None:
        """End it now, and all that it started."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for stream in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    if stream is not None:
                        stream.close()

    def _start(self) -> "subprocess.Popen[str]":
        if self._closed:
            raise NoWorker("the run has stopped")
        with (self._scratch / "workers.log").open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moe_course.grading.worker", json.dumps(self.levels), str(self._scratch)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(self._scratch)},
                start_new_session=True,  # Ctrl-C is for the run, which ends its workers itself
            )
        return self._process

    def _said(self) -> str:
        """The last line that workers printed."""
        with contextlib.suppress(OSError):
            said = (self._scratch / "workers.log").read_text(errors="replace").strip().splitlines()
            return said[-1][:300] if said else ""
        return ""

    @staticmethod
    def _line(process: "subprocess.Popen[str]", patience: float) -> dict[str, Any] | None:
        """The next line of its answers; None if it ends or takes too long, and then it is killed."""
        assert process.stdout is not None
        timer = threading.Timer(patience, process.kill)
        timer.start()
        try:
            line = process.stdout.readline()
            return json.loads(line) if line.endswith("\n") else None
        except ValueError:
            return None
        finally:
            timer.cancel()
