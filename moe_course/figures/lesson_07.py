"""Figures of lesson 07, expert capacity: slots, what chance drops, drops against padding, cost, training with drops."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from moe_course.figures.style import BLUE, GREY, INK, ORANGE, PALETTE, VERMILLION, expert_colour

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
PADDED = "rgba(128, 128, 128, 0.25)"
DROPPED = "rgba(217, 96, 13, 0.25)"
TICKS = tuple(digit * 10.0**power for power in range(-2, 4) for digit in (1, 2, 5))  # of a logarithmic axis
MOST_CROSSES = 40  # rows that leave room for a cross in each cell


def slot_picture(used: Tensor, padded: Tensor, dropped: Tensor) -> go.Figure:
    """Every expert as a column of slots: a token, padding, or, above the line, a choice without a slot.

    Args:
        used: slots with a token, (E,).
        padded: slots without one, (E,).
        dropped: choices without a slot, (E,).
    """
    num_experts, capacity = len(used), int((used + padded).max())
    rows = max(capacity + int(dropped.max()), 1)
    slot = torch.arange(rows)[:, None]
    figure = go.Figure()
    _add_cells(figure, slot < used, [expert_colour(e, num_experts) for e in range(num_experts)], "token")
    _add_cells(figure, (slot >= used) & (slot < capacity), [PADDED] * num_experts, "padding")
    crosses = rows <= MOST_CROSSES
    beyond = (slot >= capacity) & (slot < capacity + dropped)
    _add_cells(figure, beyond, [DROPPED] * num_experts, "dropped", cross=crosses)
    figure.add_hline(y=capacity - 0.5, line={"color": INK, "width": 2, "dash": "dash"})
    choices, slots = int((used + dropped).sum()), num_experts * capacity
    lost, empty = int(dropped.sum()), int(padded.sum())
    figure.update_layout(
        title=f"{lost} of {choices} choices dropped ({lost / max(choices, 1):.0%}), "
        f"{empty} of {slots} slots padded ({empty / max(slots, 1):.0%})<br>"
        "<sup>colour: a slot with a token; grey: padding; above the dashed line: dropped</sup>",
        height=480,
        margin_t=90,
    )
    figure.update_xaxes(title_text="expert", dtick=1, showgrid=False, zeroline=False, range=[-0.5, num_experts - 0.5])
    figure.update_yaxes(
        title_text=f"place in the queue (capacity {capacity})", showgrid=False, zeroline=False,
        range=[-0.5, rows - 0.5], nticks=8,
    )  # fmt: skip
    return figure


def load_distribution(exact: Tensor, seen: Tensor, capacity: int, title: str) -> go.Figure:
    """How often an expert has which load: counted, and by the binomial law. Loads beyond the capacity stand out.

    Args:
        exact: probability of each load from 0, (L,).
        seen: share of the experts of the drawn batches with that load, (L,).
        capacity: C.
        title: what to learn from the figure.
    """
    figure = go.Figure()
    loads = torch.arange(len(exact))
    for name, where, colour, pattern in (
        ("drawn, fits", loads <= capacity, BLUE, ""),
        ("drawn, overflows", loads > capacity, VERMILLION, "/"),
    ):
        figure.add_bar(
            x=loads[where].tolist(), y=(100 * seen[where]).tolist(), name=name,
            marker={"color": colour, "pattern": {"shape": pattern}},
            hovertemplate="load %{x}: %{y:.2f} %<extra></extra>",
        )  # fmt: skip
    figure.add_scatter(
        x=loads.tolist(), y=(100 * exact).tolist(), name="binomial law", mode="markers",
        marker={"symbol": "diamond-open", "size": 9, "color": INK, "line": {"width": 2}},
        hovertemplate="load %{x}: %{y:.2f} %<extra></extra>",
    )  # fmt: skip
    figure.add_vline(x=capacity + 0.5, line={"color": INK, "dash": "dash", "width": 2})
    figure.update_layout(title=title, bargap=0.15, legend={"orientation": "h", "y": -0.22, "x": 0})
    figure.update_xaxes(title_text="tokens that want one expert", range=_shown(exact))
    figure.update_yaxes(title_text="share of experts and batches (%)")
    return figure


def drops_and_padding(
    factors: Sequence[float], dropped: Mapping[str, Tensor], padded: Mapping[str, Tensor]
) -> go.Figure:
    """Dropped choices on the left, padded slots on the right, against the capacity factor; a line for each batch size.

    Args:
        factors: capacity factors.
        dropped: share of choices, (factors,), by batch.
        padded: share of slots, (factors,), by batch.
    """
    figure = make_subplots(cols=2, horizontal_spacing=0.12, subplot_titles=["dropped choices", "padded slots"])
    for i, name in enumerate(dropped):
        for col, values in ((1, dropped[name]), (2, padded[name])):
            figure.add_scatter(
                x=list(factors), y=(100 * values).tolist(), name=name, legendgroup=name, showlegend=col == 1,
                mode="lines", line={"color": PALETTE[i], "dash": DASHES[i], "width": 2.5, "shape": "vh"},
                hovertemplate=f"{name}<br>factor %{{x}}: %{{y:.2f}} %<extra></extra>", row=1, col=col,
            )  # fmt: skip
    figure.update_layout(
        title="More room, fewer drops, more padding; small batches get the worse of both",
        height=430,
        margin_t=90,
        legend={"orientation": "h", "y": -0.22, "x": 0},
    )
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="capacity factor")
    figure.update_yaxes(title_text="share of choices (%)", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="share of slots (%)", rangemode="tozero", row=1, col=2)
    return figure


def drops_by_place(shares: Mapping[str, Tensor], batch_size: int) -> go.Figure:
    """Share of dropped choices by the token's place in its batch.

    Args:
        shares: dropped share in equal stretches of the batch, (stretches,), by priority.
        batch_size: tokens in a batch.
    """
    figure = go.Figure()
    for i, (name, values) in enumerate(shares.items()):
        width = batch_size / len(values)
        figure.add_scatter(
            x=[(stretch + 0.5) * width for stretch in range(len(values))], y=(100 * values).tolist(), name=name,
            mode="lines+markers", line={"color": PALETTE[i], "dash": DASHES[i]},
            marker={"symbol": SYMBOLS[i], "size": 9},
            hovertemplate=f"{name}<br>around place %{{x:.0f}}: %{{y:.1f}} %<extra></extra>",
        )  # fmt: skip
    figure.update_layout(
        title="First come, first served: the end of the batch pays", legend={"orientation": "h", "y": -0.22, "x": 0}
    )
    figure.update_xaxes(title_text="place of the token in its batch", range=[0, batch_size])
    figure.update_yaxes(title_text="dropped choices (%)", rangemode="tozero")
    return figure


def cost(milliseconds: Mapping[str, Mapping[int, float]], subtitle: str) -> go.Figure:
    """Time of a layer against the number of tokens, for each way to run it.

    Args:
        milliseconds: by way, by number of tokens.
        subtitle: how it was measured.
    """
    figure = go.Figure()
    for i, (name, by_tokens) in enumerate(milliseconds.items()):
        figure.add_scatter(
            x=list(by_tokens), y=list(by_tokens.values()), name=name, mode="lines+markers",
            line={"color": PALETTE[i], "dash": DASHES[i]}, marker={"symbol": SYMBOLS[i], "size": 10},
            hovertemplate=f"{name}<br>%{{x}} tokens: %{{y:.2f}} ms<extra></extra>",
        )  # fmt: skip
    counts = list(next(iter(milliseconds.values())))
    figure.update_layout(
        title=f"One-hot slots cost tokens squared; groups make that linear<br><sup>{subtitle}</sup>",
        height=440,
        margin_t=90,
        legend={"orientation": "h", "y": -0.22, "x": 0},
    )
    figure.update_xaxes(type="log", title_text="tokens T", tickvals=counts, ticktext=[str(count) for count in counts])
    figure.update_yaxes(type="log", title_text="forward pass (ms)", tickvals=TICKS, ticktext=[f"{t:g}" for t in TICKS])
    return figure


def evaluation(labels: Sequence[str], losses: Mapping[str, Tensor]) -> go.Figure:
    """Held-out loss against the capacity factor in evaluation; a line for each way to train, bars from seed to seed.

    Args:
        labels: capacity factors in evaluation.
        losses: (factors, seeds), by how the model was trained.
    """
    figure = go.Figure()
    for i, (name, values) in enumerate(losses.items()):
        figure.add_scatter(
            x=[place + 0.05 * (i - (len(losses) - 1) / 2) for place in range(len(labels))],
            y=values.mean(1).tolist(), name=name, mode="lines+markers",
            line={"color": (BLUE, ORANGE, PALETTE[2], PALETTE[3], GREY, VERMILLION)[i % 6], "dash": DASHES[i % 6]},
            marker={"symbol": SYMBOLS[i % 6], "size": 9},
            error_y={"type": "data", "array": values.std(1).tolist(), "thickness": 1.5, "width": 4},
            hovertemplate=f"{name}<br>loss %{{y:.3f}}<extra></extra>",
        )  # fmt: skip
    num_seeds = next(iter(losses.values())).shape[1]
    figure.update_layout(
        title="First come: room in evaluation helps. By score: it changes next to nothing<br>"
        f"<sup>means and standard deviations over {num_seeds} seeds; the same held-out text for all</sup>",
        height=480,
        margin_t=90,
        legend={"orientation": "h", "y": -0.2, "x": 0, "title": {"text": "trained with", "font": {"size": 13}}},
    )
    figure.update_xaxes(
        title_text="capacity factor in evaluation", tickvals=list(range(len(labels))), ticktext=list(labels)
    )
    figure.update_yaxes(title_text="cross-entropy (nats per character)")
    return figure


def _add_cells(figure: go.Figure, where: Tensor, colours: list[str], what: str, cross: bool = False) -> None:
    """Cells (rows, E) of a picture: column e in colours[e] where `where` is True, nothing elsewhere."""
    rows, num_experts = where.shape
    steps = max(num_experts - 1, 1)
    scale = [[e / steps, colour] for e, colour in enumerate(colours)]
    figure.add_heatmap(
        z=[[e if there else None for e, there in enumerate(row)] for row in where.tolist()],
        colorscale=scale if num_experts > 1 else [[0, colours[0]], [1, colours[0]]],
        zmin=0, zmax=steps, showscale=False, xgap=4, ygap=2 if rows <= MOST_CROSSES else 0.5, hoverongaps=False,
        text=[["×" if cross and there else "" for there in row] for row in where.tolist()], texttemplate="%{text}",
        textfont={"color": VERMILLION, "size": 13},
        hovertemplate=f"expert %{{x}}, place %{{y}}: {what}<extra></extra>",
    )  # fmt: skip


def _shown(probability: Tensor) -> list[float]:
    """The range of loads that have a noticeable probability."""
    likely = (probability > 2e-4).nonzero().flatten()
    return [int(likely[0]) - 0.7, int(likely[-1]) + 0.7]
