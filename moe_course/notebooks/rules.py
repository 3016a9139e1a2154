"""The rules that the cells of a lesson obey, so that its notebooks can be built, run, checked and graded."""

import ast
import difflib
import re
from collections.abc import Iterator

from nbformat import NotebookNode

from moe_course.exercises import LESSONS, by_id
from moe_course.notebooks.regions import BEGIN, END, regions, without_solutions

KEYS = ("exercise", "check", "tags")
TAGS = ("parameters", "nbval-check-output", "hide-input")
# Clients that run notebooks wait for ever on callbacks that print into an Output widget (nbclient #312).
STALLING = re.compile(r"\b(interact|interact_manual|interactive|interactive_output|Output)\(")


def cell_faults(cells: list[NotebookNode], number: str) -> list[tuple[int, str]]:
    """What breaks the rules: (index of the cell, what is wrong and what to do).

    Args:
        cells: the cells of one lesson, as jupytext reads them.
        number: the lesson's, such as "02".
    """
    found = list(_parameter_faults(cells))
    seen: set[str] = set()
    for index, cell in enumerate(cells):
        before = cells[index - 1] if index else None
        after = cells[index + 1] if index + 1 < len(cells) else None
        faults = list(_role_faults(cell))
        if faults:
            pass  # what a cell is meant to be is not known
        elif name := cell.metadata.get("exercise"):
            faults += _exercise_faults(cell, before, after, number)
            if name in seen:
                faults.append(f"exercise {name!r} stands twice; keep one")
            seen.add(name)
        elif name := cell.metadata.get("check"):
            faults += _check_faults(cell, before)
        elif BEGIN in cell.source or END in cell.source:
            faults.append('a solution outside an exercise; give the cell its id: `# %% exercise="NN.name"`')
        found += [(index, fault) for fault in faults]
    if not found:  # a cell that is misnamed is not one that is missing
        for exercise in LESSONS.get(number, ()):
            if exercise.id not in seen:
                last = len(cells) - 1
                found.append((last, f"exercise {exercise.id} is not in the lesson; add it, or delete its definition"))
    return found


def _parameter_faults(cells: list[NotebookNode]) -> Iterator[tuple[int, str]]:
    tagged = [index for index, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    first = next((index for index, cell in enumerate(cells) if cell.cell_type == "code"), 0)
    if len(tagged) != 1:
        yield first, f'{len(tagged)} cells are tagged "parameters"; there must be exactly one'
    elif tagged != [first]:
        yield tagged[0], "the parameters must be the first code cell: papermill puts other values below it"
    for index in tagged:
        lines = cells[index].source.splitlines()
        for statement in _statements(cells[index].source):
            line = lines[statement.lineno - 1]
            last = lines[(statement.end_lineno or 1) - 1]
            above = lines[statement.lineno - 2] if statement.lineno > 1 else ""
            if not isinstance(statement, ast.AnnAssign) or not ("#" in last or above.startswith("#")):
                yield index, f"`{line.strip()}` is no documented setting; write `name: type = value  # what it sets`"


def _role_faults(cell: NotebookNode) -> Iterator[str]:
    for key in cell.metadata:
        if key not in KEYS:
            yield f"`{key}` is no role that a cell can have; choose among {', '.join(sorted(KEYS))}"
    for tag in cell.metadata.get("tags", []):
        if tag not in TAGS:
            near = difflib.get_close_matches(tag, TAGS, n=1)
            yield f"tag {tag!r} means nothing here; " + (f"did you mean {near[0]!r}?" if near else f"use {TAGS}")
    stalling = STALLING.search(cell.source) if cell.cell_type == "code" else None
    if stalling:
        yield f"`{stalling[1]}` stalls notebook clients; use sliders(), which draws without an Output widget"


def _exercise_faults(
    cell: NotebookNode, before: NotebookNode | None, after: NotebookNode | None, number: str
) -> Iterator[str]:
    name = cell.metadata["exercise"]
    exercise = by_id(name)
    if exercise is None:
        yield f"there is no exercise {name!r}; add it to moe_course/exercises/lesson_{number}"
    elif not re.search(rf"^(def|class) {exercise.entry}\b", cell.source, re.MULTILINE):
        yield f"the cell defines no `{exercise.entry}`, which {name} asks for"
    if not name.startswith(number):
        yield f"exercise {name!r} belongs to lesson {name[:2]}"
    if before is None or before.cell_type != "markdown":
        yield "the cell above an exercise states its task in markdown; add one"
    if after is None or after.metadata.get("check") != name:
        yield f'the next cell must be its check: `# %% check="{name}"`'
    try:
        regions(cell.source)
    except ValueError as error:
        yield str(error)
        return
    for kind, text in (("solution", cell.source), ("student's version", without_solutions(cell.source))):
        try:
            ast.parse(text)
        except SyntaxError as error:
            yield f"the {kind} is not valid Python: {error.msg}, line {error.lineno} of the cell"


def _check_faults(cell: NotebookNode, before: NotebookNode | None) -> Iterator[str]:
    name = cell.metadata["check"]
    if before is None or before.metadata.get("exercise") != name:
        yield f'the cell above must be its exercise: `# %% exercise="{name}"`'
    entry = name.split(".", 1)[-1]
    if cell.source.strip() != f"{entry} = check({entry})":
        yield f"a check cell holds just `{entry} = check({entry})`"


def _statements(source: str) -> list[ast.stmt]:
    try:
        return ast.parse(source).body
    except SyntaxError:
        return []  # the cell fails when it is run, with Python's own message
