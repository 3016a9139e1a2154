"""Who handed in what: students and their notebooks, in whatever folder or zip a course's system exports.

Understood are a folder of notebooks, a tree `student/lesson.ipynb`, nbgrader's `submitted/student/lesson/`, and the
downloads of Moodle, Canvas and Gradescope. Links are not followed.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .archive import METADATA, Found, Refused, Unpacker, is_wanted, unpacked
from .catalogue import Catalogue
from .notebook import MAX_BYTES, Notebook, Unreadable, read_notebook

MOODLE = re.compile(r"(?P<student>.+?)_(?P<number>\d+)_assignsubmission_(?:file|onlinetext)_?$")
CANVAS = re.compile(r"(?P<student>[^_]+)_(?:LATE_)?(?P<number>\d+)_(?P<file>\d+)_(?P<name>.+)$")
LESSON_NAME = re.compile(r"(?:^|[-_ ])(\d\d)_[a-z][a-z_]*")
NBGRADERS = {"source", "release", "autograded", "feedback"}  # folders beside submitted/
JUPYTER_COPY = re.compile(r"[-_ ](?:Copy\d*|copy|\(\d+\)|\d+)$")


class NothingHandedIn(Exception):
    """There is nothing to grade; the message says where one looked."""


@dataclass
class Submission:
    """One student's answer to one lesson.

    Args:
        student: who, as the export names them.
        lesson: its number, such as "02".
        path: where the notebook lies; None where there is none to read.
        name: how it was called when it was handed in.
        problem: "" or "missing" or "unreadable".
        notes: what instructor and student should know.
    """

    student: str
    lesson: str
    path: Path | None = None
    name: str = ""
    problem: str = ""
    notes: list[str] = field(default_factory=list)


def find_submissions(
    source: Path, scratch: Path, catalogue: Callable[[], Catalogue], lessons: tuple[str, ...] = ()
) -> list[Submission]:
    """A submission of every student to every lesson, sorted; those that are missing included.

    Args:
        source: a folder, a zip or one notebook.
        scratch: an empty folder, for what comes out of zips.
        catalogue: tells the exercises of the course; asked only if there is anything to grade.
        lessons: numbers of the lessons to grade; empty for those that anybody handed in.

    Raises:
        NothingHandedIn: it holds no notebook.
        Refused: it is a zip that cannot be trusted.
    """
    unpacker = Unpacker(scratch)
    found = _look(source, unpacker)
    names = _names([each for each in found if _is_exports_own(each, found)])
    handed = _without_wrapping([each for each in found if each.parts[-1] != METADATA])
    if not handed:
        raise NothingHandedIn(f"{source} holds no notebook; give the folder or zip that holds the submissions")
    exercises = catalogue()
    of_student: dict[str, list[_Candidate]] = defaultdict(list)
    for each in handed:
        of_student[_student(each.parts, names)].append(_candidate(each, exercises))
    wanted = lessons or tuple(sorted({c.lesson for each in of_student.values() for c in each if c.lesson}))
    if not wanted:
        raise NothingHandedIn(
            f"no notebook in {source} belongs to a lesson of the course; name the lesson, as in --lesson 02"
        )
    return [_choose(student, lesson, of_student[student]) for student in sorted(of_student) for lesson in wanted]


@dataclass(frozen=True)
class _Candidate:
    found: Found
    lesson: str
    problem: str

    @property
    def name(self) -> str:
        return "/".join(self.found.parts)


def _look(source: Path, unpacker: Unpacker) -> list[Found]:
    if source.is_file():
        if source.suffix.lower() == ".zip":
            return unpacker.unpack(source)
        return [Found((source.name,), source, source.stat().st_mtime)]
    found = []
    for folder, folders, files in os.walk(source, followlinks=False):
        folders.sort()
        for name in sorted(files):
            path = Path(folder) / name
            parts = path.relative_to(source).parts
            if not is_wanted(parts):
                continue
            if path.is_symlink() or not path.is_file():
                found.append(Found(parts, None, 0.0, "it is a link, or no plain file, and was not opened"))
            elif name.lower().endswith(".zip"):
                found += unpacked(unpacker, path, parts, path.stat().st_mtime)
            else:
                found.append(Found(parts, path, path.stat().st_mtime))
    return found


def _without_wrapping(found: list[Found]) -> list[Found]:
    """The files below the folder whose folders are the students."""
    while found and all(len(each.parts) > 2 for each in found) and len({each.parts[0] for each in found}) == 1:
        found = [_cut(each, 1) for each in found]
    inside = [each for each in found if each.parts[0] == "submitted" and len(each.parts) > 2]
    others = {each.parts[0] for each in found} - {"submitted"}
    if inside and others <= NBGRADERS:  # its course folder; a student may have a folder of that name, too
        found = [_cut(each, 1) for each in inside]
    return found


def _is_exports_own(each: Found, found: list[Found]) -> bool:
    """Whether a list of names stands beside the students' folders: one that a student handed in counts nothing."""
    above = each.parts[:-1]
    return each.parts[-1] == METADATA and all(other.parts[: len(above)] == above for other in found)


