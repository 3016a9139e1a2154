"""Socket files by which to talk to a kernel: TCP ports are picked first and bound later, so two kernels can race."""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from traitlets.config import Config

LONGEST = 90  # characters that the folder of a socket's path may have; the system takes 107 for the whole


@contextmanager
def private_sockets() -> Iterator[Config]:
    """What to configure a kernel's client with, so that no other kernel can take its sockets; removed at the end."""
    if sys.platform == "win32":  # has no socket files
        yield Config()
        return
    folder = private_folder()
    try:
        yield Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def private_folder() -> str:
    """A new folder, readable by this user alone, whose path is short enough for a socket."""
    folder = tempfile.mkdtemp(prefix="moe-")
    if len(folder) > LONGEST:
        shutil.rmtree(folder)
        folder = tempfile.mkdtemp(prefix="moe-", dir="/tmp")
    return folder
