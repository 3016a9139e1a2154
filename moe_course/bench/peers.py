"""Everybody's MoE layer, given one set of weights: ours, two loops that tutorials teach, those of transformers."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_course.bench.targets import Size
from moe_course.layers import Activation, DenseFFN, MoELayer

DENSE = {"gelu": "dense FFN", "swiglu": "dense FFN, SwiGLU"}
OURS = {"gelu": "MoELayer (sorted)", "swiglu": "MoELayer (sorted), SwiGLU"}
PEERS = {
    "gelu": ("transformers, grouped_mm", "transformers, eager"),
    "swiglu": ("Mixtral block, grouped_mm", "Mixtral block, eager"),
}

# Beyond these the slow ones take minutes and tell nothing new. Einsum's one-hot tensors hold some tokens² numbers;
# eager transformers writes a whole (E, F, D) gradient for every expert, so its backward costs E².
MAX_TOKENS = {"einsum_dispatch": 512, "tutorial: (k, expert) masks": 4096}
EAGER_MAX_EXPERTS = 64


@dataclass(frozen=True)
class Contender:
    """A layer to time: (T, D) → (T, D), its parameters, and the activation, which decides its baseline."""

    forward: Callable[[Tensor], Tensor]
    parameters: tuple[nn.Parameter, ...]
    activation: Activation


def contenders(size: Size) -> dict[str, Contender]:
    """Build every layer that is feasible at this size; all MoE layers with one activation compute the same.

    The dense FFN of equal active FLOPs, top_k · d_ff wide, is the baseline of its activation. Without transformers,
    its layers are left out, and with them SwiGLU, which is there for the Mixtral block.
    """
    torch.manual_seed(0)
    activations: tuple[Activation, ...] = ("gelu", "swiglu") if has_transformers() else ("gelu",)
    found: dict[str, Contender] = {}
    for activation in activations:
        dense = DenseFFN(size.d_model, size.top_k * size.d_ff, activation)
        layer = MoELayer(size.d_model, size.d_ff, size.num_experts, size.top_k, activation=activation)
        found[DENSE[activation]] = Contender(dense, tuple(dense.parameters()), activation)
        found[OURS[activation]] = Contender(_output(layer), tuple(layer.parameters()), activation)
        if activation == "gelu":
            found |= _by_hand(layer, size)
        if has_transformers():
            found |= _transformers(layer, activation)
    return found


def has_transformers() -> bool:
    """Whether transformers is installed, an extra of this package."""
    return importlib.util.find_spec("transformers") is not None


def _by_hand(layer: MoELayer, size: Size) -> dict[str, Contender]:
    """Our other dispatches and the loops of tutorials."""
    ours, masks, pairs = tuple(layer.parameters()), TutorialMasks(layer), TutorialPairs(layer)
    found = {
        "grouped_dispatch": Contender(_through(layer, "grouped"), ours, "gelu"),
        "loop_dispatch": Contender(_through(layer, "loop"), ours, "gelu"),
        "einsum_dispatch": Contender(_through(layer, "einsum"), ours, "gelu"),
        "tutorial: expert masks": Contender(masks, tuple(masks.parameters()), "gelu"),
        "tutorial: (k, expert) masks": Contender(pairs, tuple(pairs.parameters()), "gelu"),
    }
    return {name: layer for name, layer in found.items() if size.tokens <= MAX_TOKENS.get(name, size.tokens)}


def _output(layer: MoELayer) -> Callable[[Tensor], Tensor]:
    return lambda x: layer(x)[0]


def _without_batch(block: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: block(x[None])[0]


def _through(layer: MoELayer, dispatch: str) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        routing = layer.router(x)
        return layer.experts(x, routing.expert_ids, routing.weights, dispatch)

    return forward


class TutorialMasks(nn.Module):
    """The loop of most tutorials: a list of experts, each of which looks for its own tokens with a mask."""

    def __init__(self, layer: MoELayer) -> None:
        super().__init__()
        d_model, d_ff = layer.experts.w_out.shape[1:]
        self.top_k = layer.router.top_k
        self.gate = nn.Linear(d_model, len(layer.experts.w_in), bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(d_model, d_ff, bias=False), nn.GELU(), nn.Linear(d_ff, d_model, bias=False))
            for _ in layer.experts.w_in
        )
        stacked = zip(layer.experts.w_in, layer.experts.w_out, strict=True)
        weights = [layer.router.weight, *(weight for pair in stacked for weight in pair)]
        with torch.no_grad():
            for own, given in zip(self.parameters(), weights, strict=True):
                own.copy_(given)

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token, choice = torch.where(ids == i)
            if len(token):
                out.index_add_(0, token, expert(x[token]) * weights[token, choice, None])
        return out

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = self.gate(x).topk(self.top_k, dim=-1)
        return F.softmax(weights, dim=-1), ids


class TutorialPairs(TutorialMasks):
    """The slower loop of many tutorials: one mask for each of the K choices and each expert."""

    def forward(self, x: Tensor) -> Tensor:
        weights, ids = self.route(x)
        out = torch.zeros_like(x)
        for k in range(self.top_k):
            for i, expert in enumerate(self.experts):
                mask = ids[:, k] == i
                if mask.any():
                    out[mask] += expert(x[mask]) * weights[mask, k, None]
        return out


def _transformers(layer: MoELayer, activation: Activation) -> dict[str, Contender]:
    """transformers' Mixtral block, and for GELU its router with the experts of Nemotron-H, which have no gate."""
    from transformers import MixtralConfig, NemotronHConfig
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
    from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

    num_experts, d_model, d_ff = layer.experts.w_out.shape
    found = {}
    for name in PEERS[activation]:
        implementation = name.split(", ")[1]
        if implementation == "eager" and num_experts > EAGER_MAX_EXPERTS:
            continue
        config = MixtralConfig(
            hidden_size=d_model,
            intermediate_size=d_ff,
            num_local_experts=num_experts,
            num_experts_per_tok=layer.router.top_k,
            experts_implementation=implementation,  # type: ignore[call-arg]
        )
        block = MixtralSparseMoeBlock(config)
        if activation == "gelu":
            block.experts = NemotronHExperts(
                NemotronHConfig(
                    hidden_size=d_model,
                    moe_intermediate_size=d_ff,
                    n_routed_experts=num_experts,
                    mlp_hidden_act="gelu",
                    experts_implementation=implementation,  # type: ignore[call-arg]
                )
            )
        w_in = block.experts.up_proj if activation == "gelu" else block.experts.gate_up_proj
        with torch.no_grad():
            block.gate.weight.copy_(layer.router.weight)
            w_in.copy_(layer.experts.w_in)
            block.experts.down_proj.copy_(layer.experts.w_out)
        found[name] = Contender(_without_batch(block), tuple(block.parameters()), activation)
    return found
