"""The fork server: imports what notebooks import, once, and forks a process for each kernel.

It has one thread, for a fork takes only one along and whatever locks the others hold stay held for ever. It has no
GPU, for CUDA does not survive a fork. It ends when the process that started it has ended, or has not asked for a
kernel for a while.
"""

import gc
import importlib
import json
import os
import selectors
import shutil
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from moe_course.notebooks.warm.kernel import Birth, become_kernel

IDLE = 300.0  # seconds without a kernel after which the server ends; the next kernel starts another
MODULES = (
    *("ipykernel.ipkernel", "ipykernel.zmqshell", "ipykernel.debugger", "ipykernel_launcher", "numpy"),
    *("torch", "torch._dynamo", "torch.utils.data", "plotly.graph_objects", "plotly.io", "ipywidgets", "anywidget"),
    *("moe_course.exercises", "moe_course.layers", "moe_course.training", "moe_course.figures.interactive"),
    *("moe_course.figures.quiz",),
)


def main(fd: int) -> None:
    """Serve the process at the other end of a socket; in each forked process, be a kernel.

    Args:
        fd: the socket's.
    """
    before = dict(os.environ)
    problem = _preload()
    added = {name: value for name, value in os.environ.items() if before.get(name) != value}
    birth = Server(socket.socket(fileno=fd), problem).serve()
    if birth:
        become_kernel(birth, added)


def _preload() -> str:
    """Import; return why no kernel can be forked now, or nothing."""
    sys.path[:] = [folder for folder in sys.path if folder]  # not the working folder
    try:
        for name in MODULES:
            importlib.import_module(name)
        _draw()
    except Exception as error:
        return f"the fork server cannot import {type(error).__name__}: {error}"
    gc.collect()
    gc.freeze()  # what is imported stays; else every kernel's collector would copy it all
    return ""


def _draw() -> None:
    """Make a figure, for plotly imports most of itself at the first."""
    from plotly import graph_objects as go

    go.FigureWidget(go.Scatter(x=[0, 1], y=[0, 1])).to_json()


@dataclass
class Kernel:
    """A forked process."""

    pid: int
    channel: socket.socket  # to the client; its end is the kernel's
    folder: str | None  # to be removed if the client is killed
    ended: bool = False


class Server:
    """Forks kernels and tells their client how they end."""

    def __init__(self, control: socket.socket, problem: str) -> None:
        self.control, self.problem = control, problem
        self.client = os.getppid()
        self.kernels: list[Kernel] = []
        self.wake, self.woken = socket.socketpair()
        self.wake.setblocking(False)
        self.woken.setblocking(False)
        self.selector = selectors.DefaultSelector()
        self.selector.register(control, selectors.EVENT_READ)
        self.selector.register(self.woken, selectors.EVENT_READ)
        signal.set_wakeup_fd(self.wake.fileno())
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> Birth | None:
        """Return in each forked process with what it is to become, and in the server when it is no longer needed."""
        asked = time.monotonic()
        open_ended = True
        while self.kernels or (open_ended and time.monotonic() < asked + IDLE):
            ready = {key.fileobj for key, _ in self.selector.select(timeout=1.0)}
            if os.getppid() != self.client:  # somebody else may still hold a copy of the client's sockets
                break
            if self.woken in ready:
                self.woken.recv(4096)
                self._tell_of_the_dead()
            for kernel in [each for each in self.kernels if each.channel in ready]:
                self._part_with(kernel)
                asked = time.monotonic()
            if self.control in ready:
                asked = time.monotonic()
                _, fds, *_ = socket.recv_fds(self.control, 1, 3)
                if fds:
                    birth = self._bear(socket.socket(fileno=fds[0]), fds[1:])
                    if birth:
                        return birth
                else:
                    open_ended = False
                    self.selector.unregister(self.control)
        for kernel in list(self.kernels):
            self._part_with(kernel)
        return None

    def _bear(self, channel: socket.socket, streams: list[int]) -> Birth | None:
        """Fork; return what to become in the new process, None in the server."""
        request = _read_line(channel)
        problem = self.problem or _why_not_fork()
        pid = 0
        if request is not None and problem:
            _send(channel, {"refused": problem})
        elif request is not None:
            pid = os.fork()
            if pid == 0:
                self._let_go()
                channel.close()
                return Birth(request["argv"], request["env"], request["cwd"], *streams)
            _send(channel, {"pid": pid})
            self.kernels.append(Kernel(pid, channel, request["folder"]))
            self.selector.register(channel, selectors.EVENT_READ)
        for fd in streams:
            os.close(fd)
        if not pid:
            channel.close()
        return None

    def _let_go(self) -> None:
        """In a forked process: give up what is the server's, so that its end is noticed."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        for each in (self.control, self.wake, self.woken, *(kernel.channel for kernel in self.kernels)):
            each.close()

    def _tell_of_the_dead(self) -> None:
        for kernel in self.kernels:
            # It stays a zombie until the client lets go, so that the client never signals another process of its pid.
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            status = None if kernel.ended else os.waitid(os.P_PID, kernel.pid, flags)
            if status:
                kernel.ended = True
                code = status.si_status if status.si_code == os.CLD_EXITED else -status.si_status
                _send(kernel.channel, {"exit": code})

    def _part_with(self, kernel: Kernel) -> None:
        """The client has let go of a kernel. If it is still running, its client was killed."""
        self.selector.unregister(kernel.channel)
        self.kernels.remove(kernel)
        kernel.channel.close()
        if not kernel.ended:
            with suppress(ProcessLookupError):
                os.killpg(kernel.pid, signal.SIGKILL)
            with suppress(ProcessLookupError):
                os.kill(kernel.pid, signal.SIGKILL)  # should it not lead a group yet
        os.waitpid(kernel.pid, 0)
        if kernel.folder and not kernel.ended:
            shutil.rmtree(kernel.folder, ignore_errors=True)


def _why_not_fork() -> str:
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        return f"the fork server has {threads} threads, and can be forked with one only"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return "the fork server has initialised a GPU, which does not survive a fork"
    return ""


def _read_line(channel: socket.socket) -> dict[str, Any] | None:
    with channel.makefile("rb") as stream:
        line = stream.readline()
    return json.loads(line) if line.endswith(b"\n") else None


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    with suppress(OSError):  # the client is gone; its socket says so in a moment
        channel.sendall(json.dumps(message).encode() + b"\n")
