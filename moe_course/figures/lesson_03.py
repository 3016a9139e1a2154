"""Figures of lesson 03, the expert layer: tokens on their way to experts, one-hot tensors, cost and training."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from moe_course.figures.style import BLUE, FAINT, GREEN, GREY, INK, ORANGE, PALETTE, expert_colour

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
LABEL_HEIGHT = 17  # pixels between the nodes of a flow diagram, so that their names never overlap
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def there_and_back(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> go.Figure:
    """Each token's way to its experts and back: dispatch on the left, combine on the right.

    Args:
        expert_ids: (T, K), for a few tokens.
        expert_weights: (T, K); the width of a link on the way back.
        num_experts: number of experts E.
    """
    num_tokens, top_k = expert_ids.shape
    there = torch.zeros(num_tokens, num_experts).scatter(1, expert_ids, 1 / top_k)
    back = torch.zeros(num_tokens, num_experts).scatter(1, expert_ids, expert_weights)
    plot_height = 38 * num_tokens
    sankey, labels = _sankey(
        [[f"token {t}" for t in range(num_tokens)], _names(num_experts), [f"output {t}" for t in range(num_tokens)]],
        [there, back.T],
        [
            lambda t, e: f"token {t} goes to expert {e}",
            lambda e, t: f"{back[t, e]:.2f} of expert {e} in the output of token {t}",
        ],
        plot_height,
    )
    figure = go.Figure(sankey)
    figure.update_layout(
        title=f"Dispatch: each token to {top_k} experts. Combine: {top_k} outputs back to each token",
        annotations=labels,
        height=plot_height + 100,
        margin={"l": 48, "r": 48, "t": 76, "b": 24},
    )
    return figure


def flow_and_waste(expert_ids: Tensor, num_experts: int) -> go.Figure:
    """Where the tokens of a batch go, and how many rows each dispatch pushes through an expert for it.

    Args:
        expert_ids: (T, K).
        num_experts: number of experts E.
    """
    num_tokens, top_k = expert_ids.shape
    names = ["first choices", "second choices", "third choices", "fourth choices"]
    flows = torch.stack([torch.bincount(column, minlength=num_experts) for column in expert_ids.unbind(1)])
    loads, useful = flows.sum(0), num_tokens * top_k
    busiest, idle = int(loads.max()), int((loads == 0).sum())
    rows = {
        "sort, or loop": useful,
        "one-hot slots": num_experts * busiest,
        "every expert,<br>every token": num_experts * num_tokens,
    }
    plot_height = 360
    sankey, labels = _sankey(
        [names[:top_k], [f"expert {e}: {load}" for e, load in enumerate(loads.tolist())]],
        [flows],
        [lambda k, e: f"{flows[k, e]} of the {names[k]} go to expert {e}"],
        plot_height,
        width=0.36,
    )
    figure = go.Figure(sankey)
    for name, widths, colour in (
        ("asked for", [useful] * len(rows), BLUE),
        ("wasted", [total - useful for total in rows.values()], ORANGE),
    ):
        figure.add_bar(
            y=list(rows),
            x=widths,
            orientation="h",
            name=name,
            marker={"color": colour, "pattern": {"shape": "/" if name == "wasted" else ""}},
            hovertemplate=f"{name}: %{{x}} rows<extra></extra>",
        )
    totals = [f" {total:,} rows, ×{total / useful:.1f}".replace(",", " ") for total in rows.values()]
    figure.add_scatter(
        y=list(rows), x=list(rows.values()), mode="text", text=totals, textposition="middle right", showlegend=False,
        textfont={"size": 13, "color": INK}, hoverinfo="skip", cliponaxis=False,
    )  # fmt: skip
    figure.update_layout(
        title=f"The busiest of {num_experts} experts has {busiest} of {useful} choices<br>"
        f"<sup>an even share would be {useful / num_experts:.1f}; experts without a token: {idle}</sup>",
        annotations=labels,
        barmode="stack",
        height=plot_height + 190,
        margin={"l": 124, "t": 90, "b": 100},
        legend={"orientation": "h", "y": -0.22, "x": 0.62, "traceorder": "normal"},
    )
    figure.update_xaxes(
        title_text="rows through an expert", domain=[0.65, 1], range=[0, 1.9 * max(rows.values())], nticks=4
    )
    figure.update_yaxes(autorange="reversed")
    return figure


def flow(sources: Sequence[str], flows: Tensor, title: str) -> go.Figure:
    """How many tokens of each kind go to each expert.

    Args:
        sources: names of the kinds.
        flows: counts, (kinds, E).
        title: what to learn from the figure.
    """
    loads, num_experts, plot_height = flows.sum(0).tolist(), flows.shape[1], 340
    sankey, labels = _sankey(
        [list(sources), [f"expert {e}: {loads[e]}" for e in range(num_experts)]],
        [flows],
        [lambda s, e: f"{flows[s, e]} from {sources[s]} to expert {e}"],
        plot_height,
    )
    figure = go.Figure(sankey)
    figure.update_layout(
        title=title, annotations=labels, height=plot_height + 100, margin={"l": 120, "r": 124, "t": 76, "b": 24}
    )
    return figure


def slots(dispatch: Tensor) -> go.Figure:
    """The one-hot dispatch tensor as a picture: a row for each token, a column for each slot of each expert.

    Args:
        dispatch: (T, E, C), 0 or 1.
    """
    num_tokens, num_experts, capacity = dispatch.shape
    expert = torch.arange(num_experts)[:, None].expand(num_experts, capacity).flatten().tolist()
    taken = dispatch.flatten(1).tolist()
    filled = [[e if value else None for e, value in zip(expert, row, strict=True)] for row in taken]
    steps = max(num_experts - 1, 1)
    figure = go.Figure(
        go.Heatmap(
            z=filled,
            y=[f"token {t}" for t in range(num_tokens)],
            colorscale=[[e / steps, colour] for e, colour in enumerate(_colours(num_experts))]
            if num_experts > 1
            else [[0, PALETTE[0]], [1, PALETTE[0]]],
            zmin=0,
            zmax=steps,
            showscale=False,
            xgap=2,
            ygap=2,
            hoverongaps=False,
            customdata=[[f"slot {slot} of expert {e}" for e in range(num_experts) for slot in range(capacity)]]
            * num_tokens,
            hovertemplate="%{y} sits in %{customdata}<extra></extra>",
        )
    )
    for e in range(1, num_experts):
        figure.add_vline(x=e * capacity - 0.5, line={"color": INK, "width": 1.5})
    share = float((dispatch != 0).double().mean())
    figure.update_layout(
        title=f"dispatch has {dispatch.numel()} entries, of which {share:.1%} are not zero",
        height=110 + 26 * num_tokens,
    )
    figure.update_xaxes(
        title_text=f"slots, {capacity} for each expert",
        tickvals=[(e + 0.5) * capacity - 0.5 for e in range(num_experts)],
        ticktext=_names(num_experts),
        showgrid=False,
        zeroline=False,
        ticks="",
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    return figure


def cost(ratios: Mapping[str, Mapping[int, float]], subtitle: str) -> go.Figure:
    """Cost of each dispatch as the number of experts grows, in multiples of the dense FFN of equal active FLOPs.

    Args:
        ratios: by dispatch, by number of experts.
        subtitle: how it was measured.
    """
    figure = go.Figure()
    for i, (name, by_experts) in enumerate(ratios.items()):
        figure.add_scatter(
            x=list(by_experts),
            y=list(by_experts.values()),
            name=name,
            mode="lines+markers",
            line={"color": PALETTE[i], "dash": DASHES[i % len(DASHES)]},
            marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 10},
            hovertemplate=f"{name}<br>E = %{{x}}: %{{y:.1f}} dense FFNs<extra></extra>",
        )
    counts = list(next(iter(ratios.values())))
    figure.add_scatter(
        x=counts, y=[1] * len(counts), name="dense FFN", mode="lines", line={"color": INK, "width": 4}, hoverinfo="skip"
    )
    figure.update_layout(
        title=f"The same active compute costs very different amounts<br><sup>{subtitle}</sup>", height=470, margin_t=90
    )
    figure.update_xaxes(type="log", title_text="number of experts E, log scale", tickvals=counts, ticktext=counts)
    ticks = [1, 2, 5, 10, 20, 50, 100, 200]
    figure.update_yaxes(type="log", title_text="time, in dense FFNs (log scale)", tickvals=ticks, ticktext=ticks)
    return figure


def training(steps: Mapping[str, Sequence[int]], losses: Mapping[str, Tensor]) -> go.Figure:
    """Held-out loss of several models: on the left along training, on the right at the end, a mark for each seed.

    Args:
        steps: at which the loss was measured, by model.
        losses: (seeds, points), by model.
    """
    figure = make_subplots(
        cols=2, column_widths=[0.62, 0.38], horizontal_spacing=0.09, subplot_titles=["along training", "at the end"]
    )
    colours = (GREY, GREEN, BLUE, ORANGE)
    for i, (name, runs) in enumerate(losses.items()):
        style = {"color": colours[i], "symbol": SYMBOLS[i], "size": 9}
        for seed, run in enumerate(runs.tolist()):
            figure.add_scatter(
                x=list(steps[name]), y=run, mode="lines+markers", name=name, legendgroup=name, showlegend=seed == 0,
                line={"color": colours[i], "dash": DASHES[i], "width": 1.8}, marker=style,
                hovertemplate=f"{name}, seed {seed}<br>step %{{x}}: %{{y:.3f}}<extra></extra>", row=1, col=1,
            )  # fmt: skip
        figure.add_scatter(
            x=[i] * len(runs), y=runs[:, -1].tolist(), mode="markers", marker=style | {"size": 11}, legendgroup=name,
            showlegend=False, hovertemplate=f"{name}: %{{y:.3f}}<extra></extra>", row=1, col=2,
        )  # fmt: skip
    seeds = len(next(iter(losses.values())))
    figure.update_layout(
        title=f"Predicting the next character of Python's documentation<br><sup>held-out text, {seeds} seeds</sup>",
        legend={"orientation": "h", "y": -0.2, "x": 0},
        height=500,
        margin_t=100,
    )
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="step", row=1, col=1)
    figure.update_xaxes(
        showticklabels=False, ticks="", range=[-0.6, len(losses) - 0.4], showgrid=False, zeroline=False, row=1, col=2
    )
    figure.update_yaxes(title_text="loss (nats a character)", gridcolor=FAINT, row=1, col=1)
    return figure


def _sankey(
    columns: Sequence[Sequence[str]],
    flows: Sequence[Tensor],
    hover: Sequence[Callable[[int, int], str]],
    plot_height: int,
    width: float = 1.0,
) -> tuple[go.Sankey, list[dict]]:
    """A flow diagram whose nodes keep their order, and the names of its nodes, which stand beside the flows.

    Args:
        columns: names of the nodes, column by column; the second column holds the experts.
        flows: flows[c], (nodes in column c, nodes in column c + 1).
        hover: hover[c](from, to), the text of a link.
        plot_height: in pixels.
        width: share of the figure's width, from the left.
    """
    num_experts, inside = len(columns[1]), len(columns) > 2
    thickness = 70 if inside else 14
    sizes = [flows[0].sum(1), flows[0].sum(0), *(flow.sum(0) for flow in flows[1:])]
    middles = _middles([size.double() for size in sizes], LABEL_HEIGHT / plot_height)
    first = [sum(len(column) for column in columns[:c]) for c in range(len(columns))]
    source, target, value, colour, text = [], [], [], [], []
    for c, flow in enumerate(flows):
        tiny = 1e-6 * flow.sum().item()  # plotly would leave out a node without a link
        for s, t in itertools.product(range(len(flow)), range(len(flow.T))):
            if flow[s, t] > 0 or s == 0:
                source.append(first[c] + s)
                target.append(first[c + 1] + t)
                value.append(max(flow[s, t].item(), tiny))
                shade = _translucent(expert_colour(t if c == 0 else s, num_experts))
                colour.append(shade if flow[s, t] > 0 else "rgba(0, 0, 0, 0)")
                text.append(hover[c](s, t))
    across = [0.001 + 0.998 * c / (len(columns) - 1) for c in range(len(columns))]
    experts = _colours(num_experts)
    sankey = go.Sankey(
        arrangement="fixed",
        domain={"x": [0, width]},
        node={
            "label": [""] * sum(map(len, columns)),
            "x": [x for x, column in zip(across, columns, strict=True) for _ in column],
            "y": [y for column in middles for y in column],
            "color": [experts[i] if c == 1 else GREY for c, column in enumerate(columns) for i in range(len(column))],
            "pad": LABEL_HEIGHT,
            "thickness": thickness,
            "hoverinfo": "skip",
        },
        link={"source": source, "target": target, "value": value, "color": colour, "customdata": text}
        | {"hovertemplate": "%{customdata}<extra></extra>"},
    )
    # Two columns have their names outside; with three the middle ones have no outside, so nodes are wide enough.
    if inside:
        places = [("center", width * c / (len(columns) - 1), 0) for c in range(3)]
    else:
        places = [("right", 0.0, -12), ("left", width, 12)]
    labels = [
        {"text": name, "x": x, "y": 1 - y, "xanchor": anchor, "xshift": shift, "yanchor": "middle"}
        | {"xref": "paper", "yref": "paper", "showarrow": False}
        | {"font": {"size": 13, "color": "#111111" if inside else INK}}
        for (anchor, x, shift), column, ys in zip(places, columns, middles, strict=True)
        for name, y in zip(column, ys, strict=True)
    ]
    return sankey, labels


def _middles(sizes: Sequence[Tensor], pad: float) -> list[list[float]]:
    """The middle of each node from the top, 0 to 1: nodes as high as plotly draws them, stacked in their order."""
    scale = min((1 - (len(column) - 1) * pad) / column.sum().item() for column in sizes)
    middles = []
    for column in sizes:
        heights = scale * column
        top = (1 - heights.sum() - (len(column) - 1) * pad) / 2
        bottoms = top + heights.cumsum(0) + pad * torch.arange(len(column))
        middles.append((bottoms - heights / 2).clamp(0.001, 0.999).tolist())
    return middles


def _names(num_experts: int) -> list[str]:
    return [f"expert {e}" for e in range(num_experts)]


def _colours(num_experts: int) -> list[str]:
    return [expert_colour(e, num_experts) for e in range(num_experts)]


def _translucent(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.45)"
