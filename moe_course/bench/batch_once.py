"""Run one contestant of `bench batch` once and print what it took: `python batch_once.py WHO FOLDER RUNS`.

Imports nothing of the package: a shell loop and a pool are measured as people run them.
"""

import ctypes
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from pathlib import Path

OURS, ONE_BY_ONE = "moe-course batch", "moe-course batch --jobs 1"
LOOP, POOL = "shell loop of papermill", "papermill in a process pool"
ADOPT = 36  # PR_SET_CHILD_SUBREAPER of Linux's prctl


def main() -> None:
    """Run as the arguments say; the last line is JSON."""
    who, folder, runs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    (folder / "out").mkdir()
    measured = measure(command(who, folder, runs), dict(os.environ) | threads(who))
    own = folder / "own.json"  # what the contestant has to tell of itself
    print(json.dumps(measured | (json.loads(own.read_text()) if own.exists() else {})))


def command(who: str, folder: Path, runs: int) -> list[str]:
    """How a contestant is started."""
    here = Path(__file__).parent
    notebook, out = folder / "small.ipynb", folder / "out"
    if who == LOOP:
        papermill = f"{shlex.quote(str(Path(sys.executable).with_name('papermill')))} --no-progress-bar"
        one = f"{papermill} {shlex.quote(str(notebook))} {shlex.quote(str(out))}/$seed.ipynb -p seed $seed"
        return ["sh", "-ec", f"for seed in {' '.join(map(str, range(runs)))}; do {one}; done"]
    if who == POOL:
        return [sys.executable, str(here / "batch_pool.py"), str(notebook), str(out), str(runs)]
    jobs = ["--jobs", "1"] if who == ONE_BY_ONE else []
    return [sys.executable, "-m", "moe_course.bench.batch_ours", str(folder), str(runs), *jobs]


def threads(who: str) -> dict[str, str]:
    """One thread to each process of a pool, which is good for it; the others decide themselves."""
    return {"OMP_NUM_THREADS": "1"} if who == POOL else {}


def measure(started: list[str], env: dict[str, str]) -> dict[str, float]:
    """Wall and CPU seconds of a command and of every process that it leaves behind.

    Raises:
        RuntimeError: it failed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(ADOPT, 1, 0, 0, 0)  # a process whose parent has ended becomes a child of this one
    before = _cpu()
    began = time.monotonic()
    done = subprocess.run(started, env=env, capture_output=True, text=True)
    wall = time.monotonic() - began
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return {"wall": wall, "cpu": _cpu() - before}


def _cpu() -> float:
    """CPU seconds of the processes that have been children of this one, or of those, and have ended."""
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime


if __name__ == "__main__":
    main()
