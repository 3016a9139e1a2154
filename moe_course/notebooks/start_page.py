"""The start page `lessons/start.ipynb`: the lessons, what they ask and how far the learner is.

`moe-course lab` writes it at every launch from the notebooks' own metadata and saved verdicts. A notebook that
cannot be read gets a row that says so; it never keeps the page from opening.
"""

import json
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

START_PAGE = "start.ipynb"
MUTED = "opacity: 0.75"


@dataclass(frozen=True)
class Lesson:
    """What the start page says of one notebook."""

    file: str
    title: str
    promise: str = ""
    objectives: tuple[str, ...] = ()
    minutes: int | None = None
    difficulty: int | None = None
    exercises: tuple[str, ...] = ()
    solved: frozenset[str] = field(default_factory=frozenset)
    problem: str = ""

    @property
    def is_done(self) -> bool:
        """Whether every exercise is solved."""
        return bool(self.exercises) and len(self.solved) == len(self.exercises)


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
        exercises, solved = _verdicts(notebook)
        return Lesson(
            file=path.name,
            title=str(about["title"]),
            promise=str(about.get("promise", "")),
            objectives=tuple(map(str, about.get("objectives", ()))),
            minutes=about.get("minutes"),
            difficulty=about.get("difficulty"),
            exercises=exercises,
            solved=solved,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return Lesson(path.name, path.stem, problem=f"{type(error).__name__}: {error}")


def table(lessons: list[Lesson]) -> str:
    """Return the lessons as an HTML table; only tags and styles that JupyterLab's sanitiser leaves in."""
    if not lessons:
        return "<p>There is no lesson in this folder. Run <code>moe-course build</code> to write them.</p>"
    current = next((lesson for lesson in lessons if not lesson.is_done and not lesson.problem), None)
    rows = "".join(_row(lesson, lesson is current) for lesson in lessons)
    head = "".join(
        f'<th style="text-align: left; padding: 8px 14px">{name}</th>'
        for name in ("Lesson", "Minutes", "Difficulty", "Your progress")
    )
    return f'<table style="width: 100%; font-size: 14px"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _row(lesson: Lesson, is_current: bool) -> str:
    number = lesson.file.split("_")[0]
    title = f'<a href="{escape(lesson.file)}" style="font-size: 16px"><b>{number} · {escape(lesson.title)}</b></a>'
    if lesson.problem:
        about = f"This notebook cannot be read ({escape(lesson.problem)}). Restore it with git or open it to look."
        cells = [f'{title}<br><span style="{MUTED}">{about}</span>', "–", "–", "–"]
    else:
        objectives = "".join(f"<li>{escape(each)}</li>" for each in lesson.objectives)
        details = (
            f"<details{' open' if is_current else ''}><summary>What you will be able to do</summary>"
            f"<ul>{objectives}</ul></details>"
        )
        cells = [
            f"{title}<br>{escape(lesson.promise)}{details if objectives else ''}",
            str(lesson.minutes or "–"),
            _dots(lesson.difficulty or 0, 3),
            f"{_dots(len(lesson.solved), len(lesson.exercises))}<br>{_count(lesson)}",
        ]
    return "<tr>" + "".join(_cell(cell, first=i == 0) for i, cell in enumerate(cells)) + "</tr>"


def _cell(content: str, first: bool) -> str:
    width = "" if first else "; white-space: nowrap"
    return f'<td style="text-align: left; vertical-align: top; padding: 10px 14px{width}">{content}</td>'


def _dots(filled: int, total: int) -> str:
    return "●" * filled + "○" * (total - filled)


def _count(lesson: Lesson) -> str:
    if not lesson.exercises:
        return "no exercises"
    return f"{len(lesson.solved)} of {len(lesson.exercises)}" + (" · done" if lesson.is_done else "")


def _verdicts(notebook: dict[str, Any]) -> tuple[tuple[str, ...], frozenset[str]]:
    """The ids of the notebook's exercises, and of those that its saved outputs say passed."""
    exercises, solved = [], set()
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            verdict = output.get("metadata", {}).get("moe_course", {})
            if "exercise" in verdict:
                exercises.append(verdict["exercise"])
                if verdict["status"] == "passed":
                    solved.add(verdict["exercise"])
    return tuple(dict.fromkeys(exercises)), frozenset(solved)


def _markdown(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {"editable": False, "deletable": False}, "source": source}


def _code(source: str) -> dict[str, Any]:
    return {"cell_type": "code", "metadata": {}, "source": source, "outputs": [], "execution_count": None}
