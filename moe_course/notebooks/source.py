"""Reads a lesson's one source, `solutions/NN_name.py`, and says what is wrong with it.

A source is a jupytext percent script. Its YAML header holds the lesson's data under `jupyter: moe_course:`; the
fields are those of `Lesson`. Cells carry their role on their first line:

    # %% tags=["parameters"]         every setting that may be swept; exactly one such cell
    # %% exercise="02.route"         one function or class, solved; the task stands in the markdown cell above it
    # %% check="02.route"            right below: route = check(route)

In an exercise cell the solution stands between two comments, and the builder puts `raise NotImplementedError` in
its place. Lines after an optional `### STUB`, each behind a `# `, are what the student gets instead:

        ### BEGIN SOLUTION
        return x @ weight.T
        ### STUB
        # scores = ...
        # raise NotImplementedError
        ### END SOLUTION
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jupytext
import yaml
from nbformat import NotebookNode

from moe_course.exercises import Exercise, by_id

BEGIN, STUB, END = "### BEGIN SOLUTION", "### STUB", "### END SOLUTION"


class SourceError(ValueError):
    """A fault in a lesson's source: file, cell and remedy."""


@dataclass(frozen=True)
class Header:
    """What a lesson says of itself."""

    title: str
    promise: str
    objectives: list[str]
    prerequisites: list[str]
    minutes: int
    difficulty: int  # 1 to 3


@dataclass(frozen=True)
class Lesson:
    """One lesson as written."""

    path: Path
    header: Header
    cells: list[NotebookNode]
    text: str

    @property
    def name(self) -> str:
        """Such as "02_router"."""
        return self.path.stem

    @property
    def number(self) -> str:
        """Such as "02"."""
        return self.name[:2]


def read_lessons(solutions: Path) -> list[Lesson]:
    """All lessons of a folder of sources, in order.

    Raises:
        SourceError: the first fault found.
    """
    return [read_lesson(path) for path in sorted(solutions.glob("[0-9][0-9]_*.py"))]


def read_lesson(path: Path) -> Lesson:
    """One lesson.

    Raises:
        SourceError: the file is no lesson.
    """
    text = path.read_text(encoding="utf-8")
    notebook = jupytext.reads(text, fmt="py:percent")
    lesson = Lesson(path, _header(path, text), notebook.cells, text)
    _check_cells(lesson)
    return lesson


def exercise_of(cell: NotebookNode) -> Exercise | None:
    """The exercise that an exercise or check cell is about."""
    return by_id(cell.metadata.get("exercise") or cell.metadata.get("check") or "")


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _header(path: Path, text: str) -> Header:
    lines = text.splitlines()
    end = lines.index("# ---", 1) if lines[:1] == ["# ---"] and "# ---" in lines[1:] else 0
    block = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[1:end])
    try:
        about: Any = (yaml.safe_load(block) or {}).get("jupyter", {}).get("moe_course")
    except (yaml.YAMLError, AttributeError) as error:
        raise SourceError(
            f"{path.name}: the header is not valid YAML ({error}); quote values that hold a colon"
        ) from None
    if not isinstance(about, dict):
        raise SourceError(f"{path.name}: the header has no `jupyter: moe_course:` block; copy one from another lesson")
    kinds: dict[str, Any] = {field.name: list if "list" in str(field.type) else field.type for field in fields(Header)}
    for name in kinds.keys() ^ about.keys():
        verb = "lacks" if name in kinds else "has an unknown key"
        raise SourceError(f"{path.name}: the header {verb} `{name}`; it holds {', '.join(kinds)}")
    for name, kind in kinds.items():
        if not isinstance(about[name], kind) or about[name] in ("", [], 0):
            raise SourceError(f"{path.name}: `{name}` in the header must be a {kind.__name__} that is not empty")
    if about["difficulty"] not in (1, 2, 3):
        raise SourceError(f"{path.name}: `difficulty` is {about['difficulty']}; choose 1, 2 or 3")
    return Header(**about)


def _check_cells(lesson: Lesson) -> None:
    seen: set[str] = set()
    parameters = 0
    for index, cell in enumerate(lesson.cells):

        def fault(message: str, cell: NotebookNode = cell) -> SourceError:
            first = next((line for line in cell.source.splitlines() if line.strip()), "")
            return SourceError(f"{lesson.path.name}, cell starting `{first[:60]}`: {message}")

        parameters += "parameters" in tags(cell)
        before = lesson.cells[index - 1] if index else None
        after = lesson.cells[index + 1] if index + 1 < len(lesson.cells) else None
        if name := cell.metadata.get("exercise"):
            exercise = by_id(name)
            if exercise is None:
                raise fault(f"there is no exercise {name!r}; add it to moe_course/exercises/lesson_{lesson.number}")
            if name in seen:
                raise fault(f"exercise {name!r} stands twice; keep one")
            if not name.startswith(lesson.number):
                raise fault(f"exercise {name!r} belongs to lesson {name[:2]}")
            if before is None or before.cell_type != "markdown":
                raise fault("the cell above an exercise states its task in markdown; add one")
            if after is None or after.metadata.get("check") != name:
                raise fault(f'the next cell must be its check: `# %% check="{name}"`')
            regions(cell.source, fault)
            seen.add(name)
        elif name := cell.metadata.get("check"):
            if before is None or before.metadata.get("exercise") != name:
                raise fault(f'the cell above must be its exercise: `# %% exercise="{name}"`')
            entry = name.split(".", 1)[1]
            if cell.source.strip() != f"{entry} = check({entry})":
                raise fault(f"a check cell holds just `{entry} = check({entry})`")
        elif BEGIN in cell.source or END in cell.source:
            raise fault('a solution outside an exercise; give the cell its id: `# %% exercise="NN.name"`')
    if parameters != 1:
        raise SourceError(f'{lesson.path.name}: {parameters} cells are tagged "parameters"; there must be exactly one')


def regions(source: str, fault: Any = SourceError) -> list[tuple[int, int, int]]:
    """The solutions in an exercise cell, as line numbers of BEGIN, STUB (or END where there is none) and END."""
    found, begin, stub = [], None, None
    for number, line in enumerate(source.splitlines()):
        mark = line.strip()
        if mark == BEGIN:
            if begin is not None:
                raise fault(f"`{BEGIN}` stands twice without `{END}` between")
            begin, stub = number, None
        elif mark == STUB and begin is not None:
            stub = number
        elif mark == END:
            if begin is None:
                raise fault(f"`{END}` without `{BEGIN}` above it")
            found.append((begin, number if stub is None else stub, number))
            begin = None
    if begin is not None:
        raise fault(f"`{BEGIN}` without `{END}` below it; add one at the same indentation")
    if not found:
        raise fault(f"an exercise without a solution; put it between `{BEGIN}` and `{END}`")
    return found
