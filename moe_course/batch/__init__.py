"""Batches: a grid of lessons and settings, run with papermill; one table and one page of plots at the end.

`record` of `moe_course` stores a result in a notebook, `moe-course batch` runs the grid, and `load` gives its table.
"""

from importlib import import_module
from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # On first use: a notebook that only records must not wait for pandas.
    if name != "load":
        raise AttributeError(f"module 'moe_course.batch' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = import_module("moe_course.batch.results").load
    return value
