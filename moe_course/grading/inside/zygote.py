"""The process that has loaded torch and forks a student's process for each submission.

    python -I zygote.py FD LEVEL FILES MODULE…

It loads the MODULEs and listens on the socket FD. FILES is JSON for Landlock, or {}. A student's process gets a socket
to the grader, and nothing else of this one: its own files and as far as possible its own processes, no privileges, few
resources. The zygote watches how much it takes, tells how it ended and sees to it that nothing of it is left.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

COURSE = str(Path(__file__).resolve().parents[3])
WATCH = 0.1  # seconds between looks at a student's process
LEAST_MEMORY = 256 << 20  # bytes free on the machine, below which a student's process has to go
MOST_PROCESSES = 64
MOST_FILES = 64 << 20  # bytes


def main() -> None:
    """Load, say so, and serve until the grader hangs up."""
    control = socket.socket(fileno=int(sys.argv[1]))
    level, files = sys.argv[2], json.loads(sys.argv[3])
    sys.path.insert(0, COURSE)
    from moe_course.grading.inside import confine

    own_processes = level in ("bubblewrap", "landlock and namespaces")
    # What the kernel does not allow fails here, at once.
    if level == "landlock and namespaces":
        confine.own_spaces()
    if files:
        _rehearse(files)
    own_space = -1
    if own_processes:
        own_space = os.open("/proc/self/ns/pid", os.O_RDONLY)
        confine.new_process_space()
        confine.back_to_own_process_space(own_space)
    elif sys.platform == "linux":
        confine.adopt_orphans()
    _load(sys.argv[4:])
    from moe_course.grading.inside import channel

    channel.send(control, {"ready": os.getuid(), "cpu": _cpu()})
    while True:
        try:
            request, _ = channel.receive(control)
        except channel.Closed:
            return
        _, (talk, leash), _, _ = socket.recv_fds(control, 1, 2)
        if own_processes:
            confine.new_process_space()
        pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                if own_processes:
                    os.close(own_space)
                os.close(leash)
                control.close()
                _become_student(socket.socket(fileno=talk), request, level, files)
            os._exit(0)
        os.close(talk)
        if own_processes:
            confine.back_to_own_process_space(own_space)
        before = _cpu()
        ended = _watch(pid, leash, own_processes, request["folder"])
        channel.send(control, ended | {"cpu": _cpu() - before})
        os.close(leash)


def _rehearse(files: dict[str, list[str]]) -> None:
    """Let a child lock itself in, as students' processes will."""
    from moe_course.grading.inside import calls, confine, landlock

    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            confine.no_new_privileges()
            landlock.restrict(**files)
            calls.forbid(shared=True)
            os._exit(0)
        os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise SystemExit("this kernel lacks Landlock or seccomp, or forbids them")


def _load(modules: list[str]) -> None:
    """Import what student code needs, and what torch loads only when it is first used."""
    import dataclasses  # noqa: F401
    import itertools  # noqa: F401
    import math  # noqa: F401
    import typing  # noqa: F401

    import jaxtyping  # noqa: F401
    import numpy  # noqa: F401
    import torch

    import moe_course.grading.inside.child  # noqa: F401

    for module in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    torch.set_num_threads(1)
    x = torch.ones(2, 2, requires_grad=True)
    layer = torch.nn.Linear(2, 2)
    out = torch.func.functional_call(layer, {"weight": x, "bias": x[0]}, (x,))
    torch.autograd.grad(torch.nn.functional.gelu(out).softmax(-1).sum(), x)
    torch.einsum("ij,jk->ik", x, x)
    repr(x)
    gc.collect()
    gc.freeze()  # a child that collects garbage does not copy the pages of all that is loaded


def _become_student(channel: socket.socket, request: dict[str, Any], level: str, files: dict[str, list[str]]) -> None:
    from moe_course.grading.inside import child

    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    os.setsid()
    folder = "/tmp" if level == "bubblewrap" else request["folder"]
    os.environ.update(HOME=folder, TMPDIR=folder)
    if sys.platform == "linux":
        _shut_in(folder, request, level, files)
    else:
        os.chdir(folder)
    child.serve(channel)


def _shut_in(folder: str, request: dict[str, Any], level: str, files: dict[str, list[str]]) -> None:
    from moe_course.grading.inside import calls, confine, landlock

    if level == "bubblewrap":
        confine.private_files()
    os.chdir(folder)
    if request["user"] and confine.may_become(request["user"]):
        confine.become(request["user"])
    confine.limit_resources(request["cpu_seconds"])
    confine.drop_privileges()
    if files:
        landlock.restrict(**files | {"writable": [*files["writable"], folder]})
        calls.forbid(shared=True)
    else:
        with contextlib.suppress(OSError):  # a second wall where there is one; the level does not count on it
            calls.forbid(shared=level != "bubblewrap")


def _watch(pid: int, leash: int, own_processes: bool, folder: str) -> dict[str, Any]:
    """Wait for a student's process; end it when the grader lets go of the leash, or when it takes too much."""
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


def _cpu() -> float:
    """Seconds of processor time of this process and of those that it saw end."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


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
    from moe_course.grading.inside import confine

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


if __name__ == "__main__":
    main()
