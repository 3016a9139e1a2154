"""What a notebook's cell tagged `parameters` lets one set, and whether a value of a sweep fits there.

papermill's own inspection matches lines with a pattern, and misses `x: int | None = 1` and `s = "a=b"`. Here Python's
parser reads the cell; nothing is run.
"""

import ast
from dataclasses import dataclass
from typing import Any

SCALARS = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "dict": dict}
NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list",
    dict: "a table",
}


class WrongType(Exception):
    """A value does not fit; the message says what would."""


@dataclass(frozen=True)
class Parameter:
    """A setting of a notebook: its annotation, if it has one, and its default, if that is a literal."""

    name: str
    annotation: ast.expr | None
    default: Any

    def fit(self, value: Any) -> Any:
        """The value as the notebook gets it: a whole number becomes a float where one is declared.

        Raises:
            WrongType: it does not fit.
        """
        if self.annotation is not None:
            return _fit(value, self.annotation)
        if type(self.default) in NAMES:
            return _fit(value, ast.Name(type(self.default).__name__))
        return _fit(value, ast.Name("Any"))


def read_parameters(source: str) -> dict[str, Parameter]:
    """The parameters of a cell.

    Raises:
        SyntaxError: it is not Python.
    """
    parameters = {}
    targets: list[ast.expr]
    annotation: ast.expr | None
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, annotation = [statement.target], statement.annotation
        elif isinstance(statement, ast.Assign):
            targets, annotation = statement.targets, None
        else:
            continue
        assert statement.value is not None
        for target in targets:
            if isinstance(target, ast.Name):
                parameters[target.id] = Parameter(target.id, annotation, _literal(statement.value))
    return parameters


def _literal(expression: ast.expr) -> Any:
    try:
        return ast.literal_eval(expression)
    except (ValueError, TypeError, SyntaxError, MemoryError):
        return None


def _fit(value: Any, wanted: ast.expr) -> Any:
    """The value as the annotation wants it. Annotations that mean nothing here take what any notebook can be given."""
    if type(value) not in NAMES:
        raise WrongType(f"a notebook cannot be given {value!r}; write it as a text, in quotes")
    if isinstance(wanted, ast.Constant) and isinstance(wanted.value, str):  # "int", in quotes
        wanted = ast.parse(wanted.value, mode="eval").body
    if isinstance(wanted, ast.BinOp) and isinstance(wanted.op, ast.BitOr):
        return _fit_one_of(value, [wanted.left, wanted.right])
    if isinstance(wanted, ast.Subscript):
        return _fit_generic(value, ast.unparse(wanted.value).rpartition(".")[2], wanted.slice)
    name = ast.unparse(wanted).rpartition(".")[2]
    if name in ("tuple", "Tuple", "set"):
        raise WrongType("a sweep cannot give a tuple or a set; make it a list in the notebook")
    if name == "None":
        raise WrongType("TOML has no None; leave the parameter out")
    return _fit_type(value, SCALARS[name.lower()]) if name.lower() in SCALARS else value


def _fit_type(value: Any, kind: type) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        hint = ""
        if kind is int and type(value) is float and value.is_integer():
            hint = f"; write {int(value)}"
        if type(value) is str and kind in (int, float, bool):
            hint = "; leave out the quotes"
        raise WrongType(f"it is {NAMES[kind]} ({kind.__name__}), and {value!r} is {NAMES[type(value)]}{hint}")
    return value


def _fit_generic(value: Any, name: str, inner: ast.expr) -> Any:
    parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
    if name == "Literal":
        choices = [_literal(part) for part in parts]
        if value not in choices:
            raise WrongType(f"it is one of {', '.join(map(repr, choices))}, not {value!r}")
        return value
    if name == "Optional":
        return _fit(value, parts[0])
    if name == "Union":
        return _fit_one_of(value, parts)
    if name in ("list", "List", "Sequence"):
        return [_fit(each, parts[0]) for each in _fit_type(value, list)]
    if name in ("dict", "Dict", "Mapping"):
        return {key: _fit(each, parts[-1]) for key, each in _fit_type(value, dict).items()}
    if name in ("tuple", "Tuple", "set"):
        raise WrongType("a sweep cannot give a tuple or a set; make it a list in the notebook")
    return value


def _fit_one_of(value: Any, choices: list[ast.expr]) -> Any:
    failures = []
    for choice in choices:
        try:
            fitted = _fit(value, choice)
        except WrongType as failure:
            failures.append(failure)
            continue
        if fitted == value and type(fitted) is type(value):
            return fitted
        failures.append(fitted)
    for each in failures:
        if not isinstance(each, WrongType):
            return each
    raise failures[0]
