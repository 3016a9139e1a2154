"""Activation checkpointing of the experts alone, and a measure of what a forward pass keeps for the backward pass.

The experts' hidden activations are most of what an MoE layer keeps, K · T · F numbers, and can be computed again from
the layer's input. The router's are few. Recomputing the router as well would save nothing, make naive load counters
count twice, and may decide otherwise the second time: by noise, or by rounding where two experts all but tie. Then the
gradient belongs to experts that never ran, or the shapes differ and PyTorch stops.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moe_course.layers import MoELayer, Routing


class CheckpointedMoELayer(MoELayer):
    """An `MoELayer` that computes its experts again in the backward pass instead of keeping their activations.

    Args, Raises: as `MoELayer`. Same parameters, same numbers, about a third more arithmetic in the experts.
    """

    def forward(self, x: Float[Tensor, "*tokens D"]) -> tuple[Float[Tensor, "*tokens D"], Routing]:
        """Apply the layer: (…, D) to the output, shaped like x, and the `Routing`."""
        tokens = x.reshape(-1, x.shape[-1])
        routing = self.router(tokens)
        # Not re-entrant: that kind needs an input with a gradient, and loses those of anything but tensors.
        out = checkpoint(
            self.experts, tokens, routing.expert_ids, routing.weights, dispatch=self.dispatch, use_reentrant=False
        )
        return out.reshape(x.shape), routing


def checkpoint_experts(model: nn.Module) -> nn.Module:
    """Make every `MoELayer` of a model a checkpointed one, in place; parameters and hooks stay.

    Returns:
        The model.

    Raises:
        ValueError: there is no MoELayer.
    """
    layers = [module for module in model.modules() if type(module) is MoELayer]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no MoELayer whose experts could be checkpointed")
    for layer in layers:
        layer.__class__ = CheckpointedMoELayer
    return model


@dataclass
class Saved:
    """What autograd keeps for the backward pass: bytes by storage, each storage once."""

    storages: dict[int, int] = field(default_factory=dict)

    @property
    def megabytes(self) -> float:
        """In MB of 10⁶ bytes."""
        return sum(self.storages.values()) / 1e6


@contextmanager
def saved_for_backward(*given: Tensor | nn.Module) -> Iterator[Saved]:
    """Measure what the forward passes in the block keep for their backward pass.

    Args:
        given: tensors and modules whose memory is there anyway, such as the input and the model.
    """
    saved, known = Saved(), {_storage(tensor) for tensor in _tensors(given)}
    alive = []  # the address of a freed storage may be used again within the block

    def pack(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage not in known:
            alive.append(tensor)
            saved.storages[storage] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def _tensors(given: tuple[Tensor | nn.Module, ...]) -> Iterator[Tensor]:
    for each in given:
        if isinstance(each, nn.Module):
            yield from each.parameters()
            yield from each.buffers()
        else:
            yield each


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
