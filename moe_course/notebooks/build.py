"""Builds the notebooks of `lessons/` and `solutions/` from the sources, and finds those that are stale."""

import difflib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from moe_course.notebooks.execute import ExecutionError, execute, tidy
from moe_course.notebooks.make import solved_notebook, student_notebook
from moe_course.notebooks.pictures import add_pictures, too_large
from moe_course.notebooks.source import Lesson, read_lessons, tags

Progress = Callable[[str, int, int], None]  # lesson, cells done, cells in all


@dataclass(frozen=True)
class Built:
    """What a build did: the lessons written, what went wrong, and whether figures have their pictures."""

    written: list[str]
    problems: list[str]
    pictures: bool


def stale(root: Path) -> list[str]:
    """What differs between the notebooks on disk and what the sources make, as readable text; nothing if all is well.

    Raises:
        SourceError: a source has a fault.
    """
    lessons = read_lessons(root / "solutions")
    problems = []
    for lesson in lessons:
        problems += _differences(root / "lessons" / f"{lesson.name}.ipynb", student_notebook(lesson, lessons))
        path = root / "solutions" / f"{lesson.name}.ipynb"
        problems += _differences(path, solved_notebook(lesson, lessons))
        problems += _without_outputs(path)
    for path in orphans(root, lessons):
        problems.append(f"{path.relative_to(root)}: has no source solutions/{path.stem}.py; delete it")
    return problems


def orphans(root: Path, lessons: list[Lesson]) -> list[Path]:
    """Numbered notebooks without a source."""
    names = {lesson.name for lesson in lessons}
    found = [path for folder in ("lessons", "solutions") for path in (root / folder).glob("[0-9][0-9]_*.ipynb")]
    return sorted(path for path in found if path.stem not in names)


def build(root: Path, everything: bool = False, jobs: int | None = None, progress: Progress = lambda *_: None) -> Built:
    """Write what is stale.

    Args:
        root: the folder that holds lessons/ and solutions/.
        everything: also write what is not stale.
        jobs: notebooks run at once; as many as cores if None.
        progress: called before each cell of each notebook.

    Returns:
        What was written and what went wrong. A notebook that fails leaves the one on disk as it was.

    Raises:
        SourceError: a source has a fault; nothing was written.
    """
    lessons = read_lessons(root / "solutions")
    todo = [lesson for lesson in lessons if everything or _is_stale(root, lesson, lessons)]
    solved = [solved_notebook(lesson, lessons) for lesson in todo]
    before = [_read(root / "solutions" / f"{lesson.name}.ipynb") for lesson in todo]

    def run(lesson: Lesson, notebook: NotebookNode) -> str | None:
        try:
            total = len(notebook.cells)
            execute(notebook, root / "lessons", lesson.name, lambda index: progress(lesson.name, index, total))
        except ExecutionError as error:
            return str(error)
        tidy(notebook)
        progress(lesson.name, total, total)
        size = too_large(notebook)
        return f"{lesson.name}: {size}" if size else None

    (root / "lessons").mkdir(exist_ok=True)
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        failures = list(pool.map(run, todo, solved))
    whole = [index for index, failure in enumerate(failures) if failure is None]
    pictures = add_pictures([solved[i] for i in whole], [notebook for notebook in before if notebook is not None])
    for index in whole:
        lesson = todo[index]
        _write(root / "solutions" / f"{lesson.name}.ipynb", solved[index])
        _write(root / "lessons" / f"{lesson.name}.ipynb", student_notebook(lesson, lessons))
    return Built([todo[i].name for i in whole], [failure for failure in failures if failure], pictures)


def _is_stale(root: Path, lesson: Lesson, lessons: list[Lesson]) -> bool:
    path = root / "solutions" / f"{lesson.name}.ipynb"
    return bool(
        _differences(root / "lessons" / path.name, student_notebook(lesson, lessons))
        or _differences(path, solved_notebook(lesson, lessons))
        or _without_outputs(path)
    )


def _differences(path: Path, wanted: NotebookNode) -> list[str]:
    """How a notebook on disk differs, outputs apart, as one text; empty if it does not."""
    name = f"{path.parent.name}/{path.name}"
    found = _read(path)
    if found is None:
        return [f"{name}: missing or unreadable; run `moe-course build`"]
    diff = list(
        difflib.unified_diff(_lines(found), _lines(wanted), f"{name} on disk", f"{name} as its source says", n=2)
    )
    return ["".join(line if line.endswith("\n") else line + "\n" for line in diff)] if diff else []


def _lines(notebook: NotebookNode) -> list[str]:
    """A notebook without outputs as lines to compare."""
    lines = json.dumps(notebook.metadata, sort_keys=True, indent=1, ensure_ascii=False).splitlines()
    for cell in notebook.cells:
        lines.append(f"[{cell.cell_type} {cell.id}] {json.dumps(cell.metadata, sort_keys=True)}")
        lines += cell.source.splitlines()
    return lines


def _without_outputs(path: Path) -> list[str]:
    """Cells of a solved notebook whose output should be compared but is not there."""
    notebook = _read(path)
    if notebook is None:
        return []
    return [
        f"solutions/{path.name}: cell {cell.id} is to be compared but has no stored output; run `moe-course build`"
        for cell in notebook.cells
        if "nbval-check-output" in tags(cell) and not cell.outputs
    ]


def _read(path: Path) -> Any:
    try:
        return nbformat.read(path, as_version=4)
    except Exception:  # nbformat raises many kinds for files that are no notebooks
        return None


def _write(path: Path, notebook: NotebookNode) -> None:
    """Write whole or not at all."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(nbformat.writes(notebook), encoding="utf-8")
    os.replace(scratch, path)
