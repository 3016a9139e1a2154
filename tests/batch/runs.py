"""Folders as `moe-course batch` leaves them, made by hand."""

import json
from pathlib import Path
from typing import Any


def finished(name: str, parameters: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
    """The row of a run that went well."""
    return {
        **{"id": name, "key": f"key of {name}", "lesson": "04_load_balancing", "parameters": parameters},
        **{"seed": parameters.get("seed"), "status": "done", "attempts": 1, "kernel": "warm", "error": None},
        **{"seconds": 2.5, "cpu_seconds": 2.0, "peak_memory_mb": 400.0},
        **{"started": "2026-11-22T08:00:00+00:00", "finished": "2026-11-22T08:00:02+00:00"},
        **{"slowest_cell": {"cell": 3, "first_line": "train()", "seconds": 1.5}, "results": recorded},
    }


def write_run(folder: Path, row: dict[str, Any], place: str = "runs", notebook: bool = True) -> None:
    """A run's row and its notebook."""
    (folder / place).mkdir(exist_ok=True)
    (folder / place / f"{row['id']}.json").write_text(json.dumps(row), encoding="utf-8")
    if notebook:
        (folder / place / f"{row['id']}.ipynb").write_text("{}", encoding="utf-8")


def planned(folder: Path, rows: list[dict[str, Any]]) -> None:
    """The plan of a batch with these runs."""
    runs = [{key: row[key] for key in ("id", "key", "lesson", "parameters", "seed")} for row in rows]
    plan = {"sweep": "a sweep", "package": "0.1.0", "created": "2026-11-22T08:00:00+00:00", "runs": runs}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
