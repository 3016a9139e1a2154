"""What a batch found out: one row a run, for pandas, as CSV and as Parquet."""

import csv
import io
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_course.batch.record import RUN_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

DONE, NOT_STARTED = "done", "not started"
BEFORE = ("id", "lesson", "status")  # columns to the left of parameters and results; the rest stand to the right


def load(folder: Path | str) -> "pd.DataFrame":
    """The runs of a batch as a table, one row a run, in the order of the plan; finished or not.

    Columns: id, lesson, status; one for each parameter and one for each recorded name, in which arrays are lists and
    tables are lists of dicts; seconds, cpu_seconds, peak_memory_mb, attempts, kernel, started, finished, path of the
    notebook, error. A recorded name that is a parameter's too gets `_recorded` behind it.

    Args:
        folder: what `moe-course batch --out` was given.

    Raises:
        FileNotFoundError: there is no such folder, or no batch in it.
    """
    import pandas as pd

    columns = table_columns(read_rows(Path(folder)))
    return pd.DataFrame({name: _series(values) for name, values in columns.items()})


def write_results(folder: Path) -> Path:
    """Write results.csv, results.parquet and report.html from what is in the folder, each whole or not at all.

    In the two tables arrays and tables are JSON text. CSV leaves missing numbers and NaN empty.

    Returns:
        The report's path.
    """
    from moe_course.batch.report import report_page

    folder = Path(folder)
    rows = read_rows(folder)
    columns = {name: [_flat(value) for value in values] for name, values in table_columns(rows).items()}
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_cell(value) for value in row] for row in zip(*columns.values(), strict=True))
    _write(folder / "results.csv", lambda path: path.write_text(out.getvalue(), encoding="utf-8", newline=""))
    _write(folder / "results.parquet", lambda path: _write_parquet(columns, path))
    page = report_page(rows, _object(folder / "plan.json"), _text(folder / "sweep.toml"))
    _write(folder / "report.html", lambda path: path.write_text(page, encoding="utf-8"))
    return folder / "report.html"


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a batch as they were written beside its notebooks, with a path; what is no row is passed over.

    Planned runs that have none are there with the status "not started"; runs that are not planned any more are not.

    Raises:
        FileNotFoundError: there is no such folder, or no batch in it.
    """
    if not any((folder / name).exists() for name in ("plan.json", "runs", "failed")):
        raise FileNotFoundError(f"{folder} holds no batch; name the folder that `moe-course batch --out` wrote to")
    found: dict[str, dict[str, Any]] = {}
    for place in ("failed", "runs"):  # what failed first and then went well, went well
        for path in sorted((folder / place).glob("*.json")):
            row = _row(_object(path))
            notebook = path.with_suffix(".ipynb")
            exists = notebook.is_file()
            if row is None or (place == "runs" and not exists):  # its notebook was never finished
                continue
            found[row["id"]] = row | {"path": f"{place}/{notebook.name}" if exists else None}
    planned = [run for run in map(_row, _list(_object(folder / "plan.json").get("runs"))) if run]
    if not planned:
        return list(found.values())
    return [found.get(run["id"], run | {"status": NOT_STARTED, "path": None}) for run in planned]


def table_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The table's columns, in order; None where a row has no such value."""
    given = [row["parameters"] | ({"seed": row["seed"]} if row["seed"] is not None else {}) for row in rows]
    parameters = {name: f"{name}_parameter" if name in RUN_COLUMNS else name for each in given for name in each}
    taken = {*RUN_COLUMNS, *parameters.values()}
    results = {name: f"{name}_recorded" if name in taken else name for row in rows for name in row["results"]}
    return {
        **{name: [row.get(name) for row in rows] for name in BEFORE},
        **{column: [each.get(name) for each in given] for name, column in parameters.items()},
        **{column: [row["results"].get(name) for row in rows] for name, column in results.items()},
        **{name: [row.get(name) for row in rows] for name in RUN_COLUMNS if name not in (*BEFORE, "error")},
        "error": [error_text(row) for row in rows],
    }


def error_text(row: dict[str, Any]) -> str | None:
    """Why a run failed, in a line."""
    error = row["error"]
    if not error:
        return None
    where = f"cell {error['cell']}: " if error.get("cell") is not None else ""
    what = ": ".join(str(error[key]) for key in ("name", "message") if error.get(key))
    return where + " ".join(what.split())


# Rows, read without trust ---------------------------------------------------------------------------------------------


def _row(raw: Any) -> dict[str, Any] | None:
    """A row with every field that readers need, or None if it is no row."""
    if not isinstance(raw, dict) or not all(isinstance(raw.get(key), str) and raw[key] for key in ("id", "lesson")):
        return None
    fields: dict[str, Any] = {
        key: raw.get(key) if isinstance(raw.get(key), dict) else {} for key in ("parameters", "results")
    }
    times = {key: _number(raw.get(key)) for key in ("seconds", "cpu_seconds", "peak_memory_mb")}
    parts = {key: raw.get(key) if isinstance(raw.get(key), dict) else None for key in ("error", "slowest_cell")}
    return dict.fromkeys((*RUN_COLUMNS, "seed")) | raw | fields | times | parts | {"status": str(raw.get("status"))}


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _object(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if it is missing, half-written or something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


# Columns, typed and written -------------------------------------------------------------------------------------------


def _series(values: list[Any]) -> "pd.Series":
    """A column of the type that its values have: bool, whole number, number, text, else as they are."""
    import pandas as pd

    types = {type(value) for value in values if value is not None}
    missing = None in values
    if types == {bool}:
        return pd.Series(values, dtype="boolean" if missing else "bool")
    if types == {int} and all(value is None or abs(value) < 2**63 for value in values):
        return pd.Series(values, dtype="Int64" if missing else "int64")
    if types and types <= {int, float}:
        return pd.Series([math.nan if value is None else float(value) for value in values], dtype="float64")
    return pd.Series(values) if types == {str} else pd.Series(values, dtype="object")


def _flat(value: Any) -> Any:
    """A list or dict as JSON text, without the numbers that JSON lacks."""
    return json.dumps(_finite(value), ensure_ascii=False) if isinstance(value, list | dict) else value


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv_cell(value: Any) -> Any:
    return "" if value is None or value != value else value


def _write_parquet(columns: dict[str, list[Any]], path: Path) -> None:
    import pandas as pd

    series = {}
    for name, values in columns.items():
        types = {type(value) for value in values if value is not None}
        if len(types) > 1 and not types <= {int, float}:
            values = [None if value is None else str(value) for value in values]  # a column of Parquet has one type
        series[name] = _series(values)
    pd.DataFrame(series).to_parquet(path)


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write whole or not at all, whoever else writes the same file."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    scratch = Path(name)
    try:
        write(scratch)
        scratch.chmod(0o644)
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
