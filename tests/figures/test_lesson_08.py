"""Figures of lesson 08 show the numbers they are given, with title, axes and units; text by expert stays readable."""

import re

import pytest
import torch

from moe_course.figures import lesson_08 as figures
from moe_course.figures.lesson_08_text import coloured_text, hover_text
from moe_course.figures.style import expert_colour

PARTS = dict.fromkeys(figures.PARTS, 1e9)
LOSSES = {"dense": torch.tensor([[3.0, 2.5], [3.2, 2.1]]), "MoE": torch.tensor([[3.0, 2.0], [3.0, 2.2]])}
SHARES = {"block 0": torch.tensor([[0.75, 0.25], [0.5, 0.5]]), "block 1": torch.tensor([[1.0, 0.0], [0.1, 0.9]])}
IDS = {"block 0": torch.tensor([[[0, 1], [1, 0], [1, 0]]] * 2), "block 1": torch.tensor([[[1, 0], [0, 1], [1, 0]]] * 2)}
ROUTINGS = {name: (ids, torch.tensor([0.75, 0.25]).expand_as(ids)) for name, ids in IDS.items()}
TEXTS = {"prose": ["a", "<", "\n"], "json": ["{", " ", "é"]}
FIGURES = {
    "scores_by_position": figures.scores_by_position(torch.eye(4)),
    "hybrid": figures.hybrid(PARTS, [1, 3], 4, "a hybrid"),
    "training": figures.training([10, 20], LOSSES, {"dense": 1.0, "MoE": 1.5}),
    "experts_by_domain": figures.experts_by_domain(SHARES, ["prose", "json"]),
    "experts_by_token": figures.experts_by_token(SHARES, ["a", "␣"]),
    "chance": figures.chance({"block 0": 0.05}, {"block 0": torch.linspace(0, 0.01, 60)}),
    "hover_text": hover_text(TEXTS, ROUTINGS, num_experts=2, prompt=1),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_a_title_and_named_axes(name) -> None:
    figure = FIGURES[name]
    assert figure.layout.title.text
    axes = [figure.layout[axis] for axis in figure.layout if axis.startswith(("xaxis", "yaxis"))]
    named = [axis for axis in axes if axis.title.text]
    assert len(named) >= 2 and all(axis.title.text or axis.matches or axis.visible is False for axis in axes)


def test_a_hybrid_uses_all_parts_but_the_idle_experts() -> None:
    bars = {trace.name: list(trace.x) for trace in FIGURES["hybrid"].data if trace.type == "bar"}
    assert bars["idle experts"] == [1, 0] and bars["attention"] == [1, 1]
    squares = {trace.name: list(trace.x) for trace in FIGURES["hybrid"].data if trace.type == "scatter"}
    assert squares == {"block with MoE layer": [1, 3], "block with dense FFN": [0, 2]}


def test_training_shows_means_with_bars_to_the_extremes_by_step_and_by_time() -> None:
    curve, by_time = FIGURES["training"].data[:2]
    assert list(curve.y) == pytest.approx([3.1, 2.3])
    assert list(curve.error_y.array) == pytest.approx([0.1, 0.2], rel=1e-4)
    assert list(curve.error_y.arrayminus) == pytest.approx([0.1, 0.2], rel=1e-4)
    assert list(curve.x) == [10, 20] == list(by_time.x)
    slower = FIGURES["training"].data[3]
    assert list(slower.x) == [15, 30] and list(slower.y) == pytest.approx([3.0, 2.1])


def test_domains_are_percent_and_tokens_are_sorted_by_favourite() -> None:
    assert FIGURES["experts_by_domain"].data[0].z[0] == pytest.approx((75, 25))
    by_token = figures.experts_by_token({"block 0": SHARES["block 1"].flip(0)}, ["a", "b"]).data[0]
    assert list(by_token.x) == ["b", "a"]  # b's favourite is expert 0
    assert [row[0] for row in by_token.z] == pytest.approx([100, 0])


def test_hovering_shows_experts_and_weights_of_every_block() -> None:
    first, second, *legend = FIGURES["hover_text"].data
    assert "block 0: expert 1 · 0.75, expert 0 · 0.25" in first.customdata[0][1]
    assert "block 1: expert 0 · 0.75, expert 1 · 0.25" in first.customdata[0][1]
    assert first.customdata[0][0].startswith("at place 0, prompt") and "prompt" not in first.customdata[0][1]
    assert list(first.z[0]) == [0, 1, 1] and list(second.z[0]) == [1, 0, 1]
    assert [colour for _, colour in first.colorscale] == [expert_colour(e, 2) for e in (0, 0, 1, 1)]
    assert [mark.marker.color for mark in legend] == [expert_colour(e, 2) for e in range(2)]
    assert first.visible and not second.visible
    assert list(first.text[0]) == ["a", "&lt;", "⏎"]
    buttons = FIGURES["hover_text"].layout.updatemenus[0].buttons
    assert list(buttons[1].args[0]["visible"][:3]) == [False, True, True]


def test_chance_has_a_mark_for_each_order_and_one_for_the_truth() -> None:
    orders, truth = FIGURES["chance"].data
    assert len(orders.x) == 60 and set(orders.y) == {"block 0"} == set(truth.y)
    assert list(truth.x) == [50] and max(orders.x) == pytest.approx(10)


def test_coloured_text_keeps_the_text_and_colours_it_by_expert() -> None:
    page = coloured_text({"prose": (["a", "<", "b", "\n"], torch.tensor([0, 0, 1, 1]))}, num_experts=2, title="A & B")
    assert "A &amp; B" in page
    spans = re.findall(r"<span title='expert (\d)' style='[^']*border-bottom: 3px solid (#\w+)'>([^<]*)</span>", page)
    legend, text = spans[:2], spans[2:]
    assert [(int(e), colour) for e, colour, _ in legend] == [(e, expert_colour(e, 2)) for e in range(2)]
    assert [(e, inner) for e, _, inner in text] == [("0", "a&lt;"), ("1", "b⏎\n")]
    assert not re.search(r"[^-]color: (#|rgb)", page)  # text keeps the page's own colour
