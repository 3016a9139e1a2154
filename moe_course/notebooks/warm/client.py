"""Asks for forked kernels: one fork server for this process and environment, started when first needed.

A kernel has a socket pair between this process and the server. The order goes down it; the kernel's pid and later its
exit code come back. When this process ends, however it ends, the sockets close: then the server kills the kernels
and ends too. So there is nothing to clean up, nothing to find and nothing to share with other processes.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STARTUP = 120.0  # seconds for the server's imports and a fork
LAUNCHER = ["-m", "ipykernel_launcher"]  # divides a kernel's command: Python's arguments, the kernel's
PACKAGE = Path(__file__).parents[2]
SERVE = "import ipykernel.kernelapp, moe_course.notebooks.warm.server as server; server.main({fd})"

# Variables that libraries read when they are loaded. The others are set in the forked process.
READ_AT_IMPORT = (
    *("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "GOTO_", "BLIS_", "NUMEXPR_", "NPY_", "MALLOC_", "GLIBC_", "LD_"),
    *("PYTHON", "TORCH", "PYTORCH_", "ATEN_", "TRITON_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "PLOTLY_", "IPYTHON"),
    *("MOE_COURSE_", "JAXTYPING_", "BEARTYPE_", "LANG", "LC_"),
)
PRELOADED = ("torch", "numpy", "ipykernel", "IPython", "plotly", "ipywidgets", "anywidget", "jaxtyping", "beartype")


class NoWarmKernel(Exception):
    """Why no kernel was forked."""


@dataclass(frozen=True)
class Order:
    """A kernel to fork: what a plain one's `Popen` would be given."""

    python: tuple[str, ...]
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    stdout: Any
    stderr: Any

    @classmethod
    def of(
        cls,
        command: Sequence[str],
        *,
        env: dict[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdout: Any = None,
        stderr: Any = None,
        **others: Any,
    ) -> "Order":
        """Read a kernel's command line and the arguments of `Popen`.

        Raises:
            NoWarmKernel: there is something that a fork cannot do.
        """
        cut = next((i for i in range(len(command)) if list(command[i : i + 2]) == LAUNCHER), None)
        if cut is None or others:
            raise NoWarmKernel(f"a fork cannot do {', '.join(others) or ' '.join(command)}")
        folder = os.path.abspath(cwd or os.getcwd())
        if not os.path.isdir(folder):
            raise NoWarmKernel(f"there is no folder {folder}")
        shadow = _shadow(Path(folder))
        if shadow:
            raise NoWarmKernel(f"{shadow} would be imported in place of the installed one")
        env = dict(os.environ) if env is None else env
        return cls(tuple(command[:cut]), tuple(command[cut + 2 :]), env, folder, stdout, stderr)


class ForkedKernel:
    """A forked kernel, with the methods of `subprocess.Popen` that a provisioner uses."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._channel = channel
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """The exit code, or None while the kernel runs."""
        with self._lock:
            if self.returncode is None:
                self._channel.setblocking(False)
                with suppress(BlockingIOError):
                    self._ended()
            return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code.

        Raises:
            TimeoutExpired: it still runs after `timeout` seconds.
        """
        limit = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if limit is not None and time.monotonic() > limit:
                raise subprocess.TimeoutExpired("kernel", timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless the kernel has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _ended(self) -> None:
        news = _receive(self._channel)
        if news is None:  # the server was killed
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.returncode = -signal.SIGKILL if news is None else news["exit"]
        self._channel.close()  # and the server forgets the pid


def fork(order: Order, folder: str | None = None) -> ForkedKernel:
    """Fork a kernel. Safe to call from many threads.

    Args:
        order: the kernel.
        folder: what the server removes if this process is killed.

    Raises:
        NoWarmKernel: it cannot be done.
    """
    for attempt in ("a server that is there", "a new one"):
        server = _server(order)
        try:
            return server.fork(order, folder)
        except (OSError, ValueError) as error:
            _forget(server)
            if attempt == "a new one":
                _hopeless[server.key] = f"the fork server does not answer: {error!r}"
    raise NoWarmKernel(_hopeless[server.key])


class Server:
    """This process's end of a fork server."""

    def __init__(self, key: tuple[Any, ...], order: Order) -> None:
        self.key = key
        self.control, theirs = socket.socketpair()
        env = order.env | {
            "OPENBLAS_NUM_THREADS": "1",  # else numpy starts threads, and a process that has any cannot be forked
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # so that asking for a GPU does not initialise it
        }
        with theirs:
            command = [*order.python, "-c", SERVE.format(fd=theirs.fileno())]
            self.process = subprocess.Popen(
                command,
                env=env,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for this process
            )

    def fork(self, order: Order, folder: str | None) -> ForkedKernel:
        """Send the order and wait for the kernel's pid."""
        ours, theirs = socket.socketpair()
        try:
            with theirs, closing(_Streams(order)) as streams:
                socket.send_fds(self.control, [b"k"], [theirs.fileno(), *streams.fds])
            ours.settimeout(STARTUP)
            request = {"argv": order.argv, "env": order.env, "cwd": order.cwd, "folder": folder}
            ours.sendall(json.dumps(request).encode() + b"\n")
            reply = _receive(ours)
            if reply is None:
                raise ConnectionError("it ended")
            if "refused" in reply:
                raise NoWarmKernel(reply["refused"])
            return ForkedKernel(reply["pid"], ours)
        except BaseException:
            ours.close()
            raise


class _Streams:
    """File descriptors of a kernel's stdout and stderr; this process's own unless the order names others."""

    def __init__(self, order: Order) -> None:
        self._null = open(os.devnull, "wb")  # noqa: SIM115
        self.fds = [self._of(order.stdout, 1), self._of(order.stderr, 2)]

    def _of(self, stream: Any, default: int) -> int:
        if stream == subprocess.DEVNULL:
            return self._null.fileno()
        if stream is None:
            return default
        if isinstance(stream, int):
            if stream < 0:
                raise NoWarmKernel("a fork cannot open a pipe")
            return stream
        return int(stream.fileno())

    def close(self) -> None:
        self._null.close()


_lock = threading.Lock()
_servers: dict[tuple[Any, ...], Server] = {}
_hopeless: dict[tuple[Any, ...], str] = {}  # why servers of this kind fail; it is not tried again


def _server(order: Order) -> Server:
    relevant = sorted((name, value) for name, value in order.env.items() if name.startswith(READ_AT_IMPORT))
    key = (_state_of_package(), order.python, tuple(relevant))
    with _lock:
        if key in _hopeless:
            raise NoWarmKernel(_hopeless[key])
        for other in [each for each in _servers if each[0] != key[0]]:
            _servers.pop(other).control.close()  # it has imported code that has changed since
        if key not in _servers:
            _servers[key] = Server(key, order)
        return _servers[key]


def _forget(server: Server) -> None:
    with _lock:
        if _servers.get(server.key) is server:
            del _servers[server.key]
    server.control.close()


def _state_of_package() -> int:
    """Differs after every change to the package, which the server has imported."""
    found = []
    for folder, folders, files in os.walk(PACKAGE):
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in files:
            about = os.stat(os.path.join(folder, name))
            found.append((folder, name, about.st_mtime_ns, about.st_size, about.st_ino))
    return hash(tuple(sorted(found)))


def _shadow(folder: Path) -> Path | None:
    """What in a kernel's working folder hides a module that the server has imported."""
    candidates = [folder / name for name in (*PRELOADED, PACKAGE.name)]
    candidates += [path.with_suffix(".py") for path in candidates]
    return next((path for path in candidates if path.exists() and path.resolve() != PACKAGE.resolve()), None)


def _receive(channel: socket.socket) -> dict[str, Any] | None:
    """One message, or None if the other end is closed. Byte by byte, for the next may be there already."""
    line = b""
    while not line.endswith(b"\n"):
        byte = channel.recv(1)
        if not byte:
            return None
        line += byte
    return json.loads(line)


def _forget_all() -> None:
    """In a process that was forked from this one: the servers are its parent's."""
    global _lock
    _lock = threading.Lock()
    for server in _servers.values():
        server.control.close()
    _servers.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_all)
