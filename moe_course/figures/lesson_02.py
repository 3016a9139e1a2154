"""Figures of lesson 02, the router: regions of a gate in the plane, one token's gates, gradients and training."""

from collections.abc import Mapping

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from moe_course.figures.gate_plane import gate_regions, gate_regions_side_by_side
from moe_course.figures.style import FAINT, GREY, INK, PALETTE, expert_colour

__all__ = [
    "gate_regions",
    "gate_regions_side_by_side",
    "gradient_norms",
    "jacobians",
    "load",
    "one_token",
    "training",
]


def load(counts: Tensor, top_k: int) -> go.Figure:
    """Tokens per expert, against an even share.

    Args:
        counts: (E,), summing to T·K.
        top_k: experts per token K.
    """
    num_experts = len(counts)
    names = [f"expert {e}" for e in range(num_experts)]
    colours = [expert_colour(e, num_experts) for e in range(num_experts)]
    figure = go.Figure(
        go.Bar(
            x=names,
            y=counts.tolist(),
            marker_color=colours,
            text=counts.tolist(),
            textposition="outside",
            cliponaxis=False,
        )
    )
    figure.add_hline(
        y=counts.sum().item() / num_experts,
        line={"dash": "dash", "color": INK},
        annotation={"text": "even share", "font": {"size": 13}, "yshift": 2},
    )
    figure.update_layout(title=f"A gate fresh from initialisation loads its experts unevenly (top-{top_k})", height=340)
    figure.update_xaxes(title_text="")
    figure.update_yaxes(title_text="tokens")
    return figure


def one_token(logits: Tensor, scores: Tensor, weights: Tensor, expert_ids: Tensor) -> go.Figure:
    """One token on its way through the router: logits, scores and the weights of the chosen experts.

    Args:
        logits, scores: (E,).
        weights, expert_ids: (K,).
    """
    num_experts = len(logits)
    gates = torch.zeros(num_experts).scatter(0, expert_ids, weights)
    figure = make_subplots(
        cols=3, subplot_titles=["logits (faded: not chosen)", "scores", "weights"], horizontal_spacing=0.07
    )
    solid = [1.0 if e in expert_ids.tolist() else 0.3 for e in range(num_experts)]
    colours = [expert_colour(e, num_experts) for e in range(num_experts)]
    for col, (values, low, high) in enumerate(((logits, -5, 5), (scores, 0, 1.1), (gates, 0, 1.1)), 1):
        figure.add_bar(
            x=list(range(num_experts)),
            y=values.tolist(),
            marker={"color": colours, "opacity": solid},
            text=[f"{value:.2f}" if value else "0" for value in values.tolist()],
            textposition="outside",
            cliponaxis=False,
            showlegend=False,
            hovertemplate="expert %{x}: %{y:.3f}<extra></extra>",
            row=1,
            col=col,
        )
        figure.update_xaxes(title_text="expert", dtick=1, showline=False, row=1, col=col)
        figure.update_yaxes(range=[low, high], zeroline=True, zerolinecolor=INK, row=1, col=col)
    chosen = " + ".join(
        f"{weight:.2f} · expert {e}" for weight, e in zip(weights.tolist(), expert_ids.tolist(), strict=True)
    )
    figure.update_layout(
        title=f"output = {chosen}<br><sup>scores sum to {scores.sum():.2f}, weights to {weights.sum():.2f}</sup>",
        height=380,
        margin_t=110,
    )
    figure.update_annotations(font_size=14)
    return figure


