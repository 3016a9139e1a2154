"""Gives every saved plotly figure a PNG beside it, for viewers that draw no plotly, such as GitHub's."""

import base64
import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from moe_course.notebooks.chromium import find_chromium
from moe_course.notebooks.outputs import PLOTLY, figures

PNG = "image/png"
WIDTH, HEIGHT = 760, 420


class PicturesError(Exception):
    """Why no pictures can be drawn here."""


def add_pictures(notebooks: list[NotebookNode], before: list[NotebookNode]) -> str:
    """Put a PNG beside each figure, in place; figures drawn before keep theirs, byte for byte.

    Returns:
        Why some figures have none; empty if all have one.
    """
    known = {_key(bundle): bundle[PNG] for notebook in before for bundle in figures(notebook) if PNG in bundle}
    wanted = [bundle for notebook in notebooks for bundle in figures(notebook)]
    missing = {_key(bundle): bundle[PLOTLY] for bundle in wanted if _key(bundle) not in known}
    reason = ""
    if missing:
        try:
            # In a thread of its own: playwright's plain interface refuses one that has an event loop.
            with ThreadPoolExecutor(1) as thread:
                known |= thread.submit(_draw, missing).result()
        except PicturesError as error:
            reason = str(error)
    for bundle in wanted:
        if _key(bundle) in known:
            bundle[PNG] = known[_key(bundle)]
    return reason


def _key(bundle: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(bundle[PLOTLY], sort_keys=True).encode()).hexdigest()


def _draw(wanted: dict[str, Any]) -> dict[str, str]:
    """PNGs, base64, by key: one page of one browser draws them all with plotly's own script."""
    browser = find_chromium()
    if browser is None:
        raise PicturesError("no Chromium, Chrome or Edge was found")
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise PicturesError("playwright is not installed; `make setup-dev` installs it") from None
    try:
        return _draw_with(browser, sync_playwright, wanted)
    except Error as error:
        raise PicturesError(f"{browser} did not draw them: {error.message.splitlines()[0]}") from None


def _draw_with(browser: str, sync_playwright: Any, wanted: dict[str, Any]) -> dict[str, str]:
    import plotly

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
