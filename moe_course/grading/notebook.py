"""Reads a submitted file into code cells, whatever it is: it may raise `Unreadable`, and nothing else."""

import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

MAX_BYTES = 64 << 20
ENCODINGS = ("utf-8-sig", "utf-16", "latin-1")
MAX_CELLS = 5000
MAX_PARTS = 1_000_000  # of the JSON: even an empty one takes some hundred bytes of memory
MAX_CODE = 2_000_000  # characters in all code cells: read as Python, they take a hundred times as many bytes


class Unreadable(Exception):
    """The file is no notebook; the message says why."""


@dataclass(frozen=True)
class Cell:
    """One cell of a notebook.

    Args:
        number: its place in the notebook, from 1.
        source: its text; for code, without what is IPython's and not Python's.
        is_code: whether it is a code cell.
        exercise: the exercise whose answer it holds, by its metadata; or "".
        check: the exercise whose check it holds; or "".
    """

    number: int
    source: str
    is_code: bool
    exercise: str = ""
    check: str = ""

    @property
    def name(self) -> str:
        return f"cell {self.number}"


@dataclass(frozen=True)
class Notebook:
    """What of a notebook matters for grading."""

    cells: list[Cell]
    lesson: str = ""  # as its metadata has it, such as "02_router"
    notes: list[str] = field(default_factory=list)


def read_notebook(raw: bytes) -> Notebook:
    """The cells of a notebook of any version.

    Raises:
        Unreadable: it is none.
    """
    notes: list[str] = []
    if len(raw) > MAX_BYTES:
        raise Unreadable(f"the file is larger than {MAX_BYTES >> 20} MB")
    if not raw.strip():
        raise Unreadable("the file is empty")
    if raw.count(b"{") + raw.count(b"[") > MAX_PARTS:
        raise Unreadable("the file holds more parts than a notebook has")
    data = _parse(_decode(raw, notes))
    if not isinstance(data, dict):
        raise Unreadable("the file is JSON, but no notebook")
    cells = data.get("cells")
    if cells is None and isinstance(data.get("worksheets"), list):
        notes.append("saved in the old notebook format 3")
        cells = [cell for sheet in data["worksheets"] if isinstance(sheet, dict) for cell in _list(sheet.get("cells"))]
    if not isinstance(cells, list):
        raise Unreadable("the file is JSON, but holds no cells")
    if len(cells) > MAX_CELLS:
        raise Unreadable(f"the notebook has more than {MAX_CELLS} cells")
    found = [made for number, cell in enumerate(cells, 1) if (made := _cell(number, cell)) is not None]
    if sum(len(cell.source) for cell in found if cell.is_code) > MAX_CODE:
        raise Unreadable(f"the notebook holds more than {MAX_CODE} characters of code")
    if len(found) < len(cells):
        notes.append(f"{len(cells) - len(found)} cells have not the form of a cell and were passed over")
    metadata = _dict(data.get("metadata"))
    kernel = _dict(metadata.get("kernelspec")).get("language", "python")
    if kernel != "python":
        notes.append("the notebook's kernel is not Python's; its cells were run as Python")
    return Notebook(found, _text(_dict(metadata.get("moe_course")).get("lesson")), notes)


def _decode(raw: bytes, notes: list[str]) -> str:
    for encoding in ENCODINGS:
        if encoding == "utf-16" and raw[:2] not in (b"\xff\xfe", b"\xfe\xff"):
            continue
        try:
            text = raw.decode(encoding)
        except UnicodeError:
            continue
        if encoding != "utf-8-sig":
            notes.append(f"the file is encoded as {encoding}, not UTF-8")
        return text
    raise Unreadable("the file is not text")  # latin-1 reads everything; for the type checker


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        if text.lstrip()[:1] in ("{", "["):
            raise Unreadable(f"the JSON is damaged ({str(error)[:80]})") from None
        raise Unreadable("the file is not JSON") from None
    except RecursionError:
        raise Unreadable("the JSON is nested too deeply") from None


def _cell(number: int, cell: Any) -> Cell | None:
    if not isinstance(cell, dict):
        return None
    source = cell.get("source", cell.get("input", ""))
    if isinstance(source, list) and all(isinstance(line, str) for line in source):
        source = "".join(source)
    if not isinstance(source, str):
        return None
    # Lone surrogates can come from JSON escapes; no file or page could hold them.
    source = source.encode("utf-8", "replace").decode().replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    is_code = cell.get("cell_type") == "code"
    metadata = _dict(cell.get("metadata"))
    ours = _dict(metadata.get("moe_course"))
    exercise, check = _text(ours.get("exercise")), _text(ours.get("check"))
    graded = _text(_dict(metadata.get("nbgrader")).get("grade_id")) or _text(cell.get("id"))
    if not exercise and graded.startswith("exercise-"):
        exercise = graded.removeprefix("exercise-").replace("-", ".", 1)
    return Cell(number, python_only(source) if is_code else source, is_code, exercise, check)


@lru_cache(maxsize=2000)  # most cells are the same in all submissions
def python_only(source: str) -> str:
    """A code cell without IPython's own lines, at the same line numbers; empty if it is another language's."""
    lines = source.split("\n")
    first = next((index for index, line in enumerate(lines) if line.strip()), 0)
    if lines[first].startswith("%%"):
        if not re.match(r"%%(time|timeit|capture|prun|debug|memit)\b", lines[first]):
            return ""
        lines[first] = ""
    for index, line in enumerate(lines):
        if re.match(r"\s*(%[a-zA-Z]|!)", line) or re.match(r"\s*\?{0,2}[\w.]+\?{1,2}\s*$|\s*\?{1,2}[\w.]+\s*$", line):
            indent = line[: len(line) - len(line.lstrip())]
            lines[index] = f"{indent}pass" if indent else ""
    return "\n".join(lines)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value.encode("utf-8", "replace").decode()[:200] if isinstance(value, str) else ""
