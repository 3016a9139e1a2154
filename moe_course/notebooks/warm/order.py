"""A kernel to fork, read from what `subprocess.Popen` would be given for a plain one."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAUNCHER = ["-m", "ipykernel_launcher"]  # divides a kernel's command: Python's arguments, the kernel's
PACKAGE = Path(__file__).parents[2]
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


class Streams:
    """File descriptors of a kernel's stdout and stderr; this process's own unless the order names others."""

    def __init__(self, order: Order) -> None:
        self._null = open(os.devnull, "wb")  # noqa: SIM115
        self.fds = [self._of(order.stdout, 1), self._of(order.stderr, 2)]

    def close(self) -> None:
        """Close what was opened for this."""
        self._null.close()

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


def _shadow(folder: Path) -> Path | None:
    """What in a kernel's working folder hides a module that the server has imported."""
    candidates = [folder / name for name in (*PRELOADED, PACKAGE.name)]
    candidates += [path.with_suffix(".py") for path in candidates]
    return next((path for path in candidates if path.exists() and path.resolve() != PACKAGE.resolve()), None)
