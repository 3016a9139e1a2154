"""Figures of lesson 09 show the numbers they are given, with title, axes and units."""

import math

import pytest
import torch

from moe_course.figures import lesson_09 as figures

EXAMPLE = torch.tensor([128.0] * 10 + [128.5])
SEEDS = torch.tensor([[1.0, 3.0], [2.0, 6.0]])  # two points, two seeds
GROUPS = {
    "float32": {"0": torch.tensor([0.1, 0.3]), "128": torch.tensor([0.1, 0.1])},
    "bf16": {"128": torch.tensor([1.0, 3.0])},
}
FIGURES = {
    "rounding": figures.rounding(EXAMPLE),
    "by_level": figures.by_level(
        [1, 64], {"exact": torch.zeros(2), "cast": SEEDS[0]}, {"exact": torch.zeros(2), "cast": SEEDS[0]}
    ),
    "over_training": figures.over_training({"a": SEEDS}, "growth", "logsumexp", [30, 60]),
    "by_setting": figures.by_setting(GROUPS, "levels", "level", "loss (nats)"),
    "memory": figures.memory({"dense": 33.6, "MoE": 17.2}, 16.8),
    "rare_gradients": figures.rare_gradients([1, 100], {"Adam": torch.tensor([1.0, 9.8]), "SGD": torch.ones(2)}),
    "schedule": figures.schedule([0.5, 1.0, 0.5, 0.1], 2),
    "noise": figures.noise(
        torch.tensor([[10.0, 5], [40, 20]]), torch.tensor([[2.0, math.inf], [0.5, 1]]), [16, 64], [1.0, 0.25]
    ),
    "step_costs": figures.step_costs(
        {"dense": {"attention": 2.0, "FFN": 5.0}, "MoE": {"attention": 2.0, "router": 0.5}}
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_has_a_title_and_named_axes(name) -> None:
    figure = FIGURES[name]
    assert figure.layout.title.text
    axes = [figure.layout[axis] for axis in figure.layout if axis.startswith(("xaxis", "yaxis"))]
    assert len(axes) >= 2 and all(axis.title.text for axis in axes)


def test_rounding_shows_the_lead_that_is_lost() -> None:
    exact, exact_bars, rounded, rounded_bars = FIGURES["rounding"].data
    assert exact.y[10] - exact.y[0] == pytest.approx(0.5, abs=1e-3)
    assert rounded.y[10] - rounded.y[0] == 0
    assert exact_bars.y[10] == pytest.approx(0.142, abs=5e-4)
    assert rounded_bars.y[10] == pytest.approx(0.091, abs=5e-4)
    assert "steps are 1:" in FIGURES["rounding"].layout.title.text


@pytest.mark.parametrize(("level", "step"), [(0.0, 0), (1.0, 2**-7), (127.0, 0.5), (255.0, 1), (256.0, 2)])
def test_rounding_names_the_step_of_bfloat16(level, step) -> None:
    assert f"steps are {step:g}:" in figures.rounding(torch.full((3,), level)).layout.title.text
    if step:
        around = (torch.tensor([level, level + 0.26 * step])).bfloat16()
        assert around[0] == around[1]


def test_lines_are_means_within_the_range_of_the_seeds() -> None:
    band, line = FIGURES["over_training"].data
    assert list(line.y) == [2, 4] and list(line.x) == [30, 60]
    assert list(band.y) == [3, 6, 2, 1] and list(band.x) == [30, 60, 60, 30]


def test_a_mark_for_each_seed_and_a_line_through_the_means() -> None:
    marks, line, other, _ = FIGURES["by_setting"].data
    assert list(marks.y) == pytest.approx([0.1, 0.3, 0.1, 0.1])
    assert list(line.y) == pytest.approx([0.2, 0.1])
    assert list(other.x) == pytest.approx([1.06, 1.06])  # at the place of its own setting
    assert list(FIGURES["by_setting"].layout.xaxis.ticktext) == ["0", "128"]


def test_infinite_noise_is_left_out() -> None:
    first, second, dense, *_ = FIGURES["noise"].data
    assert list(first.x) == [10, 40] and list(second.x) == [20] and list(second.y) == [1]
    assert list(dense.y) == [1, 0.25]


def test_parts_that_a_model_lacks_are_empty() -> None:
    attention, ffn, router = FIGURES["step_costs"].data
    assert list(attention.y) == ["MoE", "dense"]
    assert list(ffn.x) == [0, 5] and list(router.x) == [0.5, 0]


def test_memory_has_a_bar_for_each_layer_from_the_top() -> None:
    assert list(FIGURES["memory"].data[0].y) == ["MoE", "dense"]
    assert FIGURES["memory"].layout.shapes[0].x0 == 16.8


def test_schedule_starts_at_step_0() -> None:
    figure = FIGURES["schedule"]
    assert list(figure.data[0].x) == [0, 1, 2, 3] and figure.layout.shapes[0].x0 == 1.5
    assert "first step has 0.5, the last 0.1" in figure.layout.title.text
