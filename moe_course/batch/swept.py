"""What a sweep varied and what varied with it: the part of a batch's rows that its report draws."""

import json
import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from moe_course.batch.results import DONE

SEED = "seed"
UNSET = "default"  # a run that leaves a parameter out takes the notebook's own value
CROWDED = 0.08  # of an axis: ticks that stand closer run into each other


@dataclass(frozen=True)
class Swept:
    """The runs of one lesson that are done.

    Args:
        lesson: its name.
        rows: its runs.
        parameters: the settings that differ between runs, seeds apart, with their values in order; the one that
            explains most of the recorded numbers first. If nothing but the seed differs, that.
        numbers: for each recorded number and parameter, the share of the number's variance that the parameter
            explains, from 0 to 1; None where that cannot be told. Numbers that the sweep asks for come first, in its
            order; then the one that is explained best.
    """

    lesson: str
    rows: list[dict[str, Any]]
    parameters: dict[str, list[Any]]
    numbers: dict[str, dict[str, float | None]]


def swept(rows: list[dict[str, Any]], wanted: Sequence[str] = ()) -> list[Swept]:
    """The finished runs by lesson, in the order of the plan; `wanted` are the numbers that the sweep asks for."""
    by_lesson: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["status"] == DONE:
            by_lesson[row["lesson"]].append(row)
    return [_swept(lesson, mine, wanted) for lesson, mine in by_lesson.items()]


def setting(row: dict[str, Any], parameter: str) -> Any:
    """The value that a run has for a parameter."""
    return row["parameters"].get(parameter, row["seed"] if parameter == SEED else UNSET)


def number(row: dict[str, Any], name: str) -> float | None:
    """A recorded number, if a run has it and it is finite; a bool counts as 0 or 1."""
    value = row["results"].get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def label(value: Any) -> str:
    """A setting in words, the same for 1 and 1.0."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def scale(values: list[Any]) -> str:
    """How an axis places values in rising order: "linear", "log", in "even" steps; or "names", which have no order."""
    if not _are_numbers(values):
        return "names"
    if len(values) < 2 or _apart(values):
        return "linear"
    return "log" if values[0] > 0 and _apart([math.log(value) for value in values]) else "even"


def explained(groups: list[Hashable], values: list[float]) -> float | None:
    """The share of the values' variance that goes with the groups, less what chance alone would give (Kelley's ε²).

    None if no group has two values: then chance cannot be told from effect.
    """
    members: dict[Hashable, list[float]] = defaultdict(list)
    for group, value in zip(groups, values, strict=True):
        members[group].append(value)
    freedom = len(values) - len(members)
    if freedom <= 0:
        return None
    mean = math.fsum(values) / len(values)
    total = math.fsum((value - mean) ** 2 for value in values)
    within = math.fsum(_squares(each) for each in members.values())
    if len(members) < 2 or total <= (1e-9 * max(map(abs, values))) ** 2:  # rounding is no variance
        return 0.0
    return max(0.0, 1 - within / freedom * (len(values) - 1) / total)


def _swept(lesson: str, rows: list[dict[str, Any]], wanted: Sequence[str]) -> Swept:
    names = dict.fromkeys(name for row in rows for name in row["parameters"] if name != SEED)
    found = {name: _distinct(setting(row, name) for row in rows) for name in names}
    parameters = {name: values for name, values in found.items() if len(values) > 1}
    parameters = parameters or {SEED: _distinct(setting(row, SEED) for row in rows)}
    groups = {p: [label(setting(row, p)) for row in rows] for p in parameters}
    numbers = {}
    for name in dict.fromkeys(name for row in rows for name in row["results"]):
        if any(isinstance(row["results"].get(name), int | float) for row in rows):  # NaN is a result too
            found_in = [(run, value) for run, row in enumerate(rows) if (value := number(row, name)) is not None]
            runs, values = [run for run, _ in found_in], [value for _, value in found_in]
            numbers[name] = {p: explained([of_run[run] for run in runs], values) for p, of_run in groups.items()}
    asked = {name: place for place, name in enumerate(wanted)}
    share_of = {name: max(share or 0.0 for share in shares.values()) for name, shares in numbers.items()}
    best = sorted(numbers, key=lambda name: (asked.get(name, len(asked)), -share_of[name]))
    first = sorted(parameters, key=lambda p: -math.fsum(shares[p] or 0.0 for shares in numbers.values()))
    return Swept(lesson, rows, {p: parameters[p] for p in first}, {name: numbers[name] for name in best})


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once; numbers in rising order, others as they came."""
    found = list({label(value): value for value in values}.values())
    return sorted(found) if _are_numbers(found) else found


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _apart(rising: list[float]) -> bool:
    span = rising[-1] - rising[0]
    return all(after - before >= CROWDED * span for before, after in pairwise(rising))


def _squares(values: list[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values)
