"""The report tells effect from chance, draws what was measured, and needs nothing but itself."""

import itertools
import json
import math
import random
import re
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Page, sync_playwright

from moe_course.batch.report import report_page
from moe_course.batch.results import write_results
from moe_course.batch.swept import explained, label, scale, swept
from tests.browser.chromium import FLAGS, get_chromium

from .runs import finished, planned, write_run

SEEDS, ALPHAS, EXPERTS, TOP_K = range(3), [0, 0.01, 0.1, 1], [4, 8, 16], [1, 2]


def share(alpha: float, experts: int, top_k: int, seed: int) -> float:
    """A made-up number that alpha decides for the most part."""
    return 1 / experts + 1 / (1 + 30 * alpha) + 0.01 * seed + 0.005 * top_k


def grid() -> list[dict]:
    noise = random.Random(0)
    rows = []
    for index, (alpha, experts, top_k, seed) in enumerate(itertools.product(ALPHAS, EXPERTS, TOP_K, SEEDS)):
        recorded = {f"noise_{i}": noise.gauss(0, 1) for i in range(28)}
        recorded |= {"share": share(alpha, experts, top_k, seed), "experts_used": 2.0 * experts + 0.1 * seed}
        parameters = {"alpha": alpha, "num_experts": experts, "top_k": top_k, "seed": seed, "d_model": 16}
        rows.append(finished(f"run-{index}", parameters, recorded))
    return rows


# What a sweep varied, and what varied with it -----------------------------------------------------------------------


def test_the_number_and_the_parameter_that_are_explained_best_come_first():
    [found] = swept(grid()[::-1])
    assert list(found.parameters)[:2] == ["alpha", "num_experts"]
    assert set(found.parameters) == {
        "alpha",
        "num_experts",
        "top_k",
    }  # not d_model, which is the same everywhere
    assert found.parameters["alpha"] == ALPHAS
    assert list(found.numbers)[:2] == ["experts_used", "share"]
    assert found.numbers["share"]["alpha"] > 0.9 > 0.1 > found.numbers["share"]["top_k"]
    assert found.numbers["experts_used"]["num_experts"] > 0.99


def test_what_the_sweep_asks_for_comes_before_what_is_explained_best():
    [found] = swept(grid(), ["noise_3", "absent", "share"])
    assert list(found.numbers)[:3] == ["noise_3", "share", "experts_used"]


def test_chance_explains_nothing_on_average():
    noise = random.Random(1)
    groups = [index % 8 for index in range(32)]
    shares = [explained(groups, [noise.gauss(0, 1) for _ in groups]) for _ in range(300)]
    assert statistics.mean(shares) < 0.1  # η², without the correction, would be 7/31 = 0.23
    assert explained(groups, [float(group) for group in groups]) == pytest.approx(1.0)
    assert explained(groups, [1.3] * 32) == 0.0


def test_without_repetition_the_share_is_unknown():
    assert explained([1, 2, 3], [0.1, 0.2, 0.3]) is None
    assert explained([], []) is None


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-1e6, 1e6)), min_size=1))
def test_a_share_lies_between_0_and_1_and_ignores_order(pairs):
    groups, values = zip(*pairs, strict=True)
    found = explained(list(groups), list(values))
    assert found is None or 0 <= found <= 1
    backwards = explained(list(groups[::-1]), list(values[::-1]))
    assert found == backwards if found is None else backwards == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([4, 8, 16], "linear"),
        ([4, 8, 16, 32, 64], "log"),
        ([0, 0.05, 0.2, 0.8], "even"),
        ([0.001, 0.01, 0.1, 1], "log"),
        ([0, 0.01, 0.1, 1], "even"),
        ([-1, 0, 1], "linear"),
        ([7], "linear"),
        ([True, False], "names"),
        (["softmax", "sigmoid"], "names"),
        ([[0.0], [0.1, 0.3]], "names"),
    ],
)
def test_an_axis_fits_its_values(values, wanted):
    assert scale(values) == wanted


def test_settings_have_one_name_each():
    assert label(1) == label(1.0) == "1"
    assert label(True) == "true"
    assert label([0.1, "x"]) == '[0.1, "x"]'
    rows = [finished("a", {"alpha": 1}, {"x": 1}), finished("b", {"alpha": 1.0}, {"x": 2})]
    assert list(swept(rows)[0].parameters) == ["seed"]  # one alpha; nothing but the runs differ


# The page without a browser -----------------------------------------------------------------------------------------


def test_the_page_needs_nothing_but_itself():
    page = report_page([row | {"path": None} for row in grid()], {}, "")
    assert page.count("var Plotly=") == 1
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)\s*=", page)
    assert "default-src 'none'" in page


