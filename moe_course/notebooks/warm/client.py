"""Asks for forked kernels: one fork server for this process and environment, started when first needed.

A kernel has a socket pair between this process and the server. The order goes down it; the kernel's pid and later its
exit code come back. When this process ends, however it ends, the sockets close: then the server kills the kernels
and ends too. So there is nothing to clean up, nothing to find and nothing to share with other processes.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import closing, suppress
from typing import Any

from moe_course.notebooks.warm.order import PACKAGE, NoWarmKernel, Order, Streams
from moe_course.notebooks.warm.process import ForkedKernel, receive

STARTUP = 120.0  # seconds for the server's imports and a fork
SERVE = "import ipykernel.kernelapp, moe_course.notebooks.warm.server as server; server.main({fd})"

# Variables that libraries read when they are loaded. The others are set in the forked process.
READ_AT_IMPORT = (
    *("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "GOTO_", "BLIS_", "NUMEXPR_", "NPY_", "MALLOC_", "GLIBC_", "LD_"),
    *("PYTHON", "TORCH", "PYTORCH_", "ATEN_", "TRITON_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "PLOTLY_", "IPYTHON"),
    *("MOE_COURSE_", "JAXTYPING_", "BEARTYPE_", "LANG", "LC_"),
)


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
            with theirs, closing(Streams(order)) as streams:
                socket.send_fds(self.control, [b"k"], [theirs.fileno(), *streams.fds])
            ours.settimeout(STARTUP)
            request = {"argv": order.argv, "env": order.env, "cwd": order.cwd, "folder": folder}
            ours.sendall(json.dumps(request).encode() + b"\n")
            reply = receive(ours)
            if reply is None:
                raise ConnectionError("it ended")
            if "refused" in reply:
                raise NoWarmKernel(reply["refused"])
            return ForkedKernel(reply["pid"], ours)
        except BaseException:
            ours.close()
            raise


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
            with suppress(FileNotFoundError):  # it has just been removed
                about = os.stat(os.path.join(folder, name))
                found.append((folder, name, about.st_mtime_ns, about.st_size, about.st_ino))
    return hash(tuple(sorted(found)))


def _forget_all() -> None:
    """In a process that was forked from this one: the servers are its parent's."""
    global _lock
    _lock = threading.Lock()
    for server in _servers.values():
        server.control.close()
    _servers.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_forget_all)
