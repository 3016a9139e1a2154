"""How answers about training are called: in low precision, step by step, under activation checkpointing.

Knows no answer. What an answer gets to call here writes down what is done with it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def call_in_precision(entry: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """`entry(x, weight)` with tensors of the dtypes that `x_dtype` and `weight_dtype` name, and autocast on or off.

    The inputs themselves are float32, and so is the tolerance: in bfloat16 it would forgive what is asked about.
    """
    x = inputs["x"].to(getattr(torch, inputs["x_dtype"]))
    weight = inputs["weight"].to(getattr(torch, inputs["weight_dtype"]))
    with torch.autocast("cpu", torch.bfloat16, enabled=inputs["autocast"]):
        return entry(x, weight)


def call_at_each_step(entry: Callable[..., Any], inputs: dict[str, Any]) -> Tensor:
    """`entry` at every one of `at_steps`, which the entry knows as `step`; the results in one tensor."""
    given = dict(inputs)
    results = [entry(step=step, **given) for step in given.pop("at_steps").tolist()]
    return torch.tensor([float(result) for result in results], dtype=torch.float64)


def call_checkpointed(entry: Callable[..., Any], inputs: dict[str, Any]) -> dict[str, Any]:
    """`entry(x, router, experts)`, then a backward pass through the output.

    Args:
        entry: returns the output and the ids of the experts.
        inputs: x (T, D), w_router (E, D), w_in (E, F, D) and w_out (E, D, F); `trained`, the names of those that get a
            gradient, separated by spaces; `noise`, of the router's logits; `dropout`, within the experts.

    Returns:
        The output, the ids, the gradients, how often the router and the experts ran, and whether the hidden
        activations were kept for the backward pass.
    """
    tensors = {name: inputs[name].detach().clone() for name in ("x", "w_router", "w_in", "w_out")}
    for name in inputs["trained"].split():
        tensors[name].requires_grad_()
    x, w_router, w_in, w_out = tensors.values()
    hidden = w_in.shape[1]
    runs, kept = {"router": 0, "experts": 0}, []

    def router(tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (T, K) and ids (T, K) of the two best experts."""
        runs["router"] += 1
        logits = tokens @ w_router.T
        logits = logits + inputs["noise"] * torch.randn(logits.shape).to(logits.dtype)
        best = logits.softmax(dim=-1).topk(2, dim=-1)
        return best.values, best.indices

    def experts(tokens: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
        """The weighted sum of each token's experts, (T, D)."""
        runs["experts"] += 1
        h = F.gelu(torch.einsum("td,efd->tef", tokens, w_in))
        keep = (torch.rand(h.shape) >= inputs["dropout"]).to(h.dtype) / (1 - inputs["dropout"])
        gates = torch.zeros(h.shape[:2], dtype=h.dtype).scatter(1, expert_ids, weights)
        return torch.einsum("tef,edf->td", gates[..., None] * (h * keep), w_out)

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape[-1] == hidden and tensor.shape[0] == len(x))
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        returned = entry(x, router, experts)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ValueError("return two tensors, the output and expert_ids: `return out, expert_ids`")
        out, expert_ids = returned
    if out.requires_grad:
        torch.autograd.backward(out, torch.linspace(-1, 1, out.numel()).to(out.dtype).view_as(out))
    found = {name: tensor.grad for name, tensor in tensors.items() if tensor.requires_grad}
    return {
        "output": out.detach(),
        "expert_ids": expert_ids,
        "times the router ran": runs["router"],
        "times the experts ran": runs["experts"],
        "hidden activations kept": any(kept),
        "gradients": {name: torch.zeros_like(tensors[name]) if g is None else g for name, g in found.items()},
    }
