"""Figures of lesson 07 show the numbers they are given, with title, axes and units."""

import pytest
import torch

from moe_course.figures import lesson_07 as figures

USED, PADDED, DROPPED = torch.tensor([3, 1, 3]), torch.tensor([0, 2, 0]), torch.tensor([2, 0, 0])
LAW = torch.tensor([0.25, 0.5, 0.25])
SHARES = {"64 tokens": torch.tensor([0.5, 0.25, 0.0]), "256 tokens": torch.tensor([0.4, 0.1, 0.0])}
LOSSES = {"factor 1": torch.tensor([[2.5, 2.3], [2.0, 2.2]]), "room for all": torch.tensor([[2.6, 2.6], [1.9, 2.1]])}
FIGURES = {
    "slot_picture": figures.slot_picture(USED, PADDED, DROPPED),
    "load_distribution": figures.load_distribution(LAW, LAW, 1, "loads"),
    "drops_and_padding": figures.drops_and_padding([0.5, 1.0, 2.0], SHARES, SHARES),
    "drops_by_place": figures.drops_by_place({"first come": torch.tensor([0.0, 0.5])}, batch_size=64),
    "cost": figures.cost({"sorted": {128: 1.0, 256: 2.0}, "slots": {128: 3.0, 256: 9.0}}, "medians of 5"),
    "evaluation": figures.evaluation(["1", "all"], LOSSES),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_a_title_and_named_axes(name) -> None:
    figure = FIGURES[name]
    assert figure.layout.title.text
    axes = [figure.layout[axis] for axis in figure.layout if axis.startswith(("xaxis", "yaxis"))]
    assert len(axes) >= 2 and all(axis.title.text for axis in axes)


def test_slots_stand_in_columns_of_their_expert() -> None:
    tokens, padding, dropped = (trace.z for trace in FIGURES["slot_picture"].data)
    columns = [[row[expert] for row in tokens] for expert in range(3)]
    assert columns == [[0, 0, 0, None, None], [1, None, None, None, None], [2, 2, 2, None, None]]
    assert [[row[expert] for row in padding] for expert in range(3)][1] == [None, 1, 1, None, None]
    assert [row[0] for row in dropped] == [None, None, None, 0, 0]
    assert "2 of 9 choices dropped (22%), 2 of 9 slots padded (22%)" in FIGURES["slot_picture"].layout.title.text


def test_a_picture_of_many_slots_has_no_crosses_and_one_without_choices_is_drawn() -> None:
    many = figures.slot_picture(torch.tensor([50, 1]), torch.tensor([0, 49]), torch.tensor([9, 0]))
    assert [row[0] for row in FIGURES["slot_picture"].data[2].text] == ["", "", "", "×", "×"]
    assert not any("×" in row for trace in many.data for row in trace.text)
    nothing = torch.tensor([0, 0])
    assert "0 of 0 choices" in figures.slot_picture(nothing, nothing, nothing).layout.title.text


def test_loads_beyond_the_capacity_are_bars_of_their_own() -> None:
    fits, overflows, law = FIGURES["load_distribution"].data
    assert list(fits.x) == [0, 1] and list(overflows.x) == [2]
    assert list(law.y) == [25, 50, 25]


def test_shares_are_shown_in_percent() -> None:
    left, right = FIGURES["drops_and_padding"].data[:2]
    assert list(left.y) == list(right.y) == [50, 25, 0]
    (places,) = FIGURES["drops_by_place"].data
    assert list(places.x) == [16, 48] and list(places.y) == [0, 50]


def test_evaluation_shows_means_and_standard_deviations() -> None:
    first, second = FIGURES["evaluation"].data
    assert list(first.y) == pytest.approx([2.4, 2.1]) and list(second.y) == pytest.approx([2.6, 2.0])
    assert list(first.error_y.array) == pytest.approx([0.2 / 2**0.5] * 2)
    assert list(FIGURES["evaluation"].layout.xaxis.ticktext) == ["1", "all"]
