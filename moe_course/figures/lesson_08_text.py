"""Text coloured by expert: as HTML that stands in any page, and as a figure to hover over, layer by layer."""

import html
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
from torch import Tensor

from moe_course.figures.style import INK, expert_colour

SHOWN = {" ": "␣", "\n": "⏎", "\t": "⇥"}


def coloured_text(texts: Mapping[str, tuple[Sequence[str], Tensor]], num_experts: int, title: str) -> str:
    """HTML: every token on the colour of its first expert, with a legend. Hovering shows the expert's number.

    The colour is a bar under a faint background, and text keeps the page's own colour: it reads on light and dark.

    Args:
        texts: by name, the tokens as text, and the first expert of each, (T,).
        num_experts: number of experts E.
        title: what to learn from it.
    """
    legend = " ".join(_span(f"&nbsp;{e}&nbsp;", e, num_experts, f"expert {e}") for e in range(num_experts))
    blocks = "".join(
        f"<div style='margin: 10px 0 2px; font-weight: 600'>{html.escape(name)}</div>"
        f"<div style='font-family: monospace; font-size: 14px; line-height: 1.9; white-space: pre-wrap; "
        f"word-break: break-all'>{_spans(tokens, experts.tolist(), num_experts)}</div>"
        for name, (tokens, experts) in texts.items()
    )
    return (
        f"<div style='max-width: 60em'><div style='font-size: 17px'>{html.escape(title)}</div>"
        f"<div style='margin: 6px 0'>expert {legend}</div>{blocks}</div>"
    )


def _spans(tokens: Sequence[str], experts: Sequence[int], num_experts: int) -> str:
    """Neighbours with the same expert share one span, so that the page stays small."""
    parts: list[str] = []
    start = 0
    for end in range(1, len(tokens) + 1):
        if end == len(tokens) or experts[end] != experts[start]:
            text = "".join("⏎\n" if token == "\n" else token for token in tokens[start:end])
            parts.append(_span(html.escape(text), experts[start], num_experts, f"expert {experts[start]}"))
            start = end
    return "".join(parts)


def _span(inner: str, expert: int, num_experts: int, hover: str) -> str:
    colour = expert_colour(expert, num_experts)
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    style = f"background-color: rgba({red}, {green}, {blue}, 0.28); border-bottom: 3px solid {colour}"
    return f"<span title='{hover}' style='{style}'>{inner}</span>"


def hover_text(
    texts: Mapping[str, Sequence[str]], routings: Mapping[str, tuple[Tensor, Tensor]], num_experts: int, prompt: int
) -> go.Figure:
    """Texts to hover over, a line each: every token's experts and weights in all layers. Buttons choose the colours.

    Args:
        texts: N texts by name, each of T tokens as text.
        routings: by the layer's name, expert_ids (N, T, K) and weights (N, T, K), the first expert first.
        num_experts: number of experts E.
        prompt: how many tokens of each text were given, not written by the model.
    """
    lines = list(texts.values())
    shown = [[_shown(token) for token in tokens] for tokens in lines]
    hover = [
        [_hover(line, place, routings, prompt) for place in range(len(tokens))] for line, tokens in enumerate(lines)
    ]
    figure = go.Figure()
    for number, (ids, _) in enumerate(routings.values()):
        figure.add_heatmap(
            z=ids[..., 0].tolist(), zmin=-0.5, zmax=num_experts - 0.5, colorscale=_steps(num_experts), showscale=False,
            text=shown, texttemplate="%{text}", textfont={"family": "monospace", "size": 14, "color": "#000000"},
            customdata=hover, hovertemplate="<b>%{text}</b> %{customdata}<extra></extra>", ygap=8,
            visible=number == 0,
        )  # fmt: skip
    for e in range(num_experts):
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=str(e),
            marker={"symbol": "square", "size": 14, "color": expert_colour(e, num_experts)},
        )  # fmt: skip
    always = [True] * num_experts
    buttons = [
        {"label": name, "method": "update", "args": [{"visible": [i == n for i in range(len(routings))] + always}]}
        for n, name in enumerate(routings)
    ]
    figure.add_vline(x=prompt - 0.5, line={"color": INK, "width": 2, "dash": "dot"})
    figure.update_layout(
        title="Hover over a byte: its experts and their weights in every block<br><sup>coloured by the first expert; "
        "the model wrote what stands right of the dotted line</sup>",
        height=210 + 44 * len(texts),
        margin={"t": 110, "b": 80},
        legend={"orientation": "h", "y": -0.32, "yanchor": "top", "x": 0, "title": "expert"},
        updatemenus=[_menu(buttons)],
    )
    figure.update_xaxes(
        title_text="place in the text", range=[-0.7, max(map(len, lines)) - 0.3], showgrid=False, zeroline=False
    )
    figure.update_yaxes(
        title_text="text", tickvals=list(range(len(texts))), ticktext=list(texts), range=[len(texts) - 0.4, -0.6],
        showgrid=False, zeroline=False,
    )  # fmt: skip
    return figure


def _menu(buttons: list[dict]) -> dict:
    return {
        "type": "buttons", "direction": "right", "buttons": buttons, "x": 1, "xanchor": "right", "y": 1.02,
        "yanchor": "bottom", "bgcolor": "rgba(128, 128, 128, 0.2)", "font": {"color": INK, "size": 13},
        "showactive": False,
    }  # fmt: skip


def _steps(num_experts: int) -> list[list]:
    """A colour scale of one flat step for each expert."""
    return [[end / num_experts, expert_colour(e, num_experts)] for e in range(num_experts) for end in (e, e + 1)]


def _hover(line: int, place: int, routings: Mapping[str, tuple[Tensor, Tensor]], prompt: int) -> str:
    rows = [f"at place {place}" + (", prompt" if place < prompt else "")]
    for name, (ids, weights) in routings.items():
        chosen = zip(ids[line, place].tolist(), weights[line, place].tolist(), strict=True)
        rows.append(f"{name}: " + ", ".join(f"expert {e} · {w:.2f}" for e, w in chosen))
    return "<br>".join(rows)


def _shown(token: str) -> str:
    """A token as one visible glyph or few; what would be markup to plotly is escaped."""
    return html.escape("".join(SHOWN.get(c, c if c.isprintable() else "·") for c in token), quote=False)
