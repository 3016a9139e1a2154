"""Inputs in shared memory: the student's process computes on it, and the grader reads it again afterwards.

So whether an answer changed its inputs in place is seen, not told. Every case has two copies, one for each call.
"""

import mmap
import os
import tempfile
from typing import Any

import torch
from torch import Tensor

from .wire import ALIGNMENT, DTYPES, NAMES


def lay_out(inputs: Any, size: int = 0) -> tuple[Any, list[tuple[int, bytes]], int]:
    """Where each tensor of `inputs` lies in memory that starts to be free at `size`.

    Returns:
        A tree of JSON that describes the inputs, the bytes with their offsets, and the size afterwards.
    """
    if isinstance(inputs, Tensor):
        span = 1 + sum((n - 1) * stride for n, stride in zip(inputs.shape, inputs.stride(), strict=True))
        flat = inputs.as_strided((span,), (1,)) if inputs.numel() else inputs.reshape(-1)
        offset = size + -size % ALIGNMENT
        raw = flat.contiguous().view(torch.uint8).numpy().tobytes() if inputs.numel() else b""
        head = {"dtype": NAMES[inputs.dtype], "shape": list(inputs.shape), "stride": list(inputs.stride())}
        return {"tensor": head | {"offset": offset, "span": span}}, [(offset, raw)], offset + len(raw)
    if isinstance(inputs, dict):
        tree, pieces = {}, []
        for name, value in inputs.items():
            tree[name], found, size = lay_out(value, size)
            pieces += found
        return {"dict": tree}, pieces, size
    if isinstance(inputs, tuple | list):
        parts, pieces = [], []
        for value in inputs:
            part, found, size = lay_out(value, size)
            parts.append(part)
            pieces += found
        return {"tuple" if isinstance(inputs, tuple) else "list": parts}, pieces, size
    return {"plain": inputs}, [], size


def take_up(tree: Any, memory: Any) -> Any:
    """The inputs that `lay_out` described, as tensors on `memory` (a buffer) itself."""
    ((kind, value),) = tree.items()
    if kind == "plain":
        return value
    if kind == "dict":
        return {name: take_up(part, memory) for name, part in value.items()}
    if kind in ("tuple", "list"):
        parts = [take_up(part, memory) for part in value]
        return tuple(parts) if kind == "tuple" else parts
    dtype, shape, stride = DTYPES[value["dtype"]], value["shape"], value["stride"]
    if 0 in shape:
        return torch.empty_strided(shape, stride, dtype=dtype)
    flat = torch.frombuffer(memory, dtype=dtype, count=value["span"], offset=value["offset"])
    return flat.as_strided(shape, stride)


def shared(pieces: list[tuple[int, bytes]], size: int) -> int:
    """A descriptor of memory that can be handed to another process, filled."""
    if hasattr(os, "memfd_create"):
        memory = os.memfd_create("inputs", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            memory = os.dup(file.fileno())
    os.truncate(memory, max(size, 1))
    for offset, raw in pieces:
        os.pwrite(memory, raw, offset)
    return memory


def mapped(memory: int, size: int) -> mmap.mmap:
    """The shared memory as a buffer to compute on."""
    return mmap.mmap(memory, max(size, 1))
