"""The tables of a batch hold every run once, with types, whatever else lies in its folder."""

import json
import math
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moe_course.batch import load, results
from moe_course.batch.results import read_rows, write_results

from .runs import finished, planned, write_run


def test_a_row_for_each_run_with_parameters_results_and_costs(tmp_path):
    write_run(tmp_path, finished("a", {"alpha": 0.1, "seed": 3}, {"loss": 1.5, "curve": [1.0, 2], "ok": True}))
    write_run(tmp_path, finished("b", {"alpha": 1.0, "seed": 4}, {"loss": 2.5, "table": [{"e": 1, "n": 2}]}))
    table = load(tmp_path)
    assert list(table["id"]) == ["a", "b"]
    assert list(table["alpha"]) == [0.1, 1.0]
    assert list(table["seed"]) == [3, 4]
    assert list(table["loss"]) == [1.5, 2.5]
    assert table["curve"][0] == [1.0, 2]
    assert table["table"][1] == [{"e": 1, "n": 2}]
    assert list(table["path"]) == ["runs/a.ipynb", "runs/b.ipynb"]
    assert list(table["status"]) == ["done", "done"]
    assert {"seconds", "cpu_seconds", "peak_memory_mb"} <= set(table.columns)
    assert table["seconds"][0] == 2.5


def test_numbers_stay_numbers_where_some_are_missing(tmp_path):
    write_run(tmp_path, finished("a", {}, {"n": 3, "x": 1, "flag": True, "word": "w"}))
    write_run(tmp_path, finished("b", {}, {"x": 0.5, "other": math.nan}))
    table = load(tmp_path)
    assert table["n"].dtype == "Int64" and table["n"][0] == 3 and table["n"][1] is pd.NA
    assert table["x"].dtype == "float64" and list(table["x"]) == [1.0, 0.5]
    assert table["flag"].dtype == "boolean"
    assert math.isnan(table["other"][1])


def test_a_recorded_name_that_a_parameter_has_too_gets_a_column_of_its_own(tmp_path):
    write_run(tmp_path, finished("a", {"steps": 10, "path": "x"}, {"steps": 8}))
    table = load(tmp_path)
    assert (table["steps"][0], table["steps_recorded"][0]) == (10, 8)
    assert (table["path"][0], table["path_parameter"][0]) == ("runs/a.ipynb", "x")


def test_planned_runs_without_a_result_are_listed_and_others_are_not(tmp_path):
    rows = [finished(name, {"alpha": index}, {}) for index, name in enumerate("abcd")]
    planned(tmp_path, rows[:3])
    for row in rows[1:]:
        write_run(tmp_path, row)
    table = load(tmp_path)
    assert list(table["id"]) == ["a", "b", "c"]  # the order of the plan; d is planned no more
    assert list(table["status"]) == ["not started", "done", "done"]
    assert list(table["alpha"]) == [0, 1, 2]


def test_a_failed_run_says_why_and_one_that_went_well_later_is_done(tmp_path):
    error = {"cell": 12, "first_line": "f()", "name": "ValueError", "message": "no\nway", "traceback": "…"}
    for name in ("a", "b"):
        write_run(tmp_path, finished(name, {}, {}) | {"status": "error", "error": error}, "failed")
    write_run(tmp_path, finished("b", {}, {"loss": 1.0}))
    table = load(tmp_path).set_index("id")
    assert table.loc["a", "error"] == "cell 12: ValueError: no way"
    assert table.loc["a", "path"] == "failed/a.ipynb"
    assert table.loc["b", "status"] == "done"
    assert table.loc["b", "loss"] == 1.0


def test_a_failed_run_of_which_no_notebook_could_be_saved_has_no_path(tmp_path):
    write_run(tmp_path, finished("a", {}, {}) | {"status": "died"}, "failed", notebook=False)
    assert read_rows(tmp_path)[0]["path"] is None


