"""A plotly figure that a kernel can change after it is drawn, as a small widget.

Why not plotly's `FigureWidget`: each one sends all of plotly.js to the page, 5 MB, and anywidget gives a module two
seconds to start. On a busy machine the figure stays empty, or never moves. Here plotly.js travels once for all figures
of a kernel, and it and the figures are plain models, which a page that is late still gets. It always draws the last
whole figure that it was sent.
"""

import json
from functools import cache
from typing import Any

import traitlets
from anywidget import AnyWidget
from ipywidgets import Widget, widget_serialization
from plotly.offline import get_plotlyjs

# The observer draws: it is called when the element is in the page and has a width, and when that width changes.
DRAW = """
const PLOTLY = Symbol.for("moe_course.plotly");

function modelOf(model, name) {
  return model.widget_manager.get_model(model.get(name).slice("IPY_MODEL_".length));
}

async function loadPlotly(model) {
  const source = (await modelOf(model, "plotly")).get("value");
  const module = { exports: {} };
  new Function("module", "exports", "define", source)(module, module.exports, undefined);
  return module.exports;
}

async function render({ model, el }) {
  const plot = el.appendChild(document.createElement("div"));
  window[PLOTLY] ??= loadPlotly(model);
  let plotly, drawing;
  try {
    [plotly, drawing] = await Promise.all([window[PLOTLY], modelOf(model, "drawing")]);
  } catch (error) {
    window[PLOTLY] = undefined;
    plot.textContent = "This figure could not be drawn. Run its cell again.";
    throw error;
  }
  const draw = () => {
    const { data, layout, config } = JSON.parse(drawing.get("value"));
    if (el.clientWidth) plotly.react(plot, data, { ...layout, width: el.clientWidth }, config);
  };
  const observer = new ResizeObserver(draw);
  observer.observe(el);
  drawing.on("change:value", draw);
  return () => {
    observer.disconnect();
    drawing.off("change:value", draw);
    plotly.purge(plot);
  };
}

export default { render };
"""


class PlotWidget(AnyWidget):
    """Draws what `show` was last given.

    Args:
        drawing: "data", "layout" and "config", as plotly.js wants them.
    """

    _esm = DRAW
    plotly = traitlets.Instance(Widget).tag(sync=True, **widget_serialization)
    drawing = traitlets.Instance(Widget).tag(sync=True, **widget_serialization)

    def __init__(self, drawing: dict[str, Any]) -> None:
        text = Text(value=json.dumps(drawing))
        super().__init__(drawing=text, plotly=plotly_source(), layout={"width": "100%"})

    def show(self, drawing: dict[str, Any]) -> None:
        """Replace the drawing by another one."""
        self.drawing.value = json.dumps(drawing)


class Text(Widget):
    """A string that the kernel may change and the page reads."""

    value = traitlets.Unicode().tag(sync=True)


@cache
def plotly_source() -> Text:
    """The text of plotly.js, the same for all figures of a kernel."""
    return Text(value=get_plotlyjs())
