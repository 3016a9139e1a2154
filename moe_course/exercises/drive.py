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
        inputs: "init": the constructor's keyword arguments; "state": parameters by name, without it those that the
            module starts with; "x": the forward input. Where the exercise has them: "noise", a second forward
            input; "training", the mode, else True.

    Returns:
        What `forward` returned. Gradients flow to the tensors in `state`.

    Raises:
        ValueError: the module's parameters are not those that the exercise names.
    """
    module = entry(**inputs["init"])
    if not isinstance(module, nn.Module):
        raise ValueError(f"{entry.__name__} must be a class that inherits from nn.Module")
    module.train(inputs.get("training", True))
    own: dict[str, Tensor] = dict(module.named_parameters())
    # A fresh module is float32, and the exact answer is computed in float64.
    state: dict[str, Tensor] = inputs.get("state") or {name: own[name].to(inputs["x"].dtype) for name in own}
    if own.keys() != state.keys():
        raise ValueError(f"the module's parameters are named {_names(own)}; the exercise asks for {_names(state)}")
    for name, tensor in state.items():
        if own[name].shape != tensor.shape:
            raise ValueError(
                f"parameter {name} has shape {tuple(own[name].shape)}; the exercise asks for {tuple(tensor.shape)}"
            )
    forward_inputs = (inputs["x"], inputs["noise"]) if "noise" in inputs else (inputs["x"],)
    return torch.func.functional_call(module, state, forward_inputs)


def _names(parameters: Iterable[str]) -> str:
    return ", ".join(sorted(parameters)) or "nothing"
