"""Run every check and test of the repository: what `make test` and CI do.

    python tools/run_tests.py                # all of them
    python tools/run_tests.py lint types     # some, by the names in STEPS

Every step runs even if an earlier one failed, so that one run tells all. pytest is the last, its summary the end.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
CORES = min(os.cpu_count() or 1, 8)  # each worker takes about a gigabyte
STEPS = {
    "lint": ("ruff: mistakes and style", [PYTHON, "-m", "ruff", "check", "."]),
    "format": ("ruff: layout", [PYTHON, "-m", "ruff", "format", "--check", "."]),
    "types": ("mypy over the package", [PYTHON, "-m", "mypy"]),
    "stale": ("lessons/ and solutions/ against their sources", [PYTHON, "-m", "moe_course", "build", "--check"]),
    # Alone, since a page that draws slowly looks like one that does not draw.
    "browser": ("pytest: JupyterLab in a real browser", [PYTHON, "-m", "pytest", "tests/browser"]),
    "tests": (
        "pytest: unit tests and every notebook, cell by cell, one file to a core",
        [
            PYTHON,
            "-m",
            "pytest",
            "--ignore=tests/browser",
            "--durations=10",
            f"--numprocesses={CORES}",
            "--dist=loadfile",
            "--no-loadscope-reorder",  # in this order: the longest files first, lest one core waits for the other
            "tests/exercises",
            "solutions",
            "lessons",
            "tests",
        ],
    ),
}


def main() -> int:
    """Run the steps named on the command line, or all; 0 if all of them passed."""
    wanted = sys.argv[1:] or list(STEPS)
    unknown = [name for name in wanted if name not in STEPS]
    if unknown:
        print(f"There is no step {unknown[0]!r}; choose from {', '.join(STEPS)}.", file=sys.stderr)
        return 2
    failed = []
    threads = {"OMP_NUM_THREADS": "1"}  # the cores are busy with one test each
    for number, name in enumerate(wanted, start=1):
        title, command = STEPS[name]
        print(f"\n[{number}/{len(wanted)}] {title}", flush=True)
        start = time.monotonic()
        if subprocess.run(command, cwd=ROOT, env=os.environ | threads).returncode != 0:
            failed.append(name)
        elif name != "tests":  # nothing comes after pytest's own summary
            print(f"      passed in {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        print(f"\nFailed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
