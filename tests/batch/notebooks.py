"""Notebooks and sweeps for the tests of batches: small, without torch, in a folder of their own."""

import json
from pathlib import Path
from typing import Any

from moe_course.batch.plan import Plan, make_plan
from moe_course.batch.sweep import read_sweep

PARAMETERS = """
x: int = 1
seed: int = 0
rate: float = 0.5
name: str = "plain"
sizes: list = [1, 2]
"""


def write_notebook(folder: Path, *cells: str, name: str = "small", parameters: str | None = PARAMETERS) -> Path:
    """A notebook of code cells; `parameters` comes first, if there are any."""
    sources = [*([parameters] if parameters is not None else []), *cells]
    notebook: dict[str, Any] = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    for number, source in enumerate(sources):
        tags = ["parameters"] if number == 0 and parameters is not None else []
        if source.startswith("# raises"):
            tags = ["raises-exception"]
        cell = {"cell_type": "code", "id": f"c{number}", "metadata": {"tags": tags}, "source": source}
        notebook["cells"].append(cell | {"execution_count": None, "outputs": []})
    path = folder / f"{name}.ipynb"
    path.write_text(json.dumps(notebook))
    return path


def write_sweep(folder: Path, text: str, name: str = "sweep") -> Path:
    """A sweep file; without `lessons` it gets those of the small notebook."""
    path = folder / f"{name}.toml"
    path.write_text(text if "lessons" in text else f'lessons = ["small.ipynb"]\n{text}')
    return path


def plan_of(folder: Path, text: str) -> Plan:
    """The plan of a sweep."""
    return make_plan(read_sweep(write_sweep(folder, text)))


def rows_in(folder: Path) -> dict[str, dict[str, Any]]:
    """The rows of a batch, by place and parameters: `rows["runs x=1"]`."""
    rows = {}
    for path in folder.glob("*/*.json"):
        row = json.loads(path.read_text())
        given = row["parameters"] | ({} if row["seed"] is None else {"seed": row["seed"]})
        rows[f"{path.parent.name} " + " ".join(f"{name}={value}" for name, value in given.items())] = row
    return rows
