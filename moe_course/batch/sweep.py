"""Reads a sweep file: which notebooks to run, over which settings. What is wrong is told with its line and a remedy.

The file is TOML. `example.toml` beside this module, which `moe-course batch init` writes, shows and explains each key.
"""

import difflib
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

TIMEOUT = 3600.0  # seconds, where the sweep does not say
KEYS = ("name", "lessons", "seeds", "timeout", "retries", "memory_mb", "record", "parameters", "grid", "runs")
RUN_KEYS = ("lessons", "seeds", "grid")  # of one of [[runs]]; every other key there is a parameter


class SweepError(Exception):
    """What is wrong with a sweep, where, and what to do about it."""


@dataclass(frozen=True)
class Entry:
    """Runs that belong together: the product of some lessons, a grid and seeds.

    Args:
        table: where it stands in the file: "" for the top, "runs" for one of [[runs]].
        number: which of [[runs]], from 0.
        lessons: as they were written: numbers, names, globs, paths.
        parameters: the same for all these runs.
        grid: values of each parameter that varies.
        seeds: values of the parameter `seed`; None leaves the notebook's own.
    """

    table: str
    number: int
    lessons: tuple[str, ...]
    parameters: dict[str, Any]
    grid: dict[str, list[Any]]
    seeds: tuple[int, ...] | None


