"""How an exercise that asks for a Triton kernel is called: launched on a grid, behind guards. Knows no answer.

A wrong kernel must be told and not be fatal, and a stub is not attempted, whether kernels are compiled or interpreted.
Triton is imported at the first launch: `check` is there in every lesson, and most have no kernel.
"""

import inspect
import linecache
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .outputs import map_tensors
from .watch import UNWRITTEN, KernelError, Race, Watch, WriteOutOfBounds, lay_out, watching


class KernelOf:
    """A kernel of a module that is imported when the kernel is first needed, as it is or with a mistake worked in.

    Args:
        module: such as "moe_course.exercises.lesson_06.kernels".
        name: the kernel's.
        edits: (from, to) for each change of its source.
    """

    def __init__(self, module: str, name: str, *edits: tuple[str, str]) -> None:
        self.module, self.__name__, self.edits = module, name, edits
        self._outcomes: dict[Any, Any] = {}

    def outcome(self, launch: Callable[..., Any], inputs: dict[str, Any]) -> Any:
        """What `launch` returns for this kernel, or raises; remembered, for the interpreter is slow."""
        key = tuple((name, _content(value)) for name, value in inputs.items())
        if key not in self._outcomes:
            try:
                self._outcomes[key] = launch(Guarded(self.kernel), **inputs)
            except Exception as error:
                self._outcomes[key] = error
        found = self._outcomes[key]
        if isinstance(found, Exception):
            raise found.with_traceback(None)
        return found.clone()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise KernelError(f"a kernel is launched on a grid: {self.__name__}[(programs,)](…)")

    @cached_property
    def kernel(self) -> Any:
        """The Triton kernel.

        Raises:
            ValueError: the source has not what an edit is to change.
        """
        from .with_triton import UnavailableKernel, tl, triton

        kernel = getattr(import_module(self.module), self.__name__)
        if not self.edits or isinstance(kernel, UnavailableKernel):
            return kernel
        source = inspect.getsource(kernel.fn)
        for old, new in self.edits:
            if old not in source:
                raise ValueError(f"{self.__name__} has no `{old}`; adapt the edit to the kernel")
            source = source.replace(old, new)
        # Triton reads a kernel's source back from its file, so this one must look as if it came from one.
        file = f"<{self.__name__} {hash(source)}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        namespace = {"tl": tl, "triton": triton, "__name__": self.module}
        exec(compile(source, file, "exec"), namespace)
        return namespace[self.__name__]


class ReferenceKernel:
    """A right kernel, and the function that it computes.

    Args:
        kernel: the kernel.
        spec: the same in PyTorch, on the inputs of an exercise's case; what answers are compared with.
        stand_in: takes the kernel's own arguments and fills its outputs; used where there is no Triton.
    """

    def __init__(self, kernel: KernelOf, spec: Callable[..., Any], stand_in: Callable[..., None]) -> None:
        self.__name__, self.module = kernel.__name__, kernel.module
        self.lazy_kernel, self.spec, self.stand_in = kernel, spec, stand_in

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        from .with_triton import UnavailableKernel

        kernel = self.lazy_kernel.kernel
        return self.stand_in if isinstance(kernel, UnavailableKernel) else kernel[grid]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise KernelError(f"a kernel is launched on a grid: {self.__name__}[(programs,)](…)")


def kernel_drive(launch: Callable[..., Any]) -> Callable[[Any, dict[str, Any]], Any]:
    """The `drive` of an exercise whose entry is a kernel.

    Args:
        launch: `launch(kernel, **inputs)` allocates outputs, launches `kernel[grid](…)` and returns the outputs.
    """

    def drive(entry: Any, inputs: dict[str, Any]) -> Any:
        if isinstance(entry, ReferenceKernel):
            return entry.spec(**inputs)
        if isinstance(entry, KernelOf):
            return entry.outcome(launch, inputs)
        names = _names_used(entry)
        # Compiled for a GPU a stub is an error, and on an empty grid it would not run at all.
        if "NotImplementedError" in names:
            raise NotImplementedError
        if is_kernel(entry):
            return launch(Guarded(entry), **inputs)
        if "tl" in names:
            raise KernelError(f"{entry.__name__} is a plain function; keep the line `@triton.jit` above its `def`")
        return entry(**inputs)

    return drive


