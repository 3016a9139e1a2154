"""Warm kernels: ready in half a second, because they are forked from a process that has imported torch already.

`kernel_name()` is what a batch, a build and nbval give to whatever starts kernels. Such a kernel behaves as a plain
one does, and where it cannot be forked, a plain one starts in its place.

    provisioner.py   what jupyter_client asks for a kernel
    order.py         a kernel to fork, or why that cannot be
    client.py        asks the fork server of this process, and starts it first
    process.py       the forked kernel as its client sees it
    server.py        the fork server: imports once, forks for each kernel, watches over it
    kernel.py        what a forked process does to become a kernel like any other
"""

import os
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

NAME = "moe-warm"  # of the kernelspec, and of the provisioner that it names
PLAIN = "python3"
SPECS = Path(__file__).parent / "jupyter"


def kernel_name(warm: bool = True) -> str:
    """The name of a kernelspec for nbclient, papermill or nbval. Safe to call from many threads.

    Args:
        warm: whether a forked kernel is wanted.

    Returns:
        The warm kernel's, on Linux; the plain one's on macOS and Windows, where a process that has loaded torch
        cannot be forked, and where the package's entry points are not installed.
    """
    if not warm or not _can_fork():
        return PLAIN
    # Jupyter looks for kernelspecs here. Ours is in no place where JupyterLab would offer it to a learner.
    known = os.environ.get("JUPYTER_PATH", "")
    if str(SPECS) not in known.split(os.pathsep):
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, (known, str(SPECS))))
    return NAME


def is_warm(kernel_manager: Any) -> bool:
    """Whether the kernel that a jupyter_client KernelManager has started was forked."""
    return bool(getattr(kernel_manager.provisioner, "is_warm", False))


@cache
def _can_fork() -> bool:
    return sys.platform == "linux" and bool(entry_points(group="jupyter_client.kernel_provisioners", name=NAME))
