"""Figures of lesson 01: where parameters and FLOPs are, the roofline, and what experts cost."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from moe_course.figures.style import BLUE, FAINT, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILLION, YELLOW

PART_COLOURS = {
    "attention": BLUE,
    "attention scores": SKY,
    "dense ffn": ORANGE,
    "experts": ORANGE,
    "shared experts": VERMILLION,
    "router": GREEN,
    "embedding": PURPLE,
    "head": YELLOW,
    "norms": GREY,
}
LINE_STYLES = ("solid", "dash", "dot", "dashdot")


def activations(h: Tensor, curves: Mapping[str, Tensor]) -> go.Figure:
    """Activation functions over the hidden value h.

    Args:
        h: hidden values, (N,).
        curves: name to the activation of h, (N,).
    """
    figure = go.Figure(
        layout={
            "title": "Activations differ where the hidden value is near zero",
            "xaxis_title": "hidden value h",
            "yaxis": {"title": {"text": "activation of h"}, "range": [-1.2, 3.1]},
        }
    )
    for (name, values), dash in zip(curves.items(), LINE_STYLES, strict=False):
        figure.add_scatter(x=h.tolist(), y=values.tolist(), name=name, mode="lines", line_dash=dash)
    return figure


def shares(name: str, parameters: Mapping[str, int], flops: Mapping[str, int], context: int) -> go.Figure:
    """How a model's parameters, and one token's FLOPs, are divided among its parts.

    Args:
        name: the model.
        parameters: parameters by part.
        flops: FLOPs of one token by part.
        context: tokens that this one attends to.
    """
    rows = {
        f"parameters<br>{sum(parameters.values()) / 1e9:.1f} billion": parameters,
        f"FLOPs of a token<br>{sum(flops.values()) / 1e9:.1f} billion": flops,
    }
    figure = go.Figure(
        layout={
            "title": f"{name}: where parameters and FLOPs are<br><sup>a token that attends to {context} tokens</sup>",
            "xaxis": {"title": {"text": "share (%)"}, "range": [0, 100]},
            "barmode": "stack",
            "height": 320,
            "legend": {"traceorder": "normal"},
            "yaxis": {"autorange": "reversed", "ticks": ""},
        }
    )
    for part in PART_COLOURS:
        share = [100 * row.get(part, 0) / sum(row.values()) for row in rows.values()]
        if max(share) < 0.05:
            continue
        figure.add_bar(
            y=list(rows),
            x=share,
            name=part,
            orientation="h",
            marker_color=PART_COLOURS[part],
            text=[f"{value:.0f} %" if value >= 6 else "" for value in share],
            textposition="inside",
            insidetextanchor="middle",
            textfont_color="#111111",
            hovertemplate="%{x:.1f} %",
        )
    return figure


def roofline(
    peak: float, bandwidth: float, bound: Mapping[int, float], measured: Mapping[int, float] | None = None
) -> go.Figure:
    """The roof of this machine, and how near an FFN comes to it for batches of several sizes.

    Args:
        peak: FLOP per second at most.
        bandwidth: bytes per second at most.
        bound: batch size in tokens to arithmetic intensity, FLOP per byte.
        measured: batch size to measured FLOP per second; None before the measurement.
    """
    ridge = peak / bandwidth
    ends = [min(min(bound.values()), ridge) / 2, max(max(bound.values()), ridge) * 2]
    figure = go.Figure(
        layout={
            "title": "Left of the corner memory decides, right of it arithmetic",
            "xaxis": {"title": {"text": "arithmetic intensity (FLOP per byte)"}, "type": "log", "dtick": 1},
            "yaxis": {"title": {"text": "speed (GFLOP per second)"}, "type": "log", "dtick": 1},
        }
    )
    roof = [min(peak, intensity * bandwidth) / 1e9 for intensity in (ends[0], ridge, ends[1])]
    figure.add_scatter(x=[ends[0], ridge, ends[1]], y=roof, name="roof", mode="lines", line_color=GREY)
    figure.add_scatter(
        x=list(bound.values()),
        y=[min(peak, intensity * bandwidth) / 1e9 for intensity in bound.values()],
        name="FFN: at most",
        mode="markers+text",
        marker={"color": BLUE, "symbol": "circle-open", "line": {"width": 2}},
        text=[f"T = {tokens}" if tokens == 1 else str(tokens) for tokens in bound],
        textposition=["top left" if intensity < ridge else "top center" for intensity in bound.values()],
        cliponaxis=False,
    )
    if measured:
        figure.add_scatter(
            x=[bound[tokens] for tokens in measured],
            y=[speed / 1e9 for speed in measured.values()],
            name="FFN: measured",
            mode="markers",
            marker={"color": VERMILLION, "symbol": "diamond"},
        )
    return figure


def batch_times(bound: Mapping[int, float], measured: Mapping[int, float]) -> go.Figure:
    """Seconds of a forward pass over the batch size: the least possible, and measured.

    Args:
        bound: batch size in tokens to least seconds.
        measured: batch size to measured seconds.
    """
    figure = go.Figure(
        layout={
            "title": "The time grows more slowly than the batch",
            "xaxis": {
                "title": {"text": "batch size T (tokens)"},
                "type": "log",
                "tickvals": list(bound),
                "ticktext": [str(tokens) for tokens in bound],
            },
            "yaxis": {"title": {"text": "time of one forward pass (ms)"}, "type": "log", "dtick": 1},
        }
    )
    lines = (("least possible", bound, GREY, "dash", "circle"), ("measured", measured, VERMILLION, "solid", "diamond"))
    for name, seconds, colour, dash, symbol in lines:
        figure.add_scatter(
            x=list(seconds),
            y=[1e3 * value for value in seconds.values()],
            name=name,
            mode="lines+markers",
            line={"color": colour, "dash": dash},
            marker_symbol=symbol,
        )
    return figure


def budgets(
    moe: tuple[int, int, int], same_flops: tuple[int, int], same_size: tuple[int, int], title: str
) -> go.Figure:
    """One MoE layer beside two dense FFNs: one as costly, one as large.

    Args:
        moe: total parameters, active parameters and FLOPs per token.
        same_flops: parameters and FLOPs per token of a dense FFN that costs as much as the MoE layer.
        same_size: the same of a dense FFN with as many parameters.
        title: what the layer is.
    """
    total, active, flops = moe
    names = ["MoE layer", "dense FFN,<br>same FLOPs", "dense FFN,<br>same size"]
    figure = make_subplots(1, 2, horizontal_spacing=0.16)
    used = [active / 1e6, same_flops[0] / 1e6, same_size[0] / 1e6]
    figure.add_bar(x=names, y=used, name="used by a token (active)", marker_color=ORANGE, row=1, col=1)
    figure.add_bar(
        x=names[:1],
        y=[(total - active) / 1e6],
        name="idle for this token",
        marker={"color": FAINT, "line": {"color": ORANGE, "width": 1.5}},
        row=1,
        col=1,
    )
    work = [flops / 1e9, same_flops[1] / 1e9, same_size[1] / 1e9]
    figure.add_bar(x=names, y=work, name="FLOPs", marker_color=BLUE, row=1, col=2)
    figure.update_layout(
        title=f"{title}<br><sup>{total / 1e6:.0f} M parameters to store, {active / 1e6:.0f} M used by a token: "
        f"{total / active:.1f} times as many</sup>",
        barmode="stack",
        height=440,
        margin_t=88,
        legend={"orientation": "h", "y": -0.24, "yanchor": "top", "traceorder": "normal"},
    )
    figure.update_yaxes(title_text="parameters (millions)", row=1, col=1)
    figure.update_yaxes(title_text="work per token (GFLOP)", row=1, col=2)
    figure.update_xaxes(tickangle=0)
    return figure


def memory_and_time(num_experts: Sequence[int], memory: Sequence[float], seconds: Sequence[float]) -> go.Figure:
    """Memory and time of MoE layers over the number of experts, both in units of the dense FFN.

    Args:
        num_experts: E of each layer.
        memory: bytes of its parameters over those of the dense FFN.
        seconds: time of its forward pass over the dense FFN's.
    """
    figure = go.Figure(
        layout={
            "title": "More experts: memory grows in proportion, time far less",
            "xaxis": {
                "title": {"text": "number of experts E, with K fixed"},
                "type": "log",
                "tickvals": list(num_experts),
            },
            "yaxis": {
                "title": {"text": "multiple of the dense FFN (×)"},
                "type": "log",
                "tickvals": [1, 2, 4, 8, 16, 32],
            },
        }
    )
    curves = (
        ("memory of the parameters", memory, BLUE, "circle"),
        ("time of a forward pass", seconds, VERMILLION, "diamond"),
    )
    for name, values, colour, symbol in curves:
        figure.add_scatter(
            x=list(num_experts),
            y=list(values),
            name=name,
            mode="lines+markers",
            line_color=colour,
            marker_symbol=symbol,
        )
    figure.add_hline(1, line={"color": INK, "dash": "dash", "width": 1})
    return figure


def experts_touched(batches: Sequence[int], share: Mapping[str, Sequence[float]]) -> go.Figure:
    """Share of a layer's experts that a decoding batch needs.

    Args:
        batches: batch sizes in tokens.
        share: model to the share of its experts for each batch size, 0 to 1.
    """
    figure = go.Figure(
        layout={
            "title": "A small batch already needs most experts",
            "xaxis": {"title": {"text": "batch size (tokens)"}, "type": "log", "tickvals": list(batches)},
            "yaxis": {"title": {"text": "experts needed (%)"}, "range": [0, 104]},
        }
    )
    for (name, values), dash in zip(share.items(), LINE_STYLES, strict=False):
        figure.add_scatter(
            x=list(batches), y=[100 * value for value in values], name=name, mode="lines+markers", line_dash=dash
        )
    return figure


def published(models: Mapping[str, tuple[int, int]]) -> go.Figure:
    """Published models by what a token uses and what memory must hold.

    Args:
        models: name to total and active parameters.
    """
    active = [counts[1] / 1e9 for counts in models.values()]
    total = [counts[0] / 1e9 for counts in models.values()]
    figure = go.Figure(
        layout={
            "title": "What a token uses, and what must be stored",
            "xaxis": {
                "title": {"text": "active parameters (billions)"},
                "type": "log",
                "tickvals": [1, 2, 5, 10, 20, 50],
            },
            "yaxis": {"title": {"text": "total parameters (billions)"}, "type": "log", "dtick": 1},
            "height": 480,
            "showlegend": False,
        }
    )
    ends = [min(active) / 1.6, max(active) * 1.6]
    for factor in (1, 4, 16):
        label = "dense: total = active" if factor == 1 else f"total = {factor} × active"
        figure.add_scatter(
            x=ends,
            y=[factor * end for end in ends],
            mode="lines+text",
            line={"color": FAINT, "width": 2},
            text=[label, ""],
            textposition="bottom right",
            textfont_color=GREY,
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=active,
        y=total,
        mode="markers+text",
        text=[f"<b>{name}</b>" for name in models],
        textposition=["middle left" if value > 20 else "middle right" for value in active],
        marker={"color": [GREY if a == t else ORANGE for a, t in zip(active, total, strict=True)], "size": 11},
        hovertemplate="%{x:.1f} of %{y:.1f} billion<extra></extra>",
        cliponaxis=False,
    )
    return figure
