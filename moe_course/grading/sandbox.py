"""Starts processes for student code, as isolated as the machine allows, and ends them.

`Sandbox` owns one zygote. `start` gives a `Process`, a student's: a channel to talk to, and its end.
"""

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from . import places
from .inside.channel import Closed, ProtocolError, receive, send
from .levels import LEVELS
from .stage import stage

START = 120  # seconds that loading torch may take on a busy machine
USERS = 60000  # the first of the users that student processes run as when the grader runs as root


class SandboxError(Exception):
    """Student code cannot be run here at all."""


class Process:
    """A student's process."""

    def __init__(
        self, channel: socket.socket, leash: int, control: socket.socket, folder: Path, sandbox: "Sandbox"
    ) -> None:
        self._sandbox = sandbox
        self.channel = channel
        self._folder = folder
        self._leash = leash
        self._control = control
        self._ended: dict[str, Any] | None = None

    @property
    def cpu(self) -> float:
        """Seconds of processor time that it took; 0 as long as it has not been seen to end."""
        return float((self._ended or {}).get("cpu", 0.0))

    def end(self, at_once: bool = False) -> dict[str, Any]:
        """End it, unless it has ended by itself, with all that it started.

        Args:
            at_once: do not give it time to end by itself.

        Returns:
            "reason" (of the zygote's, such as "memory"), "signal" and "code" with which it ended.

        Raises:
            Closed: the zygote itself is gone or does not answer.
        """
        if self._ended is None:
            self.channel.close()
            try:
                if not at_once:
                    with contextlib.suppress(TimeoutError):
                        self._ended, _ = receive(self._control, time.monotonic() + 2)
            finally:
                os.close(self._leash)
            try:
                if self._ended is None:
                    self._ended, _ = receive(self._control, time.monotonic() + 20)
            except (TimeoutError, ProtocolError):
                raise Closed from None
            finally:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._sandbox.cpu += self.cpu
        return self._ended


class Sandbox:
    """A zygote and its surroundings; a context manager.

    Args:
        levels: which isolation to try, strongest first; the first that works here is used.
        modules: of the course, for the zygote to load once, rather than each student's process for itself.
    """

    def __init__(self, levels: tuple[str, ...] = tuple(LEVELS), modules: tuple[str, ...] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="moe-course-sandbox-"))
        self.level = ""
        self.user = 0
        self._zygote: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self.cpu = 0.0  # seconds of processor time that the zygote and all students' processes took
        self._levels = levels
        self._modules = modules
        self._said = ""
        self.folder.chmod(0o711)  # a student's process may be another user's
        stage(self.folder / "course")

    def __enter__(self) -> "Sandbox":
        try:
            self.open(self._modules)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def open(self, modules: tuple[str, ...]) -> None:
        """Start the zygote, at the best level that works here.

        Args:
            modules: of the course, for it to load.

        Raises:
            SandboxError: none works.
        """
        self._modules = modules
        self._open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, cpu_seconds: int) -> Process:
        """A new student's process.

        Raises:
            SandboxError: not even a new zygote can be had.
        """
        for _ in range(2):
            if self._control is None:
                self._open()
            assert self._control is not None
            here, there = socket.socketpair()
            leash_read, leash = os.pipe()
            folder = Path(tempfile.mkdtemp(dir=self.folder))  # used where a process has no files of its own
            folder.chmod(0o777)
            request = {"cpu_seconds": cpu_seconds, "user": self.user, "folder": str(folder)}
            try:
                send(self._control, request)
                socket.send_fds(self._control, [b"."], [there.fileno(), leash_read])
                return Process(here, leash, self._control, folder, self)
            except OSError:
                here.close()
                os.close(leash)
                self.restart()
            finally:
                there.close()
                os.close(leash_read)
        raise SandboxError(f"processes for student code end at once: {self._said or 'no reason given'}")

    def restart(self) -> None:
        """End the zygote and all it started; the next `start` makes a new one."""
        self._stop()

    def _open(self) -> None:
        for level in (self.level,) if self.level else self._levels:
            for command in places.bubblewrap(self.folder / "course") if level == "bubblewrap" else [[]]:
                if self._try(command, level):
                    return
        raise SandboxError(f"no process for student code starts: {self._said or 'no reason given'}")

    def _try(self, command: list[str], level: str) -> bool:
        here, there = socket.socketpair()
        program = "/course/moe_course/grading/inside/zygote.py"
        if level != "bubblewrap":
            program = str(self.folder) + program
        files = places.landlock(self.folder / "course") if level.startswith("landlock") else {}
        arguments = [sys.executable, "-I", program, str(there.fileno()), level, json.dumps(files), *self._modules]
        log = self.folder / "zygote.log"
        with log.open("wb") as errors:
            try:
                self._zygote = subprocess.Popen(
                    [*command, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=errors,
                    pass_fds=[there.fileno()],
                    env=ENVIRONMENT,
                    start_new_session=True,
                )
            except OSError as error:
                self._said = str(error)
                return False
            finally:
                there.close()
        try:
            ready, _ = receive(here, time.monotonic() + START)
        except (Closed, TimeoutError, ProtocolError):
            self._control = here
            self._stop()
            said = log.read_text(errors="replace").strip().splitlines()
            self._said = said[-1] if said else "no reason given"
            return False
        self._control, self.level = here, level
        self.cpu += float(ready["cpu"])
        # Root's processes know no limit on their number: student code runs as a user of its own.
        root = ready["ready"] == 0 and os.getuid() == 0 and (level == "bubblewrap" or _is_readable_for_all())
        self.user = USERS + os.getpid() % 5000 if root else 0
        return True

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._zygote is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._zygote.wait(2)
            if self._zygote.poll() is None:
                self._zygote.kill()  # bubblewrap's end is the end of all inside
                self._zygote.wait()
            self._zygote = None


def _is_readable_for_all() -> bool:
    """Whether another user could run this Python: whether no folder on the way to it is closed."""
    paths = [Path(os.path.realpath(path)) for path in (sys.prefix, sys.base_prefix, sys.executable)]
    return all(folder.stat().st_mode & stat.S_IXOTH for path in paths for folder in (path, *path.parents))


ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TRITON_INTERPRET": "1",
    "TRITON_CACHE_DIR": "/tmp/triton",
    "MOE_COURSE_SHAPE_CHECKS": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}
