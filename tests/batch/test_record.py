"""`record` keeps what it is given, says what it cannot keep, and survives whoever keeps notebooks."""

import json
import math
import subprocess
import sys

import nbformat
import numpy as np
import pandas as pd
import papermill
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from moe_course import record
from moe_course.batch.plain import from_plain, to_plain
from moe_course.batch.record import MIME, MOST_BYTES, RUN_COLUMNS, recorded
from moe_course.notebooks.make import KERNEL
from moe_course.notebooks.outputs import output_faults, tidy

SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**53), 2**53), st.floats(), st.text(st.characters(exclude_categories=["Cs"]))
)
ARRAYS = st.recursive(
    st.lists(SCALARS, max_size=5), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=8
)
TABLES = st.lists(st.dictionaries(st.text(max_size=4), st.none() | SCALARS, min_size=1), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def shell():
    """IPython, without which `record` only prints."""
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


def shown_by(call) -> list[dict]:
    with capture_output() as caught:
        call()
    return [output.data for output in caught.outputs]


def notebook_with(*bundles: dict) -> nbformat.NotebookNode:
    """A notebook whose one cell displayed these, as a file holds it."""
    outputs = [nbformat.v4.new_output("display_data", data=bundle) for bundle in bundles]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("record()", outputs=outputs)])
    nbformat.validate(notebook)
    return nbformat.reads(nbformat.writes(notebook), as_version=4)


def kept(**values) -> dict:
    """What a notebook gives back of what was recorded in it."""
    return recorded(notebook_with(*shown_by(lambda: record(**values))))


