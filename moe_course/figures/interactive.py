"""Showing figures: `show` for one that stands still, `sliders` for one that the reader moves.

Output widgets, and so `interact`, are not used: notebook clients stall on them (nbclient #312). A callback
never prints; it changes the figure in place. Each display also carries the figure as plain plotly JSON, so a
viewer without a kernel shows the initial one.
"""

import html
import json
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import plotly.graph_objects as go
from IPython.display import display
from traitlets import observe

from moe_course.figures import style  # noqa: F401  registers the template

CONFIG = {"displaylogo": False, "responsive": True}
KNOB_WIDTH = "min(100%, 30em)"

# ipywidgets puts the label above a row of buttons, out of line with the labels of sliders.
STYLE = "<style>.moe-buttons { display: flex; align-items: center } .moe-buttons > label { flex: none }</style>"

# A FigureWidget first draws before it is in the page, 700 pixels wide, and then listens to the window alone, which
# does not tell it of a side bar that opens. This empty element tells it of each change of its own width.
FIT_WIDTH = """
export default {
  render({ el }) {
    const fit = () => window.dispatchEvent(new Event("resize"));
    const observer = new ResizeObserver(fit);
    observer.observe(el);
    document.addEventListener("plotlywidget-after-render", fit);
    const late = setTimeout(fit, 1500);
    return () => {
      clearTimeout(late);
      observer.disconnect();
      document.removeEventListener("plotlywidget-after-render", fit);
    };
  }
};
"""


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
    from anywidget import AnyWidget

    knobs = {name: _control(name, spec) for name, spec in controls.items()}
    first = make(**_values(knobs))
    figure = _figure_widget(first)
    message = widgets.HTML(layout={"display": "none"})
    css = widgets.HTML(STYLE, layout={"display": "none"})

    def redraw(_change: Any) -> None:
        try:
            update_in_place(figure, make(**_values(knobs)))
        except Exception as error:
            message.value, message.layout.display = _error_html(error), "flex"
            return
        message.value, message.layout.display = "", "none"

    for knob in knobs.values():
        knob.observe(redraw, names="value")
    row = widgets.Box(list(knobs.values()), layout={"display": "flex", "flex_flow": "row wrap"})
    fit_width = AnyWidget(_esm=FIT_WIDTH, layout={"width": "100%", "height": "0", "margin": "0"})
    return widgets.VBox([css, row, message, figure, fit_width], layout={"width": "100%", "overflow": "hidden"}), first


def _values(knobs: dict[str, Any]) -> dict[str, Any]:
    # A float slider adds up steps and arrives at 1.2000000000000002.
    values = {name: knob.value for name, knob in knobs.items()}
    return {name: round(value, 9) if isinstance(value, float) else value for name, value in values.items()}


def update_in_place(figure: go.FigureWidget, new: go.Figure) -> None:
    """Make the displayed `figure` equal `new`, touching only what differs; the traces may differ in number."""
    same_kind = _kind(figure) == _kind(new)
    if not same_kind:
        figure.data = ()
        figure.add_traces([trace.to_plotly_json() for trace in new.data])
        _forget_axis_types(figure)
    with figure.batch_update():
        if same_kind:
            for old_trace, new_trace in zip(figure.data, new.data, strict=True):
                _assign(old_trace, new_trace.to_plotly_json())
        _assign(figure.layout, new.layout.to_plotly_json() | {"height": _height(new)})
    # What a page that is reloaded draws; the messages above reach only the pages that are open.
    figure._widget_data = deepcopy(figure._data)
    figure._widget_layout = deepcopy(figure._layout)


def _figure_widget(figure: go.Figure) -> go.FigureWidget:
    """A FigureWidget of a copy of `figure` that is drawn whole.

    Plotly's opens its comm empty and sends the figure after it; a busy page may draw the empty one and ignore the
    rest. The page reports each trace that it drew, by uid: where some are missing, the figure is sent again.
    """

    class DrawnWhole(go.FigureWidget):
        _seen_whole = False

        @observe("_js2py_traceDeltas")
        def _handler_js2py_traceDeltas(self, change: Any) -> None:
            drawn = [delta for delta in (change["new"] or {}).get("trace_deltas", []) if delta.get("uid")]
            if change["new"] and not self._seen_whole and len(drawn) < len(self.data):
                self._js2py_traceDeltas = None
                self._send_addTraces_msg(deepcopy(self._data))
                self._send_relayout_msg(deepcopy(self._layout))
            else:
                super()._handler_js2py_traceDeltas(change)
            # Once is enough: while traces are replaced, a report may lag behind.
            self._seen_whole = self._seen_whole or bool(change["new"])

    widget = DrawnWhole(figure)
    widget.layout.height = _height(figure)
    widget._config = widget._config | CONFIG
    widget._widget_layout = deepcopy(widget._layout)
    return widget


def _kind(figure: go.Figure) -> list[tuple[Any, ...]]:
    """What must agree for traces to be changed rather than replaced: type of each, words or numbers on its axes."""
    return [(trace.type, *(_is_words(trace, axis) for axis in ("x", "y"))) for trace in figure.data]


def _is_words(trace: Any, axis: str) -> bool:
    values = trace.to_plotly_json().get(axis)
    return values is not None and len(values) > 0 and isinstance(values[0], str)


def _forget_axis_types(figure: go.FigureWidget) -> None:
    """Let plotly.js infer again whether an axis is numeric; it remembers its first guess otherwise."""
    for name in figure.layout:
        if name.startswith(("xaxis", "yaxis")):
            figure._send_relayout_msg({f"{name}.type": figure.layout[name].type, f"{name}.autorange": True})


def _assign(old: Any, new: dict[str, Any]) -> None:
    before = old.to_plotly_json()
    for key in (before.keys() | new.keys()) - {"uid", "type", "template"}:
        if not _equal(before.get(key), new.get(key)):
            old[key] = new.get(key)


def _equal(a: Any, b: Any) -> bool:
    from plotly.io.json import to_json_plotly

    return a is b or to_json_plotly(a) == to_json_plotly(b)


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
    plotly_json = json.loads(figure.to_json()) | {"config": CONFIG}
    plotly_json["layout"]["height"] = _height(figure)
    return {"application/vnd.plotly.v1+json": plotly_json, "text/plain": f"Figure: {_title(figure)}"}


def _height(figure: go.Figure) -> float:
    # JupyterLab's renderers ignore a template's height.
    return figure.layout.height or figure.layout.template.layout.height


def _title(figure: go.Figure) -> str:
    return (figure.layout.title.text or "without a title").replace("<br>", " ")
