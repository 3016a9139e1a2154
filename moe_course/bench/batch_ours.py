"""`moe-course batch` over the small notebook, with a note of what it took: `python -m … FOLDER RUNS [options]`."""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

SWEEP = """\
name = "small"
lessons = ["small.ipynb"]
seeds = {runs}
"""


def main() -> None:
    """Run the command line's own code in this process, so that its memory and the times of its runs can be seen."""
    folder, runs, *options = sys.argv[1:]
    sweep = Path(folder) / "sweep.toml"
    sweep.write_text(SWEEP.format(runs=runs))

    import papermill

    from moe_course.cli import main as command_line

    spans: list[tuple[float, float]] = []
    papermill.execute_notebook = timed(papermill.execute_notebook, spans)
    out = str(Path(folder) / "out")
    sys.argv = ["moe-course", "batch", str(sweep), "--out", out, "--quiet", *options]
    try:
        command_line()
    except SystemExit as end:
        if end.code:
            raise
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    one_by_one = {"between": between(spans)} if options else {}
    (Path(folder) / "own.json").write_text(json.dumps({"peak_bytes": peak} | one_by_one))


def timed(call: Any, spans: list[tuple[float, float]]) -> Any:
    """The same function; each call of it adds its start and its end to `spans`."""

    def wrapped(*args: Any, **options: Any) -> Any:
        start = time.monotonic()
        try:
            return call(*args, **options)
        finally:
            spans.append((start, time.monotonic()))

    return wrapped


def between(spans: list[tuple[float, float]]) -> float:
    """Mean seconds from the end of a run to the start of the next, for runs one after the other."""
    inside = sum(end - start for start, end in spans)
    return (spans[-1][1] - spans[0][0] - inside) / max(1, len(spans) - 1)


if __name__ == "__main__":
    main()
