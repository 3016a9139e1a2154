"""`record(name=value)` keeps a result in the notebook that computed it, and `recorded` reads it from there.

The values are an output of the notebook: strict JSON under a MIME type of our own, beside a line that shows them. So
they survive whatever keeps outputs (papermill, nbconvert, git), and need no file beside the notebook.
"""

import html
import json
from typing import Any

from moe_course.batch.plain import KINDS, from_plain, to_plain

MIME = "application/vnd.moe-course.record+json"
MOST_BYTES = 32_000  # of one call, as JSON: results, not data
# What a batch's table says of a run by itself.
RUN_COLUMNS = (
    *("id", "lesson", "status", "seconds", "cpu_seconds", "peak_memory_mb", "attempts", "kernel"),
    *("started", "finished", "path", "error"),
)


def record(**values: Any) -> None:
    """Store results in the notebook and show them in one line; `moe-course batch` gathers them into a table.

    Several calls add up. Where a name is given twice, the last value counts.

    Args:
        **values: `name=value`. A value is a number, a bool, a text; an array (list, tensor, NumPy array, pandas
            Series); or a table (pandas DataFrame, or list of dicts with the columns as keys). NaN and infinities
            are allowed.

    Raises:
        TypeError: a value is none of these.
        ValueError: a name is taken or is no name, or the values are too large.
    """
    if not values:
        raise TypeError("record() was given nothing; write record(name=value)")
    stored: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    for name, value in values.items():
        _check_name(name)
        kind, plain = to_plain(name, value)
        stored[kind][name] = plain
    _check_size(stored)
    _display({"text/plain": _text(stored), "text/html": _html(stored), MIME: stored})


def recorded(notebook: Any) -> dict[str, Any]:
    """What the calls of `record` stored in a notebook: numbers, bools, texts; lists; tables as lists of dicts.

    Args:
        notebook: a notebook as JSON or nbformat reads it; anything malformed in it counts as not there.
    """
    found: dict[str, Any] = {}
    for cell in _dicts(notebook, "cells"):
        for output in _dicts(cell, "outputs"):
            data = output.get("data")
            stored = data.get(MIME) if isinstance(data, dict) else None
            for kind in KINDS:
                values = stored.get(kind) if isinstance(stored, dict) else None
                for name, plain in values.items() if isinstance(values, dict) else ():
                    try:
                        value = from_plain(kind, plain)
                    except (TypeError, ValueError, KeyError):
                        continue
                    found.pop(name, None)  # a name that is given again also takes the later place
                    found[str(name)] = value
    return found


def _check_name(name: str) -> None:
    if not name.isidentifier():
        raise ValueError(f"{name!r} cannot be the name of a result; use letters, digits and underscores")
    if name in RUN_COLUMNS or len(name) > 60:
        reason = "longer than 60 characters" if len(name) > 60 else "a column that a batch fills in by itself"
        raise ValueError(f"{name!r} is {reason}; choose another name")


def _check_size(stored: dict[str, dict[str, Any]]) -> None:
    sizes = {name: len(json.dumps(plain)) for values in stored.values() for name, plain in values.items()}
    if sum(sizes.values()) > MOST_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise ValueError(
            f"{largest} takes {sizes[largest] / 1000:.0f} kB, and one call of record() may take {MOST_BYTES // 1000}; "
            "record a summary of it, such as every tenth value, or a mean"
        )


def _dicts(holder: Any, key: str) -> list[dict[str, Any]]:
    items = holder.get(key) if isinstance(holder, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _text(stored: dict[str, dict[str, Any]]) -> str:
    return "recorded: " + " · ".join(f"{name} {shown}" for name, shown in _shown(stored))


def _html(stored: dict[str, dict[str, Any]]) -> str:
    """One line in the colours of the page it stands on, light or dark."""
    pairs = " ".join(
        f"<span style='display:inline-block;margin-right:14px'><span style='opacity:.7'>{html.escape(name)}</span> "
        f"<b>{html.escape(shown)}</b></span>"
        for name, shown in _shown(stored)
    )
    return (
        "<div style='border-left:4px solid #8a8a8a;padding:2px 12px;font-size:13px;line-height:1.6;max-width:900px'>"
        f"<span style='opacity:.7;margin-right:14px'>recorded:</span>{pairs}</div>"
    )


def _shown(stored: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        *((name, _short(plain)) for name, plain in stored["scalars"].items()),
        *((name, _short_array(plain)) for name, plain in stored["arrays"].items()),
        *((name, _short_table(plain)) for name, plain in stored["tables"].items()),
    ]


def _short(plain: Any) -> str:
    value = from_plain("scalars", plain)
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).split())
    return text if len(text) <= 40 else text[:39] + "…"


def _short_array(plain: list[Any]) -> str:
    if any(isinstance(entry, list) for entry in plain):
        return f"[{len(plain)} rows]"
    if len(plain) <= 4:
        return f"[{', '.join(map(_short, plain))}]"
    return f"[{_short(plain[0])}, {_short(plain[1])}, … {_short(plain[-1])}] ({len(plain)} values)"


def _short_table(plain: dict[str, Any]) -> str:
    return f"table of {len(plain['rows'])} × {len(plain['columns'])}"


def _display(bundle: dict[str, Any]) -> None:
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        get_ipython = None
    if get_ipython is None or get_ipython() is None:
        print(bundle["text/plain"])
    else:
        display(bundle, raw=True)
