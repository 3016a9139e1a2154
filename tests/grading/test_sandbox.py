"""What exists inside the sandbox, and what travels between it and the grader."""

import ast
import importlib.util
import inspect
import json
import mmap
import os
import socket
import threading
import time
import types
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_course.exercises import EXERCISES, LESSONS, Exercise
from moe_course.exercises.checking import evaluate
from moe_course.exercises.judge import judge
from moe_course.exercises.observe import Observation, Record
from moe_course.exercises.outputs import leaves
from moe_course.grading.answers import Program
from moe_course.grading.bundle import drive_spec, pieces, reference_of
from moe_course.grading.inside import child
from moe_course.grading.inside.channel import HEAD, MARK, Closed, ProtocolError, receive, send
from moe_course.grading.inside.memory import lay_out, shared, take_up
from moe_course.grading.inside.wire import Packer, Unpacker
from moe_course.grading.notebook import read_notebook
from moe_course.grading.stage import PACKAGE, stage
from moe_course.layers import Routing

each_exercise = pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise.id)


def test_nothing_in_the_sandbox_knows_an_answer(tmp_path):
    staged = stage(tmp_path)
    files = sorted(path.relative_to(staged / "moe_course").as_posix() for path in staged.rglob("*.py"))
    assert not [name for name in files if "lesson_" in name or name.startswith("layers")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in staged.rglob("*.py"))
    for exercise in EXERCISES:
        assert f"def {exercise.entry}(" not in text and f"class {exercise.entry}(" not in text
    for path in staged.rglob("*.py"):  # and nothing that is staged needs what is not
        package = ".".join(path.relative_to(staged).parent.parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
                if module.startswith("moe_course"):
                    needed = staged / module.replace(".", "/")
                    assert needed.is_dir() or needed.with_suffix(".py").is_file(), (path, module)


@each_exercise
def test_every_exercise_can_be_asked_inside(exercise: Exercise):
    """Its drive exists there, its inputs travel, and its reference can be sent along to later exercises."""
    spec = json.loads(json.dumps(drive_spec(exercise.drive)))
    assert callable(getattr(importlib.import_module(spec["module"]), spec["name"]))
    for inputs in exercise.inputs(3).values():
        tree, parts, size = lay_out(inputs)
        memory = bytearray(size)
        for offset, raw in parts:
            memory[offset : offset + len(raw)] = raw
        again = take_up(json.loads(json.dumps(tree)), memory)
        ours, theirs = leaves(inputs), leaves(again)
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(value.nan_to_num(), theirs[name].nan_to_num())
                assert (value.dtype, value.stride()) == (theirs[name].dtype, theirs[name].stride())
            else:
                assert value == theirs[name]
    assert pieces((reference_of(exercise.reference),))


@pytest.mark.parametrize(
    "exercise", [each for number in ("01", "02", "03") for each in LESSONS[number]], ids=lambda each: each.id
)
def test_a_reference_that_is_sent_along_is_the_reference(exercise: Exercise, monkeypatch):
    module, name = reference_of(exercise.reference)
    monkeypatch.setattr(child, "_module", _fresh_modules())
    sent = child._given({"module": module, "name": name, "pieces": pieces(((module, name),))})
    assert inspect.unwrap(sent) is not inspect.unwrap(exercise.reference)
    assert evaluate(exercise, sent, 2).passed


def _fresh_modules() -> Any:
    made: dict[str, types.ModuleType] = {}
    return lambda name: made.setdefault(name, types.ModuleType("tests"))


def test_lessons_hand_out_what_they_import_above_an_exercise_and_no_more():
    (path,) = (PACKAGE.parent / "lessons").glob("03_*.ipynb")
    lesson = Program(read_notebook(path.read_bytes()))
    assert {name for _, name in lesson.given_names("03.MyMoELayer")} >= {"Routing", "top_k_routing"}
    assert not {name for _, name in lesson.given_names("03.run_experts")} & {"Routing", "MoELayer"}
    assert "MoELayer" not in {name for _, name in lesson.given_names("03.MyMoELayer")}


def there_and_back(value: Any, like: Any = None) -> Any:
    packer = Packer()
    tree = json.loads(json.dumps(packer.pack(value)))
    return Unpacker(packer.blob).unpack(tree, like)


@pytest.mark.parametrize(
    "value",
    [None, True, 3, -(2**63), 2.5, float("inf"), "text", (1, (2.0, "x")), [None], {"a": 1, 2: [True]}],
)
def test_plain_values_travel(value):
    again = there_and_back(value)
    assert again == value and type(again) is type(value)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 4), (2, 0, 3)])
