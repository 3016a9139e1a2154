"""Launch a kernel with the best of its configurations: one interface for GPU, interpreter and compile report."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import triton

from moe_course.kernels.availability import is_interpreting

Grid = Callable[[dict[str, Any]], tuple[int, ...]]  # from a launch's arguments, its blocks included


@dataclass(frozen=True)
class Config:
    """Sizes of a program's tile, and how the hardware works on it."""

    blocks: tuple[tuple[str, int], ...]  # such as (("BLOCK_M", 64), ("BLOCK_N", 128))
    num_warps: int
    num_stages: int = 3  # tiles in flight: while one is multiplied, the next are copied to shared memory

    def __str__(self) -> str:
        tile = "×".join(str(size) for name, size in self.blocks if name != "GROUP_M")
        return f"{tile}, {self.num_warps} warps, {self.num_stages} stages"


class Launch(NamedTuple):
    """A kernel, what it was called with, and the configurations to choose from."""

    kernel: Any
    grid: Grid
    arguments: dict[str, Any]
    configs: tuple[Config, ...]


def launch(kernel: Any, grid: Grid, configs: tuple[Config, ...], **arguments: Any) -> None:
    """Run a kernel.

    On a GPU its configurations are timed at the first call with new widths, and the fastest is kept. The
    interpreter has no use for that and takes the first.

    Args:
        kernel: a @triton.jit function.
        grid: number of programs, from the arguments and the configuration's blocks.
        configs: what to choose from, the best guess first.
        arguments: those of the kernel, without the configuration's blocks.
    """
    if _recorded is not None:
        _recorded.append(Launch(kernel, grid, arguments, configs))
    elif is_interpreting():
        arguments |= dict(configs[0].blocks)
        kernel[grid(arguments)](**arguments)
    else:
        _autotuned(kernel, configs)[grid](**arguments)


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Within it, kernels are written down instead of run: what the compile report compiles is what would run."""
    global _recorded
    _recorded = []
    try:
        yield _recorded
    finally:
        _recorded = None


_recorded: list[Launch] | None = None


@cache
def _autotuned(kernel: Any, configs: tuple[Config, ...]) -> Any:
    # Widths and flags decide which configuration is fastest; pointers and the number of rows (num_…) do not.
    blocks = dict(configs[0].blocks)
    key = [name for name in kernel.arg_names if not name.endswith("_ptr") and not name.startswith("num_")]
    choices = [triton.Config(dict(c.blocks), num_warps=c.num_warps, num_stages=c.num_stages) for c in configs]
    return triton.autotune(configs=choices, key=[name for name in key if name not in blocks])(kernel)