def _cut(each: Found, number: int) -> Found:
    return Found(each.parts[number:], each.path, each.modified, each.problem)


def _student(parts: tuple[str, ...], names: dict[str, str]) -> str:
    if len(parts) > 1:
        moodle = MOODLE.match(parts[0])
        return names.get(parts[0]) or (f"{moodle['student']} ({moodle['number']})" if moodle else parts[0])
    stem = Path(parts[0]).stem
    canvas = CANVAS.match(stem)
    if canvas:
        return f"{canvas['student']} ({canvas['number']})"
    return LESSON_NAME.sub("", stem, count=1).strip("-_ ") or stem


def _names(found: list[Found]) -> dict[str, str]:
    """Folder to student, from Gradescope's own list; empty where there is none that can be read."""
    import yaml

    names: dict[str, str] = {}
    for each in found:
        try:
            text = each.path.read_text(encoding="utf-8") if each.path and each.path.stat().st_size < 10 << 20 else ""
            listed: Any = yaml.safe_load(text)
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError):
            continue
        for folder, about in listed.items() if isinstance(listed, dict) else ():
            listed_people = about.get(":submitters") if isinstance(about, dict) else None
            people = listed_people if isinstance(listed_people, list) else []
            called = [p[":name"] for p in people if isinstance(p, dict) and isinstance(p.get(":name"), str)]
            if called:
                names[str(folder)] = f"{', '.join(called)} ({str(folder).removeprefix('submission_')})"
    return names


def _candidate(found: Found, catalogue: Catalogue) -> _Candidate:
    if found.path is None:
        return _Candidate(found, _by_name(found, catalogue), found.problem)
    try:
        if found.path.stat().st_size > MAX_BYTES:  # a file of terabytes takes no space, until it is read
            raise Unreadable(f"the file is larger than {MAX_BYTES >> 20} MB")
        notebook = read_notebook(found.path.read_bytes())
    except (Unreadable, OSError) as error:
        return _Candidate(found, _by_name(found, catalogue), str(error))
    return _Candidate(found, lesson_of(notebook, catalogue) or _by_name(found, catalogue), "")


def lesson_of(notebook: Notebook, catalogue: Catalogue) -> str:
    """The lesson that most of a notebook's exercises belong to."""
    known = {each.id for exercises in catalogue.values() for each in exercises}
    ids = [cell.exercise or cell.check for cell in notebook.cells if cell.exercise or cell.check]
    votes = [each[:2] for each in ids if each in known]
    if not votes and notebook.lesson[:2] in catalogue:
        return notebook.lesson[:2]
    if not votes:
        text = "\n".join(cell.source for cell in notebook.cells)
        votes = [
            number
            for number, exercises in catalogue.items()
            for exercise in exercises
            if re.search(rf"^[ \t]*(?:def|class) +{exercise.entry}\b", text, re.MULTILINE)
        ]
    return max(sorted(set(votes)), key=votes.count) if votes else ""


def _by_name(found: Found, catalogue: Catalogue) -> str:
    for part in reversed(found.parts):
        number = LESSON_NAME.search(part)
        if number and number[1] in catalogue:
            return number[1]
    return ""


def _choose(student: str, lesson: str, candidates: list[_Candidate]) -> Submission:
    mine = [c for c in candidates if c.lesson == lesson and not c.problem]
    if not mine:
        broken = [c for c in candidates if c.problem and c.lesson in ("", lesson)]
        if broken:
            return Submission(student, lesson, None, broken[0].name, "unreadable", [broken[0].problem])
        other = ", ".join(c.name for c in candidates)
        return Submission(student, lesson, None, "", "missing", [f"handed in: {other}, which is not this lesson"])

    def rank(candidate: _Candidate) -> tuple[bool, float, str]:
        copy = bool(JUPYTER_COPY.search(Path(candidate.name).stem))
        return not copy, candidate.found.modified, candidate.name

    best = max(mine, key=rank)
    notes = []
    if len(mine) > 1:
        others = ", ".join(c.name for c in mine if c is not best)
        notes.append(f"more than one notebook of this lesson: {best.name} was graded, and not {others}")
    return Submission(student, lesson, best.found.path, best.name, "", notes)


__all__ = ["NothingHandedIn", "Refused", "Submission", "find_submissions"]
