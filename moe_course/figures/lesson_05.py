"""Figures of lesson 05, noisy gating: the odds of being chosen, balance with and without losses, saturation."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from moe_course.figures.style import BLUE, FAINT, GREEN, GREY, INK, ORANGE, PURPLE, expert_colour

COLOURS = (GREY, ORANGE, BLUE, GREEN, PURPLE)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def odds(scales: Tensor, computed: Tensor, sampled: Tensor, draws: int) -> go.Figure:
    """Each expert's probability of being chosen against the noise scale: computed as lines, sampled as markers.

    Args:
        scales: (S,).
        computed, sampled: (S, E).
        draws: of new noise for each marker.
    """
    num_experts = computed.shape[-1]
    figure = go.Figure()
    for e in range(num_experts):
        line = {"color": expert_colour(e, num_experts), "dash": DASHES[e % len(DASHES)]}
        figure.add_scatter(
            x=scales.tolist(), y=computed[:, e].tolist(), name=f"expert {e}", mode="lines", line=line,
            hovertemplate=f"expert {e}, computed<br>scale %{{x:.2f}}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=scales[::4].tolist(), y=sampled[::4, e].tolist(), mode="markers", showlegend=False,
            marker={"color": line["color"], "symbol": SYMBOLS[e % len(SYMBOLS)], "size": 9},
            hovertemplate=f"expert {e}, sampled<br>scale %{{x:.2f}}: %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        title="Lines are computed with Φ, markers are sampled<br>"
        f"<sup>each marker counts {draws} new draws of that expert's noise alone</sup>",
        height=440,
        margin_t=90,
    )
    figure.update_xaxes(title_text="noise scale (standard deviation of a logit's noise)", rangemode="tozero")
    figure.update_yaxes(title_text="probability of being chosen", range=[-0.03, 1.03])
    return figure


def race(clean_logits: Tensor, noise_scale: float, top_k: int, counted: Tensor, smooth: Tensor) -> go.Figure:
    """Where each expert's noisy logit may fall, and how often each is chosen: counted and smooth, over some draws.

    Args:
        clean_logits: of one token, (E,).
        noise_scale: the same for all experts.
        top_k: experts per token K.
        counted: whether each expert was chosen in each draw, (draws, E).
        smooth: P(x, i) in the same draws, (draws, E).
    """
    draws, num_experts = counted.shape
    figure = make_subplots(
        cols=2, column_widths=[0.5, 0.5], horizontal_spacing=0.13,
        subplot_titles=["where the noisy logits fall", f"how often chosen, top-{top_k}"],
    )  # fmt: skip
    grid = torch.linspace(-6, 6, 241)
    for e, mean in enumerate(clean_logits.tolist()):
        colour = expert_colour(e, num_experts)
        height = (-((grid - mean) ** 2) / (2 * noise_scale**2)).exp()
        figure.add_scatter(
            x=grid.tolist(), y=height.tolist(), mode="lines", name=f"expert {e}",
            line={"color": colour, "dash": DASHES[e % len(DASHES)]}, hoverinfo="skip", row=1, col=1,
        )  # fmt: skip
    names = [f"expert {e}" for e in range(num_experts)]
    for values, name, shift, symbol in (
        (smooth, "mean of P(x, i)", -0.14, "diamond"),
        (counted, "counted", 0.14, "circle"),
    ):
        error = 2 * values.std(0, correction=0) / draws**0.5
        figure.add_scatter(
            x=[e + shift for e in range(num_experts)], y=values.mean(0).tolist(), mode="markers", name=name,
            error_y={"array": error.tolist(), "thickness": 2, "width": 6, "color": INK},
            marker={"color": [expert_colour(e, num_experts) for e in range(num_experts)], "symbol": symbol, "size": 11},
            hovertemplate=f"expert %{{x:.0f}}, {name}: %{{y:.3f}}<extra></extra>", row=1, col=2,
        )  # fmt: skip
    figure.update_layout(
        title=f"{num_experts} experts under noise of {noise_scale:g}<br>"
        f"<sup>bars: two standard errors of {draws} draws</sup>",
        height=430,
        margin={"t": 104, "b": 110},
        legend={"orientation": "h", "y": -0.24, "x": 0},
    )
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="noisy logit", row=1, col=1)
    figure.update_yaxes(title_text="density over its peak", range=[0, 1.08], row=1, col=1)
    figure.update_xaxes(tickvals=list(range(num_experts)), ticktext=names, showgrid=False, row=1, col=2)
    figure.update_yaxes(title_text="share of draws", range=[-0.03, 1.08], row=1, col=2)
    return figure


def balance(
    perplexity: Mapping[str, Sequence[float]], overload: Mapping[str, Sequence[float]], most: float
) -> go.Figure:
    """Perplexity and overload of each combination of losses: a marker for each seed, a bar at the mean.

    Args:
        perplexity: on held-out text, for each seed, by combination.
        overload: load of the busiest expert over the mean load, likewise.
        most: the largest overload there can be.
    """
    figure = make_subplots(cols=2, horizontal_spacing=0.12, subplot_titles=["perplexity", "busiest expert"])
    names = list(perplexity)
    for col, values in enumerate((perplexity, overload), 1):
        for i, name in enumerate(names):
            runs = list(values[name])
            mean = sum(runs) / len(runs)
            figure.add_scatter(
                x=[i - 0.28, i + 0.28], y=[mean, mean], mode="lines", line={"color": COLOURS[i], "width": 4},
                showlegend=False, hoverinfo="skip", row=1, col=col,
            )  # fmt: skip
            figure.add_scatter(
                x=[i + 0.12 * (s - (len(runs) - 1) / 2) for s in range(len(runs))], y=runs, mode="markers", name=name,
                marker={"color": COLOURS[i], "symbol": SYMBOLS[i], "size": 11}, showlegend=False,
                hovertemplate=f"{name}: %{{y:.2f}}<extra></extra>", row=1, col=col,
            )  # fmt: skip
    figure.update_layout(
        title="What each loss does to perplexity and to the busiest expert<br>"
        f"<sup>{len(runs)} seeds; bars are means</sup>",
        height=440,
        margin_t=104,
    )
    figure.update_annotations(font_size=14)
    labels = [name.replace(", ", ",<br>") for name in names]
    figure.update_xaxes(
        tickvals=list(range(len(names))), ticktext=labels, range=[-0.6, len(names) - 0.4], showgrid=False
    )
    figure.update_yaxes(title_text="perplexity on held-out text", row=1, col=1)
    ticks = [1, 1.5, 2, 3, 4, 6, 8]
    figure.update_yaxes(
        type="log", title_text="max load / mean load, log scale", tickvals=ticks, ticktext=ticks,
        range=torch.tensor([0.95, 1.1 * most]).log10().tolist(), row=1, col=2,
    )  # fmt: skip
    return figure


def settling(
    steps: Sequence[int], saturation: Mapping[str, Tensor], noise_scale: Mapping[str, Tensor], at_random: float
) -> go.Figure:
    """Along training: share of choices that are already the final ones, and how loud the trained noise is.

    Args:
        steps: at which both were measured.
        saturation: (seeds, points), by combination of losses.
        noise_scale: mean standard deviation of the noise, likewise.
        at_random: the saturation of random choices, K/E.
    """
    figure = make_subplots(cols=2, horizontal_spacing=0.12, subplot_titles=["router saturation", "trained noise"])
    for i, name in enumerate(saturation):
        for col, values in enumerate((saturation[name], noise_scale[name]), 1):
            for seed, run in enumerate(values.tolist()):
                figure.add_scatter(
                    x=list(steps), y=run, mode="lines+markers", name=name, legendgroup=name,
                    showlegend=seed == 0 and col == 1,
                    line={"color": COLOURS[i], "dash": DASHES[i], "width": 1.8},
                    marker={"color": COLOURS[i], "symbol": SYMBOLS[i], "size": 7},
                    hovertemplate=f"{name}, seed {seed}<br>step %{{x}}: %{{y:.2f}}<extra></extra>", row=1, col=col,
                )  # fmt: skip
    figure.add_hline(y=at_random, line={"dash": "dot", "color": INK}, row=1, col=1)
    figure.add_annotation(
        x=steps[-1], y=at_random, text="choices at random", showarrow=False, xanchor="right", yshift=10, row=1, col=1
    )
    figure.update_layout(
        title="How a router settles, and how loud its noise is<br><sup>one line for each seed; held-out text</sup>",
        height=470,
        margin={"t": 104, "b": 110},
        legend={"orientation": "h", "y": -0.22, "x": 0},
    )
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="step")
    figure.update_yaxes(title_text="share of final choices", range=[0, 1.05], gridcolor=FAINT, row=1, col=1)
    figure.update_yaxes(title_text="mean noise scale (logits)", rangemode="tozero", row=1, col=2)
    return figure
