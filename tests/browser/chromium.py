"""The Chromium that the browser tests drive: one the machine has, or one got now."""

import os
import shutil
import subprocess
import sys

from moe_course.notebooks.chromium import find_chromium

# --no-sandbox: Chromium's own sandbox does not start as root in a container. The rest keeps it off the network.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class NoChromiumError(RuntimeError):
    """There is none and none can be had; says what to install."""


def get_chromium() -> str:
    """Return the path of a Chromium; if the machine has none, install one.

    Raises:
        NoChromiumError: if there is none and none can be installed.
    """
    for install in (None, _playwright_install, _apt_install):
        if install is not None:
            install()
        program = find_chromium()
        if program is not None:
            return program
    raise NoChromiumError(
        "The browser tests need Chromium: install Chrome or Chromium (Debian and Ubuntu: `sudo apt install "
        "chromium`), or set BROWSER_PATH to the program."
    )


def _playwright_install() -> None:
    _try([sys.executable, "-m", "playwright", "install", "chromium"])


def _apt_install() -> None:
    if shutil.which("apt-get") and os.geteuid() == 0:
        _try(["apt-get", "update"])
        _try(["apt-get", "install", "--yes", "--no-install-recommends", "chromium"])


def _try(command: list[str]) -> None:
    """Run `command` if it can be; whether it worked shows in what is found afterwards."""
    print(f"No Chromium yet: trying `{' '.join(command)}`", file=sys.stderr)
    subprocess.run(command, check=False, timeout=600, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
