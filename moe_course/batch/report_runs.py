"""The parts of a batch's page that are about its runs: failures, slow cells, a list of all."""

from collections import defaultdict
from statistics import median
from typing import Any
from urllib.parse import quote

from moe_course.batch.results import DONE, NOT_STARTED, error_text
from moe_course.batch.swept import SEED, label
from moe_course.grading.pages import details, table, text

MOST_ROWS = 500  # of a table
MOST_SLOW = 8


def failures(rows: list[dict[str, Any]]) -> str:
    """What failed, in which cell and why."""
    failed = [row for row in rows if row["status"] not in (DONE, NOT_STARTED)]
    if not failed:
        return ""
    lines = []
    for row in failed[:MOST_ROWS]:
        error = row["error"] or {}
        where = f"cell {error['cell']}: <code>{text(error.get('first_line') or '')}</code>" if "cell" in error else ""
        what = ": ".join(text(error[key]) for key in ("name", "message") if error.get(key))
        trace = details("traceback", f"<pre>{text(error['traceback'])}</pre>") if error.get("traceback") else ""
        lines.append([_link(row), _settings(row), text(row["status"]), where, f"{what}{trace}"])
    more = f"<p class='soft'>and {len(failed) - MOST_ROWS} more</p>" if len(failed) > MOST_ROWS else ""
    return f"<h2 id='failures'>Failures</h2>{table(['run', 'settings', 'status', 'failed in', 'because'], lines)}{more}"


def slow_cells(rows: list[dict[str, Any]]) -> str:
    """The cells that were the slowest of their run, and for how long."""
    found: dict[tuple[str, Any, str], list[float]] = defaultdict(list)
    for row in rows:
        cell = row["slowest_cell"] or {}
        if isinstance(cell.get("seconds"), int | float):
            found[row["lesson"], cell.get("cell"), str(cell.get("first_line"))].append(cell["seconds"])
    if not found:
        return ""
    slowest = sorted(found.items(), key=lambda item: -sum(item[1]))[:MOST_SLOW]
    lines = [
        [text(lesson), text(cell), f"<code>{text(line)}</code>", str(len(s)), f"{median(s):.1f}", f"{max(s):.1f}"]
        for (lesson, cell, line), s in slowest
    ]
    heads = ["lesson", "cell", "begins with", "runs", "median s", "most s"]
    return f"<h2>Slow cells</h2><p class='soft'>The slowest cell of each run.</p>{table(heads, lines, (3, 4, 5))}"


def all_runs(rows: list[dict[str, Any]]) -> str:
    """Every run with its notebook."""
    lines = []
    for row in rows[:MOST_ROWS]:
        times = [f"{row[key]:.1f}" if row[key] is not None else "" for key in ("seconds", "peak_memory_mb")]
        lines.append([_link(row), _settings(row), text(row["status"]), *times, text(error_text(row) or "")])
    more = f"<p class='soft'>and {len(rows) - MOST_ROWS} more in results.csv</p>" if len(rows) > MOST_ROWS else ""
    heads = ["notebook", "settings", "status", "seconds", "peak MB", "error"]
    return f"<h2>Runs</h2>{details(f'All {len(rows)} runs', table(heads, lines, (3, 4)) + more)}"


def _link(row: dict[str, Any]) -> str:
    name = text(row["id"])
    return f"<a href='{quote(row['path'])}'>{name}</a>" if row["path"] else name


def _settings(row: dict[str, Any]) -> str:
    given = row["parameters"] | ({SEED: row["seed"]} if row["seed"] is not None else {})
    return text(", ".join(f"{name} {label(value)}" for name, value in given.items()))
