"""A learner's way through lesson 02, in a real JupyterLab: two mistakes, the right answer, a slider, a quiz."""

import re

from playwright.sync_api import expect

from moe_course.exercises import by_id
from tests.browser.jupyter import DARK

ROUTE = by_id("02.route")
SIGNATURE = "def route(logits, top_k, score='softmax', renormalize=True):\n"
ANSWER = """    weights, expert_ids = router_scores(logits, score).topk(top_k, dim=-1)
    {last_step}
    return weights.to(logits.dtype), expert_ids
"""
MISTAKES = {
    "never-renormalised": "pass",
    "always-renormalised": "weights = weights / weights.sum(dim=-1, keepdim=True)",
}
RIGHT = "weights = weights / weights.sum(dim=-1, keepdim=True) if renormalize else weights"


def test_a_learners_way_through_lesson_02(server, lessons, notebook):
    notebook.open(server, "02_router.ipynb")
    notebook.run_all()
    assert notebook.errors() == []
    expect(verdict(notebook)).to_contain_text("route: not attempted yet")

    for mistake, last_step in MISTAKES.items():
        answer(notebook, last_step)
        says = next(each.says for each in ROUTE.misconceptions if each.id == mistake)
        expect(verdict(notebook)).to_contain_text(f"Diagnosis. {says.replace('`', '')}")
        expect(verdict(notebook)).to_contain_text("The rest of the lesson uses the reference")

    answer(notebook, RIGHT)
    expect(verdict(notebook)).to_contain_text("route: all checks pass, 3 of 3 points")

    move_a_slider(notebook)
    answer_a_quiz(notebook)
    change_the_theme(notebook)
    assert notebook.errors() == []
    assert notebook.console == []

    notebook.command("docmanager:save")
    notebook.open(server)
    notebook.run("progress()")
    expect(notebook.output("progress()")).to_contain_text("1 of 6")


def answer(notebook, last_step: str) -> None:
    notebook.rewrite("def route(", SIGNATURE + ANSWER.format(last_step=last_step))
    notebook.run("def route(")
    notebook.run("route = check(route)")


def verdict(notebook):
    return notebook.output("route = check(route)")


def move_a_slider(notebook) -> None:
    cell = notebook.cell("sliders(turned")
    handle, figure = cell.locator(".noUi-handle").first, cell.locator(".js-plotly-plot")
    handle.scroll_into_view_if_needed()
    expect(figure.locator(".main-svg").first).to_be_visible()
    before = figure.inner_html()
    handle.focus()
    for _ in range(6):
        handle.press("ArrowRight")
    expect(cell.locator(".widget-readout").first).to_have_text("75")
    notebook.page.wait_for_function(
        "([node, before]) => node.innerHTML !== before", arg=[figure.element_handle(), before]
    )


def answer_a_quiz(notebook) -> None:
    cell = notebook.cell("Take one token and move it straight away")
    cell.get_by_label("All logits double, and the expert may change").check()
    expect(cell).to_contain_text("✗ Not this one.")
    cell.get_by_label("All logits double, and the expert stays the same").check()
    expect(cell).to_contain_text(re.compile("✓ Right"))


def change_the_theme(notebook) -> None:
    figure = notebook.cell("show(figures.").locator(".js-plotly-plot")
    figure.scroll_into_view_if_needed()
    height = figure.bounding_box()["height"]
    notebook.command("apputils:change-theme", theme=DARK)
    notebook.page.wait_for_timeout(2000)  # figures fit themselves to their new surroundings
    assert figure.bounding_box()["height"] == height > 200