def call_on_device(entry: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """`entry(**inputs)` with all tensors where kernels run: the `drive` of a function that launches kernels."""
    from .with_triton import DEVICE

    output = entry(**map_tensors(lambda tensor: tensor.to(DEVICE), inputs))
    return map_tensors(lambda tensor: tensor.cpu(), output)


def is_kernel(entry: Any) -> bool:
    """Whether `entry` is what `@triton.jit` makes of a function."""
    return hasattr(entry, "fn") and hasattr(entry, "__getitem__")


def unwritten(*shape: int, dtype: torch.dtype) -> Tensor:
    """An output before its launch, full of what no kernel writes by accident."""
    return torch.full(shape, float("nan") if dtype.is_floating_point else UNWRITTEN, dtype=dtype)


def not_all_written(output: Tensor) -> str | None:
    """A sentence about elements that no program instance wrote, or None."""
    empty = output.isnan() if output.is_floating_point() else output == UNWRITTEN
    if not empty.any():
        return None
    first = ", ".join(map(str, empty.nonzero()[0].tolist()))
    return f"{int(empty.sum())} of {output.numel()} elements were never written, first [{first}]"


class Guarded:
    """A kernel whose launches are watched: `Guarded(kernel)[grid](…)` is used like `kernel[grid](…)`."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(*args: Any, **kwargs: Any) -> None:
            from .with_triton import UnavailableKernel, is_interpreting

            arguments = self._by_name(args, kwargs)
            if isinstance(self.kernel, UnavailableKernel):
                self.kernel[grid]  # raises: it says why there is no Triton
            elif 0 in grid:
                pass
            elif is_interpreting():
                self._run_interpreted(grid, arguments)
            else:
                self._run_compiled(grid, arguments)

        return run

    def _by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        try:
            return inspect.signature(self.kernel.fn).bind(*args, **kwargs).arguments
        except TypeError as error:
            raise KernelError(f"{error}; keep the arguments that the exercise gives the kernel") from None

    def _run_interpreted(self, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        watch = self._watched_run(grid, arguments, backwards=False)
        if watch.atomic:
            again = self._watched_run(grid, arguments, backwards=True)
            for name, buffer in watch.buffers.items():
                if not torch.equal(buffer.inside.nan_to_num(), again.buffers[name].inside.nan_to_num()):
                    raise Race(
                        f"{name} depends on the order in which program instances, or the lanes of an atomic, come; "
                        "a GPU promises none"
                    )
        for buffer in watch.buffers.values():
            buffer.give_back()

    def _watched_run(self, grid: tuple[int, ...], arguments: dict[str, Any], backwards: bool) -> Watch:
        from triton.runtime.errors import InterpreterError

        watch = Watch(arguments, grid)
        try:
            with watching(watch, self.kernel.fn.__code__.co_filename, backwards), np.errstate(all="ignore"):
                self.kernel[grid](**watch.arguments)
        except InterpreterError as error:
            # What went wrong, whose traceback has the learner's own line, rather than its repr.
            cause: BaseException = error
            while isinstance(cause, InterpreterError) and cause.__cause__ is not None:
                cause = cause.__cause__
            raise _readable(cause) from None
        except ValueError as error:  # the interpreter refuses to rewrite the kernel
            raise _readable(error) from None
        return watch

    def _run_compiled(self, grid: tuple[int, ...], arguments: dict[str, Any]) -> None:
        from .with_triton import DEVICE

        buffers = lay_out(arguments, DEVICE)
        self.kernel[grid](**arguments | {name: buffer.inside for name, buffer in buffers.items()})
        for buffer in buffers.values():
            if not buffer.margins_hold():
                raise WriteOutOfBounds(f"the kernel writes next to {buffer.name}: is a mask missing?")
            buffer.give_back()


# What Triton or Python says of common slips, and what it means.
SLIPS = (
    ("Multiple assignments", "a kernel knows no `a = b = …`; write one assignment a line"),
    (
        "unsupported tensor index",
        "a block is indexed by `:` and `None` only; memory is read with `tl.load(pointer + offsets)`",
    ),
    (
        "object is not iterable",
        "a pointer is not indexed, and a block is not looped over; read with `tl.load(pointer + offsets)`",
    ),
    ("must be Tensor, not tensor", "inside a kernel there is no torch; use the functions of `tl`"),
    (
        "must be of type tl.constexpr",
        "`tl.arange` takes sizes that are known beforehand, such as BLOCK; mask what is too much",
    ),
    ("range must be a power of 2", "a block has a power of two of lanes; round up, and mask what is too much"),
)


def _readable(error: BaseException) -> BaseException:
    """The error, or one that says the same so that a beginner understands it."""
    for fragment, meaning in SLIPS:
        if fragment in str(error):
            return KernelError(meaning).with_traceback(error.__traceback__)
    return error


def _content(value: Any) -> Any:
    return (value.dtype, value.shape, tuple(value.flatten().tolist())) if isinstance(value, Tensor) else value


def _names_used(entry: Any) -> tuple[str, ...]:
    """The globals and attributes that a function, or a kernel's function, mentions."""
    code = getattr(getattr(entry, "fn", entry), "__code__", None)
    return code.co_names if code else ()
