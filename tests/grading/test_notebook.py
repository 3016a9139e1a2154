"""The reader of notebooks meets whatever bytes there are with cells or with `Unreadable`, never with another error."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_course.exercises import LESSONS
from moe_course.grading.answers import Program
from moe_course.grading.likeness import fingerprint
from moe_course.grading.notebook import Unreadable, python_only, read_notebook
from tests.grading.conftest import HANDOUT, notebook

EXERCISES = LESSONS["02"]
LESSON = Program(read_notebook(HANDOUT.read_bytes()))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
CODE = st.sampled_from(
    ["def", "route", "tokens_per_expert", "(", ")", ":", "\n", "    ", "=", "check", "import", "x", "@"]
)
SOURCES = st.text(max_size=60) | st.lists(CODE, max_size=30).map(" ".join) | VALUES
CELLS = st.fixed_dictionaries(
    {},
    optional={
        "cell_type": st.sampled_from(["code", "markdown", "raw", 3]),
        "source": SOURCES,
        "input": SOURCES,
        "id": VALUES,
        "metadata": VALUES
        | st.fixed_dictionaries({"moe_course": VALUES | st.just({"exercise": "02.route"}), "nbgrader": VALUES}),
    },
)
NOTEBOOKS = st.fixed_dictionaries(
    {"cells": st.lists(CELLS | VALUES, max_size=6)}, optional={"metadata": VALUES, "worksheets": VALUES}
)


def read_whatever(raw: bytes) -> None:
    try:
        program = Program(read_notebook(raw), LESSON)
    except Unreadable as error:
        assert str(error)
        return
    for exercise in EXERCISES:
        answer = program.answer(exercise)
        json.dumps([answer.cells, answer.notes])
        assert answer.problem or answer.cells


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes(raw):
    read_whatever(raw)


@settings(max_examples=200, deadline=None)
@given(NOTEBOOKS | VALUES)
def test_any_json(data):
    read_whatever(json.dumps(data).encode())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_real_notebook_with_bytes_changed(data):
    raw = bytearray(HANDOUT.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        start = data.draw(st.integers(0, len(raw) - 1))
        raw[start : start + data.draw(st.integers(0, 50))] = data.draw(st.binary(max_size=20))
    read_whatever(bytes(raw))


def program(*sources: str) -> Program:
    cells = [{"cell_type": "code", "metadata": {}, "source": source} for source in sources]
    return Program(read_notebook(json.dumps({"cells": cells, "metadata": {}}).encode()))


def runs(*sources: str) -> str:
    """The statements that the answer to 02.route needs, one a line."""
    (exercise,) = [each for each in EXERCISES if each.id == "02.route"]
    cells = program(*sources).answer(exercise).cells
    picked = [cell["source"].split("\n")[index] for cell in cells for index in cell["statements"]]
    return "; ".join(picked)


@pytest.mark.parametrize(
    ("sources", "needed"),
    [
        (["def route(x): return x"], "def route(x): return x"),
        (["x = 1/0", "def route(x): return x"], "def route(x): return x"),
        (["a = 1\nb = a\nc = 2", "def route(x): return b"], "a = 1; b = a; def route(x): return b"),
        (["def route(x): return h(x)", "def h(x): return 3"], "def route(x): return h(x); def h(x): return 3"),
        (["def route(x): return 1", "route = check(route)"], "def route(x): return 1"),
        (["def route(x): return 1", "route = wrap(route)"], "def route(x): return 1; route = wrap(route)"),
        (["t = {}\nt[1] = 2\nt = t", "def route(x): return t"], "t = {}; t[1] = 2; t = t; def route(x): return t"),
        (["n = 1", "def route(x, n=n): return n", "n = 2"], "n = 1; def route(x, n=n): return n"),
        (["def route(x): return m.pi", "import math as m"], "import math as m; def route(x): return m.pi"),
        (["from math import *\ndef route(x): return pi"], "from math import *; def route(x): return pi"),
        (["y = 1\ndef route(x): return [y for y in x]"], "def route(x): return [y for y in x]"),
        (["class A: pass\nclass route(A): pass"], "class A: pass; class route(A): pass"),
        (["route = lambda x: k\nk = 1"], "route = lambda x: k; k = 1"),
        (["g = 1\ndef route(x): global g; g = 2; return g"], "g = 1; def route(x): global g; g = 2; return g"),
    ],
)
def test_only_what_an_answer_needs_is_run(sources, needed):
    assert runs(*sources) == needed


@pytest.mark.parametrize(
    ("source", "python"),
    [
        ("%time x\ny", "\ny"),
        ("if a:\n    !ls\n    b", "if a:\n    pass\n    b"),
        ("%%timeit\nx", "\nx"),
        ("%%html\n<b>", ""),
        ("route??\n?route\nx", "\n\nx"),
        ("x % y\na != b", "x % y\na != b"),
    ],
)
def test_what_is_ipythons_is_left_out_at_the_same_lines(source, python):
    assert python_only(source) == python


def test_answers_that_differ_in_names_only_have_one_fingerprint():
    one = fingerprint(
        'def route(logits, top_k: int):\n    """Route."""\n    best = logits.topk(top_k)\n    return best\n'
    )
    other = fingerprint("def route(z, k):\n    # mine\n    out = z.topk(k)\n    return (out)\n")
    different = fingerprint("def route(z, k):\n    out = z.sort(k)\n    return out\n")
    assert one == other != different


def test_the_handout_itself_holds_no_answer_but_stubs(solved):
    handout, filled = (Program(read_notebook(json.dumps(notebook(a)).encode())) for a in ({}, solved))
    for exercise in EXERCISES:
        assert "NotImplementedError" in handout.answer(exercise).text
        assert "NotImplementedError" not in filled.answer(exercise).text