def jacobians(panels: Mapping[str, Tensor]) -> go.Figure:
    """How much each logit moves each gate, one matrix a router.

    Args:
        panels: (E, E) Jacobians ∂gate_i/∂logit_j, by what to write above each.
    """
    figure = make_subplots(cols=len(panels), subplot_titles=list(panels), horizontal_spacing=0.05)
    for col, jacobian in enumerate(panels.values(), 1):
        experts = [str(e) for e in range(len(jacobian))]
        figure.add_heatmap(
            z=jacobian.tolist(),
            x=experts,
            y=experts,
            text=[[f"{value:.2f}" if abs(value) > 5e-3 else "0" for value in row] for row in jacobian.tolist()],
            texttemplate="%{text}",
            textfont={"color": "#111111"},
            coloraxis="coloraxis",
            xgap=2,
            ygap=2,
            hovertemplate="∂ gate %{y} / ∂ logit %{x} = %{z:.3f}<extra></extra>",
            row=1,
            col=col,
        )
        figure.update_xaxes(title_text="logit of expert", showline=False, ticks="", row=1, col=col)
        figure.update_yaxes(autorange="reversed", showline=False, ticks="", showgrid=False, row=1, col=col)
    figure.update_yaxes(title_text="gate of expert", row=1, col=1)
    figure.update_layout(
        title="With top-1 and renormalisation, no logit moves any gate",
        coloraxis={"colorscale": [[0, "#5aa9de"], [0.5, "#d9d9d9"], [1, "#f08a4b"]], "cmin": -0.25, "cmax": 0.25},
        coloraxis_showscale=False,
        height=380,
        margin_t=96,
    )
    figure.update_annotations(font_size=14)
    return figure


def gradient_norms(norms: Mapping[str, Tensor]) -> go.Figure:
    """Norm of the task's gradient in the gate's weight, one dot a seed, for several routers.

    Args:
        norms: (seeds,) by router.
    """
    figure = go.Figure()
    for name, values in norms.items():
        dead = values.max().item() < 1e-6
        figure.add_scatter(
            x=values.clamp_min(1e-12).tolist(),  # a logarithmic axis has no place for an exact 0
            y=[name] * len(values),
            mode="markers",
            marker={"size": 11, "color": PALETTE[4] if dead else PALETTE[0], "symbol": "x" if dead else "circle"},
            showlegend=False,
            hovertemplate="%{x:.1e}<extra></extra>",
        )
    seeds = len(next(iter(norms.values())))
    figure.update_layout(
        title=f"Top-1 with renormalisation starves the router<br><sup>{seeds} seeds a row, before the first step</sup>",
        height=90 + 40 * len(norms),
        margin_t=90,
    )
    figure.update_xaxes(type="log", title_text="‖∂ loss / ∂ gate weight‖, log scale", exponentformat="power", dtick=2)
    figure.update_yaxes(autorange="reversed")
    return figure


def training(losses: Mapping[str, Tensor]) -> go.Figure:
    """Loss during training, one line a seed, for several routers.

    Args:
        losses: (seeds, steps) by router.
    """
    figure = go.Figure()
    styles = (("solid", PALETTE[4]), ("dot", GREY), ("solid", PALETTE[0]), ("solid", PALETTE[2]))
    for (dash, colour), (name, runs) in zip(styles, losses.items(), strict=False):
        for seed, run in enumerate(runs.tolist()):
            figure.add_scatter(
                x0=1,
                dx=1,
                y=[round(value, 4) for value in run],
                mode="lines",
                line={"color": colour, "dash": dash, "width": 1.8},
                opacity=0.8,
                name=name,
                legendgroup=name,
                showlegend=seed == 0,
                hovertemplate=f"{name}, seed {seed}<br>step %{{x}}: %{{y:.3f}}<extra></extra>",
            )
    seeds = len(next(iter(losses.values())))
    figure.update_layout(
        title=f"A router without a gradient holds its experts back<br><sup>{seeds} seeds each</sup>",
        legend={"orientation": "h", "y": -0.22, "x": 0},
        height=460,
        margin_t=90,
    )
    figure.update_xaxes(title_text="step of training")
    figure.update_yaxes(title_text="mean squared error", rangemode="tozero", gridcolor=FAINT)
    return figure
