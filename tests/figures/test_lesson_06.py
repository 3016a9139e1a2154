"""Figures of lesson 06 show the tiles, rows and bounds they are given, with title and named axes."""

import pytest
import torch

from moe_course.figures import lesson_06 as figures

IDS = torch.tensor([[2, 0], [1, 2], [2, 1]])
LOADS = torch.tensor([33, 0, 16, 1])
FIGURES = {
    "programs": figures.programs(5, 7, 4, 4),
    "tiles": figures.tiles(LOADS, 16),
    "padding": figures.padding({"a": [1.0, 0.5], "b": [0.9, 0.2]}, [8, 16]),
    "bounds": figures.bounds([1, 2, 4], [1e-6, 2e-6, 4e-6], [3e-6, 3e-6, 3e-6], "Bounds", "how"),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_a_title_and_named_axes(name) -> None:
    figure = FIGURES[name]
    assert figure.layout.title.text
    axes = [figure.layout[axis] for axis in figure.layout if axis.startswith(("xaxis", "yaxis"))]
    assert axes and all(axis.title.text for axis in axes)


def test_road_leads_each_choice_to_its_row_and_token() -> None:
    figure = figures.road(IDS, 4)
    assert figure.layout.title.text
    by_name = {trace.name: trace for trace in figure.data}
    # Choices 0, 3 and 4 go to expert 2, which owns rows 3 to 5; tokens stand between their two choices.
    assert [y for y in by_name["expert 2"].y if y is not None] == [0, 3, 0.5, 3, 4, 2.5, 4, 5, 4.5]
    assert not by_name["expert 3"].y


def test_programs_mask_what_lies_outside() -> None:
    figure = FIGURES["programs"]
    shades = torch.tensor(figure.data[0].z)
    assert shades.shape == (8, 8) and int((~shades.isnan()).sum()) == 5 * 7
    assert shades[0, 0] == shades[3, 3] == shades[4, 6] == 0 and shades[0, 6] == shades[4, 0] == 1
    assert "29 of 64 lie outside" in figure.layout.title.text


def test_tiles_hold_each_experts_rows_and_no_others() -> None:
    figure = FIGURES["tiles"]
    used, masked = figure.data[:2]
    assert used.y == (16, 16, 1, 16, 1) and masked.y == (0, 0, 15, 0, 15)
    assert used.hovertext[2] == "instance 2: rows 32 to 32, expert 0"
    assert used.hovertext[3] == "instance 3: rows 33 to 48, expert 2"
    assert "5 tiles of 16 rows hold 50 rows: 62% of the lanes" in figure.layout.title.text
    assert figure.data[3].y[0] == pytest.approx(50 / (4 * 33))


def test_tiles_without_rows() -> None:
    assert "0 tiles" in figures.tiles(torch.zeros(4, dtype=torch.int64), 16).layout.title.text


def test_padding_efficiency_counts_lanes() -> None:
    assert figures.padding_efficiency(LOADS, 16) == pytest.approx(50 / 80)
    assert figures.padding_efficiency(LOADS, 1) == 1
    assert figures.padding_efficiency(torch.zeros(3, dtype=torch.int64), 8) == 1


def test_bound_is_the_larger_of_the_two() -> None:
    bound = FIGURES["bounds"].data[2]
    assert bound.y == pytest.approx((3, 3, 4))
