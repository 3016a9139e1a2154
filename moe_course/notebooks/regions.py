"""The solutions in an exercise cell: where they stand, and the cell without them.

A solution stands between two comments; the student gets `raise NotImplementedError` in its place. Lines after an
optional `### STUB`, each behind a `# `, are what the student gets instead:

        ### BEGIN SOLUTION
        return x @ weight.T
        ### STUB
        # scores = ...
        # raise NotImplementedError
        ### END SOLUTION
"""

import re

BEGIN, STUB, END = "### BEGIN SOLUTION", "### STUB", "### END SOLUTION"


def without_solutions(source: str) -> str:
    """An exercise cell as the student gets it."""
    lines = source.splitlines()
    for begin, stub, end in reversed(regions(source)):
        indent = lines[begin][: len(lines[begin]) - len(lines[begin].lstrip())]
        starter = [re.sub(r"^(\s*)# ?", r"\1", line) for line in lines[stub + 1 : end]]
        lines[begin : end + 1] = starter or [f"{indent}raise NotImplementedError"]
    return "\n".join(lines)


def solution_lines(source: str) -> list[str]:
    """The lines of an exercise cell that no student may see."""
    lines = source.splitlines()
    return [line for begin, stub, _ in regions(source) for line in lines[begin + 1 : stub]]


def regions(source: str) -> list[tuple[int, int, int]]:
    """The solutions in an exercise cell, as line numbers of BEGIN, STUB (or END where there is none) and END.

    Raises:
        ValueError: the marks do not pair, there are none, or a stub is no stub.
    """
    lines = source.splitlines()
    found: list[tuple[int, int, int]] = []
    begin, stub = None, None
    for number, line in enumerate(lines):
        mark = line.strip()
        if mark == BEGIN:
            if begin is not None:
                raise ValueError(f"`{BEGIN}` stands twice without `{END}` between")
            begin, stub = number, None
        elif mark == STUB and begin is not None:
            stub = number
        elif mark == END:
            if begin is None:
                raise ValueError(f"`{END}` without `{BEGIN}` above it")
            if stub is not None:
                _check_stub(lines[stub + 1 : number])
            found.append((begin, number if stub is None else stub, number))
            begin = None
    if begin is not None:
        raise ValueError(f"`{BEGIN}` without `{END}` below it; add one at the same indentation")
    if not found:
        raise ValueError(f"an exercise without a solution; put it between `{BEGIN}` and `{END}`")
    return found


def _check_stub(lines: list[str]) -> None:
    for line in lines:
        if line.strip() and not line.strip().startswith("#"):
            raise ValueError(f"`{line.strip()}` stands after `{STUB}`; put it behind a `# `, or above")
    if not any("raise NotImplementedError" in line for line in lines):
        raise ValueError(
            f"a stub that looks like an answer; let it end in `# raise NotImplementedError` after `{STUB}`"
        )
