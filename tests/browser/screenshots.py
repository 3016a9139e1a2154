"""Write a picture of each solved lesson, run in a real JupyterLab, in the light and the dark theme.

    .venv/bin/python -m tests.browser.screenshots FOLDER          # all lessons
    .venv/bin/python -m tests.browser.screenshots FOLDER 02 03    # some

The pictures `02_router-light-01.png`, `-02.png` and so on go through the notebook from top to bottom. How long it took
to run and what the browser's console and the cells reported as errors is printed.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser

from tests.browser.jupyter import DARK, LIGHT, Notebook, Server, open_browser, serve

SOLUTIONS = Path(__file__).resolve().parents[2] / "solutions"
WIDTH, HEIGHT = 1400, 1600  # pixels of one picture
STEP = HEIGHT - 200  # neighbouring pictures share a strip, so that nothing is cut in all of them
# Only the cells in sight exist in the page otherwise, and figures are drawn when they come into sight.
SETTINGS = {"windowingMode": "none"}


def main() -> int:
    """Write the pictures into the folder named on the command line."""
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    out, numbers = Path(sys.argv[1]), sys.argv[2:]
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        lessons, private = Path(scratch) / "lessons", Path(scratch) / "private"
        lessons.mkdir()
        names = [path.name for path in sorted(SOLUTIONS.glob("[0-9][0-9]_*.ipynb"))]
        names = [name for name in names if not numbers or name[:2] in numbers]
        for name in names:
            shutil.copy(SOLUTIONS / name, lessons)
        settings = private / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(SETTINGS))
        with serve(lessons, private) as server, open_browser() as browser:
            for name in names:
                picture(browser, server, name, out)
    return 0


def picture(browser: Browser, server: Server, name: str, out: Path) -> None:
    """Run one notebook and write its pictures."""
    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    notebook = Notebook(page).open(server, name)
    notebook.command("application:toggle-left-area")
    start = time.monotonic()
    notebook.run_all(timeout=300)
    print(f"{name}: all cells run in {time.monotonic() - start:.0f} s")
    for theme, word in ((LIGHT, "light"), (DARK, "dark")):
        notebook.command("apputils:change-theme", theme=theme)
        page.wait_for_timeout(3000)  # figures fit themselves to their new surroundings
        for number, top in enumerate(range(0, page.evaluate(HEIGHT_OF_ALL), STEP), start=1):
            page.evaluate(SCROLL, top)
            page.wait_for_timeout(300)
            page.screenshot(path=out / f"{Path(name).stem}-{word}-{number:02}.png")
        print(f"{out}/{Path(name).stem}-{word}-01.png to -{number:02}.png")
    for problem in notebook.errors() + notebook.console:
        print(f"{name}: {problem}")
    page.close()


HEIGHT_OF_ALL = "() => window.jupyterapp.shell.currentWidget.content.outerNode.scrollHeight"
SCROLL = "top => { window.jupyterapp.shell.currentWidget.content.outerNode.scrollTop = top; }"


if __name__ == "__main__":
    sys.exit(main())
