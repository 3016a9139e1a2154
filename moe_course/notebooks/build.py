"""Builds the notebooks of `lessons/` and `solutions/` from the sources, and finds those that are stale."""

import os
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from moe_course.notebooks.compare import difference, same_code
from moe_course.notebooks.execute import ExecutionError, execute
from moe_course.notebooks.make import solved_notebook, student_notebook
from moe_course.notebooks.outputs import output_faults, tidy
from moe_course.notebooks.pictures import add_pictures
from moe_course.notebooks.source import Lesson, SourceError, read_lessons
from moe_course.notebooks.verdicts import read_verdicts

Progress = Callable[[str, int, int], None]  # lesson, cells done, cells in all


@dataclass(frozen=True)
class Built:
    """What a build did.

    Args:
        written: names of the lessons written.
        problems: what went wrong, a sentence or a traceback each.
        no_pictures: why figures lack their pictures; empty if they don't.
    """

    written: list[str]
    problems: list[str]
    no_pictures: str


def build(
    root: Path,
    everything: bool = False,
    jobs: int | None = None,
    progress: Progress = lambda *_: None,
    only: Collection[str] = (),
) -> Built:
    """Write what is stale. A lesson in which only prose changed keeps its outputs.

    Args:
        root: the folder that holds lessons/ and solutions/.
        everything: write and run every lesson, stale or not.
        jobs: notebooks run at once; as many as cores if None.
        progress: called before each cell of each notebook, and at its end.
        only: names, or beginnings of names ("02"): write and run these, stale or not, and no others.

    Returns:
        What was written and what went wrong. A lesson that fails leaves its notebooks as they were.

    Raises:
        SourceError: a source has a fault, or no lesson has a name in `only`; nothing was written.
    """
    lessons = read_lessons(root / "solutions")
    everything = everything or bool(only)
    asked = _named(lessons, only) if only else lessons
    stale_lessons = [lesson for lesson in asked if everything or _problems(root, lesson, lessons)]
    held = {lesson.name: work for lesson in stale_lessons if (work := _work_in(root, lesson))}
    todo = [lesson for lesson in stale_lessons if lesson.name not in held]
    solved = [solved_notebook(lesson, lessons) for lesson in todo]
    before = [_read(_solved_path(root, lesson)) for lesson in todo]

    def run(lesson: Lesson, notebook: NotebookNode, old: NotebookNode | None) -> str | None:
        if old is not None and not everything and same_code(old, notebook) and not _missing_outputs(old):
            _keep_outputs(old, notebook)
            return None
        total = len(notebook.cells)
        try:
            execute(notebook, root / "lessons", lesson.name, lambda index: progress(lesson.name, index, total))
        except ExecutionError as error:
            return str(error)
        progress(lesson.name, total, total)
        tidy(notebook)
        faults = output_faults(notebook)
        for verdict in read_verdicts(notebook):
            if verdict.status != "passed":  # the solution is wrong, or the machine was too busy for a time limit
                faults.append(f"the check of {verdict.exercise} says {verdict.status!r}: {verdict.message}")
        return "\n".join(f"{lesson.name}: {fault}" for fault in faults) or None

    (root / "lessons").mkdir(exist_ok=True)
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        failures = list(pool.map(run, todo, solved, before))
    whole = [index for index, failure in enumerate(failures) if failure is None]
    no_pictures = add_pictures([solved[i] for i in whole], [notebook for notebook in before if notebook is not None])
    for index in whole:
        _write(_solved_path(root, todo[index]), solved[index])
        _write(_student_path(root, todo[index]), student_notebook(todo[index], lessons))
    problems = [*held.values(), *(failure for failure in failures if failure)]
    return Built([todo[index].name for index in whole], problems, no_pictures)