def test_half_written_and_foreign_files_are_passed_over(tmp_path):
    write_run(tmp_path, finished("whole", {}, {"loss": 1.0}))
    write_run(tmp_path, finished("rowless", {}, {}), notebook=False)  # killed between the row and its notebook
    runs = tmp_path / "runs"
    (runs / "half.json").write_text('{"id": "half", "les')
    (runs / "empty.json").write_text("")
    (runs / "binary.json").write_bytes(b"\xff\xfe\x00")
    (runs / "deep.json").write_text("[" * 100_000)
    (runs / "list.json").write_text("[1, 2]")
    (runs / "nameless.json").write_text('{"lesson": "x"}')
    (runs / "folder.json").mkdir()
    for path in runs.glob("*.json"):
        path.with_suffix(".ipynb").touch()
    (runs / "rowless.ipynb").unlink()
    (tmp_path / "plan.json").write_text('{"runs": [')
    assert list(load(tmp_path)["id"]) == ["whole"]
    write_results(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["parameters", "results", "seed", "status", "seconds", "error", "slowest_cell", "cpu_seconds", "attempts"]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(st.sampled_from(FIELDS), JSON), min_size=1, max_size=3))
def test_whatever_stands_in_a_row_the_tables_can_be_written(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    for index, fields in enumerate(rows):
        write_run(folder, finished(f"run-{index}", {}, {}) | fields)
    write_results(folder)
    assert list(load(folder)["id"]) == [f"run-{index}" for index in range(len(rows))]
    assert len(pd.read_parquet(folder / "results.parquet")) == len(rows)


def test_csv_and_parquet_hold_what_load_gives(tmp_path):
    nasty = 'a "quoted", two\nlines; α'
    write_run(tmp_path, finished("a", {"alphas": [0.0, 1.0]}, {"loss": 1.5, "curve": [1.0, math.nan], "n": 3}))
    write_run(tmp_path, finished("b", {"alphas": [0.5]}, {"loss": 2, "word": nasty, "mixed": 1}))
    write_run(tmp_path, finished("c", {"alphas": [0.5]}, {"loss": math.nan, "mixed": "x"}))
    write_results(tmp_path)
    in_python, parquet = load(tmp_path), pd.read_parquet(tmp_path / "results.parquet")
    csv = pd.read_csv(tmp_path / "results.csv")
    assert list(csv.columns) == list(parquet.columns) == list(in_python.columns)
    assert parquet["loss"].dtype == "float64" and parquet["n"].dtype == "Int64"
    assert list(csv["word"])[1] == list(parquet["word"])[1] == nasty
    assert json.loads(parquet["curve"][0]) == json.loads(csv["curve"][0]) == [1.0, None]
    assert json.loads(csv["alphas"][2]) == in_python["alphas"][2] == [0.5]
    assert list(parquet["mixed"])[1:] == ["1", "x"]
    assert csv["loss"].isna().tolist() == [False, False, True]


def test_files_are_replaced_whole_or_left_as_they_are(tmp_path, monkeypatch):
    write_run(tmp_path, finished("a", {}, {"loss": 1.0}))
    write_results(tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in ("results.csv", "results.parquet", "report.html")}

    write_run(tmp_path, finished("b", {}, {"loss": 2.0}))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_results(tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    monkeypatch.undo()
    with (tmp_path / "results.csv").open("rb") as reader:
        assert write_results(tmp_path) == tmp_path / "report.html"
        assert reader.read() == before["results.csv"]  # who reads it meanwhile gets the old one whole
    assert len(pd.read_csv(tmp_path / "results.csv")) == 2


def test_a_folder_without_a_batch_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no batch; name the folder"):
        load(tmp_path / "nowhere")
    planned(tmp_path, [])
    assert len(load(tmp_path)) == 0
    write_results(tmp_path)


def test_many_rows_are_read_in_a_moment(tmp_path):
    rows = [finished(f"run-{index}", {"seed": index}, {"loss": 0.5 * index}) for index in range(1000)]
    planned(tmp_path, rows)
    for row in rows:
        write_run(tmp_path, row)
    table = load(Path(str(tmp_path)))
    assert len(table) == 1000
    assert table["loss"].sum() == 0.5 * 999 * 1000 / 2