@dataclass(frozen=True)
class Sweep:
    """A sweep file, checked as far as it can be without its notebooks."""

    path: Path
    text: str
    name: str
    entries: tuple[Entry, ...]
    timeout: float
    retries: int
    memory_mb: float | None
    record: tuple[str, ...]

    def fail(self, message: str, key: str = "", table: str = "", number: int = 0) -> NoReturn:
        """Raise a `SweepError` that names the line of a key in one of the file's tables."""
        raise SweepError(f"{self.path}, line {_line(self.text, key, table, number)}: {message}")


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file.

    Raises:
        SweepError: something in it is wrong, or nothing is there.
    """
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise SweepError(f"there is no sweep {path}; `moe-course batch init {path}` writes an example") from None
    except UnicodeDecodeError:
        raise SweepError(f"{path} is no text in UTF-8; save it as such") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)", str(error))
        line = at[1] if at and at[1] else len(text.splitlines())
        what = str(error)[: at.start()] if at else str(error)
        column = f" at column {at[2]}" if at and at[2] else ""
        raise SweepError(f"{path}, line {line}: {what}{column}; https://toml.io shows how TOML is written") from None
    return _Reader(path, text).sweep(data)


class _Reader:
    """Turns the file's data into a `Sweep`, and complains with the line at hand."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.text = text

    def sweep(self, data: dict[str, Any]) -> Sweep:
        for key in data:
            if key not in KEYS:
                near = nearest(key, KEYS) or f"choose one of {', '.join(KEYS)}; a notebook's settings belong in [grid]"
                self.fail(f"a sweep has no key {key!r}; {near}", key)
        return Sweep(
            self.path,
            self.text,
            self.value(data, "name", str, "a text", self.path.stem),
            self.entries(data),
            float(self.number(data, "timeout", TIMEOUT)),
            self.count(data, "retries"),
            self.number(data, "memory_mb", None),
            tuple(self.texts(data, "record", "names that the notebooks record, such as")),
        )

    def entries(self, data: dict[str, Any]) -> tuple[Entry, ...]:
        shared = self.value(data, "parameters", dict, "a table", {})
        lessons = tuple(self.texts(data, "lessons", "lessons, such as"))
        seeds = self.seeds(data)
        runs = self.value(data, "runs", list, "written as [[runs]]", [])
        entries = []
        if "grid" in data or not runs:
            if not lessons:
                self.fail('no lessons are named; write lessons = ["04"]', "lessons")
            entries.append(Entry("", 0, lessons, shared, self.grid(data), seeds))
        for number, run in enumerate(runs):
            if not isinstance(run, dict):
                self.fail("runs are tables; write [[runs]] and their settings below it", "runs")
            own = {key: value for key, value in run.items() if key not in RUN_KEYS}
            theirs = tuple(self.texts(run, "lessons", "lessons, such as", "runs", number)) or lessons
            if not theirs:
                self.fail('no lessons are named; write lessons = ["04"] here or at the top', "", "runs", number)
            own_seeds = self.seeds(run, "runs", number) if "seeds" in run else seeds
            entries.append(Entry("runs", number, theirs, shared | own, self.grid(run, "runs", number), own_seeds))
        return tuple(entries)

    def grid(self, data: dict[str, Any], table: str = "", number: int = 0) -> dict[str, list[Any]]:
        grid = self.value(data, "grid", dict, "a table", {}, table, number)
        within = f"{table}.grid" if table else "grid"
        for name, values in grid.items():
            if not isinstance(values, list):
                self.fail(f"{name} needs a list of values; write {name} = [{values!r}]", name, within, number)
            if not values:
                self.fail(f"{name} has no values; write some, or leave it out", name, within, number)
        return grid

    def seeds(self, data: dict[str, Any], table: str = "", number: int = 0) -> tuple[int, ...] | None:
        if "seeds" not in data:
            return None
        seeds = data["seeds"]
        if type(seeds) is int and seeds > 0:
            return tuple(range(seeds))
        if not isinstance(seeds, list) or not seeds or any(type(seed) is not int for seed in seeds):
            self.fail("seeds must be whole numbers, or how many; write seeds = [0, 1, 2] or 3", "seeds", table, number)
        if len(set(seeds)) < len(seeds):
            self.fail("a seed is there twice, and would give the same run twice; leave one out", "seeds", table, number)
        return tuple(seeds)

    def texts(self, data: dict[str, Any], key: str, what: str, table: str = "", number: int = 0) -> list[str]:
        values = data.get(key, [])
        values = [values] if isinstance(values, str) else values
        if not isinstance(values, list) or not all(isinstance(value, str) and value for value in values):
            example = '["04"]' if key == "lessons" else '["loss"]'
            self.fail(f"{key} must be a list of {what} {key} = {example}", key, table, number)
        return values

    def number(self, data: dict[str, Any], key: str, default: float | None) -> Any:
        value: Any = data.get(key, default)
        if value is not default and (type(value) not in (int, float) or not 0 < value < float("inf")):
            unit = "seconds" if key == "timeout" else "megabytes"
            self.fail(f"{key} must be a number of {unit} above 0, not {value!r}", key)
        return value

    def count(self, data: dict[str, Any], key: str) -> int:
        value = data.get(key, 0)
        if type(value) is not int or value < 0:
            self.fail(f"{key} must be a whole number from 0, not {value!r}", key)
        return value

    def value(
        self, data: dict[str, Any], key: str, kind: type, what: str, default: Any, table: str = "", number: int = 0
    ) -> Any:
        value = data.get(key, default)
        if not isinstance(value, kind):
            self.fail(f"{key} must be {what}, not {value!r}", key, table, number)
        return value

    def fail(self, message: str, key: str = "", table: str = "", number: int = 0) -> NoReturn:
        raise SweepError(f"{self.path}, line {_line(self.text, key, table, number)}: {message}")


def nearest(name: str, known: "tuple[str, ...] | list[str]") -> str:
    """`did you mean 'alpha'?`, or nothing where no known name is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else ""


def _line(text: str, key: str, table: str, number: int) -> int:
    """The line of a key in a table; else of the table; else the first."""
    wanted = rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=.]"
    dotted = rf"\s*{re.escape(table.rpartition('.')[2])}\s*\.\s*[\"']?{re.escape(key)}[\"']?\s*="
    inline = rf"\s*{re.escape(table.rpartition('.')[2])}\s*=.*\b{re.escape(key)}\b"
    here, count, found = "", -1, 1
    for at, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\[?\s*([\w.\s\"'-]+?)\s*\]\]?\s*(#|$)", line)
        if header:
            here = re.sub(r"[\s\"']", "", header[1])
            count += here == "runs"
        right_one = not table.startswith("runs") or count == number
        if header and right_one and here in (table, key):
            found = at
        if key and right_one and here == table and re.match(wanted, line):
            return at
        if key and right_one and here == table.rpartition(".")[0] and re.match(f"{dotted}|{inline}", line):
            return at
    return found
