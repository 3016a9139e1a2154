"""Whether Triton's kernels run here, compiled for a GPU or interpreted on the CPU, and if not, why.

Triton decides when a kernel is decorated whether it will be compiled or interpreted, and it decorates its own
library when it is imported. So the decision is made here, before any kernel of this package is imported.
"""

import importlib
import os
import platform
import sys
from importlib.util import find_spec

import torch


def is_available() -> bool:
    """Whether the kernels run here, compiled or interpreted."""
    return why_unavailable() is None


def why_unavailable() -> str | None:
    """One sentence on why the kernels do not run here, and what to do; None when they do."""
    if find_spec("triton") is None:
        if sys.platform != "linux":
            return (
                f"Triton is not made for {platform.system()}: run this on Linux (WSL and hosted notebooks are), "
                "where it also works without a GPU"
            )
        return "Triton is not installed: run `pip install triton`"
    if not torch.cuda.is_available() and not is_interpreting():
        return (
            "There is no GPU and TRITON_INTERPRET is 0: unset it before Python starts, and the kernels are interpreted"
        )
    return None


def is_interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def require_triton() -> None:
    """Raise a RuntimeError that says what to do when the kernels do not run here."""
    reason = why_unavailable()
    if reason:
        raise RuntimeError(reason)


def prepare_triton() -> None:
    """Without a GPU, have Triton interpret its kernels, unless the user chose with TRITON_INTERPRET."""
    if find_spec("triton") is None or torch.cuda.is_available() or "TRITON_INTERPRET" in os.environ:
        return
    os.environ["TRITON_INTERPRET"] = "1"
    if "triton" in sys.modules:
        _decorate_library_again()


def _decorate_library_again() -> None:
    """Give an already imported Triton the library functions (tl.sum, tl.cdiv, …) that it interprets.

    `torch.optim` imports Triton, so in a notebook it is often there before this package.
    """
    import triton.language as tl
    from triton.runtime.jit import JITFunction

    for module in (tl.standard, tl.random):
        for name, value in vars(importlib.reload(module)).items():
            if isinstance(getattr(tl, name, None), JITFunction):
                setattr(tl, name, value)
