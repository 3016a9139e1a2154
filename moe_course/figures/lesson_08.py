"""Figures of lesson 08, the MoE transformer: what hybrids cost, dense against MoE, and what experts do with text.

Text coloured by expert is in `lesson_08_text.py`.
"""

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from moe_course.figures.style import BLUE, FAINT, GREEN, GREY, ORANGE, PURPLE, VERMILLION

SYMBOLS = ("circle", "square")
DASHES = ("dash", "solid")
COLOURS = (GREY, BLUE)
PARTS = {
    "embedding and head": (GREY, ""),
    "attention": (GREEN, "."),
    "dense FFNs": (BLUE, "/"),
    "experts a token uses": (ORANGE, ""),
    "idle experts": (VERMILLION, "x"),
    "routers and norms": (PURPLE, ""),
}


def scores_by_position(scores: Tensor) -> go.Figure:
    """Scores of the same query and key at all pairs of positions.

    Args:
        scores: row: position of the query, column: of the key, (S, S).
    """
    size = len(scores)
    figure = go.Figure(
        go.Heatmap(
            z=scores.tolist(), zmid=0, colorscale=[[0, "#1a7fc4"], [0.5, "#bdbdbd"], [1, "#d9600d"]],
            colorbar={"title": "q · k"}, xgap=1, ygap=1,
            hovertemplate="query at %{y}, key at %{x}: %{z:.2f}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(
        title="One query and one key at every pair of positions<br><sup>along a diagonal the distance is the same, "
        "and so is the score</sup>",
        height=430,
        margin_t=100,
    )
    step = max(size // 8, 1)
    figure.update_xaxes(title_text="position of the key", dtick=step, showgrid=False, constrain="domain")
    figure.update_yaxes(
        title_text="position of the query", dtick=step, showgrid=False, autorange="reversed", scaleanchor="x"
    )
    return figure


def hybrid(parts: Mapping[str, float], moe_blocks: Sequence[int], num_layers: int, title: str) -> go.Figure:
    """Blocks of a model as a row of squares, and where its parameters are: all of them, and those a token uses.

    Args:
        parts: parameters by the names of PARTS.
        moe_blocks: indices of the blocks with an MoE layer.
        num_layers: how many blocks there are.
        title: what to learn from it.
    """
    figure = make_subplots(
        rows=2, row_heights=[0.16, 0.84], vertical_spacing=0.22,
    )  # fmt: skip
    for name, blocks, colour in (
        ("MoE layer", list(moe_blocks), ORANGE),
        ("dense FFN", [i for i in range(num_layers) if i not in moe_blocks], BLUE),
    ):
        figure.add_scatter(
            x=blocks, y=[0] * len(blocks), mode="markers", name=f"block with {name}", showlegend=False,
            marker={"symbol": "square", "size": 15, "color": colour},
            hovertemplate=f"block %{{x}}: {name}<extra></extra>", row=1, col=1,
        )  # fmt: skip
    for name, (colour, pattern) in PARTS.items():
        billions = parts[name] / 1e9
        figure.add_bar(
            y=["all", "a token uses"], x=[billions, 0 if name == "idle experts" else billions], name=name,
            orientation="h", marker={"color": colour, "pattern": {"shape": pattern}},
            hovertemplate=f"{name}: %{{x:.2f}} billion<extra></extra>", row=2, col=1,
        )  # fmt: skip
    figure.update_layout(
        title=title, barmode="stack", height=480, margin_t=100, legend={"orientation": "h", "y": -0.2, "x": 0}
    )
    figure.update_xaxes(
        title_text="block (orange: experts, blue: dense FFN)",
        range=[-0.8, num_layers - 0.2],
        showgrid=False,
        row=1,
        col=1,
    )
    figure.update_yaxes(visible=False, row=1, col=1)
    figure.update_xaxes(title_text="parameters (billions)", gridcolor=FAINT, row=2, col=1)
    figure.update_yaxes(title_text="parameters", autorange="reversed", row=2, col=1)
    return figure


def training(steps: Sequence[int], losses: Mapping[str, Tensor], pace: Mapping[str, float]) -> go.Figure:
    """Held-out loss by step and by time: means over seeds, with bars from the lowest to the highest.

    Args:
        steps: at which the loss was measured; the last is the end.
        losses: (seeds, points), by model.
        pace: time of one step, in steps of the dense model, by model.
    """
    figure = make_subplots(cols=2, horizontal_spacing=0.08, subplot_titles=["by step", "by time"], shared_yaxes=True)
    for i, (name, runs) in enumerate(losses.items()):
        mean = runs.mean(0)
        for col, scale in ((1, 1.0), (2, pace[name])):
            figure.add_scatter(
                x=[step * scale for step in steps], y=mean.tolist(), mode="lines+markers", name=name, legendgroup=name,
                showlegend=col == 1, line={"color": COLOURS[i], "dash": DASHES[i], "width": 2},
                marker={"symbol": SYMBOLS[i], "size": 9},
                error_y={
                    "type": "data", "symmetric": False, "array": (runs.amax(0) - mean).tolist(),
                    "arrayminus": (mean - runs.amin(0)).tolist(), "thickness": 1.2, "width": 4, "color": COLOURS[i],
                },
                hovertemplate=f"{name}, {('step', 'time')[col - 1]} %{{x:.0f}}: %{{y:.3f}}<extra></extra>",
                row=1, col=col,
            )  # fmt: skip
    figure.update_layout(
        title=f"The same active parameters<br><sup>held-out text, mean of all domains; {len(runs)} seeds, bars from "
        "the lowest to the highest</sup>",
        legend={"orientation": "h", "y": -0.22, "x": 0},
        height=470,
        margin_t=110,
    )
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="step", rangemode="tozero", row=1, col=1)
    figure.update_xaxes(title_text="time (in steps of the dense model)", rangemode="tozero", row=1, col=2)
    figure.update_yaxes(gridcolor=FAINT)
    figure.update_yaxes(title_text="loss (nats a byte)", row=1, col=1)
    return figure


def experts_by_domain(shares: Mapping[str, Tensor], domains: Sequence[str]) -> go.Figure:
    """Share of every expert in the choices of each domain, a panel for each layer.

    Args:
        shares: (M, E), each row sums to 1, by the name of the layer.
        domains: names of the M domains.
    """
    num_experts = next(iter(shares.values())).shape[1]
    figure = make_subplots(cols=len(shares), subplot_titles=list(shares), shared_yaxes=True, horizontal_spacing=0.05)
    top = max(100 * float(share.max()) for share in shares.values())
    for col, share in enumerate(shares.values(), 1):
        percent = 100 * share.double()
        figure.add_heatmap(
            z=percent.tolist(), x=list(range(num_experts)), y=list(domains), coloraxis="coloraxis", xgap=1, ygap=1,
            text=[[f"{value:.0f}" for value in row] for row in percent.tolist()], texttemplate="%{text}",
            textfont={"size": 12}, hovertemplate="%{y}, expert %{x}: %{z:.1f} %<extra></extra>", row=1, col=col,
        )  # fmt: skip
    figure.update_layout(
        title=f"Which experts serve which kind of text<br><sup>share of a domain's choices (%); an even share is "
        f"{100 / num_experts:.1f}</sup>",
        coloraxis={"colorscale": "Cividis", "cmin": 0, "cmax": top, "colorbar": {"title": "%", "thickness": 14}},
        height=120 + 60 * len(domains) + 100,
        margin_t=110,
    )
    figure.update_annotations(font_size=14)
    figure.update_xaxes(title_text="expert", dtick=1 if num_experts <= 16 else 4, showgrid=False)
    figure.update_yaxes(title_text="domain", autorange="reversed", showgrid=False, row=1, col=1)
    return figure


def experts_by_token(shares: Mapping[str, Tensor], tokens: Sequence[str]) -> go.Figure:
    """Share of every expert in the choices of each token, a panel for each layer; tokens sorted by the first panel.

    Args:
        shares: (tokens, E), each row sums to 1, by the name of the layer.
        tokens: how to write each token.
    """
    first = next(iter(shares.values()))
    order = sorted(range(len(tokens)), key=lambda t: (int(first[t].argmax()), -float(first[t].max())))
    names = [tokens[t] for t in order]
    figure = make_subplots(rows=len(shares), subplot_titles=list(shares), shared_xaxes=True, vertical_spacing=0.12)
    for row, share in enumerate(shares.values(), 1):
        figure.add_heatmap(
            z=(100 * share[order].T).double().tolist(), x=names, y=list(range(share.shape[1])), coloraxis="coloraxis",
            hovertemplate="%{x}, expert %{y}: %{z:.0f} %<extra></extra>", xgap=1, ygap=1, row=row, col=1,
        )  # fmt: skip
    figure.update_layout(
        title="Which experts serve which byte<br><sup>the commonest bytes; ␣ is a space, ⏎ a line's end; sorted by "
        "their favourite in the first panel</sup>",
        coloraxis={"colorscale": "Cividis", "cmin": 0, "colorbar": {"title": "%", "thickness": 14}},
        height=560,
        margin_t=110,
    )
    figure.update_annotations(font_size=14)
    figure.update_xaxes(
        type="category", dtick=1, tickangle=0, tickfont={"size": 12, "family": "monospace"}, showgrid=False
    )
    figure.update_xaxes(title_text="byte", row=len(shares), col=1)
    figure.update_yaxes(title_text="expert", dtick=1, autorange="reversed", showgrid=False)
    return figure


def chance(observed: Mapping[str, float], shuffled: Mapping[str, Tensor]) -> go.Figure:
    """What labels in random order tell about the experts, a mark for each order, and what the true ones tell.

    Args:
        observed: mutual information of the true labels, in nats, by what was tested.
        shuffled: that of each random order, (R,), likewise.
    """
    names = list(observed)
    figure = go.Figure()
    figure.add_scatter(
        x=[1000 * value for name in names for value in shuffled[name].tolist()],
        y=[name for name in names for _ in shuffled[name]], mode="markers", name="labels in random order",
        marker={"symbol": "line-ns", "size": 14, "line": {"color": GREY, "width": 1}, "opacity": 0.5},
        hovertemplate="%{y}<br>random order: %{x:.1f}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=[1000 * observed[name] for name in names], y=names, mode="markers", name="true labels",
        marker={"symbol": "diamond", "size": 13, "color": VERMILLION},
        hovertemplate="%{y}<br>true labels: %{x:.1f}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(
        title="What an expert tells about the domain, and what chance would",
        height=200 + 44 * len(names),
        legend={"orientation": "h", "y": -0.3, "x": 0},
    )
    figure.update_xaxes(title_text="mutual information (thousandths of a nat)", rangemode="tozero")
    figure.update_yaxes(title_text="block and model", autorange="reversed", showgrid=False)
    return figure
