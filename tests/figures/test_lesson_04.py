"""Figures of lesson 04 show the numbers they are given, with title, axes and units."""

import pytest
import torch

from moe_course.figures import lesson_04 as figures

LOADS = torch.tensor([[4, 0, 0], [2, 2, 0], [0, 2, 2], [0, 0, 4]])
ENTROPY = torch.tensor([0.0, 0.2, 0.4, 0.8])
ALPHAS = [0.0, 0.01, 1.0]
RUNS = {"narrow": torch.tensor([[0.5, 0.7], [0.3, 0.5], [0.25, 0.25]]), "wide": torch.full((3, 2), 0.4)}
FIGURES = {
    "loads_over_time": figures.loads_over_time(LOADS, "loads", window=2),
    "replay": figures.replay(LOADS, ENTROPY, "a run", window=2),
    "fraction_and_pull": figures.fraction_and_pull(
        torch.tensor([0.5, 0.5, 0]), torch.tensor([0.4, 0.4, 0.2]), torch.tensor([-1.0, -1, 2])
    ),
    "trade_off": figures.trade_off(ALPHAS, RUNS, RUNS, num_experts=4),
    "layers_stacked": figures.layers_stacked(
        {"apart": torch.full((2, 4), 0.25), "pooled": torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]])}
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_a_title_and_named_axes(name) -> None:
    figure = FIGURES[name]
    assert figure.layout.title.text
    axes = [figure.layout[axis] for axis in figure.layout if axis.startswith(("xaxis", "yaxis"))]
    # Panels that share an axis name it once.
    named = [axis for axis in axes if axis.title.text]
    assert len(named) >= 2 and all(axis.title.text or axis.matches for axis in axes)


def test_areas_are_shares_of_each_window() -> None:
    areas = FIGURES["loads_over_time"].data
    assert [list(area.y) for area in areas] == [[75, 0], [25, 25], [0, 75]]
    assert list(areas[0].x) == [1, 3]


def test_replay_averages_entropy_and_counts_experts_without_a_token() -> None:
    *_, entropy, dead = FIGURES["replay"].data
    assert list(entropy.y) == pytest.approx([0.1, 0.6])
    assert list(dead.y) == [1, 1]


def test_more_steps_than_windows_or_fewer_still_make_a_figure() -> None:
    assert len(figures.loads_over_time(LOADS, "seven", window=3).data[0].y) == 1
    assert list(figures.loads_over_time(LOADS, "short", window=10).data[0].y) == [37.5]


def test_trade_off_has_a_mark_for_each_run_and_a_line_through_their_means() -> None:
    marks, line = FIGURES["trade_off"].data[:2]
    assert list(marks.y) == pytest.approx([50, 70, 30, 50, 25, 25])
    assert list(line.y) == pytest.approx([60, 40, 25])
    assert list(line.x) == [0.0025, 0.01, 1.0]  # 0 has no place on a logarithmic axis
    assert list(FIGURES["trade_off"].layout.xaxis.ticktext) == ["0", "0.01", "1"]


def test_layers_are_stacked_on_each_other() -> None:
    figure = FIGURES["layers_stacked"]
    assert figure.layout.barmode == "stack"
    pooled = [bar for bar in figure.data if bar.xaxis == "x2"]
    assert [sum(bar.y[e] for bar in pooled) for e in range(4)] == [50] * 4
