"""Watches over one kernel from outside: what it uses, and an end to it when it uses too much."""

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

POLL = 0.1  # seconds; memory can grow by 2 GB in one
FAMILY_EVERY = 10  # polls between looks at the processes that the kernel started, which take longer to find


class Watch:
    """A thread that measures a kernel and kills it when its time or memory is used up; a context manager.

    Args:
        seconds: the time that the run has, from when its kernel is there; None for no end.
        memory_mb: the memory that the kernel and its children may hold.
        is_unwanted: asked again and again whether nobody waits for this run any more.
    """

    def __init__(self, seconds: float | None, memory_mb: float, is_unwanted: Callable[[], bool]) -> None:
        self.reason = ""  # why the kernel was killed: "time", "memory", "output" or "unwanted"
        self.cpu_seconds = 0.0
        self.peak_memory_mb = 0.0
        self.started: float | None = None  # when the kernel was there, by the monotonic clock
        self._seconds = seconds
        self._memory_mb = memory_mb
        self._is_unwanted = is_unwanted
        self._kernel: psutil.Process | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watch")

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def follow(self, pid: int) -> None:
        """Watch over the kernel with this process id."""
        self.started = time.monotonic()
        with contextlib.suppress(psutil.Error):
            self._kernel = psutil.Process(pid)

    def measure(self, with_children: bool = True) -> None:
        """Note what the kernel uses now."""
        kernel = self._kernel
        if kernel is None:
            return
        with contextlib.suppress(psutil.Error, OSError):
            family = [kernel, *(kernel.children(recursive=True) if with_children else ())]
            cpu = memory = 0.0
            for each in family:
                with contextlib.suppress(psutil.Error):
                    times = each.cpu_times()
                    cpu += times.user + times.system
                    memory += each.memory_info().rss
            ended = kernel.cpu_times()
            cpu += ended.children_user + ended.children_system
            self.cpu_seconds = max(self.cpu_seconds, cpu)
            self.peak_memory_mb = max(self.peak_memory_mb, memory / 2**20, _high_water_mark(kernel.pid))

    def kill(self, reason: str) -> None:
        """End the kernel and all that it started."""
        self.reason = self.reason or reason
        kernel = self._kernel
        if kernel is None:
            return
        with contextlib.suppress(psutil.Error):
            family = [*kernel.children(recursive=True), kernel]
            for each in family:
                with contextlib.suppress(psutil.Error):
                    each.kill()

    def _watch(self) -> None:
        polls = 0
        while not self._over.wait(POLL):
            self.measure(with_children=polls % FAMILY_EVERY == 0)
            polls += 1
            if self.peak_memory_mb > self._memory_mb:
                self.kill("memory")
            elif self._seconds is not None and self.started and time.monotonic() > self.started + self._seconds:
                self.kill("time")
            elif self._is_unwanted():
                self.kill("unwanted")


def _high_water_mark(pid: int) -> float:
    """The most memory that a process ever held, in MB, which polls would miss; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0
