"""`moe-course check` says how far a learner is, for whatever they hand it.

Here as on Windows, where the notebook itself is run; tests/grading/test_own.py has it graded, as elsewhere.
"""

from pathlib import Path

import nbformat
import pytest
from typer.testing import CliRunner

from moe_course.cli import app
from moe_course.commands import FAILED, CommandError
from moe_course.notebooks.make import KERNEL

OK = 0
# Stands in for `check`, so that no kernel has to import torch: display what it would, metadata included.
CHECK = """\
from IPython.display import display
about = {{"exercise": "{id}", "status": "{status}", "points": {points}, "max_points": 2, "message": "{message}"}}
display({{"text/plain": "a table"}}, raw=True, metadata={{"moe_course": about}})
"""


@pytest.fixture(autouse=True)
def surroundings(monkeypatch):
    """No processes can be forked, and Rich folds no sentence that a test looks for."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delattr("os.fork")


def check_cell(id: str, status: str, points: float = 0, message: str = "") -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell(CHECK.format(id=id, status=status, points=points, message=message))
    cell.metadata["moe_course"] = {"check": id}
    return cell


PASSED = check_cell("02.route", "passed", points=2)
FAILING = check_cell("02.scores", "failed", points=0.5, message="rows sum to 2, not 1")
UNTRIED = check_cell("02.gate", "not attempted")
RAISES = nbformat.v4.new_code_cell("x = 1\ngate[x]")


def write(path: Path, *cells: nbformat.NotebookNode) -> Path:
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells), metadata={"kernelspec": KERNEL}), path)
    return path


def check(*arguments: object):
    """The result of the command; a traceback is never among its outcomes."""
    result = CliRunner().invoke(app, ["check", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit | CommandError), result.exception
    return result


def test_a_solved_notebook(tmp_path):
    path = write(tmp_path / "mine.ipynb", PASSED)
    before = path.read_bytes()

    result = check(path)

    assert result.exit_code == OK
    assert "02.route" in result.output and "✓ passed" in result.output and "2/2" in result.output
    assert path.read_bytes() == before


def test_a_notebook_with_every_verdict_and_a_cell_that_raises(tmp_path):
    result = check(write(tmp_path / "mine.ipynb", FAILING, RAISES, UNTRIED, PASSED))

    assert result.exit_code == FAILED
    for text in ("✗ not yet", "0.5/2", "rows sum to 2, not 1", "○ not attempted", "✓ passed"):
        assert text in result.output
    assert "Not all cells ran. cell 1 (`x = 1`): NameError: name 'gate' is not defined" in result.output
    assert "Traceback" not in result.output


def test_a_kernel_that_dies_leaves_no_old_verdict_standing(tmp_path):
    dies = nbformat.v4.new_code_cell("import os\nos._exit(1)")
    was_run = PASSED.copy()
    about = {"moe_course": {"exercise": "02.route", "status": "passed", "points": 2, "max_points": 2}}
    was_run.outputs = [nbformat.v4.new_output("display_data", data={"text/plain": "a table"}, metadata=about)]
    path = write(tmp_path / "mine.ipynb", dies, was_run)

    assert check("--saved", path).exit_code == OK
    result = check(path)

    assert result.exit_code == FAILED
    assert "○ not run" in result.output and "cell 0 (`import os`): the kernel died" in result.output


def test_saved_verdicts_are_read_without_a_kernel(tmp_path):
    result = check("--saved", write(tmp_path / "mine.ipynb", RAISES, UNTRIED))

    assert result.exit_code == FAILED
    assert "02.gate" in result.output and "○ not run" in result.output
    assert "NameError" not in result.output


def test_a_notebook_without_exercises(tmp_path):
    result = check("--saved", write(tmp_path / "mine.ipynb"))

    assert result.exit_code == FAILED
    assert "mine.ipynb holds no exercises; open a lesson" in result.output


def test_a_kernel_that_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setattr("jupyter_client.kernelspec.KernelSpecManager.ensure_native_kernel", False)
    monkeypatch.setattr("jupyter_client.kernelspec.KernelSpecManager._get_kernel_spec_by_name", no_such_kernel)

    result = check(write(tmp_path / "mine.ipynb", PASSED))

    assert result.exit_code == FAILED
    assert "no kernel starts" in result.output and "moe-course doctor" in result.output


def no_such_kernel(*_: object) -> None:
    from jupyter_client.kernelspec import NoSuchKernel

    raise NoSuchKernel("python3")


@pytest.mark.parametrize("text", ["", "no JSON", "[]", "{}", '{"cells": 3}', '{"nbformat": 4, "cells": []}'])
@pytest.mark.parametrize("saved", [[], ["--saved"]])
def test_a_file_that_is_no_notebook(tmp_path, text, saved):
    path = tmp_path / "mine.ipynb"
    path.write_text(text, encoding="utf-8")

    result = check(*saved, path)

    assert isinstance(result.exception, CommandError)
    assert f"{path} is not a notebook that can be read" in str(result.exception)


@pytest.mark.parametrize("name", ["no_such.ipynb", "77", "lessons"])
def test_a_notebook_that_is_not_there(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lessons").mkdir()

    result = check(name)

    assert isinstance(result.exception, CommandError)
    assert f"there is no notebook {name}; give a path" in str(result.exception)


@pytest.mark.parametrize("name", ["2", "02"])
@pytest.mark.parametrize("folder", [".", "lessons"])
def test_a_lesson_by_its_number(tmp_path, monkeypatch, folder, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / folder).mkdir(exist_ok=True)
    write(tmp_path / folder / "02_router.ipynb", UNTRIED)

    assert "02_router.ipynb" in check("--saved", name).output
