"""The statements of a cell, with the names that each binds and reads."""

import ast
import warnings
from dataclasses import dataclass
from functools import lru_cache

from .names import Names
from .notebook import Cell

MAX_SOURCE = 200_000  # characters of one cell


@dataclass(frozen=True)
class Statement:
    """One statement at the top of a cell."""

    cell: Cell
    index: int
    node: ast.stmt
    binds: frozenset[str]
    now: frozenset[str]  # names that it reads when it runs
    later: frozenset[str]  # names that its functions read when they are called


@lru_cache(maxsize=2000)
def statements(source: str) -> list[tuple[int, ast.stmt, frozenset[str], frozenset[str], frozenset[str]]]:
    """The statements of a cell, as `Statement` has them; most cells are the same in all submissions.

    Raises:
        Damaged: the cell is not valid Python.
    """
    found = []
    for index, node in enumerate(parse(source).body):
        names = Names()
        try:
            names.visit(node)
        except RecursionError:
            raise Damaged("Python cannot read it (RecursionError)") from None
        found.append((index, node, frozenset(names.binds), frozenset(names.now), frozenset(names.later)))
    return found


class Damaged(Exception):
    """Source that is not valid Python; the message says where and why."""


def parse(source: str) -> ast.Module:
    """The tree of a cell.

    Raises:
        Damaged: there is none.
    """
    if len(source) > MAX_SOURCE:
        raise Damaged(f"the cell is longer than {MAX_SOURCE} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except SyntaxError as error:
        raise Damaged(f"{type(error).__name__}: {error.msg}, line {error.lineno}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise Damaged(f"Python cannot read it ({type(error).__name__})") from None


def is_check(node: ast.stmt) -> bool:
    """Whether a statement is `name = check(name)`, which gives back what it got."""
    value = getattr(node, "value", None)
    return (
        isinstance(node, ast.Assign | ast.Expr | ast.AnnAssign)
        and isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id == "check"
    )


def is_import(node: ast.stmt) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def is_definition(node: ast.stmt) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
