"""nbval, with the course's plugin, fails where a notebook no longer does what it did."""

import json
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from pathlib import Path

import nbformat
import pytest

from moe_course.batch.parameters import read_parameters
from moe_course.notebooks.make import KERNEL

ROOT = Path(__file__).parents[2]
CHECK = """\
from IPython.display import display
display({{"text/plain": "a table"}}, raw=True, metadata={{"moe_course": {{"exercise": "x", "status": "{status}"}}}})
"""


def printing(text: str, stored: str | None, count: int | None = 1) -> nbformat.NotebookNode:
    """A cell that prints `text`, with another text stored."""
    outputs = [] if stored is None else [nbformat.v4.new_output("stream", name="stdout", text=stored + "\n")]
    cell = nbformat.v4.new_code_cell(f"print('{text}')", outputs=outputs, execution_count=count)
    return tagged(cell)


def checking(status: str) -> nbformat.NotebookNode:
    """A cell that displays what `check` would with this status; nothing is stored."""
    cell = nbformat.v4.new_code_cell(CHECK.format(status=status))
    cell.metadata["moe_course"] = {"check": "x"}
    return tagged(cell)


def checked(status: str, stored: str = "a table") -> nbformat.NotebookNode:
    """The same with an output stored."""
    cell = checking(status)
    cell.outputs = [nbformat.v4.new_output("display_data", data={"text/plain": stored})]
    cell.execution_count = 1
    return cell


def tagged(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    cell.metadata["tags"] = ["nbval-check-output"]
    return cell


def setting(steps: int) -> nbformat.NotebookNode:
    """A cell of parameters, as it is in the notebook."""
    cell = nbformat.v4.new_code_cell(f"steps: int = {steps}")
    cell.metadata["tags"] = ["parameters"]
    return cell


CELLS = {  # (folder, cell) and what nbval has to say of it; None if it is to pass
    "same": ("solutions", printing("1", "1"), None),
    "changed": ("solutions", printing("1", "2"), "Cell outputs differ"),
    "nothing stored": ("solutions", printing("1", None), "Unexpected output fields"),
    "never run": ("solutions", printing("1", None, count=None), "was never run"),
    "passed": ("solutions", checked("passed"), None),
    "passed with another table": ("solutions", checked("passed", stored="another"), "Cell outputs differ"),
    "failed": ("solutions", checked("failed"), "says 'failed' where it must say 'passed'"),
    "unsolved": ("lessons", checking("not attempted"), None),
    "solved already": ("lessons", checking("passed"), "says 'passed' where it must say 'not attempted'"),
    "parameters": ("lessons", setting(5), None),
    "parameters changed": ("lessons", nbformat.v4.new_code_cell("assert steps == 2"), None),
    "parameters, solved": ("solutions", setting(5), None),
    "parameters kept": ("solutions", nbformat.v4.new_code_cell("assert steps == 5"), None),
    "raises": ("lessons", nbformat.v4.new_code_cell("1 / 0"), "ZeroDivisionError"),
}


RUN = "import sys, pytest; pytest.main({!r}); print('slow import:', sys.modules.get('rfc3987_syntax'))"
PLUGINS = ["-p", "moe_course.notebooks.pytest_plugin", "-p", "no:cacheprovider"]
OPTIONS = ["--nbval-lax", "--nbval-cell-timeout", "60", "--junit-xml", "report.xml", "-o", "nbval_unsolved=few.toml"]


@pytest.fixture(scope="module")
def nbval(tmp_path_factory) -> tuple[dict[str, str | None], str]:
    """What nbval says of each of CELLS, in one run over two notebooks; and what the run prints."""
    root = tmp_path_factory.mktemp("nbval")
    (root / "few.toml").write_text("[ce]\nsteps = 2\n")  # for a lesson whose file begins with these two
    for folder in ("solutions", "lessons"):
        (root / folder).mkdir()
        cells = [cell for place, cell, _ in CELLS.values() if place == folder]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})
        nbformat.write(notebook, root / folder / "cells.ipynb")
    code = RUN.format([*PLUGINS, *OPTIONS, "solutions", "lessons"])
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    cases = ET.parse(root / "report.xml").findall(".//testcase")
    assert len(cases) == len(CELLS), run.stdout
    failures = [None if len(case) == 0 else "".join(case.itertext()) for case in cases]
    names = [name for folder in ("solutions", "lessons") for name, entry in CELLS.items() if entry[0] == folder]
    return dict(zip(names, failures, strict=True)), run.stdout


@pytest.mark.parametrize("name", CELLS)
def test_each_kind_of_cell(nbval, name):
    says, report = CELLS[name][2], nbval[0][name]
    assert report is None if says is None else says in (report or "")


def test_the_slow_import_stays_out_of_the_run(nbval):
    assert "slow import: None" in nbval[1]


LESSONS = sorted(ROOT.glob("lessons/[0-9][0-9]_*.ipynb"))


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_unsolved_lessons_get_other_settings_of_their_own_parameters(path):
    given = tomllib.loads((ROOT / "tests/notebooks/unsolved.toml").read_text())[path.stem[:2]]
    cells = nbformat.read(path, as_version=4).cells
    [cell] = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    parameters = read_parameters(cell.source)
    for name, value in given.items():
        assert parameters[name].fit(value) != parameters[name].default


NOTEBOOKS = LESSONS + sorted(ROOT.glob("solutions/*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_outputs_are_stored_where_they_are_compared_and_nowhere_in_lessons(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    compared = [cell for cell in cells if "nbval-check-output" in cell["metadata"].get("tags", [])]

    assert any("check" in cell["metadata"].get("moe_course", {}) for cell in compared)
    if path.parent.name == "lessons":
        assert not [cell["id"] for cell in cells if cell["outputs"] or cell["execution_count"]]
    else:
        assert not [cell["id"] for cell in compared if not cell["outputs"] or not cell["execution_count"]]
