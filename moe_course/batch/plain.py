"""Results as strict JSON, and back: numbers, bools and texts; arrays; tables.

JSON lacks NaN and the infinities: {"float": "nan"} stands for one. No other dict occurs as a value, so nothing else can
be taken for it.
"""

import math
from collections.abc import Callable
from typing import Any

KINDS = ("scalars", "arrays", "tables")
MOST_WHOLE = 2**53  # larger whole numbers are rounded in JavaScript, and so by a save in JupyterLab


def to_plain(name: str, value: Any) -> tuple[str, Any]:
    """The kind of a value ("scalars", "arrays" or "tables") and what JSON holds of it.

    Raises:
        TypeError: it is of no kind that can be stored.
        ValueError: it is too large, or a table with two columns of one name.
    """
    if hasattr(value, "columns") and hasattr(value, "itertuples"):
        return "tables", _frame(name, value)
    if hasattr(value, "tolist"):
        value = _unpacked(name, value)
    if isinstance(value, list | tuple):
        if value and all(isinstance(row, dict) for row in value):
            return "tables", _rows(name, value)
        return "arrays", _array(name, value)
    if isinstance(value, dict):
        raise TypeError(f"{name} is a dict; record its values by name, record(**{name}), or a list of rows")
    return "scalars", _leaf(name, value)


def from_plain(kind: str, plain: Any) -> Any:
    """The value that `to_plain` was given, as plain Python.

    Raises:
        KeyError, TypeError, ValueError: it is nothing that `to_plain` made.
    """
    return _READERS[kind](plain)


def _unpacked(name: str, value: Any) -> Any:
    """A tensor, NumPy array or Series as nested lists, on whatever device and of whatever precision it is."""
    import numpy as np

    if hasattr(value, "isna") and not isinstance(value.dtype, np.dtype):
        return value.astype(object).tolist()  # pandas' own dtypes, where numbers may be missing
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu().resolve_conj().resolve_neg()
            value = (value.float() if value.itemsize < 4 and value.is_floating_point() else value).numpy()
        values = np.asarray(value)
        if values.dtype.kind in "mM":
            raise TypeError("dates and times are stored as text: str() of each")
    except Exception as error:
        raise TypeError(f"{name} has no values to store ({type(error).__name__}: {error})") from None
    if values.dtype == np.float32 or values.dtype == np.float16:
        # 0.83 in float32 is 0.83 to its last digit, not 0.8299999833106995.
        short = [float(str(number)) for number in values.ravel()]
        values = np.array(short, dtype=np.float64).reshape(values.shape)
    return values.tolist()


def _array(name: str, values: Any) -> list[Any]:
    plain = []
    for value in values:
        entry = _unpacked(name, value) if hasattr(value, "tolist") else value
        plain.append(_array(name, entry) if isinstance(entry, list | tuple) else _leaf(name, entry))
    return plain


def _frame(name: str, frame: Any) -> dict[str, Any]:
    """A DataFrame; an index that has a name is a column too."""
    if any(level is not None for level in frame.index.names):
        frame = frame.reset_index()
    heads = [" ".join(map(str, head)) if isinstance(head, tuple) else str(head) for head in frame.columns]
    if len(set(heads)) < len(heads):
        raise ValueError(f"{name} has two columns of one name; rename one")
    columns = [_unpacked(name, frame.iloc[:, place]) for place in range(len(heads))]
    return {"columns": heads, "rows": [[_cell(name, cell) for cell in row] for row in zip(*columns, strict=True)]}


def _rows(name: str, rows: Any) -> dict[str, Any]:
    heads = list(dict.fromkeys(str(key) for row in rows for key in row))
    given = [{str(key): cell for key, cell in row.items()} for row in rows]
    return {"columns": heads, "rows": [[_cell(name, row.get(head)) for head in heads] for row in given]}


def _cell(name: str, value: Any) -> Any:
    """An entry of a table, which may be missing."""
    if hasattr(value, "tolist"):
        value = _unpacked(name, value)
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    return _leaf(name, value)


def _leaf(name: str, value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > MOST_WHOLE:
            raise ValueError(f"{name} holds a whole number beyond 2**53, which JSON rounds; record str() of it")
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, str):
        return str(value).encode("utf-8", "replace").decode()  # half a surrogate pair would break the notebook
    raise TypeError(
        f"{name} holds a value of type {type(value).__name__}; record numbers, bools, texts, arrays or tables of "
        "these, or str() of it"
    )


def _number(plain: Any) -> Any:
    if isinstance(plain, dict):
        return float(plain["float"])
    if plain is None or isinstance(plain, bool | int | float | str):
        return plain
    raise TypeError("no value that record() stores")


def _list(plain: Any) -> list[Any]:
    if not isinstance(plain, list):
        raise TypeError("no array that record() stores")
    return [_list(entry) if isinstance(entry, list) else _number(entry) for entry in plain]


def _table(plain: Any) -> list[dict[str, Any]]:
    return [dict(zip(plain["columns"], map(_number, row), strict=True)) for row in plain["rows"]]


_READERS: dict[str, Callable[[Any], Any]] = {"scalars": _number, "arrays": _list, "tables": _table}
