"""One style: colours that can be seen on both themes, and one colour for each expert."""

import plotly.io as pio
import pytest

from moe_course.figures import expert_colour, style

WHITE, DARK = "#ffffff", "#111111"


@pytest.mark.parametrize("background", [WHITE, DARK])
def test_text_and_lines_can_be_seen_on_both_themes(background) -> None:
    assert _contrast(style.INK, background) >= 4.3
    for colour in style.PALETTE:
        assert _contrast(colour, background) >= 2.9, colour


def test_expert_keeps_its_colour_whatever_the_number_of_experts() -> None:
    assert expert_colour(3, 4) == expert_colour(3, 64)
    assert len({expert_colour(i, 16) for i in range(16)}) == 16


@pytest.mark.parametrize("i", [-1, 4])
def test_expert_that_does_not_exist_is_refused(i) -> None:
    with pytest.raises(ValueError, match="choose 0 ≤ i"):
        expert_colour(i, 4)


def test_template_is_the_default_and_transparent() -> None:
    assert pio.templates.default == "moe_course"
    layout = pio.templates["moe_course"].layout
    assert layout.font.size >= 13
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0, 0, 0, 0)"


def _contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio."""
    dark, light = sorted(_luminance(colour) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
