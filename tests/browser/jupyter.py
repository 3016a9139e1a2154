"""A real JupyterLab, started by `moe-course lab` on a folder, and a notebook in it as a person sees it."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, sync_playwright

from moe_course.notebooks.start_page import START_PAGE
from tests.browser.chromium import FLAGS, get_chromium

DARK, LIGHT = "JupyterLab Dark", "JupyterLab Light"


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=get_chromium(), args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def serve(folder: Path, private: Path) -> Iterator["Server"]:
    """Run `moe-course lab` on `folder`; JupyterLab's own files go to `private`, never to the user's."""
    server = Server(f"http://localhost:{free_port()}", secrets.token_hex(16))
    command = [sys.executable, "-m", "moe_course", "lab", str(folder), "--no-browser"]
    command += ["--port", server.url.rsplit(":")[-1]]
    environment, log = private_environment(private, server.token), private / "server.log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            wait_for_server(server, process, log)
            yield server
        finally:
            process.terminate()
            process.wait(timeout=30)


def private_environment(private: Path, token: str) -> dict[str, str]:
    """The environment of a JupyterLab that touches nothing of the user's and lets us call its commands."""
    config = private / "config"
    config.mkdir(parents=True, exist_ok=True)
    (config / "jupyter_lab_config.json").write_text(json.dumps({"LabApp": {"expose_app_in_browser": True}}))
    return os.environ | {
        "JUPYTER_TOKEN": token,
        "JUPYTER_CONFIG_DIR": str(config),
        "JUPYTER_DATA_DIR": str(private / "data"),
        "JUPYTER_RUNTIME_DIR": str(private / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(private / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(private / "workspaces"),
        "IPYTHONDIR": str(private / "ipython"),
    }


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def wait_for_server(server: "Server", process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Return when the server answers; raise with its log when it stopped or stays silent."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{server.url}/api?token={server.token}", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()}")


class Server:
    """A running JupyterLab."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token

    def address(self, notebook: str = "") -> str:
        """Where to open `notebook`, or the default page."""
        path = f"/lab/tree/{notebook}?reset&token={self.token}" if notebook else f"/?token={self.token}"
        return self.url + path


class Notebook:
    """The notebook in front, in one page of a browser."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.console: list[str] = []  # every error that the page reported
        page.on("console", self._note)
        page.on("pageerror", self._note_uncaught)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.console.append(message.text)

    def _note_uncaught(self, error: Exception) -> None:
        # A busy page says so late, of figures that it draws and moves all the same (moe_course.figures.plot_widget).
        if "[anywidget] Failed to initialize model" not in str(error):
            self.console.append(f"uncaught: {error}")

    def open(self, server: Server, name: str = "") -> "Notebook":
        """Open the notebook `name`, or the start page, and wait for its cells and an idle kernel."""
        self.page.goto(server.address(name))
        # The default page comes up behind the notebook of the last visit, which JupyterLab restores first.
        self.page.wait_for_function(IS_IN_FRONT, arg=name or START_PAGE, timeout=60_000)
        self.wait_until_idle()
        return self

    @property
    def cells(self) -> Locator:
        """All its cells."""
        return self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Notebook .jp-Cell")

    def cell(self, text: str) -> Locator:
        """The code cell whose source contains `text`."""
        number = self.page.evaluate(FIND_CELL, text)
        if number < 0:
            raise LookupError(f"no code cell contains {text!r}")
        return self.cells.nth(number)

    def output(self, text: str) -> Locator:
        """The outputs of the code cell whose source contains `text`."""
        return self.cell(text).locator(".jp-OutputArea-output")

    def command(self, name: str, **arguments: Any) -> None:
        """Execute one of JupyterLab's commands."""
        self.page.evaluate("([name, args]) => window.jupyterapp.commands.execute(name, args)", [name, arguments])

    def run_all(self, timeout: float = 120) -> None:
        """Run every cell, as the menu's *Run All Cells* does, and wait for the end."""
        self.command("notebook:run-all-cells")
        self.wait_until_idle(timeout)

    def run(self, text: str, timeout: float = 60) -> None:
        """Run the code cell whose source contains `text`, by its key, and wait for the end."""
        self.cell(text).locator(".jp-InputPrompt").click()
        self.page.keyboard.press("Control+Enter")
        self.wait_until_idle(timeout)

    def rewrite(self, text: str, source: str) -> None:
        """Replace the source of the code cell that contains `text`, through its editor."""
        self.cell(text).locator(".cm-content").click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.insert_text(source)
        self.page.keyboard.press("Escape")

    def wait_until_idle(self, timeout: float = 60) -> None:
        """Wait until the kernel is idle and no cell waits for its turn."""
        self.page.wait_for_function(IS_IDLE, timeout=timeout * 1000)

    def errors(self) -> list[str]:
        """The text of each error output."""
        kinds = ("application/vnd.jupyter.error", "application/vnd.jupyter.stderr")
        return self.cells.locator(", ".join(f'[data-mime-type="{kind}"]' for kind in kinds)).all_inner_texts()


FIND_CELL = """text => window.jupyterapp.shell.currentWidget.content.widgets.findIndex(
  cell => cell.model.type === 'code' && cell.model.sharedModel.getSource().includes(text))"""

IS_IN_FRONT = "name => window.jupyterapp?.shell.currentWidget?.context?.path === name"

# The prompt of a running cell, and of one that waits, is `[*]:`.
IS_IDLE = """() => {
  const panel = window.jupyterapp?.shell.currentWidget;
  const kernel = panel?.context?.sessionContext?.session?.kernel;
  if (!kernel || kernel.status !== 'idle' || !panel.content.widgets.length) return false;
  return ![...panel.node.querySelectorAll('.jp-InputPrompt')].some(prompt => prompt.textContent.includes('*'));
}"""
