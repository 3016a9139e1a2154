"""The start page as a notebook and as HTML: what it says of lessons, whole, solved or malformed."""

import json
from pathlib import Path

import nbformat
import pytest

from moe_course.notebooks.start_page import read_lessons, table, write_start_page

ABOUT = {
    "title": "Route & weigh",
    "promise": "Build <it>.",
    "objectives": ["Count", "Prove"],
    "minutes": 75,
    "difficulty": 2,
}


def lesson(folder: Path, name: str, statuses: list[str], **about: object) -> None:
    """Write a notebook with one check cell for each status; "not run" leaves the cell without outputs."""
    cells = []
    for number, status in enumerate(statuses):
        verdict = {"exercise": f"x{number}", "status": status}
        output = {"output_type": "display_data", "data": {}, "metadata": {"moe_course": verdict}}
        metadata = {"moe_course": {"check": f"x{number}"}}
        outputs = [] if status == "not run" else [output]
        cells.append({"cell_type": "code", "metadata": metadata, "source": "", "outputs": outputs})
    notebook = {"cells": cells, "metadata": {"moe_course": ABOUT | about}}
    (folder / name).write_text(json.dumps(notebook), encoding="utf-8")


def test_a_row_says_what_the_lesson_asks_and_how_far_the_learner_is(tmp_path):
    lesson(tmp_path, "02_router.ipynb", ["passed", "failed", "not attempted", "passed", "not run"])
    page = table(read_lessons(tmp_path))
    assert '<a href="02_router.ipynb"' in page
    for text in ("02 · Route &amp; weigh", "Build &lt;it&gt;.", "<li>Count</li>", ">75<", "●●○<", "●●○○○<br>2 of 5<"):
        assert text in page


def test_the_first_lesson_that_is_not_done_stands_open(tmp_path):
    lesson(tmp_path, "01_a.ipynb", ["passed"])
    lesson(tmp_path, "02_b.ipynb", ["not run"])
    lesson(tmp_path, "03_c.ipynb", ["not run"])
    rows = table(read_lessons(tmp_path)).split("<tr>")[2:]
    assert ["<details open>" in row for row in rows] == [False, True, False]
    assert "1 of 1 · done" in rows[0]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"metadata": {"moe_course": 3}}',
        '{"metadata": {"moe_course": {"title": "T"}}}',
        json.dumps({"metadata": {"moe_course": ABOUT | {"minutes": "many"}}}),
        json.dumps({"metadata": {"moe_course": ABOUT | {"difficulty": None}}}),
        json.dumps({"metadata": {"moe_course": ABOUT | {"objectives": 3}}}),
    ],
)
def test_a_malformed_notebook_gets_a_row_that_says_so(tmp_path, content):
    (tmp_path / "07_odd.ipynb").write_text(content, encoding="utf-8")
    lesson(tmp_path, "08_whole.ipynb", ["passed"])
    page = table(read_lessons(tmp_path))
    assert "07 · 07_odd" in page and "This notebook cannot be read" in page
    assert "08 · Route" in page


def test_a_folder_without_lessons_says_how_to_get_them(tmp_path):
    assert "moe-course build" in table(read_lessons(tmp_path))


def test_the_page_is_a_valid_notebook_that_shows_the_table_afresh(tmp_path, monkeypatch, capsys):
    lesson(tmp_path, "02_router.ipynb", ["passed", "not run"])
    notebook = nbformat.read(write_start_page(tmp_path), as_version=4)
    nbformat.validate(notebook)
    assert "1 of 2" in notebook.cells[1].source
    lesson(tmp_path, "02_router.ipynb", ["passed", "passed"])
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda page: shown.append(page.data))
    monkeypatch.chdir(tmp_path)
    exec(notebook.cells[-1].source, {})
    assert "2 of 2 · done" in shown[0]
