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
import socket
import sys
from pathlib import Path
from typing import Any

COURSE = str(Path(__file__).resolve().parents[3])


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
    from moe_course.grading.inside import channel, watch

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
        ended = watch.watch(pid, leash, own_processes, request["folder"])
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


def _cpu() -> float:
    """Seconds of processor time of this process and of those that it saw end."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


if __name__ == "__main__":
    main()
