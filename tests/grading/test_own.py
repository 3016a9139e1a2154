"""`moe-course check` grades one's own notebook with the grader's code, and says what it would say."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moe_course.cli import app
from moe_course.commands import FAILED, CommandError
from tests.grading.conftest import notebook

WRONG = "def route(logits, top_k, score='softmax', renormalize=True):\n    return router_scores(logits, score)[1]\n"


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    """Rich folds no sentence that a test looks for."""
    monkeypatch.setenv("COLUMNS", "300")


def write(path: Path, answers: dict[str, str]) -> Path:
    path.write_text(json.dumps(notebook(answers)), encoding="utf-8")
    return path


def test_it_says_what_the_grader_says_and_shows_what_was_expected(tmp_path, solved):
    short = solved["02.tokens_per_expert"].replace(", minlength=num_experts", "")
    mine = write(tmp_path / "mine.ipynb", solved | {"02.tokens_per_expert": short, "02.route": WRONG})
    before = mine.read_bytes()
    untouched = {"02.gate_jacobian": solved["02.gate_jacobian"]}
    done = CliRunner().invoke(app, ["check", str(mine), str(write(tmp_path / "new.ipynb", untouched)), "--hints"])
    assert done.exit_code == FAILED, done.output
    said = done.output
    assert "✓ The linear gate · 02.router_logits, 1 of 1" in said and "All checks pass." in said
    assert "Diagnosis: Your result ends at the largest id" in said and "expected (4,)" in said
    assert "✗ Top-k routing · 02.route, 0 of 3" in said and "In your code, cell" in said
    assert "Hint 3: Flatten the ids" in said
    assert "new.ipynb: 3 of 12 points" in said and "Not attempted." in said
    assert mine.read_bytes() == before


@pytest.mark.parametrize("text", ["", "no JSON", "[]", '{"cells": 3}'])
def test_a_file_that_is_no_notebook(tmp_path, text):
    (tmp_path / "mine.ipynb").write_text(text, encoding="utf-8")
    done = CliRunner().invoke(app, ["check", str(tmp_path / "mine.ipynb")])
    assert isinstance(done.exception, CommandError) and "is not a notebook that can be read" in str(done.exception)


def test_a_notebook_without_exercises(tmp_path):
    (tmp_path / "mine.ipynb").write_text('{"cells": [], "metadata": {}}', encoding="utf-8")
    done = CliRunner().invoke(app, ["check", str(tmp_path / "mine.ipynb")])
    assert done.exit_code == FAILED and "mine.ipynb holds no exercises; open a lesson" in done.output
