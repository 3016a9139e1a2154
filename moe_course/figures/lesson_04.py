"""Figures of lesson 04, the balance loss: loads over time, f and P, what balance costs, layers apart and pooled."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from moe_course.figures.style import BLUE, FAINT, GREY, INK, ORANGE, VERMILLION, expert_colour

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")


def loads_over_time(loads: Tensor, title: str, window: int = 10) -> go.Figure:
    """Share of every expert in the choices of each step, as stacked areas.

    Args:
        loads: choices of each expert, (steps, E).
        title: what to learn from the figure.
        window: steps that are averaged into one point.
    """
    figure = go.Figure()
    _add_areas(figure, loads, window)
    figure.update_layout(title=title, height=400, legend={"traceorder": "reversed", "title": "expert"})
    figure.update_xaxes(title_text="step of training", range=[0, len(loads)], showgrid=False)
    figure.update_yaxes(title_text="share of the load (%)", range=[0, 100], showgrid=False)
    return figure


def replay(loads: Tensor, entropy: Tensor, title: str, window: int = 10) -> go.Figure:
    """One training run: load of every expert, entropy of the router and the number of experts without a token.

    Args:
        loads: choices of each expert, (steps, E).
        entropy: mean entropy of a token's probabilities as a share of ln E, (steps,).
        title: what to learn from the figure.
        window: steps that are averaged into one point, and in which an expert without a token counts as dead.
    """
    figure = make_subplots(
        rows=3, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.56, 0.22, 0.22],
        subplot_titles=["load of each expert", "entropy of the router", f"experts without a token in {window} steps"],
    )  # fmt: skip
    _add_areas(figure, loads, window, row=1, col=1)
    steps = _steps(loads, window)
    smooth = _windows(entropy[:, None], window).mean(1)[:, 0]
    dead = (_windows(loads, window).sum(1) == 0).sum(-1)
    for row, values, colour, shape in ((2, smooth, BLUE, "linear"), (3, dead, VERMILLION, "hv")):
        figure.add_scatter(
            x=steps, y=[round(value, 4) for value in values.tolist()], mode="lines", showlegend=False,
            line={"color": colour, "shape": shape}, hovertemplate="step %{x}: %{y}<extra></extra>", row=row, col=1,
        )  # fmt: skip
    num_experts = loads.shape[-1]
    figure.update_layout(
        title=title, height=640, legend={"traceorder": "reversed", "title": "expert", "y": 1}, margin_t=110
    )
    figure.update_annotations(font_size=14)
    figure.update_xaxes(range=[0, len(loads)], showgrid=False)
    figure.update_xaxes(title_text="step of training", row=3, col=1)
    figure.update_yaxes(title_text="share (%)", range=[0, 100], showgrid=False, row=1, col=1)
    figure.update_yaxes(title_text="share of ln E", range=[0, 1.05], row=2, col=1)
    figure.update_yaxes(title_text="experts", range=[-0.2, num_experts], row=3, col=1)
    return figure


def fraction_and_pull(fraction: Tensor, mean: Tensor, pull: Tensor) -> go.Figure:
    """On the left f and P of each expert, on the right where a step against the loss moves its logits.

    Args:
        fraction: f, (E,).
        mean: P, (E,).
        pull: minus the gradient by the logits, summed over tokens, (E,).
    """
    num_experts = len(fraction)
    experts = list(range(num_experts))
    figure = make_subplots(
        cols=2, horizontal_spacing=0.13, subplot_titles=["what the loss sees", "where it pushes the logits"]
    )
    for name, values, colour, pattern in (("f, share of the load", fraction, BLUE, ""), ("P", mean, ORANGE, "/")):
        figure.add_bar(
            x=experts, y=values.tolist(), name=name, marker={"color": colour, "pattern": {"shape": pattern}},
            hovertemplate="expert %{x}: %{y:.3f}<extra></extra>", row=1, col=1,
        )  # fmt: skip
    figure.add_bar(
        x=experts, y=pull.tolist(), showlegend=False,
        marker={"color": [expert_colour(e, num_experts) for e in experts]},
        hovertemplate="expert %{x}: %{y:+.4f}<extra></extra>", row=1, col=2,
    )  # fmt: skip
    figure.add_hline(y=1 / num_experts, line={"dash": "dash", "color": INK}, row=1, col=1)
    figure.update_layout(
        title="Experts with more than their share are pushed down, the others are lifted<br>"
        "<sup>a router that collapsed; dashed: an even share</sup>",
        height=420,
        margin_t=110,
        legend={"orientation": "h", "y": -0.22, "x": 0},
    )
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="expert", dtick=1 if num_experts <= 16 else 8)
    figure.update_yaxes(title_text="share", row=1, col=1)
    figure.update_yaxes(title_text="−∂ loss / ∂ logit, all tokens", zerolinecolor=INK, row=1, col=2)
    return figure


def trade_off(
    alphas: Sequence[float], busiest: Mapping[str, Tensor], held_out: Mapping[str, Tensor], num_experts: int
) -> go.Figure:
    """Balance and held-out loss against α: a mark for each seed, a line through the means, a colour for each model.

    Args:
        alphas: weights of the balance loss, in rising order; 0 stands at the left end of the logarithmic axis.
        busiest: share of the busiest expert, (alphas, seeds), by model.
        held_out: task loss on held-out tokens, (alphas, seeds), by model.
        num_experts: E, for the even share.
    """
    figure = make_subplots(
        cols=2, horizontal_spacing=0.12, subplot_titles=["load of the busiest expert", "loss of the task"]
    )
    positive = [alpha for alpha in alphas if alpha > 0]
    places = [alpha if alpha > 0 else min(positive, default=1.0) / 4 for alpha in alphas]
    for i, name in enumerate(busiest):
        style = {"color": (BLUE, VERMILLION)[i % 2], "symbol": SYMBOLS[i], "size": 9, "opacity": 0.75}
        for col, values in ((1, 100 * busiest[name]), (2, held_out[name])):
            num_seeds = values.shape[1]
            figure.add_scatter(
                x=[place for place in places for _ in range(num_seeds)], y=values.flatten().tolist(), mode="markers",
                marker=style, name=name, legendgroup=name, showlegend=col == 1,
                hovertemplate=f"{name}<br>α ≈ %{{x}}: %{{y:.3f}}<extra></extra>", row=1, col=col,
            )  # fmt: skip
            figure.add_scatter(
                x=places, y=values.mean(1).tolist(), mode="lines", line={"color": style["color"]}, legendgroup=name,
                showlegend=False, hoverinfo="skip", row=1, col=col,
            )  # fmt: skip
    figure.add_hline(y=100 / num_experts, line={"dash": "dash", "color": INK}, row=1, col=1)
    figure.update_layout(
        title="Balance is cheap up to a point, and can pay<br>"
        f"<sup>a mark for each of {num_seeds} seeds; dashed: an even share</sup>",
        height=460,
        margin_t=110,
        legend={"orientation": "h", "y": -0.22, "x": 0},
    )
    figure.update_annotations(font_size=14)
    ticks = [place for place, alpha in zip(places, alphas, strict=True) if alpha == 0 or _is_power_of_ten(alpha)]
    names = [f"{alpha:g}" for alpha in alphas if alpha == 0 or _is_power_of_ten(alpha)]
    figure.update_xaxes(type="log", title_text="weight α of the balance loss", tickvals=ticks, ticktext=names)
    figure.update_yaxes(title_text="share of the load (%)", rangemode="tozero", gridcolor=FAINT, row=1, col=1)
    figure.update_yaxes(title_text="cross-entropy (nats)", rangemode="tozero", gridcolor=FAINT, row=1, col=2)
    return figure


def layers_stacked(loads: Mapping[str, Tensor]) -> go.Figure:
    """Load of every expert, layer upon layer: a flat top says that the layers' sum is even, not that a layer is.

    Args:
        loads: share of each expert in its layer, (layers, E), by how the loss was averaged.
    """
    figure = make_subplots(cols=len(loads), subplot_titles=list(loads), shared_yaxes=True, horizontal_spacing=0.06)
    for col, shares in enumerate(loads.values(), 1):
        num_layers, num_experts = shares.shape
        for layer in range(num_layers):
            figure.add_bar(
                x=list(range(num_experts)), y=(100 * shares[layer]).tolist(),
                name=f"layer {layer}", legendgroup=str(layer), showlegend=col == 1,
                marker={"color": (BLUE, ORANGE, GREY)[layer % 3], "pattern": {"shape": ("", "/", "x")[layer % 3]}},
                hovertemplate=f"layer {layer}, expert %{{x}}: %{{y:.1f}} %<extra></extra>", row=1, col=col,
            )  # fmt: skip
        figure.add_hline(y=100 * num_layers / num_experts, line={"dash": "dash", "color": INK}, row=1, col=col)
    figure.update_layout(
        title="Pooled layers excuse each other<br><sup>dashed: what the sum is if every layer is even</sup>",
        barmode="stack",
        height=430,
        margin_t=110,
        legend={"orientation": "h", "y": -0.22, "x": 0, "traceorder": "normal"},
    )
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="expert", dtick=1 if num_experts <= 16 else 8)
    figure.update_yaxes(title_text="share of its layer's load (%)", row=1, col=1)
    return figure


def _add_areas(figure: go.Figure, loads: Tensor, window: int, **place: int) -> None:
    shares = _windows(loads, window).sum(1)
    shares = 100 * shares / shares.sum(-1, keepdim=True).clamp(min=1)
    num_experts = loads.shape[-1]
    for e in range(num_experts):
        figure.add_scatter(
            x=_steps(loads, window), y=[round(value, 2) for value in shares[:, e].tolist()], name=str(e),
            mode="lines", stackgroup="load", line={"width": 0.5, "color": expert_colour(e, num_experts)},
            fillcolor=expert_colour(e, num_experts), hovertemplate=f"expert {e}: %{{y:.1f}} %<extra></extra>", **place,
        )  # fmt: skip


def _windows(values: Tensor, window: int) -> Tensor:
    """(steps, N) to (points, window, N); what is left at the end is dropped."""
    points = max(len(values) // window, 1)
    return values[: points * window].double().reshape(points, -1, values.shape[-1])


def _steps(loads: Tensor, window: int) -> list[int]:
    points = max(len(loads) // window, 1)
    return [round((point + 0.5) * min(window, len(loads))) for point in range(points)]


def _is_power_of_ten(alpha: float) -> bool:
    return f"{alpha:e}".startswith("1.000000e")
