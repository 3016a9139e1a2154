"""The grading processes, as the run sees them: ask one, and it answers in time, or is started anew."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

START = 300  # seconds until a worker must be ready on a very busy machine


class WorkerFailed(Exception):
    """A worker died, or did not answer in time, twice over the same submission."""


class NoWorker(Exception):
    """Workers cannot be started at all."""


class Worker:
    """A process of `worker`; starts when it is first asked.

    Args:
        settings: for `worker`.
        scratch: a folder for its temporary files, so that they go when the run ends however it ends.
    """

    def __init__(self, settings: dict[str, Any], scratch: Path) -> None:
        self.level = ""
        self.cpu = 0.0  # seconds of processor time, of the worker, its sandbox and all students' processes
        self._settings = json.dumps(settings | {"scratch": str(scratch)})
        self._scratch = scratch
        self._process: subprocess.Popen[str] | None = None

    def ask(self, job: dict[str, Any], patience: float) -> dict[str, Any]:
        """The answer to one job.

        Raises:
            WorkerFailed: there is none, not even from a second worker.
            NoWorker: no worker starts.
        """
        reason = ""
        for _ in range(2):
            process = self._process or self._start()
            with contextlib.suppress(OSError):
                assert process.stdin is not None
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
            answer = self._line(process, patience)
            if answer is not None and "error" not in answer:
                self.cpu += answer.get("cpu", 0.0)
                return answer
            reason = answer["error"] if answer else f"the grading process ended (status {process.poll()})"
            self.kill()
        raise WorkerFailed(reason)

    def close(self) -> None:
        """Let it end by itself."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
        self.kill()

    def kill(self) -> None:
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
        log = self._scratch / "workers.log"
        with log.open("ab") as errors:
            self._process = process = subprocess.Popen(
                [sys.executable, "-m", "moe_course.grading.worker", self._settings],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(self._scratch)},
                start_new_session=True,  # Ctrl-C is for the run, which ends its workers itself
            )
        ready = self._line(process, START)
        if ready is None or "error" in ready:
            said = log.read_text(errors="replace").strip().splitlines()
            self.kill()
            raise NoWorker(ready["error"] if ready else f"no grading process starts: {said[-1] if said else '?'}")
        self.level = ready["level"]
        self.cpu += ready["cpu"]
        return process

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
