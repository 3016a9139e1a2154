"""The widgets around figures: they follow their controls, say errors, and can be read without a kernel."""

import json
from typing import Any

import plotly.graph_objects as go
import pytest

from moe_course.figures import interactive, show, sliders
from moe_course.figures.interactive import build_panel
from moe_course.figures.plot_widget import PlotWidget


def make(height: float = 2.0, count: int = 1, kind: str = "line") -> go.Figure:
    """`count` traces of one kind; raises for five of them."""
    if count == 5:
        raise ValueError("count=5 is <too> many; choose count ≤ 4")
    figure = go.Figure(layout={"title": f"{count} of height {height}", "xaxis_title": "x", "yaxis_title": "y (m)"})
    for _ in range(count):
        if kind == "line":
            figure.add_scatter(x=[0, 1], y=[0, height])
        else:
            figure.add_bar(x=["left", "right"], y=[1, height])
    return figure


@pytest.fixture
def panel() -> Any:
    return build_panel(make, height=(0.1, 4.0, 0.1, 2.0), count=([1, 2, 3, 5], 1), kind=["line", "bars"])[0]


@pytest.fixture
def shown(monkeypatch) -> list[dict[str, Any]]:
    bundles: list[dict[str, Any]] = []
    monkeypatch.setattr(interactive, "display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def test_figure_follows_a_slider(panel) -> None:
    _knob(panel, "height").value = 3.0
    figure = _figure(panel)
    assert figure.layout.title.text == "1 of height 3.0"
    assert list(figure.data[0].y) == [0, 3.0]


def test_traces_may_change_in_number_and_kind(panel) -> None:
    _knob(panel, "count").value = 3
    assert [trace.type for trace in _figure(panel).data] == ["scatter"] * 3
    _knob(panel, "kind").value = "bars"
    assert [trace.type for trace in _figure(panel).data] == ["bar"] * 3
    _knob(panel, "count").value = 1
    assert len(_figure(panel).data) == 1


def test_layout_entries_that_are_gone_do_not_stay() -> None:
    def sometimes_named(named: bool) -> go.Figure:
        return go.Figure(layout={"title": "named"} if named else {})

    panel, _ = build_panel(sometimes_named, named=[True, False])
    _knob(panel, "named").value = False
    assert _figure(panel).layout.title.text is None


def test_float_values_arrive_without_rounding_noise() -> None:
    seen: list[float] = []

    def record(height: float) -> go.Figure:
        seen.append(height)
        return go.Figure()

    panel, _ = build_panel(record, height=(0.1, 4.0, 0.1, 1.0))
    _knob(panel, "height").value = 1.1 + 0.1
    assert seen == [1.0, 1.2]


def test_error_is_said_and_goes_away(panel) -> None:
    message = panel.children[2]
    _knob(panel, "count").value = 5
    assert "ValueError: count=5 is &lt;too&gt; many" in message.value
    assert message.layout.display != "none"
    assert len(_figure(panel).data) == 1, "the figure keeps its last state"
    _knob(panel, "count").value = 2
    assert message.layout.display == "none" and len(_figure(panel).data) == 2


def test_error_at_the_start_raises() -> None:
    with pytest.raises(ValueError, match="count=5"):
        build_panel(make, count=[5, 1])


def test_page_that_is_reloaded_gets_the_current_figure(panel) -> None:
    _knob(panel, "count").value = 3
    figure = json.loads(_plot(panel).drawing.get_state()["value"])
    assert len(figure["data"]) == 3
    assert figure["layout"]["title"]["text"] == "3 of height 2.0"
    assert figure["layout"]["height"] == 420


def test_plotly_js_travels_once_for_all_figures_of_a_kernel() -> None:
    first, second = (_plot(build_panel(make, count=[1, 2])[0]) for _ in range(2))
    assert first.plotly is second.plotly
    assert "plotly.js" in first.plotly.value[:100]
    assert len(first._esm) < 10_000, "anywidget gives up on a module that takes two seconds"


def test_controls_fit_their_values() -> None:
    panel, _ = build_panel(
        lambda **values: go.Figure(),
        whole=(1, 8, 1, 2),
        real=(0.0, 1.0, 0.1, 0.5),
        powers=([1, 2, 4], 4),
        flag=[True, False],
        long=["a rather long choice", "another rather long choice"],
    )
    kinds = [type(knob).__name__ for knob in panel.children[1].children]
    assert kinds == ["IntSlider", "FloatSlider", "SelectionSlider", "ToggleButtons", "Dropdown"]
    assert _knob(panel, "powers").value == 4


@pytest.mark.parametrize("spec", [(1, 8, 1, 9), 3, ("a", "b", "c")])
def test_bad_control_says_so(spec) -> None:
    with pytest.raises(ValueError, match="count"):
        build_panel(make, count=spec)


def test_sliders_carry_a_static_figure_beside_the_widget(shown) -> None:
    sliders(make, count=[2, 1])
    (bundle,) = shown
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"]
    assert len(bundle["application/vnd.plotly.v1+json"]["data"]) == 2
    assert bundle["text/plain"] == "Figure: 2 of height 2.0"


def test_show_is_one_output_of_plain_data(shown) -> None:
    show(make())
    (bundle,) = shown
    assert set(bundle) == {"application/vnd.plotly.v1+json", "text/plain"}
    assert bundle["application/vnd.plotly.v1+json"]["layout"]["height"] == 420


def _knob(panel: Any, name: str) -> Any:
    return next(knob for knob in panel.children[1].children if knob.description == name)


def _plot(panel: Any) -> PlotWidget:
    return next(child for child in panel.children if isinstance(child, PlotWidget))


def _figure(panel: Any) -> go.Figure:
    drawn = json.loads(_plot(panel).drawing.value)
    return go.Figure(drawn["data"], drawn["layout"])
