"""Finding a Chromium: the browser tests drive one, and kaleido draws pictures of figures with one."""

import os
import shutil
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")


def find_chromium() -> str | None:
    """Return the path of a Chromium, Chrome or Edge, or None.

    The first of: the environment variable BROWSER_PATH, one on the PATH, one in the usual place of macOS and
    Windows, one that playwright has downloaded.
    """
    named = os.environ.get("BROWSER_PATH")
    candidates = [named, *map(shutil.which, NAMES), *_usual_places(), *_playwrights_own()]
    return next((str(path) for path in candidates if path and Path(path).is_file()), None)


def _usual_places() -> list[Path]:
    if sys.platform == "darwin":
        return [
            Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"),
            Path("/Applications/Chromium.app/Contents/MacOS/Chromium"),
        ]
    if sys.platform == "win32":
        roots = [os.environ.get(name, "") for name in ("PROGRAMFILES", "PROGRAMFILES(X86)", "LOCALAPPDATA")]
        parts = ("Google/Chrome/Application/chrome.exe", "Microsoft/Edge/Application/msedge.exe")
        return [Path(root) / part for root in roots if root for part in parts]
    return []


def _playwrights_own() -> list[Path]:
    """Browsers that `playwright install chromium` left, the newest first."""
    caches = {
        "darwin": Path.home() / "Library/Caches/ms-playwright",
        "win32": Path.home() / "AppData/Local/ms-playwright",
    }
    usual = caches.get(sys.platform, Path.home() / ".cache/ms-playwright")
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or usual)
    programs = ("chrome", "Chromium", "Google Chrome for Testing", "chrome.exe")
    return sorted((path for name in programs for path in cache.glob(f"chromium-*/**/{name}")), reverse=True)
