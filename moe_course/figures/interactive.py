"""Showing figures: `show` for one that stands still, `sliders` for one that the reader moves.

Output widgets, and so `interact`, are not used: notebook clients stall on them (nbclient #312). A callback
never prints; it changes the figure. Each display also carries the figure as plain plotly JSON, so a
viewer without a kernel shows the initial one.
"""

import html
import json
from collections.abc import Callable
from typing import Any

import plotly.graph_objects as go
from IPython.display import display

from moe_course.figures import style  # noqa: F401  registers the template

# Not "responsive": JupyterLab fits a figure to its width anyway, and would fold a responsive one to no height when the
# theme changes.
CONFIG = {"displaylogo": False}
KNOB_WIDTH = "min(100%, 30em)"

# ipywidgets puts the label above a row of buttons, out of line with the labels of sliders.
STYLE = "<style>.moe-buttons { display: flex; align-items: center } .moe-buttons > label { flex: none }</style>"


def show(figure: go.Figure) -> None:
    """Display `figure` as one static output: plotly JSON for viewers that draw it, its title for those that don't."""
    display(_static_bundle(figure), raw=True)


def sliders(make: Callable[..., go.Figure], **controls: Any) -> None:
    """Display `make(**values)` under one control for each argument, and redraw it when a control moves.

    Args:
        make: a pure function from the values of the controls to a figure. If it raises after a move, the
            message stands under the controls and the figure keeps its last state.
        **controls: `name=(min, max, step, default)` for a number (integers make an integer slider),
            `name=[…]` for a choice whose first entry is the default, `name=([…], default)` for another default.
            A choice among numbers is a slider, one among words a row of buttons or, when long, a menu.

    Example:
        `sliders(figures.routing, temperature=(0.1, 4.0, 0.1, 1.0), top_k=[1, 2, 4])`
    """
    panel, figure = build_panel(make, **controls)
    # With a kernel JupyterLab prefers the live widget; without one the other two remain.
    display(_widget_bundle(panel) | _static_bundle(figure), raw=True)


def build_panel(make: Callable[..., go.Figure], **controls: Any) -> tuple[Any, go.Figure]:
    """Return the widget that `sliders` displays, and its initial figure."""
    import ipywidgets as widgets

    from moe_course.figures.plot_widget import PlotWidget

    knobs = {name: _control(name, spec) for name, spec in controls.items()}
    first = make(**_values(knobs))
    plot = PlotWidget(_plotly_json(first))
    message = widgets.HTML(layout={"display": "none"})
    css = widgets.HTML(STYLE, layout={"display": "none"})

    def redraw(_change: Any) -> None:
        try:
            plot.show(_plotly_json(make(**_values(knobs))))
        except Exception as error:
            message.value, message.layout.display = _error_html(error), "flex"
            return
        message.value, message.layout.display = "", "none"

    for knob in knobs.values():
        knob.observe(redraw, names="value")
    row = widgets.Box(list(knobs.values()), layout={"display": "flex", "flex_flow": "row wrap"})
    return widgets.VBox([css, row, message, plot], layout={"width": "100%", "overflow": "hidden"}), first


def _values(knobs: dict[str, Any]) -> dict[str, Any]:
    # A float slider adds up steps and arrives at 1.2000000000000002.
    values = {name: knob.value for name, knob in knobs.items()}
    return {name: round(value, 9) if isinstance(value, float) else value for name, value in values.items()}


def _control(name: str, spec: Any) -> Any:
    import ipywidgets as widgets

    label: dict[str, Any] = {"description": name, "style": {"description_width": "8em"}}
    if isinstance(spec, tuple) and len(spec) == 4:
        low, high, step, default = spec
        if not low <= default <= high:
            raise ValueError(f"{name}: the default {default} is outside {low} … {high}; choose one inside")
        whole = all(isinstance(number, int) for number in spec)
        slider = widgets.IntSlider if whole else widgets.FloatSlider
        return slider(default, min=low, max=high, step=step, layout={"width": KNOB_WIDTH}, **label)
    if isinstance(spec, tuple) and len(spec) == 2:
        choices, default = list(spec[0]), spec[1]
    elif isinstance(spec, list):
        choices, default = spec, spec[0]
    else:
        raise ValueError(f"{name}={spec!r} is no control; give (min, max, step, default) or a list of choices")
    if all(isinstance(choice, int | float) and not isinstance(choice, bool) for choice in choices):
        slider_options = [(f"{choice:,}".replace(",", " "), choice) for choice in choices]
        return widgets.SelectionSlider(options=slider_options, value=default, layout={"width": KNOB_WIDTH}, **label)
    options = [(str(choice), choice) for choice in choices]
    if sum(len(text) for text, _ in options) <= 40:
        label["style"]["button_width"] = "auto"
        knob = widgets.ToggleButtons(options=options, value=default, layout={"width": KNOB_WIDTH}, **label)
        knob.add_class("moe-buttons")
        return knob
    return widgets.Dropdown(options=options, value=default, layout={"width": KNOB_WIDTH}, **label)


def _error_html(error: Exception) -> str:
    what = html.escape(f"{type(error).__name__}: {error}")
    return (
        '<div style="border-left: 4px solid #d9600d; padding: 2px 10px; line-height: 1.5">'
        f"These values cannot be drawn; the figure shows the last ones that could.<br><code>{what}</code></div>"
    )


def _widget_bundle(widget: Any) -> dict[str, Any]:
    view = {"version_major": 2, "version_minor": 0, "model_id": widget.model_id}
    return {"application/vnd.jupyter.widget-view+json": view}


def _static_bundle(figure: go.Figure) -> dict[str, Any]:
    return {"application/vnd.plotly.v1+json": _plotly_json(figure), "text/plain": f"Figure: {_title(figure)}"}


def _plotly_json(figure: go.Figure) -> dict[str, Any]:
    """What plotly.js draws: data, layout and configuration."""
    whole: dict[str, Any] = json.loads(figure.to_json())
    # JupyterLab's renderers ignore a template's height.
    whole["layout"]["height"] = figure.layout.height or figure.layout.template.layout.height
    return whole | {"config": CONFIG}


def _title(figure: go.Figure) -> str:
    return (figure.layout.title.text or "without a title").replace("<br>", " ")
