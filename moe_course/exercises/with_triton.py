"""`triton` and `tl` for lessons and exercises, with stand-ins where there is no Triton, so that a lesson still runs.

    from moe_course.exercises.with_triton import tl, triton

Without a GPU kernels are interpreted. On macOS and Windows `@triton.jit` gives
an `UnavailableKernel`: it can be defined and handed to `check`, which then says that it cannot run.
"""

from types import SimpleNamespace
from typing import Any

import torch

from moe_course.kernels.availability import is_interpreting, prepare_triton, why_unavailable

__all__ = ["DEVICE", "NeedsTriton", "UnavailableKernel", "tl", "triton"]

prepare_triton()  # before Triton is imported: it decides then whether it interprets

# Where the tensors of a launch live.
DEVICE = torch.device("cuda" if torch.cuda.is_available() and not is_interpreting() else "cpu")


class NeedsTriton(RuntimeError):
    """A kernel was launched on a machine that cannot run it; the message says why and what to do."""


class UnavailableKernel:
    """What `@triton.jit` makes of a function where there is no Triton: it has a name and cannot be launched."""

    def __init__(self, fn: Any) -> None:
        self.fn = fn
        self.__name__ = fn.__name__

    def __getitem__(self, grid: Any) -> Any:
        raise NeedsTriton(why_unavailable() or "no Triton")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise NeedsTriton(why_unavailable() or "no Triton")


def _next_power_of_2(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


if why_unavailable() is None:
    import triton
    import triton.language as tl

    # On a GPU tl.dot would round float32 to ten bits, which the interpreter does not.
    triton.knobs.language.fp32_default = "ieee"
else:
    triton = SimpleNamespace(jit=UnavailableKernel, cdiv=lambda a, b: -(-a // b), next_power_of_2=_next_power_of_2)
    tl = SimpleNamespace(constexpr=int)  # type: ignore[assignment]