def test_the_overview_has_each_share_below_its_parameter():
    rows = [row | {"path": None, "parameters": dict(reversed(row["parameters"].items()))} for row in grid()]
    [overview] = re.findall(r"<div class='wide overview'>.*?</table>", report_page(rows, {}, ""))
    heads = re.findall(r"<th class='number'>(\w+)</th>", overview)
    assert heads[0] == "alpha"
    lines = re.findall(r"<tr><td><code>(\w+)</code>(.*?)</tr>", overview)
    assert all(re.findall(r"data-x='(\w+)'", line) == heads for _, line in lines)
    first = {name: re.findall(r">(\d+)%<", line)[0] for name, line in lines}
    assert int(first["share"]) > 90 > 10 > int(first["experts_used"])


def test_nothing_of_a_run_can_change_the_page(tmp_path):
    evil = "</script><script>alert(1)</script>'\""
    error = {"cell": 1, "first_line": evil, "name": evil, "message": evil, "traceback": evil}
    write_run(tmp_path, finished("good", {"alpha": evil, evil: 1}, {evil: 1.0, "x": 1.0}) | {"lesson": evil})
    write_run(tmp_path, finished("worse", {"alpha": "b"}, {"x": 2.0}) | {"lesson": evil})
    write_run(tmp_path, finished("bad", {"alpha": evil}, {}) | {"status": evil, "error": error}, "failed")
    (tmp_path / "sweep.toml").write_text(evil)
    page = write_results(tmp_path).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_failures_are_listed_with_cell_and_cause_and_lost_numbers_with_their_count(tmp_path):
    error = {"cell": 12, "first_line": "loss.backward()", "name": "ValueError", "message": "top_k=9", "traceback": "Tb"}
    rows = [finished("a", {"seed": 1}, {"x": 1.0}), finished("b", {"seed": 2}, {"x": math.nan})]
    failed = finished("c", {"seed": 3}, {}) | {"status": "error", "error": error}
    planned(tmp_path, [*rows, failed, finished("d", {"seed": 4}, {})])
    for row in rows:
        write_run(tmp_path, row)
    write_run(tmp_path, failed, "failed")
    page = write_results(tmp_path).read_text(encoding="utf-8").split("<script>")[0]
    assert "✓ 2 done" in page and "✗ 1 error" in page and "○ 1 not started" in page
    assert "cell 12: <code>loss.backward()</code>" in page and "ValueError: top_k=9" in page
    assert "<a href='failed/c.ipynb'>" in page and "<a href='runs/a.ipynb'>" in page
    assert "NaN or ∞ in 1" in page
    assert "<td>04_load_balancing</td><td>3</td><td><code>train()</code></td>" in page  # the slowest cell


def test_batches_in_which_nothing_was_recorded_or_done_say_so():
    page = report_page([finished("a", {}, {"word": "x"}) | {"path": None}], {}, "")
    assert "recorded no number" in page and "<script>" not in page
    waiting = finished("a", {}, {}) | {"status": "not started", "path": None}
    assert "No run is done yet" in report_page([waiting], {}, "")
    assert "0 runs" in report_page([], {}, "")


# The page in a browser ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of `grid()`, in Chromium; complaints of the page and requests to anywhere are in its attributes."""
    folder = tmp_path_factory.mktemp("report")
    for row in grid():
        write_run(folder, row)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=get_chromium(), args=FLAGS)
        page = browser.new_page(color_scheme="dark")
        page.set_default_timeout(120_000)  # ms; a busy machine takes its time over 5 MB of plotly.js
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("request", lambda request: page.complaints.append(request.url) if ":" in request.url[5:] else None)
        page.goto(write_results(folder).as_uri())
        page.wait_for_function("document.querySelector('.plot').data")
        yield page
        browser.close()


def traces(page: Page, number: str) -> list[dict]:
    return json.loads(page.evaluate("name => JSON.stringify([..." + CARD + ".querySelector('.plot').data])", number))


def axis_title(page: Page, number: str) -> str:
    return page.evaluate("name => " + CARD + ".querySelector('.plot').layout.xaxis.title.text", number)


CARD = "[...document.querySelectorAll('.plot-card')].find(card => card.querySelector('b').textContent === name)"


def choose(page: Page, role: str, value: str) -> None:
    page.select_option(f"select[data-role={role}]", value)


def test_means_bands_and_points_are_those_of_the_runs(page):
    choose(page, "x", "alpha"), choose(page, "colour", "num_experts"), choose(page, "panels", "top_k")
    drawn = traces(page, "share")
    lines = [trace for trace in drawn if trace["mode"] == "lines+markers"]
    assert [trace["name"] for trace in lines] == ["4", "8", "16"] * 2
    wanted = [[share(a, 8, 2, s) for s in SEEDS] for a in ALPHAS]
    assert lines[4]["y"] == pytest.approx([statistics.mean(values) for values in wanted])
    bands = [trace for trace in drawn if trace.get("fill") == "toself"]
    assert bands[4]["y"] == pytest.approx([max(values) for values in wanted] + [min(v) for v in reversed(wanted)])
    points = [trace for trace in drawn if trace["mode"] == "markers"]
    assert sorted(points[4]["y"]) == pytest.approx(sorted(itertools.chain(*wanted)))
    assert sum(len(trace["y"]) for trace in points) == len(grid())
    assert points[0]["customdata"][0].startswith("runs/run-")
    assert axis_title(page, "share") == "alpha (even steps)"


