"""From what an answer did to a verdict: which checks it passes, what it is worth, and what misconception it shows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .compare import agree, difference, precision
from .observe import Observation, Record, observe
from .outputs import describe, to_float64
from .spec import Exercise, Misconception

# A misconception is named when it explains at least this share of what is wrong.
EXPLAINS = 0.6


@dataclass(frozen=True)
class Finding:
    """One check of an answer.

    Args:
        check: its name.
        passed: whether the answer passes it.
        message: if not, why.
        inputs: what the answer was called with, in short.
        consequence: it failed only because another check did, such as the gradient of an output that is missing.
    """

    check: str
    passed: bool
    message: str = ""
    inputs: str = ""
    consequence: bool = False


@dataclass(frozen=True)
class Verdict:
    """What is to be said of one answer."""

    exercise: Exercise
    status: str  # "passed", "failed" or "not attempted"
    findings: tuple[Finding, ...]
    misconception: Misconception | None = None
    printed: str = ""

    @property
    def passed(self) -> bool:
        return self.status == "passed"

    @property
    def points(self) -> float:
        """The share of checks passed, in points of the exercise."""
        if not self.findings:
            return 0.0
        share = sum(finding.passed for finding in self.findings) / len(self.findings)
        return round(self.exercise.points * share, 2)

    @property
    def message(self) -> str:
        """The diagnosis, or else what is wrong first; empty for a right answer."""
        if self.misconception:
            return self.misconception.says
        failed = sorted((f for f in self.findings if not f.passed), key=lambda f: f.consequence)  # causes first
        return f"{failed[0].check}: {failed[0].message}" if failed else ""


def judge(exercise: Exercise, record: Record, seed: int) -> Verdict:
    """Compares a record with the reference on the same inputs.

    Args:
        exercise: what was asked.
        record: what the answer did with `exercise.inputs(seed)`.
        seed: the inputs' seed.
    """
    seen = record.observations
    if any(one.failure and one.failure.kind == "not attempted" for one in seen.values()):
        return Verdict(exercise, "not attempted", (), printed=record.printed)
    expected = _expected(exercise, seed)
    inputs = _inputs(exercise, seed)
    wrong = {case.name: _values_wrong(case.name, seen, expected) for case in exercise.cases}
    # An answer that does nothing at all leaves its inputs alone, too, and always does the same.
    idle = None if None in wrong.values() else _NO_CASE
    findings = [
        _finding("leaves its inputs as they were", _changed(seen) or idle),
        _finding("same inputs, same answer", _fickle(seen) or idle),
    ]
    for case in exercise.cases:
        given = describe(inputs[case.name])
        findings.append(_finding(case.name, wrong[case.name], given))
        if case.grad:
            findings.append(_finding(f"{case.name}: gradients", _gradients_wrong(case.name, seen, expected), given))
    findings += [_finding(law.name, _law_broken(exercise, law.broken, seen, seed)) for law in exercise.properties]
    if all(finding.passed for finding in findings):
        return Verdict(exercise, "passed", tuple(findings), printed=record.printed)
    return Verdict(exercise, "failed", tuple(findings), _diagnose(exercise, seen, seed), record.printed)


@dataclass(frozen=True)
class _Expected:
    exact: Observation  # the reference on float64 inputs
    like: Observation  # the reference on the inputs as they are
    dtype: torch.dtype  # decides the tolerance


@cache
def _inputs(exercise: Exercise, seed: int) -> dict[str, dict[str, Any]]:
    return exercise.inputs(seed)


@cache
def _expected(exercise: Exercise, seed: int) -> dict[str, _Expected]:
    inputs = exercise.inputs(seed)
    exact = observe(exercise, exercise.reference, to_float64(inputs), time_limit=60).observations
    like = observe(exercise, exercise.reference, inputs, time_limit=60).observations
    return {
        name: _Expected(exact[name], like[name], precision(_flat(inputs[name]), like[name].outputs)) for name in inputs
    }


@cache
def _mistaken(exercise: Exercise, wrong: Callable[..., Any], seed: int) -> dict[str, Observation]:
    return observe(exercise, wrong, exercise.inputs(seed), time_limit=60).observations


# Messages of checks that failed only because there was nothing to check.
_NOT_REACHED = "not reached"
_NO_OUTPUT = "no output to look at"
_NO_FORM = "the output has not the form asked for"
_NO_CASE = "counts once the values of a case are right"


def _finding(check: str, wrong: str | None, inputs: str = "") -> Finding:
    consequence = wrong is not None and wrong.endswith((_NOT_REACHED, _NO_OUTPUT, _NO_FORM, _NO_CASE))
    return Finding(check, wrong is None, wrong or "", inputs, consequence)


def _values_wrong(name: str, seen: dict[str, Observation], expected: dict[str, _Expected]) -> str | None:
    if name not in seen:
        return _NOT_REACHED
    one, want = seen[name], expected[name]
    if one.failure:
        return _explain(one)
    return difference(one.canonical, want.exact.canonical, want.like.canonical, want.dtype)


def _gradients_wrong(name: str, seen: dict[str, Observation], expected: dict[str, _Expected]) -> str | None:
    if name not in seen:
        return _NOT_REACHED
    one, want = seen[name], expected[name]
    if one.failure or one.canonical.keys() != want.like.canonical.keys():
        return _NO_OUTPUT
    if one.gradient_failure:
        return _explain(one)
    for path, exact in want.exact.gradients.items():
        got = one.gradients.get(path)
        if got is None:
            if exact is not None and exact.abs().max() > 0:
                return f"no gradient reaches {path}: is something detached, or made anew from numbers?"
        elif exact is None:
            if got.abs().max() > 0:
                return f"a gradient reaches {path}, where there should be none"
        else:
            wrong = difference({path: got}, {path: exact}, {path: want.like.gradients[path]}, want.dtype)
            if wrong:
                return f"the gradient of {wrong}"
    return None


def _explain(one: Observation) -> str:
    failure = one.failure or one.gradient_failure
    assert failure is not None
    where = f", at your line {failure.line}: {failure.text}" if failure.line and failure.text else ""
    if failure.kind == "time limit":
        return f"stopped after the time limit{where}. Is there a loop that never ends?"
    return failure.message + where


def _law_broken(
    exercise: Exercise,
    broken: Callable[[dict[str, Any], Any], str | None],
    seen: dict[str, Observation],
    seed: int,
) -> str | None:
    inputs = _inputs(exercise, seed)
    for case in exercise.cases:
        one = seen.get(case.name)
        if one is None or one.failure:
            return f"{case.name}: {_NO_OUTPUT}"
        try:
            wrong = broken(inputs[case.name], one.structure)
        except Exception:
            # The output has not even the form that the law is about; the case's own row says so.
            wrong = _NO_FORM
        if wrong:
            return f"{case.name}: {wrong}"
    return None


def _changed(seen: dict[str, Observation]) -> str | None:
    if not _any_output(seen):
        return _NO_OUTPUT
    for name, one in seen.items():
        if one.changed:
            return (
                f"{name}: {', '.join(one.changed)} was modified in place; whoever called you still needs it. "
                "Make a new tensor instead (x = x + 1, not x += 1)"
            )
    return None


def _fickle(seen: dict[str, Observation]) -> str | None:
    if not _any_output(seen):
        return _NO_OUTPUT
    for name, one in seen.items():
        if not one.repeats:
            return (
                f"{name}: a second call with the same inputs gave another answer. Does it draw random numbers, "
                "or keep something between calls?"
            )
    return None


def _any_output(seen: dict[str, Observation]) -> bool:
    return any(one.failure is None for one in seen.values())


def _diagnose(exercise: Exercise, seen: dict[str, Observation], seed: int) -> Misconception | None:
    """The misconception that explains most of what is wrong, if it explains enough and no other does as well."""
    expected = _expected(exercise, seed)
    wrong = [
        facet
        for facet in _facets(exercise)
        if (_gradients_wrong if facet[1] else _values_wrong)(facet[0], seen, expected)
    ]
    scores: list[tuple[int, int, Misconception]] = []
    for misconception in exercise.misconceptions:
        mistaken = _mistaken(exercise, misconception.wrong, seed)
        same = {facet for facet in _facets(exercise) if _agree(facet, seen, mistaken, expected)}
        explained = sum(facet in same for facet in wrong)
        if wrong and explained >= EXPLAINS * len(wrong):
            scores.append((explained, len(same), misconception))
    scores.sort(key=lambda score: score[:2], reverse=True)
    if not scores or (len(scores) > 1 and scores[0][:2] == scores[1][:2]):
        return None
    return scores[0][2]


def _facets(exercise: Exercise) -> list[tuple[str, bool]]:
    """What answers are compared on: each case's values (False) and, where it has them, gradients (True)."""
    return [(case.name, grad) for case in exercise.cases for grad in ([False, True] if case.grad else [False])]


