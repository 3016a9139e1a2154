"""A gate as a picture: tokens in the plane, and the region in which each expert has the largest logit."""

import math
from collections.abc import Mapping

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from moe_course.figures.style import expert_colour

EDGE = 1.6  # the plane is drawn from -EDGE to EDGE


def gate_regions(x: Tensor, weight: Tensor, title: str = "") -> go.Figure:
    """Tokens in the plane on the region of the expert whose logit is largest there.

    Args:
        x: tokens, (T, 2).
        weight: the gate, (E, 2); each row is drawn as an arrow.
        title: what to learn from the figure.
    """
    return gate_regions_side_by_side(x, {title or "Each token goes to the expert whose arrow it follows most": weight})


def gate_regions_side_by_side(x: Tensor, weights: Mapping[str, Tensor], title: str = "") -> go.Figure:
    """`gate_regions` of several gates for the same tokens.

    Args:
        x: tokens, (T, 2).
        weights: gates (E, 2), by what to write above each.
        title: of the whole; with a single gate its name is the title.
    """
    several = len(weights) > 1
    figure = make_subplots(
        cols=len(weights), subplot_titles=list(weights) if several else None, horizontal_spacing=0.06
    )
    for col, weight in enumerate(weights.values(), 1):
        _draw_regions(figure, x, weight, col, with_counts=not several)
        figure.update_xaxes(title_text="feature 1 of the token", row=1, col=col)
        figure.update_xaxes(
            range=[-EDGE, EDGE],
            constrain="domain",
            constraintoward="center" if several else "left",
            dtick=1,
            row=1,
            col=col,
        )
        figure.update_yaxes(range=[-EDGE, EDGE], constrain="domain", dtick=1, row=1, col=col)
        figure.update_yaxes(scaleanchor=f"x{col}" if col > 1 else "x", row=1, col=col)
    figure.update_yaxes(title_text="feature 2 of the token", row=1, col=1)
    figure.update_layout(
        title=title if several else next(iter(weights)),
        height=440 if several else 580,
        margin_t=96 if several else 64,
        legend={"itemsizing": "constant", "orientation": "h", "x": 0, "y": -0.28 if several else -0.16},
    )
    figure.update_annotations(font_size=14)
    return figure


def _draw_regions(figure: go.Figure, x: Tensor, weight: Tensor, col: int, with_counts: bool) -> None:
    num_experts = len(weight)
    chosen = (x @ weight.T).argmax(dim=-1)
    counts = torch.bincount(chosen, minlength=num_experts).tolist()
    for e in range(num_experts):
        colour = expert_colour(e, num_experts)
        cone = _cone(weight, e)
        figure.add_scatter(
            x=_rounded(cone[:, 0]),
            y=_rounded(cone[:, 1]),
            mode="lines",
            line={"width": 1, "color": colour},
            fill="toself",
            fillcolor=_translucent(colour),
            hoverinfo="skip",
            showlegend=False,
            row=1,
            col=col,
        )
    for e in range(num_experts):
        colour = expert_colour(e, num_experts)
        tokens = x[chosen == e]
        figure.add_scatter(
            x=_rounded(tokens[:, 0]) or (None,),  # a trace without points would vanish from the legend
            y=_rounded(tokens[:, 1]) or (None,),
            mode="markers",
            marker={"size": 5, "color": colour},
            name=f"expert {e}: {counts[e]} tokens" if with_counts else f"expert {e}",
            legendgroup=f"{e}",
            showlegend=col == 1,
            hovertemplate=f"expert {e}<br>(%{{x:.2f}}, %{{y:.2f}})<extra></extra>",
            row=1,
            col=col,
        )
    for e in range(num_experts):
        tip = weight[e] * min(1.0, 1.25 / (weight[e].norm().item() + 1e-9))  # long rows end inside the frame
        figure.add_scatter(
            x=[0.0, tip[0].item()],
            y=[0.0, tip[1].item()],
            mode="lines+markers",
            line={"width": 3, "color": expert_colour(e, num_experts)},
            marker={"size": [0, 15], "opacity": 1, "symbol": "arrow", "angleref": "previous"},
            hoverinfo="skip",
            showlegend=False,
            row=1,
            col=col,
        )
        label = tip * (1 + 0.2 / (tip.norm().item() + 1e-9))
        figure.add_annotation(
            x=label[0].item(),
            y=label[1].item(),
            text=f"<b>{e}</b>",
            showarrow=False,
            font={"color": "#ffffff"},
            bgcolor=expert_colour(e, num_experts),
            bordercolor="#ffffff",
            borderpad=2,
            row=1,
            col=col,
        )


def _cone(weight: Tensor, e: int) -> Tensor:
    """Outline of the region where expert e wins: without a bias it is a cone, cut off at the frame. (points, 2)."""
    angle = torch.linspace(0, 2 * math.pi, 721)[:-1]
    ray = torch.stack([angle.cos(), angle.sin()], dim=-1)
    ray = ray * EDGE / ray.abs().amax(dim=-1, keepdim=True)
    wins = (ray @ weight.T).argmax(dim=-1) == e
    if wins.all():
        return ray
    if not wins.any():
        return torch.zeros(0, 2)
    start = int((wins & ~wins.roll(1)).nonzero()[0])  # the cone may lie across angle 0
    origin = torch.zeros(1, 2)
    return torch.cat([origin, ray.roll(-start, 0)[wins.roll(-start)], origin])


def _translucent(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.16)"


def _rounded(values: Tensor) -> list[float]:
    """As exact as a screen, and a third of the bytes."""
    return [round(value, 3) for value in values.tolist()]
