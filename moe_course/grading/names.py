"""Which names a statement of a notebook binds, and which it reads: at once, or later, when its functions are called."""

import ast
from typing import Any


class Names(ast.NodeVisitor):
    """What a statement binds at the top, and which names of the top it reads, at once and later."""

    def __init__(self) -> None:
        self.binds: set[str] = set()
        self.now: set[str] = set()
        self.later: set[str] = set()
        self._locals: list[set[str]] = []  # of the functions we are in
        self._in_class = 0

    @property
    def _is_top(self) -> bool:
        return not self._locals and not self._in_class

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            if not any(node.id in local for local in self._locals):
                (self.later if self._locals else self.now).add(node.id)
        elif self._is_top:
            self.binds.add(node.id)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.generic_visit(node)
        if isinstance(node.target, ast.Name) and self._is_top:
            self.now.add(node.target.id)

    def visit_Attribute(self, node: ast.Attribute | ast.Subscript) -> None:
        root: ast.expr = node
        while isinstance(root, ast.Attribute | ast.Subscript):
            root = root.value
        if isinstance(root, ast.Name) and not isinstance(node.ctx, ast.Load) and self._is_top:
            self.binds.add(root.id)  # changes what the name stands for, and so builds on what it was
        self.generic_visit(node)

    visit_Subscript = visit_Attribute

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        if self._is_top:
            self.binds.update((alias.asname or alias.name).split(".")[0] for alias in node.names)

    visit_ImportFrom = visit_Import

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> None:
        if not isinstance(node, ast.Lambda):
            if self._is_top:
                self.binds.add(node.name)
            self._visit_all([*node.decorator_list, node.returns])
        arguments = [each for each in ast.walk(node.args) if isinstance(each, ast.arg)]
        defaults = [*node.args.defaults, *(default for default in node.args.kw_defaults if default)]
        self._visit_all([*defaults, *(argument.annotation for argument in arguments)])
        body: list[Any] = node.body if isinstance(node.body, list) else [node.body]
        self._locals.append({argument.arg for argument in arguments} | _locals(body))
        self._visit_all(body)
        self._locals.pop()

    def _visit_all(self, parts: list[Any]) -> None:
        for part in parts:
            if part is not None:
                self.visit(part)

    visit_AsyncFunctionDef = visit_FunctionDef
    visit_Lambda = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if self._is_top:
            self.binds.add(node.name)
        self._visit_all([*node.decorator_list, *node.bases, *(keyword.value for keyword in node.keywords)])
        self._in_class += 1
        self._visit_all(node.body)
        self._in_class -= 1

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name and self._is_top:
            self.binds.add(node.name)
        self.generic_visit(node)


def _locals(body: list[Any]) -> set[str]:
    """The names that belong to a function itself, by its body."""
    found: set[str] = set()
    elsewhere: set[str] = set()
    open_ = list(body)
    while open_:
        node = open_.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            open_ += node.decorator_list
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, ast.Global | ast.Nonlocal):
            elsewhere.update(node.names)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            found.add(node.name)
        open_ += ast.iter_child_nodes(node)
    return found - elsewhere