def stale(root: Path) -> list[str]:
    """What differs between the notebooks on disk and what the sources make, as readable text; nothing if all is well.

    Raises:
        SourceError: a source has a fault.
    """
    lessons = read_lessons(root / "solutions")
    problems = [problem for lesson in lessons for problem in _problems(root, lesson, lessons)]
    names = {lesson.name for lesson in lessons}
    for folder in ("lessons", "solutions"):
        for path in sorted((root / folder).glob("[0-9][0-9]_*.ipynb")):
            if path.stem not in names:
                problems.append(f"{folder}/{path.name} has no source solutions/{path.stem}.py; delete it")
    return problems


def _named(lessons: list[Lesson], names: Collection[str]) -> list[Lesson]:
    """The lessons whose names begin with one of `names`."""
    for name in names:
        if not any(lesson.name.startswith(name) for lesson in lessons):
            raise SourceError(f"no lesson is called {name!r}; choose from {', '.join(each.name for each in lessons)}")
    return [lesson for lesson in lessons if lesson.name.startswith(tuple(names))]


def _problems(root: Path, lesson: Lesson, lessons: list[Lesson]) -> list[str]:
    """Why a lesson's notebooks are stale."""
    problems = []
    for path, wanted in (
        (_student_path(root, lesson), student_notebook(lesson, lessons)),
        (_solved_path(root, lesson), solved_notebook(lesson, lessons)),
    ):
        name = f"{path.parent.name}/{path.name}"
        found = _read(path)
        if found is None:
            problems.append(f"{name} is missing or cannot be read")
            continue
        diff = difference(found, wanted)
        if diff:
            problems.append("\n".join([f"--- {name} on disk", f"+++ {name} as solutions/{lesson.name}.py says", *diff]))
        if path.parent.name == "solutions":
            problems += [
                f"{name}: {cell} has no saved output, though it was to be run" for cell in _missing_outputs(found)
            ]
        elif _has_outputs(found):
            problems.append(f"{name} holds outputs; a learner's copy starts without any")
    return problems


def _work_in(root: Path, lesson: Lesson) -> str | None:
    """Why a lesson's student notebook must not be overwritten: somebody has worked in it."""
    found = _read(_student_path(root, lesson))
    if found is None:
        return None
    answered = any(
        "exercise" in cell.metadata.get("moe_course", {}) and "raise NotImplementedError" not in cell.source
        for cell in found.cells
    )
    if not answered and not _has_outputs(found):
        return None
    path = f"lessons/{lesson.name}.ipynb"
    return (
        f"{path} holds somebody's work ({'answers' if answered else 'outputs'}), so it is left as it is; "
        f"move it away, or drop the work with `git checkout {path}`, and build again"
    )


def _has_outputs(notebook: NotebookNode) -> bool:
    return any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)


def _missing_outputs(notebook: NotebookNode) -> list[str]:
    """The cells of a solved notebook that were not run, or that nbval would pass for want of anything to compare."""
    return [
        f"cell {number}, {cell.id},"
        for number, cell in enumerate(notebook.cells)
        if cell.cell_type == "code"
        and cell.source
        and (
            cell.execution_count is None or ("nbval-check-output" in cell.metadata.get("tags", []) and not cell.outputs)
        )
    ]


def _keep_outputs(old: NotebookNode, new: NotebookNode) -> None:
    pairs = zip(*([cell for cell in each.cells if cell.cell_type == "code"] for each in (old, new)), strict=True)
    for before, after in pairs:
        after.outputs, after.execution_count = before.outputs, before.execution_count


def _student_path(root: Path, lesson: Lesson) -> Path:
    return root / "lessons" / f"{lesson.name}.ipynb"


def _solved_path(root: Path, lesson: Lesson) -> Path:
    return root / "solutions" / f"{lesson.name}.ipynb"


def _read(path: Path) -> NotebookNode | None:
    try:
        return nbformat.read(path, as_version=4)
    except Exception:  # nbformat raises many kinds for files that are no notebooks
        return None


def _write(path: Path, notebook: NotebookNode) -> None:
    """Write whole or not at all."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    os.replace(scratch, path)