def test_tensors_travel(dtype, shape):
    value = torch.randn(shape).to(dtype).mT if len(shape) > 1 else torch.randn(shape).to(dtype)
    again = there_and_back(value)
    assert torch.equal(again, value) and again.dtype == dtype and again.shape == value.shape


def test_a_dataclass_with_the_references_fields_becomes_the_courses_own():
    routing = Routing(*(torch.ones(2, 2) for _ in range(3)), torch.zeros(2, 2, dtype=torch.int64))
    assert isinstance(there_and_back((1, routing), (1, routing))[1], Routing)
    other = there_and_back(routing)
    assert not isinstance(other, Routing) and torch.equal(other.probs, routing.probs)


class Odd:
    """Nothing that travels."""


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (Odd(), "Odd"),
        (2**63, "int"),
        (1j, "complex"),
        (torch.ones(2, device="meta"), "meta_tensor"),
        (len, "builtin_function_or_method"),
    ],
)
def test_the_rest_goes_by_the_name_of_its_type(value, name):
    assert type(there_and_back(value)).__name__ == name
    assert type(there_and_back(value)) is type(there_and_back(value))


KINDS = ["none", "int", "float", "bool", "str", "tensor", "tuple", "list", "dict", "dataclass", "other", "x"]
TREES = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.fixed_dictionaries(
            {"kind": st.sampled_from(KINDS)},
            optional={
                "value": inner,
                "items": st.lists(inner | st.tuples(st.text(max_size=3) | st.integers(), inner).map(list), max_size=3),
                "type": inner,
                "dtype": st.sampled_from(["int64", "bool", "float32", "no", 3]),
                "shape": st.lists(st.integers(-2, 2**40), max_size=3) | inner,
                "offset": st.integers(-16, 64) | inner,
            },
        )
    ),
    max_leaves=10,
)
ROUTE = next(each for each in EXERCISES if each.id == "02.route")


@settings(max_examples=300, deadline=None)
@given(TREES, st.binary(max_size=64))
def test_whatever_a_process_sends_is_refused_or_judged(tree, blob):
    try:
        value = Unpacker(bytearray(blob)).unpack(tree, (torch.ones(1), torch.ones(1)))
    except ProtocolError:
        return
    seen = Observation(leaves(value, ROUTE.returns), leaves(value, ROUTE.returns), value)
    verdict = judge(ROUTE, Record({case.name: seen for case in ROUTE.cases}), 1)
    assert verdict.status == "failed"


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_on_the_channel(raw):
    here, there = socket.socketpair()
    there.sendall(raw)
    there.close()
    with pytest.raises((ProtocolError, Closed)):
        receive(here)
    here.close()


@pytest.mark.parametrize(
    ("head", "text"),
    [
        ((b"nope", 2, 0), b"{}"),
        ((MARK, 2**31, 0), b""),
        ((MARK, 2, 2**60), b"{}"),
        ((MARK, 2, 0), b"[]"),
        ((MARK, 2, 0), b"{,"),
    ],
)
def test_what_is_no_message_is_refused(head, text):
    here, there = socket.socketpair()
    there.sendall(HEAD.pack(*head) + text)
    with pytest.raises(ProtocolError):
        receive(here)


def test_a_message_that_never_ends_does_not_hold_up():
    here, there = socket.socketpair()
    there.sendall(HEAD.pack(MARK, 100, 0))
    with pytest.raises(TimeoutError):
        receive(here, time.monotonic() + 0.05)


def test_messages_arrive_whole():
    here, there = socket.socketpair()
    blob = bytes(range(256)) * 4000
    thread = threading.Thread(target=send, args=(there, {"a": [1, 2]}, blob))
    thread.start()
    assert receive(here) == ({"a": [1, 2]}, bytearray(blob))
    thread.join()


def test_memory_is_shared():
    tree, parts, size = lay_out({"x": torch.arange(6.0).reshape(2, 3).mT, "n": 3})
    descriptor = shared(parts, size)
    inputs = take_up(tree, mmap.mmap(descriptor, size))
    inputs["x"][0, 1] = 77
    assert torch.frombuffer(bytearray(os.pread(descriptor, size, 0)), dtype=torch.float32)[3] == 77
