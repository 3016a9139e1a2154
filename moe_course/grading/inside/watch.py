"""Watches over a student's process: how much it and all that it started take, and that nothing of it is left."""

import contextlib
import os
import select
import signal
import time
from pathlib import Path
from typing import Any

from . import confine

WATCH = 0.1  # seconds between looks
LEAST_MEMORY = 256 << 20  # bytes free on the machine, below which a student's process has to go
MOST_PROCESSES = 64
MOST_FILES = 64 << 20  # bytes


def watch(pid: int, leash: int, own_processes: bool, folder: str) -> dict[str, Any]:
    """Wait for a student's process; end it when the grader lets go of the leash, or when it takes too much.

    Args:
        pid: of the process.
        leash: a pipe, whose other end the grader has.
        own_processes: whether it has a process space of its own, so that its end is that of all it started.
        folder: where it may write.

    Returns:
        "reason" why it was ended, or ""; "signal" and "code" with which it ended.
    """
    process = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else leash
    reason = ""
    while True:
        ready, _, _ = select.select([process, leash], [], [], WATCH)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        reason = "let go" if leash in ready else _too_much(folder)
        if reason:
            _kill(pid, own_processes)
            _, status = os.waitpid(pid, 0)
            break
    if process != leash:
        os.close(process)
    if not own_processes:
        _kill_orphans()
    code = os.waitstatus_to_exitcode(status)
    return {"reason": reason, "signal": max(-code, 0), "code": max(code, 0)}


def _kill(pid: int, own_processes: bool) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # in its own process space, that is the end of all others, too
        if not own_processes:
            os.killpg(pid, signal.SIGKILL)


def _kill_orphans() -> None:
    """End what a student's process left behind, and what that leaves behind; they are this process's children now."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and (left := _descendants()):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _too_much(folder: str) -> str:
    """What the processes of a student have too much of, if anything."""
    theirs = _descendants()
    if len(theirs) > MOST_PROCESSES:
        return "processes"
    if _bytes_in(folder) > MOST_FILES:
        return "files"
    if _kilobytes("/proc/meminfo", "MemAvailable:", 1 << 40) < LEAST_MEMORY >> 10:
        return "memory"
    # Quickly had, and too much, since it counts what was inherited; then exactly.
    if sum(_of_status(pid, "RssAnon:") + _of_status(pid, "RssShmem:") for pid in theirs) < confine.MEMORY >> 10:
        return ""
    private = sum(_kilobytes(f"/proc/{pid}/smaps_rollup", "Private_Dirty:", 0) for pid in theirs)
    shared = sum(_of_status(pid, "RssShmem:") for pid in theirs)
    return "memory" if private + shared > confine.MEMORY >> 10 else ""


def _descendants() -> list[int]:
    """The processes that come from this one."""
    children: dict[int, list[int]] = {}
    for name in filter(str.isdigit, os.listdir("/proc") if os.path.isdir("/proc") else ()):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int(Path("/proc", name, "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(name))
    # Its own number there, whatever it is here.
    found = children.get(int(os.readlink("/proc/self")), [])
    for pid in found:  # grows as it is read
        found += children.get(pid, [])
    return found


def _bytes_in(folder: str) -> int:
    """What a student's files take, as far as it can be seen at once; those in a sandbox of their own are bounded."""
    size = 0
    for number, (place, _, names) in enumerate(os.walk(folder)):
        if number > 1000 or len(names) > 10_000:
            return MOST_FILES + 1
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(place, name)).st_blocks * 512
    return size


def _of_status(pid: int, name: str) -> int:
    return _kilobytes(f"/proc/{pid}/status", name, 0)


def _kilobytes(path: str, name: str, otherwise: int) -> int:
    """A number in a file of /proc; `otherwise` where it cannot be read, since the process has ended."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1])
    return otherwise
