"""Outputs as named leaves: tensors, numbers and strings in tuples, lists, dicts and dataclasses."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MAX_DEPTH = 6


def leaves(output: Any, returns: tuple[str, ...] = (), name: str = "output", depth: int = 0) -> dict[str, Any]:
    """Every leaf of `output` by a readable name ("weights", "output[1]", "routing.probs").

    Args:
        output: what a learner's function returned; any object at all.
        returns: names for the items of a tuple at the top.
    """
    if depth > MAX_DEPTH:
        return {name: output}
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        parts = {f"{name}.{field.name}": getattr(output, field.name, None) for field in dataclasses.fields(output)}
    elif isinstance(output, dict):
        parts = {f"{name}[{key!r}]": value for key, value in output.items() if isinstance(key, str | int)}
    elif isinstance(output, tuple | list):
        named = returns if len(returns) == len(output) else [f"{name}[{i}]" for i in range(len(output))]
        parts = dict(zip(named, output, strict=True))
    else:
        return {name: output}
    found: dict[str, Any] = {}
    for part, value in parts.items():
        found.update(leaves(value, (), part, depth + 1))
    return found


def map_tensors(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """`tree` with `function` applied to every tensor in its dicts, tuples, lists and dataclasses."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(map_tensors(function, value) for value in tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        mapped = copy.copy(tree)  # not its __init__, which may check or compute
        for field in dataclasses.fields(tree):
            if hasattr(tree, field.name):
                object.__setattr__(mapped, field.name, map_tensors(function, getattr(tree, field.name)))
        return mapped
    return tree


def to_float64(tree: Any) -> Any:
    """`tree` with its floating-point tensors in double precision."""
    return map_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor, tree)


def at(tree: dict[str, Any], path: str) -> Any:
    """The part of nested dicts that a dotted path names: `at(inputs, "state.w_in")`."""
    part: Any = tree
    for key in path.split("."):
        part = part[key]
    return part


def frozen(value: Any) -> Any:
    """A copy of a leaf that later in-place changes can't reach."""
    if isinstance(value, Tensor):
        plain = value.detach()
        if plain.is_meta:
            return plain  # it has no values to copy, and to do so torch would first load sympy
        return torch.empty_like(plain).copy_(plain) if plain.layout == torch.strided else plain.clone()
    return value


def describe(inputs: dict[str, Any]) -> str:
    """Inputs on one line: small tensors and plain values whole, others by dtype and shape."""
    return ", ".join(f"{name} = {_in_short(value)}" for name, value in inputs.items())


def _in_short(value: Any) -> str:
    if isinstance(value, Tensor):
        if 0 < value.numel() <= 8:
            return str([round(number, 3) for number in value.flatten().tolist()]) if value.dim() < 2 else _rows(value)
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_in_short(part)}" for key, part in value.items()) + "}"
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _rows(tensor: Tensor) -> str:
    return str([[round(number, 3) for number in row.flatten().tolist()] for row in tensor])
