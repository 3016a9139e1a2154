"""What the tests of warm kernels share: kernels to talk to, and fork servers that import next to nothing."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jupyter_client import BlockingKernelClient, KernelManager

from moe_course.notebooks.warm import kernel_name

# Ready in a moment, for tests of lives and deaths, in which nobody computes.
LIGHT = (
    "import ipykernel.ipkernel, ipykernel.zmqshell, ipykernel.debugger, moe_course.notebooks.warm.server as server; "
    "server._preload = lambda: ''"
)


class Talk:
    """A kernel and a conversation with it."""

    def __init__(self, manager: KernelManager, client: BlockingKernelClient) -> None:
        self.manager, self.client = manager, client

    def say(self, code: str, timeout: float = 240.0) -> str:
        """Run code; return what it prints, and the name of the exception that ends it."""
        said: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            content = message["content"]
            said.append(content["text"] if message["msg_type"] == "stream" else content.get("ename", ""))

        self.client.execute_interactive(code, output_hook=hear, timeout=timeout)
        return "".join(said).strip()

    @property
    def pid(self) -> int:
        return self.manager.provisioner.pid  # type: ignore[union-attr]


@contextlib.contextmanager
def kernel(warm: bool = True, **launch: Any) -> Iterator[Talk]:
    """A kernel, shut down at the end. `launch` goes to `start_kernel`: env, cwd, …"""
    manager = KernelManager(kernel_name=kernel_name(warm))
    manager.start_kernel(**launch)
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=240)
        yield Talk(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def parent(pid: int) -> int:
    """The process that has started another."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def is_fork_server(pid: int) -> bool:
    return "warm.server" in Path(f"/proc/{pid}/cmdline").read_text()


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether something comes true in time."""
    limit = time.monotonic() + seconds
    while not condition() and time.monotonic() < limit:
        time.sleep(0.02)
    return condition()


def environment(**changes: str) -> dict[str, str]:
    return os.environ | changes
