"""What must hold of every exercise of the course: its misconceptions lose points and name themselves."""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from moe_course.exercises import EXERCISES, Exercise, Misconception
from moe_course.exercises.checking import evaluate
from moe_course.exercises.judge import Verdict, judge
from moe_course.exercises.observe import observe
from moe_course.exercises.outputs import map_tensors

SEEDS = (0, 1, 2)
each_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)
each_misconception = pytest.mark.parametrize(
    ("exercise", "misconception"),
    [(exercise, wrong) for exercise in EXERCISES for wrong in exercise.misconceptions],
    ids=lambda value: value.id,
)


@each_exercise
@pytest.mark.parametrize("seed", SEEDS)
def test_reference_and_alternatives_get_full_marks(exercise: Exercise, seed: int) -> None:
    assert exercise.alternatives, "an exercise keeps at least one other right solution"
    for right in (exercise.reference, *exercise.alternatives):
        verdict = evaluate(exercise, right, seed)
        assert verdict.passed, f"{right}: {verdict.message}"
        assert verdict.points == exercise.points


@each_misconception
@pytest.mark.parametrize("seed", SEEDS)
def test_misconception_loses_points_and_names_itself(
    exercise: Exercise, misconception: Misconception, seed: int
) -> None:
    verdict = _verdict(exercise, misconception, seed)
    assert verdict.status == "failed"
    assert verdict.points < exercise.points
    assert verdict.misconception is not None, f"not recognised; said only: {verdict.message}"
    assert verdict.misconception.id == misconception.id


@each_exercise
def test_generic_wrongness_names_no_misconception(exercise: Exercise) -> None:
    for wrong in GENERIC:
        verdict = _spoilt(exercise, wrong)
        assert verdict.status == "failed", wrong.__name__
        assert verdict.misconception is None, f"{wrong.__name__} taken for {verdict.misconception}"
        assert verdict.message


@each_exercise
def test_each_check_fails_for_some_wrong_answer(exercise: Exercise) -> None:
    verdicts = [_verdict(exercise, misconception, 0) for misconception in exercise.misconceptions]
    verdicts += [_spoilt(exercise, wrong) for wrong in GENERIC]
    for index, finding in enumerate(evaluate(exercise, exercise.reference, 0).findings):
        assert any(not verdict.findings[index].passed for verdict in verdicts), f"{finding.check} rejects nothing"


@each_exercise
def test_stub_counts_as_not_attempted(exercise: Exercise) -> None:
    def stub(*args, **kwargs):
        raise NotImplementedError

    verdict = evaluate(exercise, stub, 0)
    assert (verdict.status, verdict.points) == ("not attempted", 0)


@each_exercise
def test_data_is_complete(exercise: Exercise) -> None:
    assert exercise.id == f"{exercise.id[:2]}.{exercise.entry}"
    assert exercise.points > 0 and exercise.minutes > 0 and exercise.difficulty in (1, 2, 3)
    assert all(len(hint) > 20 for hint in exercise.hints)
    names = [case.name for case in exercise.cases] + [law.name for law in exercise.properties]
    assert len(names) == len(set(names))
    assert len({wrong.id for wrong in exercise.misconceptions}) == len(exercise.misconceptions) >= 3
    for wrong in exercise.misconceptions:
        assert wrong.says.endswith(".") and wrong.id == wrong.id.lower()


@each_exercise
def test_inputs_follow_from_the_seed(exercise: Exercise) -> None:
    first, again, other = exercise.inputs(5), exercise.inputs(5), exercise.inputs(6)
    assert _comparable(first) == _comparable(again)
    drawn = any(isinstance(value, torch.Tensor | dict) for case in first.values() for value in case.values())
    assert not drawn or _comparable(first) != _comparable(other)


def test_entries_and_ids_are_unique() -> None:
    assert len({exercise.id for exercise in EXERCISES}) == len(EXERCISES)
    assert len({exercise.entry for exercise in EXERCISES}) == len(EXERCISES)


@cache
def _verdict(exercise: Exercise, misconception: Misconception, seed: int) -> Verdict:
    return evaluate(exercise, misconception.wrong, seed)


@cache
def _spoilt(exercise: Exercise, spoil: Callable[[Any, dict], Any]) -> Verdict:
    """The verdict on the reference whose outputs pass through `spoil(output, inputs)` first."""

    def drive(entry, inputs):
        return spoil(exercise.drive(entry, inputs), inputs)

    spoilt = dataclasses.replace(exercise, drive=drive)
    return judge(exercise, observe(spoilt, exercise.reference, exercise.inputs(0)), 0)


def _wrong(output: Any, inputs: dict) -> Any:
    return _map(lambda leaf: leaf * 0 - 7 if _is_numeric(leaf) else None, output)


def _noisy(output: Any, inputs: dict) -> Any:
    generator = torch.Generator().manual_seed(3)

    def noise(leaf):
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            return leaf + torch.randn(leaf.shape, generator=generator).to(leaf.dtype)
        return leaf + 3 if _is_numeric(leaf) else None

    return _map(noise, output)


def _one_dimension_more(output: Any, inputs: dict) -> Any:
    return _map(lambda leaf: leaf[None] if isinstance(leaf, torch.Tensor) else [leaf, leaf], output)


def _crashes(output: Any, inputs: dict) -> Any:
    raise IndexError("list index out of range")


def _fickle(output: Any, inputs: dict) -> Any:
    return _map(lambda leaf: leaf + int(torch.randint(1, 10**6, ())) if _is_numeric(leaf) else None, output)


def _in_place(output: Any, inputs: dict) -> Any:
    """Right, but spoils its inputs; exercises without tensors among their inputs have none to spoil."""
    output = _map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, output)
    touched = []
    map_tensors(lambda tensor: touched.append(tensor.data.add_(1)) or tensor, inputs)
    return output if touched else None


GENERIC = (_wrong, _noisy, _one_dimension_more, _crashes, _fickle, _in_place)


def _is_numeric(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor | int | float)


def _map(function: Callable[[Any], Any], output: Any) -> Any:
    """`output` with `function` applied to every leaf of its tuples, dicts and dataclasses."""
    if isinstance(output, tuple | list):
        return type(output)(_map(function, item) for item in output)
    if isinstance(output, dict):
        return {key: _map(function, item) for key, item in output.items()}
    if dataclasses.is_dataclass(output):
        return {field.name: _map(function, getattr(output, field.name)) for field in dataclasses.fields(output)}
    return function(output)


def _comparable(tree: Any) -> Any:
    """Inputs as plain lists, which Python compares by value."""
    if isinstance(tree, dict):
        return {key: _comparable(value) for key, value in tree.items()}
    return tree.float().tolist() if isinstance(tree, torch.Tensor) else str(tree)
