"""Runs an answer on inputs and writes down what it did. Knows no reference: it may share a process with an answer."""

import contextlib
import copy
import io
import linecache
import sysconfig
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .limits import TimeLimit, call_within
from .outputs import at, frozen, leaves, map_tensors
from .spec import Exercise

TIME_LIMIT = 10.0  # seconds for all cases of one exercise; a right answer takes hundredths
PRINTED_LIMIT = 4000  # characters kept of what an answer prints


@dataclass(frozen=True)
class Failure:
    """Why a call returned nothing. `line` and `text` point into the learner's own code, where that is known."""

    kind: str  # "exception", "time limit" or "not attempted"
    message: str
    line: int | None = None
    text: str = ""


@dataclass(frozen=True)
class Observation:
    """What an answer did with the inputs of one case."""

    outputs: dict[str, Any] = field(default_factory=dict)  # leaves, by name
    canonical: dict[str, Any] = field(default_factory=dict)  # the same after the exercise's `normalise`
    structure: Any = None  # the output itself, detached: what properties look at
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    failure: Failure | None = None
    gradient_failure: Failure | None = None
    changed: tuple[str, ...] = ()  # inputs that were modified in place
    repeats: bool = True  # a second call with equal inputs gave an equal output


@dataclass(frozen=True)
class Record:
    """What an answer did with every case, and what it printed meanwhile."""

    observations: dict[str, Observation]
    printed: str = ""


def observe(
    exercise: Exercise,
    entry: Callable[..., Any],
    inputs: dict[str, dict[str, Any]],
    time_limit: float | None = None,
) -> Record:
    """Calls `entry` twice on each case: for its output, then for its gradients and to see whether it repeats itself.

    Args:
        exercise: says how to call it and which gradients to take.
        entry: the answer; may do anything.
        inputs: keyword inputs by case name; left unchanged.
        time_limit: seconds for all cases together; TIME_LIMIT if None.

    Raises:
        KeyboardInterrupt: the user pressed stop.
    """
    deadline = time.monotonic() + (TIME_LIMIT if time_limit is None else time_limit)
    observations: dict[str, Observation] = {}
    printed = _Capped()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(0)
        for case in exercise.cases:
            seen = _observe_case(exercise, entry, inputs[case.name], case.grad, deadline)
            observations[case.name] = seen
            if seen.failure and seen.failure.kind != "exception":
                break
    return Record(observations, printed.getvalue())


def _observe_case(
    exercise: Exercise,
    entry: Callable[..., Any],
    inputs: dict[str, Any],
    grad: tuple[str, ...],
    deadline: float,
) -> Observation:
    def limited(function: Callable[[], Any]) -> Any:
        return call_within(max(deadline - time.monotonic(), 0.05), function)

    given = copy.deepcopy(inputs)
    try:
        # Without autograd, where the case asks for no gradient of inputs: a learner may still use it inside.
        output = limited(lambda: exercise.drive(entry, given))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Observation(failure=failure_of(error))
    first = map_tensors(frozen, output)
    changed = changes(inputs, given)

    given = copy.deepcopy(inputs)
    differentiable = {path: at(given, path).requires_grad_() for path in grad}
    gradients: dict[str, Tensor | None] = {}
    again: Any = None
    failure = None
    try:
        again = limited(lambda: exercise.drive(entry, given))
        if grad:
            weights = cotangents(exercise, first)
            gradients = limited(lambda: pull_back(leaves(again, exercise.returns), weights, differentiable))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        failure = failure_of(error)
    return observation(exercise, first, changed, again, gradients, failure)


def observation(
    exercise: Exercise,
    first: Any,
    changed: tuple[str, ...],
    again: Any,
    gradients: dict[str, Tensor | None],
    failure: Failure | None,
) -> Observation:
    """What two calls with equal inputs amount to.

    Args:
        exercise: names the parts of an output and says how to normalise it.
        first: the output of the first call, which nothing can change any more.
        changed: inputs that the first call modified.
        again: the output of the second call.
        gradients: by the input's path; from the second call.
        failure: what ended the second call or its gradients.
    """
    outputs = leaves(first, exercise.returns)
    repeats = failure is not None or (
        all(same(leaf, again_leaf) for leaf, again_leaf in _zip(outputs, leaves(again, exercise.returns)))
    )
    return Observation(
        outputs=outputs,
        canonical=_canonical(exercise, first),
        structure=first,
        gradients=gradients,
        failure=failure if failure and failure.kind == "time limit" else None,
        gradient_failure=failure,
        changed=changed,
        repeats=repeats,
    )


