"""Figures of lesson 09, stable training: rounded logits, runs by setting, gradients, memory, time."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from moe_course.figures.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, VERMILLION, expert_colour

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, GREY)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot")
PATTERNS = ("", "/", "x", "-", ".", "+", "|")
BELOW = {"orientation": "h", "y": -0.22, "x": 0}


def rounding(logits: Tensor) -> go.Figure:
    """Logits of a token and its probabilities, exact and after rounding the logits to bfloat16.

    Args:
        logits: of one token, (E,).
    """
    rounded = logits.bfloat16().to(logits.dtype)
    num_experts = len(logits)
    experts = list(range(num_experts))
    figure = make_subplots(
        cols=2, horizontal_spacing=0.13, subplot_titles=["logits, less their mean", "probability of each expert"]
    )
    level = logits.mean()
    for name, values, colour, symbol in (
        ("exact", logits, BLUE, "circle-open"),
        ("rounded to bfloat16", rounded, VERMILLION, "x"),
    ):
        figure.add_scatter(
            x=experts, y=_short(values - level), mode="markers", name=name, legendgroup=name,
            marker={"color": colour, "symbol": symbol, "size": 13, "line": {"width": 2, "color": colour}},
            hovertemplate="expert %{x}: mean %{y:+.3f}<extra></extra>", row=1, col=1,
        )  # fmt: skip
        figure.add_bar(
            x=experts, y=_short(values.softmax(0)), name=name, legendgroup=name, showlegend=False,
            marker={"color": colour, "pattern": {"shape": "" if name == "exact" else "/"}},
            hovertemplate="expert %{x}: %{y:.3f}<extra></extra>", row=1, col=2,
        )  # fmt: skip
    largest = float(logits.abs().max())
    step = 2.0 ** (torch.tensor(largest).log2().floor().item() - 7) if largest > 0 else 0.0
    moved = int(logits.argmax()) != int(rounded.argmax())
    title = "the best expert has changed" if moved else "the best expert is the same"
    figure.update_layout(
        title=f"Near {largest:.1f} bfloat16's steps are {step:g}: {title}", height=420, margin_t=100, legend=BELOW
    )
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="expert", dtick=1 if num_experts <= 16 else 8)
    figure.update_yaxes(title_text="logit − mean logit", range=[-2.5, 2.5], row=1, col=1)
    figure.update_yaxes(title_text="probability", range=[0, 1], row=1, col=2)
    return figure


def by_level(levels: Sequence[float], wrong: Mapping[str, Tensor], error: Mapping[str, Tensor]) -> go.Figure:
    """What low precision does to a router as the level of its logits rises.

    Args:
        levels: mean logit, rising.
        wrong: share of the tokens whose best expert is another one, (levels,), by how logits are computed.
        error: largest error of a probability, (levels,), likewise.
    """
    figure = make_subplots(
        cols=2, horizontal_spacing=0.13, subplot_titles=["tokens sent elsewhere", "largest error of a probability"]
    )
    for i, name in enumerate(wrong):
        for col, values in ((1, 100 * wrong[name]), (2, error[name])):
            figure.add_scatter(
                x=list(levels), y=_short(values), mode="lines+markers", name=name, legendgroup=name,
                showlegend=col == 1, line={"color": COLOURS[i], "dash": DASHES[i]},
                marker={"symbol": SYMBOLS[i], "size": 9},
                hovertemplate=f"{name}<br>level %{{x}}: %{{y:.3g}}<extra></extra>", row=1, col=col,
            )  # fmt: skip
    figure.update_layout(
        title="It is the level of the logits that bfloat16 cannot bear", height=430, margin_t=100, legend=BELOW
    )
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="level of the logits", type="log")
    figure.update_xaxes(tickvals=list(levels), ticktext=[f"{level:g}" for level in levels])
    figure.update_yaxes(title_text="tokens (%)", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="probability", range=[0, 1], row=1, col=2)
    return figure


def over_training(
    curves: Mapping[str, Tensor], title: str, y: str, steps: Sequence[int] | None = None, band: bool = True
) -> go.Figure:
    """One line for each setting, the mean over seeds.

    Args:
        curves: (points, seeds), by setting.
        title: what to learn from the figure.
        y: name and unit of the vertical axis.
        steps: of the points; by default every step is one.
        band: show the range of the seeds; for few settings, and an axis from 0.
    """
    figure = go.Figure()
    for i, (name, values) in enumerate(curves.items()):
        at = list(steps) if steps is not None else list(range(1, len(values) + 1))
        colour = COLOURS[i % len(COLOURS)]
        low, high = values.amin(1), values.amax(1)
        if band:
            figure.add_scatter(
                x=at + at[::-1], y=_short(high) + _short(low.flip(0)), fill="toself", mode="lines", opacity=0.25,
                fillcolor=colour, line={"width": 0}, hoverinfo="skip", showlegend=False, legendgroup=name,
            )  # fmt: skip
        figure.add_scatter(
            x=at, y=_short(values.mean(1)), mode="lines", name=name, legendgroup=name,
            line={"color": colour, "dash": DASHES[i % len(DASHES)]},
            hovertemplate=f"{name}<br>step %{{x}}: %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
    num_seeds = next(iter(curves.values())).shape[1]
    figure.update_layout(
        title=f"{title}<br><sup>mean{' and range' if band else ''} of {num_seeds} seeds</sup>",
        height=430,
        margin_t=90,
        legend=BELOW,
    )
    figure.update_xaxes(title_text="step of training")
    figure.update_yaxes(title_text=y, rangemode="tozero" if band else "normal")
    return figure


def by_setting(groups: Mapping[str, Mapping[str, Tensor]], title: str, x: str, y: str, log: bool = False) -> go.Figure:
    """A mark for each seed, a line through the means: what each setting came to.

    Args:
        groups: results (seeds,), by group (a colour) and setting (a place on the horizontal axis).
        title: what to learn from the figure.
        x, y: names and units of the axes.
        log: whether the vertical axis is logarithmic.
    """
    figure = go.Figure()
    places = list(dict.fromkeys(place for results in groups.values() for place in results))
    for i, (name, results) in enumerate(groups.items()):
        shift = 0.12 * (i - (len(groups) - 1) / 2)
        colour, at = COLOURS[i % len(COLOURS)], [places.index(place) + shift for place in results]
        figure.add_scatter(
            x=[a for a, values in zip(at, results.values(), strict=True) for _ in values],
            y=[round(value, 5) for values in results.values() for value in values.tolist()],
            mode="markers", name=name, legendgroup=name,
            marker={"color": colour, "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 9, "opacity": 0.8},
            hovertemplate=f"{name}: %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
        figure.add_scatter(
            x=at, y=[round(values.mean().item(), 5) for values in results.values()], mode="lines",
            line={"color": colour, "dash": DASHES[i % len(DASHES)]}, hoverinfo="skip", showlegend=False,
            legendgroup=name,
        )  # fmt: skip
    num_seeds = max(len(values) for results in groups.values() for values in results.values())
    figure.update_layout(
        title=f"{title}<br><sup>a mark for each of {num_seeds} seeds, a line through their means</sup>",
        height=430, margin_t=90, legend=BELOW,
    )  # fmt: skip
    figure.update_xaxes(title_text=x, tickvals=list(range(len(places))), ticktext=places)
    figure.update_yaxes(title_text=y, **({"type": "log", "dtick": 1} if log else {"rangemode": "tozero"}))
    return figure


def memory(megabytes: Mapping[str, float], minimum: float) -> go.Figure:
    """What each layer keeps for its backward pass.

    Args:
        megabytes: by layer.
        minimum: K · T · F numbers, below which something has to be computed again.
    """
    names = list(megabytes)[::-1]
    values = [megabytes[name] for name in names]
    figure = go.Figure(
        go.Bar(
            y=names, x=values, orientation="h", text=[f" {value:.1f} MB" for value in values], textposition="outside",
            marker={"color": BLUE}, hovertemplate="%{y}: %{x:.2f} MB<extra></extra>", cliponaxis=False,
        )
    )  # fmt: skip
    figure.add_vline(x=minimum, line={"dash": "dash", "color": INK})
    figure.update_layout(
        title="Checkpointed experts keep next to nothing<br>"
        "<sup>dashed: K · T · F numbers of 4 bytes, one hidden activation for each choice</sup>",
        height=120 + 55 * len(names), margin_t=90, margin_r=90,
    )  # fmt: skip
    figure.update_xaxes(title_text="kept for the backward pass (MB)")
    figure.update_yaxes(title_text="layer")
    return figure


def rare_gradients(every: Sequence[int], moved: Mapping[str, Tensor]) -> go.Figure:
    """How far one gradient moves a weight, against how rare gradients are.

    Args:
        every: steps from one gradient to the next.
        moved: distance for each gradient, in learning rates, (len(every),), by optimiser.
    """
    figure = go.Figure()
    for i, (name, values) in enumerate(moved.items()):
        figure.add_scatter(
            x=list(every), y=_short(values), mode="lines+markers", name=name,
            line={"color": COLOURS[i], "dash": DASHES[i]}, marker={"symbol": SYMBOLS[i], "size": 9},
            hovertemplate=f"{name}<br>every %{{x}} steps: %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(title="Adam: the rarer a gradient, the farther it moves its weight", height=420, legend=BELOW)
    figure.update_xaxes(title_text="steps from one gradient to the next", type="log", dtick=1)
    figure.update_yaxes(title_text="distance for one gradient (learning rates)", type="log", dtick=1)
    return figure


def schedule(rates: Sequence[float], warm_up: int) -> go.Figure:
    """The learning rate of each step."""
    figure = go.Figure(
        go.Scatter(x=list(range(len(rates))), y=[round(rate, 8) for rate in rates], mode="lines+markers",
                   marker={"size": 5, "color": BLUE}, hovertemplate="step %{x}: %{y:.4g}<extra></extra>")
    )  # fmt: skip
    figure.add_vline(x=warm_up - 0.5, line={"dash": "dash", "color": INK})
    figure.update_layout(title=f"The first step has {rates[0]:.3g}, the last {rates[-1]:.3g}", height=380)
    figure.update_xaxes(title_text="step, counted from 0")
    figure.update_yaxes(title_text="learning rate (share of the peak)", range=[0, 1.05])
    return figure


def noise(tokens: Tensor, values: Tensor, dense_tokens: Sequence[int], dense: Sequence[float]) -> go.Figure:
    """Noise over signal of each expert's gradient against the tokens it got.

    Args:
        tokens: mean number of tokens, (batch sizes, E).
        values: noise over signal, (batch sizes, E); infinite ones are left out.
        dense_tokens, dense: the same of a dense layer, for each batch size.
    """
    figure = go.Figure()
    num_experts = tokens.shape[1]
    for expert in range(num_experts):
        seen = values[:, expert].isfinite()
        figure.add_scatter(
            x=_short(tokens[seen, expert]), y=_short(values[seen, expert]), mode="lines+markers", name=f"{expert}",
            line={"color": expert_colour(expert, num_experts), "width": 1.2}, marker={"size": 8},
            hovertemplate=f"expert {expert}, %{{x:.0f}} tokens: %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=list(dense_tokens), y=[round(value, 4) for value in dense], mode="lines+markers", name="dense",
        line={"color": INK, "width": 3, "dash": "dash"}, marker={"size": 11, "symbol": "square"},
        hovertemplate="dense, %{x} tokens: %{y:.3g}<extra></extra>",
    )  # fmt: skip
    figure.add_hline(y=1, line={"dash": "dot", "color": INK})
    figure.update_layout(
        title="An expert's gradient is as noisy as its tokens are few<br>"
        "<sup>dotted: as much noise as signal; a line for each expert, a mark for each batch size</sup>",
        height=470, margin_t=90, legend={"title": "expert"},
    )  # fmt: skip
    figure.update_xaxes(title_text="tokens of the expert in a batch", type="log", dtick=1)
    figure.update_yaxes(title_text="noise / signal of its gradient", type="log", dtick=1)
    return figure


def step_costs(costs: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Where the time of a training step goes, one stacked bar a model.

    Args:
        costs: milliseconds by model and part; parts in the order in which they are stacked.
    """
    figure = go.Figure()
    parts = list(dict.fromkeys(part for of_model in costs.values() for part in of_model))
    names = list(costs)[::-1]
    for i, part in enumerate(parts):
        figure.add_bar(
            y=names, x=[round(costs[name].get(part, 0.0), 3) for name in names], name=part, orientation="h",
            marker={"color": COLOURS[i % len(COLOURS)], "pattern": {"shape": PATTERNS[i % 7]}},
            hovertemplate=f"%{{y}}, {part}: %{{x:.2f}} ms<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        title="Where the time of a training step goes<br><sup>CPU, one thread; forward, backward and update</sup>",
        barmode="stack", height=220 + 70 * len(names), margin_t=90, margin_b=120,
        legend={"orientation": "h", "y": -0.35, "x": 0, "traceorder": "normal"},
    )  # fmt: skip
    figure.update_xaxes(title_text="time of one step (ms)")
    figure.update_yaxes(title_text="model")
    return figure


def _short(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]
