"""Gives every saved plotly figure a PNG beside it, for viewers that draw no plotly, such as GitHub's."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from moe_course.notebooks.chromium import find_chromium
from moe_course.notebooks.execute import PLOTLY

PNG = "image/png"
WIDTH, HEIGHT = 760, 420
MAX_FIGURE_BYTES = 300_000


def figures(notebook: NotebookNode) -> list[dict[str, Any]]:
    """The data bundles of the notebook's outputs that hold a figure."""
    return [
        output.data
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if PLOTLY in output.get("data", {})
    ]


def too_large(notebook: NotebookNode) -> str | None:
    """What to do about a figure that would bloat the notebook, or None."""
    for bundle in figures(notebook):
        size = len(json.dumps(bundle[PLOTLY]))
        if size > MAX_FIGURE_BYTES:
            title = bundle.get("text/plain", "a figure")
            return f"{title} takes {size // 1000} kB, over {MAX_FIGURE_BYTES // 1000}; give it fewer points or frames"
    return None


def add_pictures(notebooks: list[NotebookNode], before: list[NotebookNode]) -> bool:
    """Put a PNG beside each figure, in place; figures drawn before keep theirs, byte for byte.

    Returns:
        Whether all are there: False where pictures were needed and there is no browser to draw them.
    """
    known = {_key(bundle): bundle[PNG] for notebook in before for bundle in figures(notebook) if PNG in bundle}
    wanted = [bundle for notebook in notebooks for bundle in figures(notebook)]
    missing = {_key(bundle): bundle[PLOTLY] for bundle in wanted if _key(bundle) not in known}
    browser = find_chromium()
    if missing and browser:
        known |= _draw(missing, browser)
    for bundle in wanted:
        if _key(bundle) in known:
            bundle[PNG] = known[_key(bundle)]
    return not missing or browser is not None


def _key(bundle: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(bundle[PLOTLY], sort_keys=True).encode()).hexdigest()


def _draw(wanted: dict[str, Any], browser: str) -> dict[str, str]:
    """PNGs, base64, by key: one page of one browser draws them all with plotly's own script."""
    import plotly
    from playwright.sync_api import sync_playwright

    script = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
    drawn: dict[str, str] = {}
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page()
        page.set_content("<div id='figure'></div>")
        page.add_script_tag(path=str(script))
        for key, figure in wanted.items():
            drawn[key] = _png(page, figure)
        chromium.close()
    return drawn


def _png(page: Any, figure: dict[str, Any]) -> str:
    layout = figure.get("layout", {})
    # GitHub shows notebooks on white; a transparent picture would vanish on its dark theme.
    layout = layout | {"paper_bgcolor": "white", "plot_bgcolor": "white"}
    height = layout.get("height") or HEIGHT
    url = page.evaluate(
        """async ([data, layout, width, height]) => {
            const figure = await Plotly.newPlot('figure', data, {...layout, width, height}, {staticPlot: true});
            return await Plotly.toImage(figure, {format: 'png', width, height, scale: 1});
        }""",
        [figure.get("data", []), layout, WIDTH, height],
    )
    encoded = re.sub(r"^data:image/png;base64,", "", url)
    base64.b64decode(encoded, validate=True)
    return encoded
