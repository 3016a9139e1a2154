"""Writes the report: everything in it is made from the results, so writing it again changes nothing."""

import json
import os
from collections import defaultdict
from pathlib import Path

from .feedback import feedback_page
from .files import slug
from .gradescope import results_json
from .results import Result
from .run import Run
from .summary import summary_page
from .tables import grades_csv, junit_xml


def write_report(run: Run, out: Path) -> None:
    """Write grades.csv, summary.html, junit.xml, and for each student a page and a Gradescope file to `out`."""
    results = sorted(run.results.values(), key=lambda result: (result.student, result.lesson))
    by_student: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_student[result.student].append(result)
    for student, mine in by_student.items():
        write(out / "feedback" / f"{slug(student)}.html", feedback_page(student, mine))
        write(out / "gradescope" / slug(student) / "results.json", json.dumps(results_json(mine), indent=1))
    write(out / "grades.csv", grades_csv(results, run.settings.seed))
    write(out / "junit.xml", junit_xml(results))
    write(out / "summary.html", summary_page(run))


def write(path: Path, text: str) -> None:
    """Write a file that is either the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text, encoding="utf-8", errors="replace")
    os.replace(fresh, path)
