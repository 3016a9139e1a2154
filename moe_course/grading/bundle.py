"""The source of one function or class of the course, with all that it needs of the course and nothing else.

A lesson hands out some of `moe_course.layers`, and an answer may build on an earlier exercise. Inside the sandbox
there is no such package: what an answer is entitled to is sent along with it, name by name.
"""

import ast
import builtins
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from .stage import is_staged

OURS = "moe_course"


Piece = tuple[str, str]  # a module's name, and a statement to run in it


class NotBundled(Exception):
    """The source of a name cannot be had."""


@cache
def pieces(wanted: tuple[tuple[str, str], ...]) -> tuple[Piece, ...]:
    """The statements that define some names, each in the module that it stands in, in an order in which they run.

    Args:
        wanted: modules and names in them.

    Raises:
        NotBundled: a name does not exist, or stands for a module of the course.
    """
    bundle = _Bundle()
    for module, name in wanted:
        bundle.add(module, name)
    return tuple(bundle.pieces)


def reference_of(reference: Any) -> tuple[str, str]:
    """Module and name of an exercise's reference."""
    return getattr(reference, "module", None) or reference.__module__, reference.__name__


def drive_spec(drive: Callable[..., Any]) -> dict[str, Any]:
    """How the sandbox finds an exercise's `drive`: by its name, or as `factory(functions of the course)`.

    Raises:
        NotBundled: it is neither, or the sandbox does not have it.
    """
    if not is_staged(drive.__module__):
        raise NotBundled(f"{drive.__module__} is withheld; define `drive` in a file of moe_course/exercises itself")
    if "<locals>" not in drive.__qualname__:
        return {"module": drive.__module__, "name": drive.__name__}
    parts = {
        name: cell.cell_contents for name, cell in zip(drive.__code__.co_freevars, drive.__closure__ or (), strict=True)
    }
    return {
        "module": drive.__module__,
        "name": drive.__qualname__.split(".<locals>")[0],
        "arguments": {
            name: {
                "module": part.__module__,
                "name": part.__name__,
                "pieces": pieces(((part.__module__, part.__name__),)),
            }
            for name, part in parts.items()
        },
    }


class _Bundle:
    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.done: set[tuple[str, str]] = set()

    def add(self, module: str, name: str) -> None:
        """Define what `module` calls `name`, after all it needs."""
        if (module, name) in self.done:
            return
        self.done.add((module, name))
        statement = _bindings(module).get(name)
        if statement is None:
            raise NotBundled(f"{module} defines no {name}")
        if isinstance(statement, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * statement.level + (statement.module or ""), _package(module))
            original = next(alias.name for alias in statement.names if (alias.asname or alias.name) == name)
            if origin.split(".")[0] == OURS and not is_staged(origin):
                self.add(origin, original)
            self.pieces.append((module, f"from {origin} import {original} as {name}"))
        elif isinstance(statement, ast.Import):
            alias = next(a for a in statement.names if (a.asname or a.name.split(".")[0]) == name)
            if alias.name.split(".")[0] == OURS:
                raise NotBundled(f"{name} is a module of the course")
            self.pieces.append((module, f"import {alias.name} as {name}" if alias.asname else f"import {alias.name}"))
        else:
            for needed in _names(statement):
                if needed in _bindings(module):
                    self.add(module, needed)
            self.pieces.append((module, _source(module, statement)))


@cache
def _text(module: str) -> tuple[str, bool]:
    found = importlib.util.find_spec(module)
    if found is None or not found.origin:
        raise NotBundled(f"{module} has no source")
    return Path(found.origin).read_text(encoding="utf-8"), bool(found.submodule_search_locations)


@cache
def _bindings(module: str) -> dict[str, ast.stmt]:
    """The statement that defines each name at the top of a module."""
    found: dict[str, ast.stmt] = {}
    for statement in ast.parse(_text(module)[0]).body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[statement.name] = statement
        elif isinstance(statement, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0]: statement for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            found |= {alias.asname or alias.name: statement for alias in statement.names}
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            found |= {
                name.id: statement for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)
            }
    return found


def _package(module: str) -> str:
    return module if _text(module)[1] else module.rpartition(".")[0]


def _source(module: str, statement: ast.stmt) -> str:
    """A statement as it stands in its file, decorators included."""
    lines = _text(module)[0].splitlines()
    first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])
    return "\n".join(lines[first - 1 : statement.end_lineno])


def _names(tree: ast.AST) -> list[str]:
    """The names that some code reads and Python itself does not have."""
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return sorted(name for name in read if not hasattr(builtins, name))
