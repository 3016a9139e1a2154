"""Finds a submission's answer to each exercise, and the statements of its notebook that the answer needs.

Only those are run: the answer's own definition, and the imports, functions and values that it names, whichever cell
they stand in. A plot or a training run elsewhere in the notebook costs nothing, and breaks nothing when it fails.
"""

import ast
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from moe_course.exercises.spec import Exercise

from .notebook import Cell, Notebook
from .statements import Damaged, Statement, is_check, is_definition, is_import, statements


@dataclass(frozen=True)
class Answer:
    """What a submission says to one exercise.

    Args:
        entry: the name that the notebook gives it; "" where there is none.
        cells: cells to run, in order: {"name", "source", "statements" (which of it), "names" (to import)}.
        names: all names that those statements read.
        notes: what the student should know about how it was found.
        problem: why there is no answer to run: "missing" or "unreadable", or "".
        text: the definition itself.
    """

    entry: str = ""
    cells: list[dict[str, Any]] = field(default_factory=list)
    names: frozenset[str] = frozenset()
    notes: list[str] = field(default_factory=list)
    problem: str = ""
    message: str = ""
    text: str = ""


class Program:
    """The statements of a notebook's code cells, and those of the lesson it was made from.

    Args:
        notebook: the submission.
        lesson: the lesson as it was handed out: it lends what the submission has lost. None for the lesson itself.
    """

    def __init__(self, notebook: Notebook, lesson: "Program | None" = None) -> None:
        self.notebook = notebook
        self.lesson = lesson
        self.statements: list[Statement] = []
        self.damaged: dict[int, str] = {}  # cells that are no Python, with the reason
        for cell in notebook.cells:
            if cell.is_code:
                self._read(cell)
        self._binders: dict[str, list[int]] = defaultdict(list)  # places of the statements that bind a name
        for place, statement in enumerate(self.statements):
            for name in statement.binds:
                if not is_check(statement.node):
                    self._binders[name].append(place)

    def _read(self, cell: Cell) -> None:
        try:
            self.statements += [Statement(cell, *each) for each in statements(cell.source)]
        except Damaged as error:
            self.damaged[cell.number] = str(error)

    def answer(self, exercise: Exercise, given: frozenset[str] = frozenset()) -> Answer:
        """The answer to an exercise: its last definition.

        Args:
            exercise: what was asked.
            given: names that it finds defined, so that the notebook's own definitions of them do not count.
        """
        notes: list[str] = []
        defining = [s for s in self.statements if exercise.entry in s.binds and not is_check(s.node)]
        entry = exercise.entry
        if not defining:
            own = [s for s in self.statements if s.cell.exercise == exercise.id and is_definition(s.node)]
            if len(own) == 1:
                (entry,) = own[0].binds
                defining = own
                notes.append(f"the answer is called {entry}, not {exercise.entry}; it was graded all the same")
        if not defining:
            return self._without(exercise)
        if len({s.cell.number for s in defining}) > 1:
            cells = ", ".join(str(n) for n in sorted({s.cell.number for s in defining}))
            notes.append(f"{entry} is defined more than once, in cells {cells}; the last definition counts")
        damaged = [n for n in self.damaged if self._cell(n).exercise == exercise.id]
        if damaged:
            notes.append(f"{self._cell(damaged[0]).name} is not valid Python and was passed over")
        chosen = self._needed(defining[-1], given)
        return Answer(
            entry,
            _cells(chosen),
            frozenset().union(*(s.now | s.later for s in chosen)),
            notes,
            text=ast.get_source_segment(defining[-1].cell.source, defining[-1].node) or "",
        )

    def _without(self, exercise: Exercise) -> Answer:
        pattern = re.compile(rf"^[ \t]*(?:(?:async )?def|class) +{re.escape(exercise.entry)}\b", re.MULTILINE)
        mine = [cell for cell in self.notebook.cells if cell.exercise == exercise.id]
        named = [cell for cell in self.notebook.cells if pattern.search(cell.source)]
        for cell in [*reversed(mine), *reversed(named)]:
            if cell.number in self.damaged:
                return Answer(problem="unreadable", message=f"{cell.name}: {self.damaged[cell.number]}")
        for cell in reversed(named):
            if not cell.is_code:
                changed = [Cell(c.number, c.source, c is cell or c.is_code, c.exercise) for c in self.notebook.cells]
                found = Program(Notebook(_unfenced(changed, cell)), self.lesson).answer(exercise)
                found.notes.insert(0, f"{cell.name} is no code cell any more; it was read as one")
                return found
        what = "its cell is there, but defines" if mine else "no cell defines"
        return Answer(problem="missing", message=f"{what} no {exercise.entry}" if mine else f"{what} {exercise.entry}")

    def _cell(self, number: int) -> Cell:
        return next(cell for cell in self.notebook.cells if cell.number == number)

    def _needed(self, start: Statement, given: frozenset[str]) -> list[Statement]:
        """`start`, and the statements that define what it needs, what those need, and so on; in order."""
        chosen: dict[tuple[bool, int, int], Statement] = {}
        open_ = [(start, True), *((s, True) for s in self.statements if "*" in s.binds)]
        places = {id(s): number for number, s in enumerate(self.statements)}
        while open_:
            statement, own = open_.pop()
            key = (own, statement.cell.number, statement.index)
            if key in chosen:
                continue
            chosen[key] = statement
            # What runs at once sees what stands above; what runs when called sees the last definition.
            above = places[id(statement)] if own else len(self.statements)
            for name in sorted((statement.now | statement.later) - given):
                ends = [above] * (name in statement.now) + [len(self.statements)] * (name in statement.later)
                for found in {
                    s_key(s, mine): (s, mine) for end in ends for s, mine in self._definers(name, end)
                }.values():
                    open_.append(found)
        # Imports first: in a notebook whose cells were moved about, they may stand below what needs them.
        return [chosen[key] for key in sorted(chosen, key=lambda key: (not is_import(chosen[key].node), key))]

    def _definers(self, name: str, end: int) -> list[tuple[Statement, bool]]:
        """The statements before `end` that decide what `name` is; the lesson's own, if the submission has none."""
        for before in (end, len(self.statements)):
            found = self._deciding(name, before)
            if found:
                return [(statement, True) for statement in found]
        if self.lesson is not None:
            return [(statement, False) for statement in self.lesson._deciding(name, len(self.lesson.statements))]
        return []

    def _deciding(self, name: str, end: int) -> list[Statement]:
        """Of the statements before `end` that bind a name, the last, and those before it that it builds on."""
        found = []
        for place in reversed(self._binders.get(name, [])):
            statement = self.statements[place]
            if place < end:
                found.append(statement)
                whole = isinstance(statement.node, ast.Assign | ast.AnnAssign | ast.Import | ast.ImportFrom)
                if (whole or is_definition(statement.node)) and name not in statement.now:
                    break
        return found

    def order(self) -> list[str]:
        """The ids of the exercises, as they follow one another."""
        return list(dict.fromkeys(cell.exercise for cell in self.notebook.cells if cell.exercise))

    def given_names(self, exercise_id: str) -> set[tuple[str, str]]:
        """Modules of the course and names in them that the cells import, down to an exercise's own."""
        own = [cell.number for cell in self.notebook.cells if cell.exercise == exercise_id]
        return {
            (statement.node.module or "", alias.name)
            for statement in self.statements
            if own and statement.cell.number <= own[-1] and isinstance(statement.node, ast.ImportFrom)
            if (statement.node.module or "").startswith("moe_course.")
            for alias in statement.node.names
        }


def s_key(statement: Statement, own: bool) -> tuple[bool, int, int]:
    """Orders the lesson's statements before the submission's."""
    return own, statement.cell.number, statement.index


def _cells(statements: list[Statement]) -> list[dict[str, Any]]:
    """The statements grouped by cell."""
    names = frozenset().union(*(s.now | s.later for s in statements))
    cells: list[dict[str, Any]] = []
    for statement in statements:
        if not cells or cells[-1]["name"] != statement.cell.name or cells[-1]["source"] != statement.cell.source:
            fresh = {"name": statement.cell.name, "source": statement.cell.source, "statements": []}
            cells.append(fresh | {"names": sorted(names)})
        cells[-1]["statements"].append(statement.index)
    return cells


def _unfenced(cells: list[Cell], changed: Cell) -> list[Cell]:
    """The cells, with the code between fences where a Markdown cell became a code cell."""
    fenced = re.search(r"```(?:python)?\n(.*?)```", changed.source, re.DOTALL)
    source = fenced[1] if fenced else changed.source
    return [Cell(c.number, source, True, c.exercise) if c.number == changed.number else c for c in cells]
