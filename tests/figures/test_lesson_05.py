"""Figures of lesson 05 show the numbers they are given, with title, axes and units."""

import pytest
import torch

from moe_course.figures import lesson_05 as figures

SCALES = torch.linspace(0.1, 3, 9)
ODDS = torch.linspace(0, 1, 9)[:, None].expand(9, 3)
COUNTED = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
RUNS = {"no loss": [6.5, 6.7], "both": [6.0, 6.2]}
OVERLOAD = {"no loss": [5.0, 6.0], "both": [1.1, 1.2]}
CURVES = {"no loss": torch.tensor([[0.5, 1.0], [0.4, 1.0]]), "both": torch.tensor([[0.3, 1.0], [0.2, 1.0]])}

FIGURES = {
    "odds": figures.odds(SCALES, ODDS, 1 - ODDS, draws=50),
    "race": figures.race(torch.tensor([1.0, 0.5, 0.0]), 0.7, 2, COUNTED, COUNTED / 2),
    "balance": figures.balance(RUNS, OVERLOAD, most=8.0),
    "settling": figures.settling([10, 20], CURVES, CURVES, at_random=0.125),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_a_title_and_named_axes(name) -> None:
    figure = FIGURES[name]
    assert figure.layout.title.text
    axes = [figure.layout[axis] for axis in figure.layout if axis.startswith(("xaxis", "yaxis"))]
    # Axes with names of experts or settings for ticks need no other name.
    assert all(axis.title.text or axis.ticktext for axis in axes)


def test_odds_draws_computed_lines_through_sampled_markers() -> None:
    lines = [trace for trace in FIGURES["odds"].data if trace.mode == "lines"]
    markers = [trace for trace in FIGURES["odds"].data if trace.mode == "markers"]
    assert len(lines) == len(markers) == 3
    assert list(lines[0].y) == pytest.approx(ODDS[:, 0].tolist())
    assert list(markers[0].x) == pytest.approx(SCALES[::4].tolist())
    assert list(markers[0].y) == pytest.approx((1 - ODDS[::4, 0]).tolist())
    assert lines[1].line.color == markers[1].marker.color != lines[0].line.color


def test_race_shows_means_with_two_standard_errors() -> None:
    smooth, counted = FIGURES["race"].data[3:]
    assert list(counted.y) == [1.0, 0.5, 0.5] and list(smooth.y) == [0.5, 0.25, 0.25]
    assert list(counted.error_y.array) == pytest.approx([0.0, 2 * 0.5 / 2**0.5, 2 * 0.5 / 2**0.5])


def test_race_peaks_at_the_clean_logits() -> None:
    for density, logit in zip(FIGURES["race"].data[:3], (1.0, 0.5, 0.0), strict=True):
        assert max(zip(density.y, density.x, strict=True))[1] == pytest.approx(logit, abs=1e-5)


def test_balance_has_a_marker_for_each_seed_and_a_bar_at_the_mean() -> None:
    bar, seeds = FIGURES["balance"].data[:2]
    assert list(bar.y) == [6.6, 6.6] and list(seeds.y) == [6.5, 6.7]
    assert [list(trace.y) for trace in FIGURES["balance"].data[5::2]] == [[5.0, 6.0], [1.1, 1.2]]


def test_settling_has_a_line_for_each_seed_and_quantity() -> None:
    lines = FIGURES["settling"].data
    assert len(lines) == 8
    assert sum(line.showlegend for line in lines) == 2
    assert FIGURES["settling"].layout.shapes[0].y0 == 0.125
