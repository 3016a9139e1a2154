"""Answers compared as code, when layout, comments, annotations and the names of their own things are taken away."""

import ast
import hashlib
from functools import lru_cache
from typing import Any

from .statements import Damaged, parse


def fingerprint(text: str) -> str:
    """The same for two answers that differ only in layout, comments, annotations and the names of local things."""
    return hashlib.sha256(" ".join(normalised(text)).encode()).hexdigest()[:20] if normalised(text) else ""


@lru_cache(maxsize=2000)
def normalised(text: str) -> tuple[str, ...]:
    """The tokens of code after its own names are replaced by numbers, without docstrings and annotations."""
    try:
        tree = parse(text)
    except Damaged:
        return ()
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    own |= {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    numbers: dict[str, str] = {}
    tokens: list[str] = []

    def name(text: str) -> str:
        return numbers.setdefault(text, f"_{len(numbers)}") if text in own else text

    def walk(node: ast.AST) -> None:
        tokens.append(type(node).__name__)
        for key, value in ast.iter_fields(node):
            if key in ("annotation", "returns", "type_comment", "ctx", "kind", "decorator_list", "type_params"):
                continue
            parts = value if isinstance(value, list) else [value]
            if key == "body" and parts and _is_text(parts[0]):
                parts = parts[1:]
            for part in parts:
                if isinstance(part, ast.AST):
                    walk(part)
                elif part is not None:
                    tokens.append(name(part) if isinstance(part, str) and key != "value" else repr(part)[:200])

    try:
        walk(tree)
    except RecursionError:
        return ()
    return tuple(tokens)


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
