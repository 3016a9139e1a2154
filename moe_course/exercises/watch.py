"""Looks at every load and store of a Triton kernel that the interpreter runs.

Under the interpreter an address is a number in this process: a wrong one reads another tensor, or ends the process. So
tensors are copied between margins, and each access is looked at first. What leaves its tensor is refused,
and so are program instances that meet at one element: a GPU runs them in any order.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

MARGIN = 1 << 16  # bytes between tensors: room to recognise an access that misses its tensor by some rows
CANARY = 0xA5  # what they hold
UNWRITTEN = -777  # what new outputs of integers hold; floating-point ones hold NaN
NOBODY, SHARED = -1, -2  # writers of an element that are no program instance: none yet, and atomics


class ReadOutOfBounds(Exception):
    """A load next to a tensor."""


class WriteOutOfBounds(Exception):
    """A store next to a tensor."""


class WildAddress(Exception):
    """An access to memory that is nowhere near a tensor."""


class Race(Exception):
    """Program instances that depend on who comes first."""


class DoubleWrite(Exception):
    """Lanes of one store that depend on who comes first."""


class KernelError(Exception):
    """What Triton's interpreter would accept and compute wrongly."""


class Buffer:
    """A copy of a tensor between two margins.

    Args:
        name: of the kernel's argument.
        tensor: what to copy; `give_back` copies the other way.
        region: MARGIN bytes, room for the tensor, MARGIN bytes.
    """

    def __init__(self, name: str, tensor: Tensor, region: Tensor) -> None:
        self.name, self.tensor = name, tensor
        self.margins = region[:MARGIN], region[-MARGIN:]
        self.inside = region[MARGIN : MARGIN + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self.inside.copy_(tensor)
        self.start, self.end = self.inside.data_ptr(), self.inside.data_ptr() + tensor.nbytes
        self.writer = np.full(tensor.numel(), NOBODY)  # which program instance stored each element

    def margins_hold(self) -> bool:
        """Whether nothing was stored next to the tensor."""
        return all(bool((margin == CANARY).all()) for margin in self.margins)

    def give_back(self) -> None:
        """Copy what the launch wrote to the tensor it was given."""
        self.tensor.copy_(self.inside)

    def values(self, index: np.ndarray) -> np.ndarray:
        """Elements as the interpreter keeps them: bfloat16 by its bits."""
        flat = self.inside.flatten()
        return (flat.view(torch.uint16) if flat.dtype == torch.bfloat16 else flat).numpy()[index]

    def at(self, index: int) -> str:
        """An element's name, such as "out_ptr[3, 0]"."""
        place = np.unravel_index(int(index), tuple(self.tensor.shape) or (1,))
        return f"{self.name}[{', '.join(str(int(i)) for i in place)}]"


def lay_out(arguments: dict[str, Any], device: torch.device) -> dict[str, Buffer]:
    """Copies of the tensors among a kernel's arguments, one after the other in one piece of memory.

    So what lies beyond the end of each is the same in every run.
    """
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    sizes = [-(-tensor.nbytes // 16) * 16 for tensor in tensors.values()]
    memory = torch.full((sum(sizes) + (len(sizes) + 1) * MARGIN,), CANARY, dtype=torch.uint8, device=device)
    buffers, begin = {}, 0
    for (name, tensor), size in zip(tensors.items(), sizes, strict=True):
        buffers[name] = Buffer(name, tensor, memory[begin : begin + size + 2 * MARGIN])
        begin += size + MARGIN
    return buffers


class Watch:
    """What is known of one launch: its tensors and who wrote where.

    Args:
        arguments: the kernel's, by name.
        grid: how many program instances there are along each axis.
    """

    def __init__(self, arguments: dict[str, Any], grid: tuple[int, ...]) -> None:
        self.buffers = lay_out(arguments, torch.device("cpu"))
        self.arguments = arguments | {name: buffer.inside for name, buffer in self.buffers.items()}
        self.grid = grid
        self.program, self.atomic = 0, False
        # A tensor owns half the margin on each side of it.
        self._ordered = list(self.buffers.values())
        self._begins = np.array([buffer.start - MARGIN // 2 for buffer in self._ordered], dtype=np.int64)

    def load(self, addresses: np.ndarray, mask: np.ndarray) -> None:
        """Look at a load."""
        for buffer, index, _ in self._elements(addresses, mask, "reads"):
            foreign = (buffer.writer[index] != NOBODY) & (buffer.writer[index] != self.program)
            if foreign.any():
                raise _named(
                    Race,
                    f"at {buffer.at(index[foreign][0])}",
                    f"{self._name(self.program)} reads what another instance writes; "
                    "a GPU runs them in any order, and at the same time",
                )

    def store(self, addresses: np.ndarray, mask: np.ndarray, values: np.ndarray) -> None:
        """Look at a store."""
        for buffer, index, lanes in self._elements(addresses, mask, "writes"):
            new = np.broadcast_to(values, addresses.shape)[lanes]
            order = np.argsort(index, kind="stable")
            twice = (np.diff(index[order]) == 0) & _differ(new[order][1:], new[order][:-1])
            if twice.any():
                at = f"to {buffer.at(index[order][1:][twice][0])}"
                raise _named(DoubleWrite, at, "one `tl.store` writes this element more than once, different values")
            foreign = (buffer.writer[index] != NOBODY) & (buffer.writer[index] != self.program)
            clash = foreign & _differ(buffer.values(index), new)
            if clash.any():
                first = index[clash][0]
                both = f"{self._name(buffer.writer[first])} and {self._name(self.program)}"
                raise _named(Race, f"at {buffer.at(first)}", f"{both} write different values here")
            buffer.writer[index] = self.program

    def add(self, addresses: np.ndarray, mask: np.ndarray) -> None:
        """Look at an atomic operation: these may meet at an element."""
        self.atomic = True
        for buffer, index, _ in self._elements(addresses, mask, "adds to"):
            buffer.writer[index] = SHARED

    def _elements(self, addresses: np.ndarray, mask: np.ndarray, verb: str) -> Iterator[tuple[Buffer, Any, Any]]:
        """The elements that addresses mean, tensor by tensor: (buffer, flat indices, the lanes that mean them)."""
        addresses = np.asarray(addresses).astype(np.int64)
        used = np.broadcast_to(mask, addresses.shape).astype(bool)
        owner = np.searchsorted(self._begins, addresses, side="right") - 1
        for number in np.unique(owner[used]):
            buffer, lanes = self._ordered[number], used & (owner == number)
            if number < 0 or (addresses[lanes] >= buffer.end + MARGIN // 2).any():
                raise WildAddress(f"{self._name(self.program)} {verb} memory that belongs to none of the tensors")
            index = (addresses[lanes] - buffer.start) // buffer.tensor.element_size()
            outside = (index < 0) | (index >= buffer.tensor.numel())
            if outside.any():
                raise self._outside(buffer, index[outside], verb)
            yield buffer, index, lanes

    def _outside(self, buffer: Buffer, index: np.ndarray, verb: str) -> Exception:
        side, word = ("past the end", "past") if index.max() >= 0 else ("before the start", "before")
        shape = " × ".join(map(str, buffer.tensor.shape))
        many = f"{len(index)} element{'s' if len(index) > 1 else ''}"
        kind = ReadOutOfBounds if verb == "reads" else WriteOutOfBounds
        sentence = f"{self._name(self.program)} {verb} {many} {side} of its {shape} elements. Is a mask missing?"
        return _named(kind, f"{word} {buffer.name}", sentence)

    def _name(self, program: int) -> str:
        if program == SHARED:
            return "an atomic of another instance"
        place = [int(i) for i in np.unravel_index(program, self.grid)]
        return f"program instance {place[0] if len(place) == 1 else tuple(place)}"


@contextlib.contextmanager
def watching(watch: Watch, filename: str, backwards: bool = False) -> Iterator[None]:
    """Has the interpreter show each access to `watch` before it makes it.

    Args:
        watch: is told of loads and stores, and may raise.
        filename: of the kernel's code.
        backwards: run the last program instance first, and in an atomic operation the last lane.
    """
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    kind, patch_tensor = type(builder), interpreter._patch_lang_tensor

    def masked_load(ptrs: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        watch.load(ptrs.data, mask.data)
        return kind.create_masked_load(builder, ptrs, mask, *rest, **named)

    def masked_store(ptrs: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        watch.store(ptrs.data, mask.data, value.data)
        return kind.create_masked_store(builder, ptrs, value, mask, *rest, **named)

    def atomic_rmw(operation: Any, ptr: Any, value: Any, mask: Any, *rest: Any) -> Any:
        watch.add(ptr.data, mask.data)
        if backwards:
            ptr, value, mask = (_last_lane_first(part) for part in (ptr, value, mask))
        before = kind.create_atomic_rmw(builder, operation, ptr, value, mask, *rest)
        return _last_lane_first(before) if backwards else before

    def atomic_cas(ptr: Any, *rest: Any) -> Any:
        watch.add(ptr.data, np.ones(ptr.data.shape, dtype=bool))
        return kind.create_atomic_cas(builder, ptr, *rest)

    def set_grid_idx(*index: int) -> None:
        place = [n - 1 - i for i, n in zip(index, builder.grid_dim, strict=True)] if backwards else list(index)
        watch.program = int(np.ravel_multi_index(place[: len(watch.grid)], watch.grid))
        kind.set_grid_idx(builder, *place)

    def patch_tensor_strictly(tensor: Any, *rest: Any) -> None:
        patch_tensor(tensor, *rest)
        tensor.__bool__ = _one_truth(filename)

    watched = {
        "create_masked_load": masked_load,
        "create_masked_store": masked_store,
        "create_atomic_rmw": atomic_rmw,
        "create_atomic_cas": atomic_cas,
        "set_grid_idx": set_grid_idx,
    }
    vars(builder).update(watched)
    interpreter._patch_lang_tensor = patch_tensor_strictly
    try:
        yield
    finally:
        interpreter._patch_lang_tensor = patch_tensor
        for name in watched:
            vars(builder).pop(name, None)


def _last_lane_first(handle: Any) -> Any:
    return type(handle)(np.ascontiguousarray(np.flip(handle.data)), handle.dtype)


def _one_truth(filename: str) -> Any:
    """A truth value for tensors that a kernel may ask only of single numbers."""

    def truth(self: Any) -> bool:
        data = self.handle.data
        if data.size != 1 and sys._getframe(1).f_code.co_filename == filename:
            raise KernelError(
                f"`and`, `or`, `not` and `if` want one truth value, not a block of {data.size}; "
                "combine masks with `&`, `|` and `~`, each comparison in parentheses"
            )
        return bool(data.all())

    return truth


def _named(kind: type[Exception], where: str, sentence: str) -> Exception:
    """An exception whose name says where it happened: what two kernels share, if they went wrong in the same way."""
    return type(f"{kind.__name__} {where}", (kind,), {})(sentence)


def _differ(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    return (some != others) & ~((some != some) & (others != others))
