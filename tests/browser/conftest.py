"""One Chromium for all browser tests; one JupyterLab for each file of them, on a copy of the lessons."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.browser.jupyter import Notebook, Server, open_browser, serve

expect.set_options(timeout=30_000)  # a busy two-core machine is slow to draw
LESSONS = Path(__file__).resolve().parents[2] / "lessons"


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with open_browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def lessons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the lessons, for a learner to work in."""
    folder = tmp_path_factory.mktemp("course") / "lessons"
    return Path(shutil.copytree(LESSONS, folder, ignore=shutil.ignore_patterns("start.ipynb", ".ipynb_checkpoints")))


@pytest.fixture(scope="module")
def server(lessons: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`moe-course lab` on that copy."""
    with serve(lessons, tmp_path_factory.mktemp("private")) as running:
        yield running


@pytest.fixture
def notebook(browser: Browser) -> Iterator[Notebook]:
    """A page to open a notebook in."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    yield Notebook(page)
    page.close()
