"""The start page in a real JupyterLab: every lesson, its link, and the progress saved in it."""

import json

import pytest
from playwright.sync_api import expect


@pytest.fixture(scope="module")
def lessons(lessons):
    """Lesson 02 with three exercises solved, and a file that is no notebook."""
    path = lessons / "02_router.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    checks = [cell for cell in notebook["cells"] if "check" in cell["metadata"].get("moe_course", {})]
    for cell, status in zip(checks, ["passed", "passed", "failed", "passed"], strict=False):
        verdict = {"exercise": cell["metadata"]["moe_course"]["check"], "status": status}
        metadata = {"moe_course": verdict}
        cell["outputs"] = [{"output_type": "display_data", "data": {"text/plain": ""}, "metadata": metadata}]
    path.write_text(json.dumps(notebook), encoding="utf-8")
    (lessons / "99_broken.ipynb").write_text("{", encoding="utf-8")
    return lessons


def test_the_course_opens_on_a_page_with_lessons_and_progress(server, lessons, notebook):
    notebook.open(server)
    rows = notebook.page.locator(".jp-MarkdownOutput tbody tr")
    expect(rows).to_have_count(len(list(lessons.glob("[0-9]*.ipynb"))))
    router = rows.filter(has_text="02 · The router")
    for text in ("85", "●●●○○○", "3 of 6", "Picture a linear gate as regions of space"):
        expect(router).to_contain_text(text)
    expect(rows.filter(has_text="99_broken")).to_contain_text("This notebook cannot be read")
    assert notebook.console == []

    router.get_by_role("link").click()
    expect(notebook.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) h1").first).to_contain_text("02 · The router")


def test_the_page_is_fresh_after_a_save_when_its_cell_is_run(server, lessons, notebook):
    notebook.open(server)
    path = lessons / "02_router.ipynb"
    path.write_text(path.read_text(encoding="utf-8").replace('"failed"', '"passed"'), encoding="utf-8")
    notebook.run_all()
    expect(notebook.output("progress()")).to_contain_text("4 of 6")
    assert notebook.errors() == []