def same(first, second) -> bool:
    """Equal, and of the same types; NaN is equal to NaN."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, float) and math.isnan(first):
        return isinstance(second, float) and math.isnan(second)
    return type(first) is type(second) and first == second


@settings(max_examples=60, deadline=None)
@given(st.one_of(SCALARS, ARRAYS))
def test_scalars_and_arrays_come_back_as_they_were_through_strict_json(value):
    kind, plain = to_plain("x", value)
    assert same(from_plain(kind, json.loads(json.dumps(plain, allow_nan=False))), value)


@settings(max_examples=40, deadline=None)
@given(TABLES)
def test_tables_come_back_with_every_cell_in_its_column(rows):
    kind, plain = to_plain("x", rows)
    back = from_plain(kind, json.loads(json.dumps(plain, allow_nan=False)))
    assert kind == "tables"
    assert len(back) == len(rows)
    for row, got in zip(rows, back, strict=True):
        assert same({key: got[key] for key in row}, row)
        assert all(got[key] is None for key in got.keys() - row.keys())


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_tensors_of_every_dtype_are_stored_as_what_they_hold(dtype):
    tensor = torch.tensor([[1.0, 0.5], [0.0, 4.0]]).to(dtype)
    kind, plain = to_plain("x", tensor)
    assert kind == "arrays"
    assert same(plain, tensor.double().tolist() if dtype.is_floating_point else tensor.tolist())


def test_tensors_may_require_gradients_and_lie_scattered():
    tensor = torch.arange(6.0).reshape(2, 3).requires_grad_().T[::2]
    assert to_plain("x", tensor) == ("arrays", [[0.0, 3.0], [2.0, 5.0]])
    assert to_plain("x", torch.tensor(2.5, requires_grad=True)) == ("scalars", 2.5)
    assert to_plain("x", [torch.tensor(1), np.float32(0.5), np.arange(2)]) == ("arrays", [1, 0.5, [0, 1]])


def test_float32_is_stored_with_the_digits_it_has():
    assert to_plain("x", torch.tensor(0.83)) == ("scalars", 0.83)
    assert to_plain("x", np.array([0.1, np.nan], dtype=np.float32)) == ("arrays", [0.1, {"float": "nan"}])


def test_a_data_frame_keeps_types_gaps_and_a_named_index():
    frame = pd.DataFrame(
        {"loss": np.float32([0.1, np.nan]), "n": pd.array([3, None], dtype="Int64"), "who": ["a", "b"]}
    )
    kind, plain = to_plain("x", frame)
    rows = from_plain(kind, plain)
    assert same(rows, [{"loss": 0.1, "n": 3, "who": "a"}, {"loss": math.nan, "n": None, "who": "b"}])
    means = frame.groupby("who")[["loss"]].mean()
    assert list(from_plain(*to_plain("x", means))[0]) == ["who", "loss"]


def test_calls_add_up_and_the_last_value_of_a_name_counts(shell):
    bundles = shown_by(lambda: [record(a=1, b=[1, 2]), record(a=2.5, c=[{"d": 1}])])
    assert recorded(notebook_with(*bundles)) == {"b": [1, 2], "a": 2.5, "c": [{"d": 1}]}


def test_a_value_that_is_no_number_does_not_break_the_notebook(shell):
    found = kept(bad=float("nan"), worse=[float("-inf")], odd="\ud800 </script> <b>")
    assert math.isnan(found["bad"])
    assert found["worse"] == [-math.inf]
    assert found["odd"] == "? </script> <b>"
    [bundle] = shown_by(lambda: record(odd="<b>", bad=float("nan")))
    json.dumps(bundle, allow_nan=False)
    assert "<b>&lt;b&gt;</b>" in bundle["text/html"]


def test_it_is_shown_in_one_short_line(shell):
    table = pd.DataFrame({"alpha": [0.0, 0.1], "loss": [1.0, 0.9]})
    [bundle] = shown_by(
        lambda: record(busiest_share=0.8312345, loss=1.71, curve=torch.linspace(3, 1, 30), seeds=[0, 1], t=table)
    )
    assert bundle["text/plain"] == (
        "recorded: busiest_share 0.8312 · loss 1.71 · curve [3, 2.931, … 1] (30 values) · seeds [0, 1] · "
        "t table of 2 × 2"
    )
    assert set(bundle) == {"text/plain", "text/html", MIME}


def test_without_ipython_it_prints(capsys):
    InteractiveShell.clear_instance()
    record(loss=1.5)
    assert capsys.readouterr().out == "recorded: loss 1.5\n"


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ({}, TypeError, "write record(name=value)"),
        ({"a b": 1}, ValueError, "use letters, digits and underscores"),
        ({"seconds": 1}, ValueError, "choose another name"),
        ({"x" * 61: 1}, ValueError, "choose another name"),
        ({"model": torch.nn.Linear(1, 1)}, TypeError, "model holds a value of type Linear; record numbers"),
        ({"missing": None}, TypeError, "type NoneType"),
        ({"mixed": [1, {"a": 2}]}, TypeError, "type dict"),
        ({"loads": {"a": 1}}, TypeError, "record(**loads)"),
        ({"z": torch.tensor([1j])}, TypeError, "type complex"),
        ({"unreal": torch.empty(2, device="meta")}, TypeError, "unreal has no values to store"),
        ({"when": pd.Series(pd.to_datetime(["2020-01-01"]))}, TypeError, "str() of each"),
        ({"huge": 10**400}, ValueError, "record str() of it"),
        ({"twice": pd.DataFrame([[1, 2]], columns=["a", "a"])}, ValueError, "rename one"),
        ({"small": 1, "logits": torch.zeros(100_000)}, ValueError, "logits takes 500 kB"),
        ({f"part_{i}": "x" * (MOST_BYTES // 4) for i in range(4)}, ValueError, "record a summary"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_a_way_out(values, error, says, shell):
    with pytest.raises(error) as raised, capture_output() as caught:
        record(**values)
    assert says in str(raised.value)
    assert not caught.outputs  # nothing of the call was stored


def test_names_of_a_batchs_own_columns_are_taken(shell):
    for name in RUN_COLUMNS:
        with pytest.raises(ValueError, match="choose another name"):
            record(**{name: 1})


FOREIGN = [
    *("text", 3, None, {"scalars": 4}, {"scalars": {"a": {"float": "x"}, "b": [1]}}, {"arrays": {"a": {"0": 1}}}),
    *({"tables": {"a": {"columns": ["b"], "rows": [[1, 2]]}}}, {"tables": {"a": 7}}, {"scalars": {"a": {}}}),
]


@pytest.mark.parametrize("stored", FOREIGN)
def test_what_record_did_not_write_is_passed_over(stored):
    good = {MIME: {"scalars": {"kept": 1}, "arrays": {}, "tables": {}}}
    cells = [None, {}, {"outputs": 3}, {"outputs": [None, {"data": []}, {"data": {MIME: stored}}, {"data": good}]}]
    assert recorded({"cells": cells}) == {"kept": 1}
    assert recorded(None) == recorded({"cells": {}}) == {}


SOURCE = "from moe_course import record\nrecord(loss=1.71, bad=float('nan'), curve=[0.1, 0.25], seed=seed)"


def test_papermill_keeps_it_and_nbval_compares_it(tmp_path):
    parameters = nbformat.v4.new_code_cell("seed: int = 0  # of everything", metadata={"tags": ["parameters"]})
    cells = [nbformat.v4.new_code_cell(SOURCE, metadata={"tags": ["nbval-check-output"]}) for _ in range(2)]
    notebook = nbformat.v4.new_notebook(cells=[parameters, *cells], metadata={"kernelspec": KERNEL})
    nbformat.write(notebook, tmp_path / "in.ipynb")
    papermill.execute_notebook(tmp_path / "in.ipynb", tmp_path / "out.ipynb", {"seed": 7}, progress_bar=False)

    ran = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    nbformat.validate(ran)
    assert same(recorded(ran), {"loss": 1.71, "bad": math.nan, "seed": 7, "curve": [0.1, 0.25]})
    tidy(ran)
    assert same(recorded(ran), {"loss": 1.71, "bad": math.nan, "seed": 7, "curve": [0.1, 0.25]})
    assert output_faults(ran) == []

    ran.cells[-1].outputs[0].data[MIME]["arrays"]["curve"] = [0.1, 0.75]  # as if the result had been another
    nbformat.write(ran, tmp_path / "out.ipynb")
    options = ["-p", "moe_course.notebooks.pytest_plugin", "-p", "no:cacheprovider", "--nbval-lax", "-q", "-rf"]
    command = [sys.executable, "-m", "pytest", *options, "--color=no", "out.ipynb"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert "1 failed, 3 passed" in run.stdout, run.stdout
    assert "FAILED out.ipynb::Cell 3" in run.stdout
