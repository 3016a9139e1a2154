"""The start page `lessons/start.ipynb`: the lessons, what they ask and how far the learner is.

`moe-course lab` writes it at every launch from the notebooks' own metadata and saved verdicts. A notebook that
cannot be read gets a row that says so; it never keeps the page from opening.
"""

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from moe_course.notebooks.verdicts import read_verdicts

START_PAGE = "start.ipynb"
COLUMNS = {"Lesson": "64%", "Minutes": "10%", "Difficulty": "11%", "Your progress": "15%"}
LEFT = "text-align: left; vertical-align: top; padding: 10px 12px"


@dataclass(frozen=True)
class Lesson:
    """What the start page says of one notebook."""

    file: str
    title: str
    promise: str = ""
    objectives: tuple[str, ...] = ()
    minutes: int = 0
    difficulty: int = 0
    exercises: int = 0
    solved: int = 0
    problem: str = ""

    @property
    def is_done(self) -> bool:
        """Whether every exercise is solved."""
        return 0 < self.exercises == self.solved


def write_start_page(folder: Path) -> Path:
    """Write the start page of the lessons in `folder` and return its path."""
    cells = [
        _markdown(f"# MoE Course\n\n{INTRODUCTION}"),
        _markdown(table(read_lessons(folder))),
        _markdown("The table is from when the course was opened. Run this cell to see it as of your last save:"),
        _code("from moe_course.notebooks.start_page import progress\n\nprogress()"),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"start-{number}"
    notebook = {"cells": cells, "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}
    path = folder / START_PAGE
    path.write_text(json.dumps(notebook, indent=1), encoding="utf-8")
    return path


INTRODUCTION = (
    "You build a Mixture-of-Experts layer, one lesson at a time. In each lesson, read, predict, move a slider, "
    "fill in a function and run the check below it: it says what is wrong and why. An exercise that you leave "
    "out never blocks the rest."
)
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def progress(folder: str | Path = ".") -> None:
    """Display the table of the lessons in `folder` with the progress saved in them."""
    from IPython.display import HTML, display

    display(HTML(table(read_lessons(Path(folder)))))


def read_lessons(folder: Path) -> list[Lesson]:
    """Return the lessons of `folder` in order."""
    return [_read_lesson(path) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]


def _read_lesson(path: Path) -> Lesson:
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        about = notebook["metadata"]["moe_course"]
        verdicts = read_verdicts(notebook)
        return Lesson(
            file=path.name,
            title=str(about["title"]),
            promise=str(about["promise"]),
            objectives=tuple(map(str, about["objectives"])),
            minutes=int(about["minutes"]),
            difficulty=int(about["difficulty"]),
            exercises=len(verdicts),
            solved=sum(verdict.status == "passed" for verdict in verdicts),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Lesson(path.name, path.stem, problem=f"{type(error).__name__}: {error}")


def table(lessons: list[Lesson]) -> str:
    """Return the lessons as an HTML table; only tags and styles that JupyterLab's sanitiser leaves in."""
    if not lessons:
        return "<p>There is no lesson in this folder. Run <code>moe-course build</code> to write them.</p>"
    current = next((lesson for lesson in lessons if not lesson.is_done and not lesson.problem), None)
    rows = "".join(_row(lesson, lesson is current) for lesson in lessons)
    head = "".join(f'<th style="{LEFT}; width: {width}">{name}</th>' for name, width in COLUMNS.items())
    return f'<table style="width: 100%; font-size: 14px"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row(lesson: Lesson, is_current: bool) -> str:
    number = lesson.file.split("_")[0]
    link = f'<a href="{escape(lesson.file)}" style="font-size: 16px"><b>{number} · {escape(lesson.title)}</b></a>'
    if lesson.problem:
        about = f"This notebook cannot be read ({escape(lesson.problem)}). "
        about += f"<code>git checkout {escape(lesson.file)}</code> restores it as it came, without your answers."
        return _cells(f"{link}<br>{about}", "–", "–", "–")
    objectives = "".join(f"<li>{escape(each)}</li>" for each in lesson.objectives)
    opened = " open" if is_current else ""
    details = f"<details{opened}><summary>What you will be able to do</summary><ul>{objectives}</ul></details>"
    return _cells(
        f"{link}<br>{escape(lesson.promise)}{details}",
        str(lesson.minutes),
        _dots(lesson.difficulty, 3),
        f"{_dots(lesson.solved, lesson.exercises)}<br>{_count(lesson)}",
    )


def _cells(*contents: str) -> str:
    return "<tr>" + "".join(f'<td style="{LEFT}">{content}</td>' for content in contents) + "</tr>"


def _dots(filled: int, total: int) -> str:
    return "●" * filled + "○" * (total - filled)


def _count(lesson: Lesson) -> str:
    done = " · done" if lesson.is_done else ""
    return f"{lesson.solved} of {lesson.exercises}{done}" if lesson.exercises else "no exercises"


def _markdown(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {"editable": False, "deletable": False}, "source": source}


def _code(source: str) -> dict[str, Any]:
    return {"cell_type": "code", "metadata": {}, "source": source, "outputs": [], "execution_count": None}
