"""The grades for other programs: a CSV file and JUnit XML."""

import csv
import io
from xml.etree import ElementTree

from .feedback import exercise_text
from .results import Result

COLUMNS = [
    *("student", "lesson", "exercise", "status", "points", "max_points"),
    *("misconception", "message", "isolation", "seed", "notebook"),
]


def grades_csv(results: list[Result], seed: int) -> str:
    """A row for each student and exercise, and one with the total of each student and lesson."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for result in results:
        name = [inert(result.student), result.lesson]
        for e in result.exercises:
            row = [e.id, e.status, f"{e.points:g}", e.max_points, e.misconception, inert(e.message)]
            writer.writerow([*name, *row, result.level, seed, inert(result.name)])
        total = ["total", "", f"{result.points:g}", result.max_points, "", inert("; ".join(result.notes))]
        writer.writerow([*name, *total, result.level, seed, inert(result.name)])
    return out.getvalue()


def inert(text: str) -> str:
    """Text that no spreadsheet takes for a formula, on one line."""
    text = " ".join(text.split())
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def junit_xml(results: list[Result]) -> str:
    """A test suite for each submission, a test case for each exercise."""
    root = ElementTree.Element("testsuites", name="moe-course grade")
    for result in results:
        failed = [each for each in result.exercises if each.points < each.max_points]
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=xml_text(f"{result.student}: lesson {result.lesson}"),
            tests=str(len(result.exercises)),
            failures=str(len(failed)),
            time=f"{result.seconds:.3f}",
        )
        for each in result.exercises:
            case = ElementTree.SubElement(suite, "testcase", classname=f"lesson_{result.lesson}", name=each.id)
            if each.points < each.max_points:
                said = f"{each.points:g} of {each.max_points} points"
                failure = ElementTree.SubElement(case, "failure", type=each.status, message=said)
                failure.text = xml_text(exercise_text(each))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def xml_text(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return "".join(
        c if c in "\t\n" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff" else "�" for c in text
    )
