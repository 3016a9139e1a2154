"""Write a picture of each solved lesson, run in a real JupyterLab, in the light and the dark theme.

    .venv/bin/python -m tests.browser.screenshots FOLDER          # all lessons
    .venv/bin/python -m tests.browser.screenshots FOLDER 02 03    # some

Each picture, `02_router-light.png`, shows the notebook from top to bottom. What the browser's console and the cells
reported as errors is printed.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser

from tests.browser.jupyter import DARK, LIGHT, Notebook, Server, open_browser, serve

SOLUTIONS = Path(__file__).resolve().parents[2] / "solutions"
WIDTH, TALLEST = 1400, 30_000  # pixels; Chromium draws no picture that is much taller
# What JupyterLab puts around the cells, and what a notebook leaves below its last cell.
AROUND = 160


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
        with serve(lessons, private) as server, open_browser() as browser:
            for name in names:
                picture(browser, server, name, out)
    return 0


def picture(browser: Browser, server: Server, name: str, out: Path) -> None:
    """Run one notebook and write its pictures."""
    page = browser.new_page(viewport={"width": WIDTH, "height": 1000})
    notebook = Notebook(page).open(server, name)
    notebook.command("application:toggle-left-area")
    notebook.run_all(timeout=300)
    height = min(TALLEST, notebook.height() + AROUND)
    page.set_viewport_size({"width": WIDTH, "height": height})
    for theme, word in ((LIGHT, "light"), (DARK, "dark")):
        notebook.command("apputils:change-theme", theme=theme)
        page.wait_for_timeout(3000)  # figures fit themselves to their new surroundings
        file = out / f"{Path(name).stem}-{word}.png"
        page.screenshot(path=file)
        print(f"{file}: {WIDTH} × {height}")
    for problem in notebook.errors() + notebook.console:
        print(f"{name}: {problem}")
    page.close()


if __name__ == "__main__":
    sys.exit(main())
