"""What a process that the fork server has forked does to become a kernel like one started from the command line."""

import atexit
import ctypes
import gc
import os
import random
import re
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import NamedTuple

SET_OPENBLAS_THREADS = (
    "scipy_openblas_set_num_threads64_",
    "scipy_openblas_set_num_threads",
    "openblas_set_num_threads",
)


class Birth(NamedTuple):
    """What a forked process is to become."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    stdout: int
    stderr: int


def become_kernel(birth: Birth, added: dict[str, str]) -> None:
    """Run a kernel until it is shut down.

    Args:
        birth: the kernel.
        added: environment variables that imports have set.
    """
    os.setsid()  # a group of its own, for signals
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _take_streams(birth)
    os.chdir(birth.cwd)
    server = os.getppid()
    os.environ.clear()
    os.environ.update(added | birth.env | {"JPY_PARENT_PID": str(server)})
    time.tzset()
    _spread_openblas()
    _seed()
    gc.enable()

    import ipykernel_launcher
    from ipykernel.kernelapp import IPKernelApp

    sys.argv = [ipykernel_launcher.__file__, *birth.argv]
    app = IPKernelApp.instance(parent_handle=server)  # should the server be killed, the kernel ends
    app.initialize(birth.argv)
    app.start()
    for thread in (app.control_thread, app.shell_channel_thread):
        # It has just asked this thread to end, and still flushes. Closing its sockets meanwhile, as ipykernel does,
        # can hang for seconds or abort.
        thread.join(timeout=1.0)
    _leave()


def _leave() -> None:
    """End as Python does, but for taking every imported module apart: that would copy what is shared with the server.

    It costs three times as much as the kernel's start. IPython's exit function lets go of what the notebook made.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for the notebook's threads
    atexit._run_exitfuncs()
    gc.collect()
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()
    os._exit(0)


def _take_streams(birth: Birth) -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    for fd, place in ((null, 0), (birth.stdout, 1), (birth.stderr, 2)):
        os.dup2(fd, place)
        os.close(fd)


def _seed() -> None:
    """Start random numbers as a new process does, from the system's entropy."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()


def _spread_openblas() -> None:
    """Let numpy's OpenBLAS use the threads that it would have started, had the server let it."""
    names = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
    named = next((os.environ[name] for name in names if os.environ.get(name, "").isdigit()), None)
    threads = int(named) if named else len(os.sched_getaffinity(0))
    with open("/proc/self/maps", encoding="utf-8") as maps:
        libraries = set(re.findall(r"/\S*openblas\S*", maps.read()))
    for library in libraries if threads > 1 else ():
        for name in SET_OPENBLAS_THREADS:
            with suppress(OSError, AttributeError):
                getattr(ctypes.CDLL(library), name)(threads)
                break
