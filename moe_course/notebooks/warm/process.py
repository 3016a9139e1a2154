"""A forked kernel as its client sees it."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
from contextlib import suppress
from typing import Any


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
        news = receive(self._channel)
        if news is None:  # the server was killed
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.returncode = -signal.SIGKILL if news is None else news["exit"]
        self._channel.close()  # and the server forgets the pid


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """One message, or None if the other end is closed. Byte by byte, for the next may be there already."""
    line = b""
    while not line.endswith(b"\n"):
        byte = channel.recv(1)
        if not byte:
            return None
        line += byte
    return json.loads(line)
