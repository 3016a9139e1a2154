"""A pytest plugin for nbval over the notebooks of a course: `pytest -p moe_course.notebooks.pytest_plugin --nbval-lax`.

Named with `-p`, it is imported before nbval, and importing it imports `moe_course`, which keeps the slow optional
import of jsonschema, two seconds, out of the run. A conftest is read too late.

It runs notebooks in warm kernels where those can be, and closes two gaps that nbval leaves open:
- a cell whose output is to be compared passes silently where it was never run;
- what a check says is stored in solved notebooks only, so in an unsolved lesson nothing would be compared.

Unsolved lessons, which need only come to their end, may run with settings of their own: the ini option
`nbval_unsolved` names a TOML file with a table of parameters for each lesson, by its number.
"""

import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from moe_course.notebooks.verdicts import read_verdicts
from moe_course.notebooks.warm import PLAIN, kernel_name

UNSOLVED = "lessons"  # the folder of notebooks without outputs, whose exercises nobody has attempted


def pytest_addoption(parser: pytest.Parser) -> None:
    """The ini option."""
    parser.addini("nbval_unsolved", "TOML file: parameters for unsolved lessons, a table for each number", default="")


def pytest_configure(config: pytest.Config) -> None:
    """Where `--nbval-current-env` asks for a kernel of this environment, a warm one is such a kernel too."""
    name = kernel_name()
    if name != PLAIN and config.option.nbval_current_env:
        config.option.nbval_current_env, config.option.nbval_kernel_name = False, name


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Below the parameters of an unsolved lesson, as papermill would, write those that the file has for it."""
    file = config.getini("nbval_unsolved")
    if not file:
        return
    settings = tomllib.loads((config.rootpath / file).read_text(encoding="utf-8"))
    for item in items:
        cell = getattr(item, "cell", None)
        if cell and item.path.parent.name == UNSOLVED and "parameters" in cell.metadata.get("tags", []):
            values = settings.get(item.path.name[:2], {})
            cell.source = "\n".join([cell.source, *(f"{name} = {value!r}" for name, value in values.items())])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """After a notebook's cell has run, ask of it what nbval does not."""
    yield
    fault = _fault(item) if hasattr(item, "cell") else None
    if fault:
        item.raise_cell_error(fault, "")  # type: ignore[attr-defined]  # how nbval reports a cell


def _fault(item: Any) -> str | None:
    unsolved = item.path.parent.name == UNSOLVED
    if item.options["check"] and item.cell.execution_count is None and not unsolved:
        return "This cell's output is to be compared, but it was never run; use `moe-course build`"
    wanted = "not attempted" if unsolved else "passed"
    ran = {"metadata": item.cell.metadata, "outputs": item.test_outputs}
    for verdict in read_verdicts({"cells": [ran]}):
        if verdict.status != wanted:
            return (
                f"Check of {verdict.exercise} says {verdict.status!r} where it must say {wanted!r}: {verdict.message}"
            )
    return None
