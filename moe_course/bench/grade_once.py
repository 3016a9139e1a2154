"""Grade one class once, and print what it took: `python -m moe_course.bench.grade_once WHO CLASS STUDENTS OUT`."""

import contextlib
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path

from moe_course.bench.grade_class import LESSON
from moe_course.grading.stage import PACKAGE


def main() -> None:
    """Grade as the arguments say; the last line is JSON."""
    who, folder, students, out = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    began = time.monotonic()
    with contextlib.redirect_stdout(sys.stderr):
        used = nbgrader(folder, students, out) if who.startswith("nbgrader") else ours(folder, out / "report")
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"cpu": used, "wall": time.monotonic() - began, "peak_bytes": peak << 10}))


def ours(folder: Path, out: Path) -> float:
    """Grade all of a class, one submission at a time; the CPU seconds that it took, from the interpreter's start."""
    from moe_course.grading.report import write_report
    from moe_course.grading.run import grade

    run = grade(folder, out, jobs=1)
    write_report(run, out)
    assert run.levels == ["bubblewrap"], "the benchmark is of the strong isolation; install bubblewrap"
    return time.process_time() + run.cpu  # processes in the sandbox are nobody's children here: they count themselves


def nbgrader(folder: Path, students: int, out: Path) -> float:
    """Autograde some of a class with nbgrader's API; the CPU seconds that it took, making the assignment apart."""
    from nbgrader.apps import NbGraderAPI
    from traitlets.config import Config

    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    config = Config()
    config.CourseDirectory.root = str(out)
    config.CourseDirectory.db_url = f"sqlite:///{out}/gradebook.db"
    config.Exchange.root = str(out / "exchange")
    config.Execute.timeout = 600
    api = NbGraderAPI(config=config)
    source = out / "source" / "router"
    source.mkdir(parents=True)
    shutil.copy(PACKAGE.parent / "solutions" / f"{LESSON}.ipynb", source)
    _must(api.generate_assignment("router"))
    setup = _cpu()
    for student in sorted(folder.iterdir())[:students]:
        submitted = out / "submitted" / student.name / "router"
        submitted.mkdir(parents=True)
        shutil.copy(student / f"{LESSON}.ipynb", submitted)
        _must(api.autograde("router", student.name))
    return _cpu() - setup


def _must(result: dict) -> None:
    if not result["success"]:
        raise RuntimeError(result["log"] or result["error"])


def _cpu() -> float:
    """CPU seconds of this process and of those that it started and saw end."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


if __name__ == "__main__":
    main()
