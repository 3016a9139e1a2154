"""Figures of lesson 01 show the numbers they are given, with title, axes and units."""

import plotly.graph_objects as go
import pytest
import torch

from moe_course.figures import lesson_01 as figures

FIGURES = {
    "activations": figures.activations(torch.tensor([-1.0, 1.0]), {"ReLU": torch.tensor([0.0, 1.0])}),
    "shares": figures.shares("M", {"attention": 1, "dense ffn": 3}, {"attention": 1, "dense ffn": 1}, context=7),
    "roofline": figures.roofline(100e9, 10e9, {1: 0.5, 64: 32.0}, {1: 4e9, 64: 90e9}),
    "batch_times": figures.batch_times({1: 0.01, 64: 0.05}, {1: 0.02, 64: 0.06}),
    "budgets": figures.budgets((100, 25, 50), (24, 48), (99, 198), "layer"),
    "memory_and_time": figures.memory_and_time([2, 4], [1.0, 2.0], [1.1, 1.2]),
    "experts_touched": figures.experts_touched([1, 4], {"M": [0.25, 0.7]}),
    "published": figures.published(
        {"dense": (7_000_000_000, 7_000_000_000), "sparse": (47_000_000_000, 13_000_000_000)}
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_a_title_and_named_axes(name) -> None:
    figure = FIGURES[name]
    assert figure.layout.title.text
    axes = [figure.layout[axis] for axis in figure.layout if axis.startswith(("xaxis", "yaxis"))]
    named = sum(bool(axis.title.text) for axis in axes)
    # The bars of `shares` and `budgets` are named on one axis by their own labels.
    assert named >= len(axes) / 2


def test_shares_sum_to_a_hundred() -> None:
    bars = FIGURES["shares"].data
    assert [sum(bar.x[row] for bar in bars) for row in (0, 1)] == pytest.approx([100, 100])


def test_roof_has_its_corner_at_peak_over_bandwidth() -> None:
    roof = FIGURES["roofline"].data[0]
    assert roof.x[1] == 10.0 and roof.y[1] == roof.y[2] == 100.0
    assert roof.y[0] == pytest.approx(roof.x[0] * 10)


def test_idle_and_active_stack_to_the_total() -> None:
    active, idle = FIGURES["budgets"].data[:2]
    assert active.y[0] + idle.y[0] == pytest.approx(100e-6)


def test_reference_lines_of_published_have_their_factor() -> None:
    figure: go.Figure = FIGURES["published"]
    factors = [line.y[0] / line.x[0] for line in figure.data[:3]]
    assert factors == pytest.approx([1, 4, 16])
    assert figure.data[1].text[0] == "total = 4 × active"
