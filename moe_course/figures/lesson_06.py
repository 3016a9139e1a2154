"""Figures of lesson 06, the Triton dispatch kernel: the road of a choice, program instances, tiles and bounds."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from moe_course.figures.style import BLUE, FAINT, GREY, INK, ORANGE, PALETTE, SKY, VERMILLION, expert_colour

DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
BLOCKS = (8, 16, 32, 64, 128, 256)
HATCHED = {"color": "rgba(128, 128, 128, 0.18)", "pattern": {"shape": "/", "fgcolor": GREY, "size": 5}}


def road(expert_ids: Tensor, num_experts: int) -> go.Figure:
    """Where each choice stands before and after sorting, and which token its row goes back to.

    Args:
        expert_ids: (T, K), for a few tokens.
        num_experts: number of experts E.
    """
    (num_tokens, top_k), flat = expert_ids.shape, expert_ids.flatten()
    order = flat.argsort(stable=True)
    middle = [(top_k * t + (top_k - 1) / 2) for t in range(num_tokens)]
    figure = go.Figure()
    for expert in range(num_experts):
        x: list[float | None] = []
        y: list[float | None] = []
        for row, choice in enumerate(order.tolist()):
            if flat[choice] == expert:
                x += [0, 1, 2, None]
                y += [choice, row, middle[choice // top_k], None]
        colour = expert_colour(expert, num_experts)
        figure.add_scatter(
            x=x, y=y, mode="lines+markers", name=f"expert {expert}", line={"color": colour, "width": 2.5},
            marker={"size": 11, "symbol": "square"}, hoverinfo="skip",
        )  # fmt: skip
    figure.add_scatter(
        x=[2] * num_tokens, y=middle, mode="markers", showlegend=False, hoverinfo="skip",
        marker={"size": 13, "symbol": "square", "color": GREY},
    )  # fmt: skip
    labels: list[tuple[int, float, str, str, int]] = [(0, c, f"choice {c}", "right", -14) for c in range(len(flat))]
    labels += [(2, middle[t], f"token {t}", "left", 14) for t in range(num_tokens)]
    labels += [(1, row, f"row {row}", "center", 0) for row in range(len(flat))]
    for place, y_place, text, anchor, shift in labels:
        figure.add_annotation(
            x=place, y=y_place, text=text, xanchor=anchor, xshift=shift, yshift=14 if anchor == "center" else 0,
            showarrow=False, font={"size": 13},
        )  # fmt: skip
    figure.update_layout(
        title=f"{len(flat)} choices find their rows, and {num_tokens} tokens fetch them back",
        height=120 + 34 * len(flat),
        legend={"orientation": "h", "y": -0.06, "x": 0},
        margin={"l": 90, "r": 90, "b": 60},
    )
    figure.update_xaxes(
        tickvals=[0, 1, 2], ticktext=["in the order of the text", "sorted by expert", "combined"], side="top",
        range=[-0.1, 2.1], showgrid=False, zeroline=False, showline=False, ticks="",
    )  # fmt: skip
    figure.update_yaxes(visible=False, range=[len(flat) - 0.4, -0.9])
    return figure


def programs(num_rows: int, width: int, block_rows: int, block_columns: int) -> go.Figure:
    """Which program instance owns which elements of a matrix, and which of its lanes lie outside.

    Args:
        num_rows, width: of the matrix.
        block_rows, block_columns: of a program instance's rectangle.
    """
    down, across = -(-num_rows // block_rows), -(-width // block_columns)
    row, column = torch.arange(down * block_rows)[:, None], torch.arange(across * block_columns)[None, :]
    shade = (row // block_rows + column // block_columns) % 2  # neighbours differ
    inside = (row < num_rows) & (column < width)
    figure = go.Figure(
        go.Heatmap(
            z=torch.where(inside, shade.double(), torch.nan).tolist(),
            colorscale=[[0, BLUE], [1, SKY]], zmin=0, zmax=1, showscale=False, xgap=2, ygap=2, hoverongaps=False,
            hovertemplate="row %{y}, column %{x}<extra></extra>",
        )
    )  # fmt: skip
    for i in range(down):
        for j in range(across):
            top, left = i * block_rows - 0.5, j * block_columns - 0.5
            figure.add_shape(
                type="rect", x0=left, x1=left + block_columns, y0=top, y1=top + block_rows,
                line={"color": INK, "width": 2, "dash": "dot"},
            )  # fmt: skip
            figure.add_annotation(
                x=left + 0.5, y=top + 0.5, text=f"instance ({i}, {j})", showarrow=False, xanchor="left",
                yanchor="middle", bgcolor="rgba(30, 30, 30, 0.85)", font={"size": 13, "color": "#ffffff"},
            )  # fmt: skip
    lanes, useful = int(inside.numel()), num_rows * width
    figure.update_layout(
        title=f"A grid of {down} × {across} program instances covers {num_rows} × {width} elements<br>"
        f"<sup>dotted: the lanes of one instance; {lanes - useful} of {lanes} lie outside and are masked</sup>",
        height=130 + 22 * down * block_rows,
        margin_t=90,
    )
    figure.update_xaxes(title_text="column", showgrid=False, zeroline=False, range=[-0.8, across * block_columns - 0.2])
    figure.update_yaxes(title_text="row", showgrid=False, zeroline=False, range=[down * block_rows - 0.2, -0.8])
    return figure


def tiles(loads: Tensor, block: int) -> go.Figure:
    """Tiles of the grouped GEMM, one program instance each, and how full they are; on the right for other blocks.

    Args:
        loads: rows of each expert, (E,).
        block: rows of a tile.
    """
    num_experts, rows = len(loads), int(loads.sum())
    experts = torch.arange(num_experts).repeat_interleave((loads + block - 1) // block)
    first = (experts[1:] != experts[:-1]).nonzero().flatten() + 1
    number = torch.arange(len(experts))
    starts = torch.zeros_like(number).index_copy(0, first, first).cummax(0).values if len(number) else number
    used = (loads[experts] - (number - starts) * block).clamp(max=block)
    begin = (loads.cumsum(0) - loads)[experts] + (number - starts) * block
    share = rows / max(len(experts) * block, 1)
    figure = make_subplots(cols=2, column_widths=[0.66, 0.34], horizontal_spacing=0.12)
    texts = [
        f"instance {i}: rows {b} to {b + u - 1}, expert {e}"
        for i, (b, u, e) in enumerate(zip(begin.tolist(), used.tolist(), experts.tolist(), strict=True))
    ]
    figure.add_bar(
        x=number.tolist(), y=used.tolist(), name="rows of an expert", hovertext=texts, hoverinfo="text",
        marker={"color": [expert_colour(e, num_experts) for e in experts.tolist()]}, showlegend=False, row=1, col=1,
    )  # fmt: skip
    figure.add_bar(
        x=number.tolist(),
        y=(block - used).tolist(),
        name="masked lanes",
        marker=HATCHED,
        hoverinfo="skip",
        row=1,
        col=1,
    )
    shares = [padding_efficiency(loads, size) for size in BLOCKS]
    slots = rows / max(num_experts * int(loads.max()), 1)
    figure.add_scatter(
        x=list(BLOCKS), y=shares, name="tiles", mode="lines+markers", line={"color": BLUE}, marker={"size": 8},
        hovertemplate="blocks of %{x}: %{y:.0%}<extra></extra>", row=1, col=2,
    )  # fmt: skip
    figure.add_scatter(
        x=list(BLOCKS), y=[slots] * len(BLOCKS), name="one-hot slots (lesson 03)", mode="lines",
        line={"color": ORANGE, "dash": "dash"}, hovertemplate="%{y:.0%}<extra></extra>", row=1, col=2,
    )  # fmt: skip
    figure.add_scatter(
        x=[block], y=[share], name="this block", mode="markers", hoverinfo="skip",
        marker={"color": VERMILLION, "size": 14, "symbol": "circle-open", "line": {"width": 3}}, row=1, col=2,
    )  # fmt: skip
    idle = int((loads == 0).sum())
    figure.update_layout(
        title=f"{len(experts)} tiles of {block} rows hold {rows} rows: {share:.0%} of the lanes are in use<br>"
        f"<sup>busiest expert: {int(loads.max())} rows; experts without a row, and so without a tile: {idle}</sup>",
        barmode="stack",
        bargap=0.15,
        height=460,
        margin_t=90,
        legend={"orientation": "h", "y": -0.2, "x": 0},
    )
    figure.update_xaxes(title_text="program instance", range=[-0.6, max(len(experts), 1) - 0.4], row=1, col=1)
    figure.update_yaxes(title_text="rows in the tile", range=[0, block * 1.05], row=1, col=1)
    figure.update_xaxes(
        type="log", title_text="block (rows), log scale", tickvals=BLOCKS, ticktext=BLOCKS, row=1, col=2
    )
    figure.update_yaxes(title_text="share of lanes in use", tickformat=".0%", range=[0, 1.05], row=1, col=2)
    return figure


def padding_efficiency(loads: Tensor, block: int) -> float:
    """Rows over lanes: 1 where every tile is full.

    Args:
        loads: rows of each expert, (E,).
        block: rows of a tile.
    """
    lanes = ((loads + block - 1) // block).sum() * block
    return float(loads.sum() / lanes) if lanes else 1.0


def padding(efficiency: Mapping[str, Sequence[float]], blocks: Sequence[int]) -> go.Figure:
    """Share of lanes in use against the block, for several layers.

    Args:
        efficiency: by layer, one number for each block.
        blocks: rows of a tile.
    """
    figure = go.Figure()
    for i, (name, shares) in enumerate(efficiency.items()):
        figure.add_scatter(
            x=list(blocks), y=list(shares), name=name, mode="lines+markers",
            line={"color": PALETTE[i], "dash": DASHES[i % len(DASHES)]},
            marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 9},
            hovertemplate=f"{name}<br>blocks of %{{x}}: %{{y:.0%}}<extra></extra>",
        )  # fmt: skip
    figure.update_layout(title="Large blocks waste lanes where experts have few rows", height=430)
    figure.update_xaxes(type="log", title_text="block (rows of a tile), log scale", tickvals=blocks, ticktext=blocks)
    figure.update_yaxes(title_text="share of lanes in use", tickformat=".0%", range=[0, 1.05])
    return figure


def bounds(
    tokens: Sequence[int], compute: Sequence[float], memory: Sequence[float], title: str, subtitle: str
) -> go.Figure:
    """Least time of a layer by its arithmetic and by its traffic; the larger of the two bounds it.

    Args:
        tokens: T, along the x axis.
        compute, memory: seconds.
        title: what to learn from the figure.
        subtitle: how the numbers came about.
    """
    figure = go.Figure()
    lines = (("arithmetic alone", compute, BLUE, "dash"), ("traffic alone", memory, ORANGE, "dot"))
    for name, seconds, colour, dash in lines:
        figure.add_scatter(
            x=list(tokens), y=[1e6 * value for value in seconds], name=name, mode="lines",
            line={"color": colour, "dash": dash, "width": 3}, hovertemplate=f"{name}: %{{y:.3g}} µs<extra></extra>",
        )  # fmt: skip
    slower = [1e6 * max(pair) for pair in zip(compute, memory, strict=True)]
    figure.add_scatter(
        x=list(tokens), y=slower, name="no kernel is faster", mode="lines", line={"color": INK, "width": 2},
        fill="tozeroy", fillcolor=FAINT, hoverinfo="skip",
    )  # fmt: skip
    figure.update_layout(title=f"{title}<br><sup>{subtitle}</sup>", height=430, margin_t=90)
    figure.update_xaxes(type="log", title_text="tokens T, log scale", tickvals=tokens[::2], ticktext=list(tokens[::2]))
    figure.update_yaxes(type="log", title_text="least time of a layer (µs), log scale", dtick=1, exponentformat="none")
    return figure
