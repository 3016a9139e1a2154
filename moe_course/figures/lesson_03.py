"""Figures of lesson 03, the expert layer: tokens on their way to experts, one-hot tensors, cost and training."""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import Tensor

from moe_course.figures.style import BLUE, FAINT, GREEN, GREY, INK, ORANGE, PALETTE, expert_colour

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def there_and_back(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> go.Figure:
    """Each token's way to its experts and back: dispatch on the left, combine on the right.

    Args:
        expert_ids: (T, K), for a few tokens.
        expert_weights: (T, K); the width of a link on the way back.
        num_experts: number of experts E.
    """
    num_tokens, top_k = expert_ids.shape
    links = []
    for t in range(num_tokens):
        for e, weight in zip(expert_ids[t].tolist(), expert_weights[t].tolist(), strict=True):
            links.append((t, num_tokens + e, 1 / top_k, e, f"token {t} goes to expert {e}"))
            back = num_tokens + num_experts + t
            links.append((num_tokens + e, back, weight, e, f"{weight:.2f} of expert {e} in the output of token {t}"))
    tokens, outputs = ([f"{word} {t}" for t in range(num_tokens)] for word in ("token", "out"))
    figure = go.Figure(
        go.Sankey(
            arrangement="snap",
            node={
                "label": [*tokens, *(f"expert {e}" for e in range(num_experts)), *outputs],
                "color": [*[GREY] * num_tokens, *_colours(num_experts), *[GREY] * num_tokens],
                "pad": 14,
                "thickness": 14,
                "hovertemplate": "%{label}<extra></extra>",
            },
            link=_links(links, num_experts),
        )
    )
    figure.update_layout(
        title=f"Dispatch {num_tokens} tokens to {top_k} experts each, combine {top_k} outputs each",
        height=120 + 38 * num_tokens,
        margin={"l": 12, "r": 12, "t": 64, "b": 16},
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
        "every expert on<br>every token": num_experts * num_tokens,
    }
    figure = make_subplots(
        cols=2, specs=[[{"type": "domain"}, {"type": "xy"}]], column_widths=[0.55, 0.45], horizontal_spacing=0.16
    )
    figure.add_trace(_sankey(names[:top_k], flows), row=1, col=1)
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
            row=1,
            col=2,
        )
    totals = [f" {total:,} rows, ×{total / useful:.1f}".replace(",", " ") for total in rows.values()]
    figure.add_scatter(
        y=list(rows), x=list(rows.values()), mode="text", text=totals, textposition="middle right", showlegend=False,
        textfont={"size": 13, "color": INK}, hoverinfo="skip", cliponaxis=False, row=1, col=2,
    )  # fmt: skip
    figure.update_layout(
        title=f"The busiest of {num_experts} experts has {busiest} of {useful} choices<br>"
        f"<sup>an even share would be {useful / num_experts:.1f}; {idle} without a token (not drawn)</sup>",
        barmode="stack",
        height=430,
        margin={"t": 90, "l": 16},
        legend={"orientation": "h", "y": -0.2, "x": 0.6},
    )
    figure.update_xaxes(title_text="rows through an expert", range=[0, 1.75 * max(rows.values())], nticks=5)
    figure.update_yaxes(autorange="reversed")
    return figure


def flow(sources: Sequence[str], flows: Tensor, title: str) -> go.Figure:
    """How many tokens of each kind go to each expert.

    Args:
        sources: names of the kinds.
        flows: counts, (kinds, E).
        title: what to learn from the figure.
    """
    figure = go.Figure(_sankey(sources, flows))
    figure.update_layout(title=title, height=460, margin={"l": 12, "r": 12, "t": 80, "b": 16})
    return figure


def slots(dispatch: Tensor) -> go.Figure:
    """The one-hot dispatch tensor as a picture: a row for each token, a column for each slot of each expert.

    Args:
        dispatch: (T, E, C), 0 or 1.
    """
    num_tokens, num_experts, capacity = dispatch.shape
    expert = torch.arange(num_experts)[:, None].expand(num_experts, capacity).flatten().tolist()
    taken = dispatch.flatten(1).tolist()
    columns = [f"{e}.{slot}" for e in range(num_experts) for slot in range(capacity)]
    filled = [[e if value else None for e, value in zip(expert, row, strict=True)] for row in taken]
    steps = max(num_experts - 1, 1)
    figure = go.Figure(
        go.Heatmap(
            z=filled,
            x=columns,
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
            hovertemplate="%{y} sits in slot %{x}<extra></extra>",
        )
    )
    for e in range(1, num_experts):
        figure.add_vline(x=e * capacity - 0.5, line={"color": INK, "width": 1.5})
    share = float((dispatch != 0).double().mean())
    figure.update_layout(
        title=f"dispatch has {dispatch.numel()} entries, of which {share:.1%} are not zero",
        height=110 + 26 * num_tokens,
    )
    middles = [columns[e * capacity + capacity // 2] for e in range(num_experts)]
    figure.update_xaxes(
        title_text=f"slots, {capacity} for each expert",
        tickvals=middles,
        ticktext=[f"expert {e}" for e in range(num_experts)],
        showgrid=False,
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
    figure.add_hline(
        y=1, line={"color": INK, "dash": "dot"}, annotation={"text": "dense FFN", "font_size": 13, "x": 0.02}
    )
    counts = list(next(iter(ratios.values())))
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
    figure.update_xaxes(showticklabels=False, ticks="", range=[-0.6, len(losses) - 0.4], showgrid=False, row=1, col=2)
    figure.update_yaxes(title_text="loss (nats a character)", gridcolor=FAINT, row=1, col=1)
    return figure


def _sankey(sources: Sequence[str], flows: Tensor) -> go.Sankey:
    num_sources, num_experts = flows.shape
    totals = flows.sum(0).tolist()
    links = [
        (s, num_sources + e, flows[s, e].item(), e, f"{flows[s, e].item()} from {sources[s]} to expert {e}")
        for e in range(num_experts)
        for s in range(num_sources)
        if flows[s, e] > 0
    ]
    return go.Sankey(
        arrangement="snap",
        node={
            "label": [*sources, *(f"expert {e}: {total}" for e, total in enumerate(totals))],
            "color": [*[GREY] * num_sources, *_colours(num_experts)],
            "pad": 10,
            "thickness": 14,
            "hovertemplate": "%{label}<extra></extra>",
        },
        link=_links(links, num_experts),
    )


def _links(links: Sequence[tuple[int, int, float, int, str]], num_experts: int) -> dict[str, list]:
    """(from, to, width, expert, hover text) as plotly wants them; each link has its expert's colour."""
    colours = [_translucent(expert_colour(link[3], num_experts)) for link in links]
    return {
        "source": [link[0] for link in links],
        "target": [link[1] for link in links],
        "value": [link[2] for link in links],
        "color": colours,
        "customdata": [link[4] for link in links],
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _colours(num_experts: int) -> list[str]:
    return [expert_colour(e, num_experts) for e in range(num_experts)]


def _translucent(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.45)"
