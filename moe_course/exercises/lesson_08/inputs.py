"""Inputs for the cases of this lesson."""

from collections.abc import Callable
from typing import Any

from torch import Generator

Inputs = dict[str, Any]
Make = Callable[[Generator], Inputs]