def _agree(
    facet: tuple[str, bool],
    seen: dict[str, Observation],
    mistaken: dict[str, Observation],
    expected: dict[str, _Expected],
) -> bool:
    name, gradients = facet
    one, other = seen.get(name), mistaken.get(name)
    if one is None or other is None:
        return one is other
    stopped, other_stopped = _stopped(one, gradients), _stopped(other, gradients)
    if stopped or other_stopped:
        return stopped == other_stopped
    dtype = expected[name].dtype
    if gradients:
        return agree(_with_zeros(one, expected[name]), _with_zeros(other, expected[name]), dtype)
    return agree(one.canonical, other.canonical, dtype)


def _stopped(one: Observation, gradients: bool) -> tuple[str, str] | None:
    """The kind and the exception type of what ended a call."""
    failure = one.failure or (one.gradient_failure if gradients else None)
    return (failure.kind, failure.message.split(":")[0]) if failure else None


def _with_zeros(one: Observation, want: _Expected) -> dict[str, Any]:
    """Gradients, with zeros for those that are missing."""
    found: dict[str, Any] = {}
    for path, exact in want.exact.gradients.items():
        got = one.gradients.get(path)
        found[path] = got if got is not None else torch.zeros(() if exact is None else exact.shape)
    return found


def _flat(tree: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors in nested dicts of inputs, by dotted name."""
    if isinstance(tree, Tensor):
        return {name: tree}
    if not isinstance(tree, dict):
        return {}
    return {path: leaf for key, value in tree.items() for path, leaf in _flat(value, f"{name}.{key}").items()}
