"""The one visual style of the course: the plotly template "moe_course", its palette, the colours of experts.

Backgrounds are transparent, so a figure lies on JupyterLab's light theme (white) and on its dark one (#111)
alike. Every ink is therefore a mid-tone: text has a contrast of at least 4.3 on both, lines and fills of 3.
"""

import plotly.graph_objects as go
import plotly.io as pio

# Okabe and Ito's colour-blind safe hues, https://jfly.uni-koeln.de/color/, moved in lightness only: their
# orange, sky blue and yellow are too light to be seen on white, their black cannot be seen on #111.
BLUE = "#1a7fc4"
ORANGE = "#cc8400"
GREEN = "#00966b"
PURPLE = "#c4659a"
VERMILLION = "#d9600d"
SKY = "#3d9bd1"
YELLOW = "#a39400"
GREY = "#808080"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, VERMILLION, SKY, YELLOW, GREY)

INK = "#797979"  # text: as far from white as from #111
FAINT = "rgba(128, 128, 128, 0.25)"  # grid lines
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'


def expert_colour(i: int, num_experts: int) -> str:
    """Return the colour of expert `i`, the same in every figure whatever the number of experts.

    Args:
        i: index of the expert.
        num_experts: how many experts there are, E.

    Returns:
        A CSS colour. Experts 8, 9, … take the eight hues again, in a darker and then a lighter shade.

    Raises:
        ValueError: if there is no such expert.
    """
    if not 0 <= i < num_experts:
        raise ValueError(f"there is no expert {i} among {num_experts}; choose 0 ≤ i < num_experts")
    hue, shade = PALETTE[i % len(PALETTE)], (1.0, 0.72, 1.25)[i // len(PALETTE) % 3]
    return _shade(hue, shade)


def _shade(colour: str, factor: float) -> str:
    channels = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return "#" + "".join(f"{min(255, round(channel * factor)):02x}" for channel in channels)


def _template() -> go.layout.Template:
    axis = {
        "gridcolor": FAINT,
        "linecolor": INK,
        "zerolinecolor": FAINT,
        "tickcolor": INK,
        "ticks": "outside",
        "showline": True,
        "automargin": True,
        "title": {"standoff": 12, "font": {"size": 14}},
    }
    sequential = "Cividis"
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": INK},
            "title": {"x": 0, "xref": "container", "xanchor": "left", "font": {"size": 17}, "pad": {"l": 8}},
            "paper_bgcolor": "rgba(0, 0, 0, 0)",
            "plot_bgcolor": "rgba(0, 0, 0, 0)",
            "colorway": list(PALETTE),
            "height": 420,
            "margin": {"l": 64, "r": 24, "t": 64, "b": 56},
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"bgcolor": "rgba(0, 0, 0, 0)", "font": {"size": 13}},
            "hoverlabel": {"bgcolor": "#333333", "bordercolor": "#333333", "font": {"color": "#ffffff"}},
            "modebar": {"bgcolor": "rgba(0, 0, 0, 0)", "color": INK, "activecolor": BLUE},
            "colorscale": {
                "sequential": sequential,
                "diverging": [[0, "#1a7fc4"], [0.5, "#bdbdbd"], [1, "#d9600d"]],
            },
        },
        data={
            "scatter": [{"line": {"width": 2.5}, "marker": {"size": 8}}],
            "bar": [{"marker": {"line": {"width": 0}}}],
            "heatmap": [{"colorscale": sequential, "colorbar": {"outlinewidth": 0, "thickness": 14}}],
            "sankey": [{"textfont": {"color": INK, "size": 14, "shadow": "none"}, "node": {"line": {"width": 0}}}],
            "table": [
                {
                    "header": {"fill": {"color": FAINT}, "line": {"color": FAINT}, "align": "left"},
                    "cells": {"fill": {"color": "rgba(0, 0, 0, 0)"}, "line": {"color": FAINT}, "align": "left"},
                }
            ],
        },
    )


pio.templates["moe_course"] = _template()
pio.templates.default = "moe_course"
