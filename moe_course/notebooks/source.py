"""Reads a lesson's one source, `solutions/NN_name.py`, and says what is wrong with it.

A source is a jupytext percent script. Its YAML header holds the lesson's data under `jupyter: moe_course:`; the
fields are those of `Lesson`. Cells carry their role on their first line:

    # %% tags=["parameters"]         every setting that may be swept; exactly one such cell
    # %% exercise="02.route"         one function or class, solved; the task stands in the markdown cell above it
    # %% check="02.route"            right below: route = check(route)

In an exercise cell the solution stands between two comments; `regions.py` says how. `rules.py` holds the rules that
cells obey.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jupytext
import yaml
from nbformat import NotebookNode

from moe_course.exercises import Exercise, by_id
from moe_course.notebooks.rules import cell_faults


class SourceError(ValueError):
    """Faults in a lesson's source, one a line: file, line, what is wrong and what to do."""


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
        SourceError: a lesson has faults.
    """
    return [read_lesson(path) for path in sorted(solutions.glob("[0-9][0-9]_*.py"))]


def read_lesson(path: Path) -> Lesson:
    """One lesson.

    Raises:
        SourceError: all faults of its cells, or the first of its header.
    """
    text = path.read_text(encoding="utf-8")
    header = _header(path, text)
    notebook = jupytext.reads(text, fmt="py:percent")
    for cell in notebook.cells:
        cell.metadata.pop("lines_to_next_cell", None)  # jupytext's own note, for writing the script again
    lesson = Lesson(path, header, notebook.cells, text)
    faults = cell_faults(lesson.cells, lesson.number)
    if faults:
        lines = _first_lines(path, text, len(lesson.cells))
        raise SourceError("\n".join(f"{path.name}:{lines[index]}: {fault}" for index, fault in faults))
    return lesson


def exercise_of(cell: NotebookNode) -> Exercise | None:
    """The exercise that an exercise or check cell is about."""
    return by_id(cell.metadata.get("exercise") or cell.metadata.get("check") or "")


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _first_lines(path: Path, text: str, cells: int) -> list[int]:
    """Where in the file each cell starts."""
    lines = [number for number, line in enumerate(text.splitlines(), 1) if line.startswith("# %%")]
    if len(lines) != cells:
        raise SourceError(
            f"{path.name}: {len(lines)} lines start with `# %%`, but there are {cells} cells; "
            "start the first cell with `# %%` and keep `# %%` out of strings"
        )
    return lines


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