@pytest.mark.parametrize(("x", "panels", "count"), [("alpha", "num_experts", 3), ("num_experts", "alpha", 4)])
def test_panels_share_axes_that_fit_their_values(page, x, panels, count):
    choose(page, "x", x), choose(page, "colour", "top_k"), choose(page, "panels", panels)
    read = "({_fullLayout: all}) => Object.keys(all).filter(n => /^yaxis/.test(n)).map(n => all[n].range)"
    ranges = page.evaluate(f"name => ({read})({CARD}.querySelector('.plot'))", "share")
    values = [share(a, e, k, s) for a, e, k, s in itertools.product(ALPHAS, EXPERTS, TOP_K, SEEDS)]
    assert len(ranges) == count
    for low, high in ranges:
        assert low <= min(values) and max(values) <= high and high - low < 1.3 * (max(values) - min(values))


def test_a_parameter_has_one_role_and_pooling_takes_what_is_left(page):
    choose(page, "x", "alpha"), choose(page, "colour", "num_experts"), choose(page, "panels", "")
    assert page.locator("label:has(select[data-only=top_k])").is_visible()
    pooled = [trace for trace in traces(page, "share") if trace["mode"] == "markers"]
    assert sum(len(trace["y"]) for trace in pooled) == len(grid())
    page.select_option("select[data-only=top_k]", "1")
    only = [trace for trace in traces(page, "share") if trace["mode"] == "markers"]
    assert sum(len(trace["y"]) for trace in only) == len(grid()) / 2
    page.select_option("select[data-only=top_k]", "")

    choose(page, "x", "num_experts")  # which had the colours
    roles = [page.input_value(f"select[data-role={role}]") for role in ("x", "colour", "panels")]
    assert roles == ["num_experts", "alpha", ""]
    choose(page, "colour", "")
    choose(page, "panels", "num_experts")  # which was across, and something must be
    assert len({page.input_value(f"select[data-role={role}]") for role in ("x", "colour", "panels")}) == 3
    assert page.input_value("select[data-role=x]") != ""


def test_thirty_numbers_are_folded_and_a_cell_of_the_overview_opens_its_plot(page):
    choose(page, "x", "alpha")
    assert page.locator(".plot-card").count() == 30
    assert page.locator(".plot-card[open]").count() <= 4
    name = page.locator(".plot-card:not([open]) b").last.text_content()
    place = page.locator(".plot-card").count() - 1
    page.click(f"button[data-card='{place}'][data-x=top_k]")
    page.wait_for_function("name => " + CARD + ".querySelector('.plot').data", arg=name)
    assert axis_title(page, name) == "top_k"
    page.locator(".plot-card").last.evaluate("card => card.open = false")


def test_both_themes_are_legible(page):
    def luminance(rule: str) -> float:
        values = re.findall(r"[\d.]+", page.evaluate(rule))[:3]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (float(x) / 255 for x in values)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    choose(page, "x", "alpha"), choose(page, "colour", "num_experts")
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        ground = luminance("getComputedStyle(document.querySelector('.plot-card')).backgroundColor")
        for text in (".plot .xtick text", ".plot .gtitle", ".plot .legendtext", "td.share button", "h1"):
            kind = "fill" if text.startswith(".plot") else "color"
            ink = luminance(f"getComputedStyle(document.querySelector('{text}')).{kind}")
            assert (max(ink, ground) + 0.05) / (min(ink, ground) + 0.05) > 4.5, (theme, text)


def test_the_page_complains_of_nothing_and_asks_nobody(page):
    assert page.complaints == []


def test_other_shapes_of_batches_draw_without_complaint(page, tmp_path):
    rows = [
        *(finished(f"s{seed}", {"seed": seed}, {"x": seed * 1.5, "nan": math.nan}) for seed in range(3)),
        *(
            finished(f"w{w}{s}", {"score": w, "seed": s}, {"x": s}) | {"lesson": "02_router"}
            for w in "ab"
            for s in (1, 2)
        ),
        finished("n", {}, {"word": "x"}) | {"lesson": "03_expert_layer"},
    ]
    for row in rows:
        write_run(tmp_path, row)
    page.goto(write_results(tmp_path).as_uri())
    page.wait_for_function("document.querySelectorAll('.plot .xtick').length > 4")
    assert page.locator("section.lesson").count() == 2
    assert page.locator(".plot .annotation-text", has_text="no finite number").count() == 1
    assert page.complaints == []
