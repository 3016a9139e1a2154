"""How an exercise's entry is called with a case's inputs. Knows nothing of any answer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def call_function(entry: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """`entry(**inputs)`: for exercises that ask for a function."""
    return entry(**inputs)


def call_module(entry: type[nn.Module], inputs: dict[str, Any]) -> Any:
    """Builds `entry(**init)`, gives it the parameters in `state` and runs it on `x`.

    Args:
        entry: an nn.Module class.
        inputs: "init": the constructor's keyword arguments; "state": parameters by name; "x": the forward input.

    Returns:
        What `forward` returned. Gradients flow to the tensors in `state`.

    Raises:
        ValueError: the module's parameters are not those that the exercise names.
    """
    module = entry(**inputs["init"])
    if not isinstance(module, nn.Module):
        raise ValueError(f"{entry.__name__} must be a class that inherits from nn.Module")
    state: dict[str, Tensor] = inputs["state"]
    own = dict(module.named_parameters())
    if own.keys() != state.keys():
        raise ValueError(f"the module's parameters are named {_names(own)}; the exercise asks for {_names(state)}")
    for name, tensor in state.items():
        if own[name].shape != tensor.shape:
            raise ValueError(
                f"parameter {name} has shape {tuple(own[name].shape)}; the exercise asks for {tuple(tensor.shape)}"
            )
    return torch.func.functional_call(module, state, (inputs["x"],))


def _names(parameters: Iterable[str]) -> str:
    return ", ".join(sorted(parameters)) or "nothing"