def changes(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    """The inputs that a call modified in place, by their dotted names."""
    return tuple(name for name, old, new in _pairs(before, after) if not same(old, new))


def cotangents(exercise: Exercise, output: Any) -> dict[str, Tensor]:
    """By which weights the leaves of `output` are summed for the gradient, by name.

    They are random, drawn from a fixed seed in the order of the normalised leaves, and taken back through
    `normalise` where the exercise has one: whoever runs the answer need not know how its output is normalised.
    """
    generator = torch.Generator().manual_seed(1)
    if exercise.normalise is None:
        return _draw(leaves(output, exercise.returns), generator)
    output = map_tensors(lambda leaf: leaf.clone().requires_grad_() if leaf.is_floating_point() else leaf, output)
    raw = {name: leaf for name, leaf in leaves(output, exercise.returns).items() if _has_gradient(leaf)}
    normalised = leaves(exercise.normalise(output), exercise.returns)
    weights = _draw(normalised, generator)
    terms = [(normalised[name] * weight).sum() for name, weight in weights.items() if normalised[name].requires_grad]
    if not terms:
        return {}
    found = torch.autograd.grad(reduce(torch.add, terms), list(raw.values()), allow_unused=True)
    return {name: weight for name, weight in zip(raw, found, strict=True) if weight is not None}


def pull_back(
    outputs: dict[str, Any], weights: dict[str, Tensor], inputs: dict[str, Tensor]
) -> dict[str, Tensor | None]:
    """d(Σ outputs · weights) / d(inputs); None for an input that no output depends on."""
    terms = [(outputs[name] * weight).sum() for name, weight in weights.items() if _has_gradient(outputs.get(name))]
    if not terms:
        return dict.fromkeys(inputs)
    gradients = torch.autograd.grad(reduce(torch.add, terms), list(inputs.values()), allow_unused=True)
    return dict(zip(inputs, gradients, strict=True))


def _draw(outputs: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
    """A random weight for each floating-point leaf, in order."""
    return {
        name: torch.randn(leaf.shape, generator=generator, dtype=torch.float32).to(leaf.dtype)
        for name, leaf in outputs.items()
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
    }


def _has_gradient(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.requires_grad


def _canonical(exercise: Exercise, output: Any) -> dict[str, Any]:
    """Leaves of the normalised output; of the plain one where it has not the form that `normalise` expects."""
    if exercise.normalise:
        with contextlib.suppress(Exception):
            output = exercise.normalise(map_tensors(frozen, output))
    return {name: frozen(leaf) for name, leaf in leaves(output, exercise.returns).items()}


def failure_of(error: BaseException) -> Failure:
    """Why a call that raised `error` returned nothing."""
    line, text = _own_line(error)
    if isinstance(error, TimeLimit):
        return Failure("time limit", "", line, text)
    if isinstance(error, NotImplementedError) and not str(error):
        return Failure("not attempted", "", line, text)
    try:
        message = str(error).strip()
    except Exception:  # an exception class of the learner's own may fail to print
        message = ""
    if len(message) > 300:
        message = message[:300] + "…"
    return Failure("exception", f"{type(error).__name__}: {message}" if message else type(error).__name__, line, text)


def _own_line(error: BaseException) -> tuple[int | None, str]:
    """The innermost line of the traceback that is neither ours nor a library's: the learner's."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_NOT_THE_LEARNERS) and frame.lineno:
            return frame.lineno, linecache.getline(frame.filename, frame.lineno).strip()
    return None, ""


_NOT_THE_LEARNERS = (
    str(Path(__file__).parent.parent),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    "<frozen",
    "<@beartype",
)


def _pairs(before: Any, after: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Leaves of two trees of inputs of the same structure, with their dotted names."""
    if isinstance(before, dict) and isinstance(after, dict):
        return [
            pair for key in before for pair in _pairs(before[key], after.get(key), f"{name}.{key}" if name else key)
        ]
    return [(name, before, after)]


def _zip(first: dict[str, Any], second: dict[str, Any]) -> list[tuple[Any, Any]]:
    return [(first[name], second.get(name)) for name in first]


def same(first: Any, second: Any) -> bool:
    """Whether two leaves are equal to the last bit; NaN equals NaN."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        return bool(torch.equal(first.nan_to_num(), second.detach().nan_to_num())) if first.numel() else True
    if isinstance(first, float) and first != first:
        return isinstance(second, float) and second != second
    return type(first) is type(second) and (not isinstance(first, int | float | str) or first == second)


class _Capped(io.StringIO):
    """Keeps the first characters written to it and drops the rest, so that a print in a loop fills no memory."""

    def write(self, text: str) -> int:
        room = PRINTED_LIMIT - self.tell()
        super().write(text[: max(room, 0)])
        return len(text)
