"""Exercise 02.gate_jacobian: how each gate answers to each logit, with and without renormalisation."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, spread_logits


def gate_jacobian(logits: Tensor, top_k: int, renormalize: bool) -> Tensor:
    """The derivative of every gate by every logit of one token: logits (E,) to J (E, E), J[i, j] = ∂g_i/∂z_j."""
    gates, probs = _gates(logits, top_k, renormalize)
    return gates.diag() - torch.outer(gates, gates if renormalize else probs)


def _gates(logits: Tensor, top_k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    """Gates of all experts, 0 for those that are not chosen, and the full softmax."""
    probs = logits.softmax(dim=-1)
    chosen = logits.topk(top_k).indices
    gates = torch.zeros_like(probs).scatter(-1, chosen, probs[chosen])
    return (gates / gates.sum() if renormalize else gates), probs


def _three_experts(generator: Generator) -> Inputs:
    return {"logits": torch.tensor([1.0, 2.0, 5.0]).log(), "top_k": 2, "renormalize": True}


def _rows_that_shift(inputs: Inputs, jacobian: Tensor) -> str | None:
    worst = jacobian.sum(-1).abs().max().item()
    if worst < 1e-5:
        return None
    return f"a row sums to {worst:.3g}: adding the same number to all logits would change a gate"


def _columns_that_leak(inputs: Inputs, jacobian: Tensor) -> str | None:
    worst = jacobian.sum(0).abs().max().item()
    if not inputs["renormalize"] or worst < 1e-5:
        return None
    return f"a column sums to {worst:.3g}: moving that logit would change the sum of the gates, which is always 1"


def _by_autograd(logits: Tensor, top_k: int, renormalize: bool) -> Tensor:
    return torch.autograd.functional.jacobian(lambda z: _gates(z, top_k, renormalize)[0], logits)


def _entry_by_entry(logits: Tensor, top_k: int, renormalize: bool) -> Tensor:
    gates, probs = (part.tolist() for part in _gates(logits, top_k, renormalize))
    pull = gates if renormalize else probs
    experts = range(len(gates))
    return torch.tensor([[gates[i] * ((i == j) - pull[j]) for j in experts] for i in experts])


def _built(build: Callable[[Tensor, Tensor, bool], Tensor]) -> Callable[..., Tensor]:
    """A right forward pass, then `build(gates, probs, renormalize)`."""

    def wrong(logits: Tensor, top_k: int, renormalize: bool) -> Tensor:
        return build(*_gates(logits, top_k, renormalize), renormalize)

    return wrong


GATE_JACOBIAN = Exercise(
    id="02.gate_jacobian",
    entry="gate_jacobian",
    title="Which logit moves which gate",
    points=3,
    difficulty=3,
    minutes=15,
    hints=(
        "Start with K = E, where the gates are the softmax p. Differentiate p_i by its own logit, then by another "
        "one: p_i(1 − p_i) and −p_i·p_j. Both are p_i·(δ_ij − p_j).",
        "Without renormalisation a chosen gate is p_i itself, and the others are constant 0: keep the chosen rows of "
        "that matrix. With renormalisation the gates are a softmax over the chosen logits: the same formula with g "
        "in the place of p.",
        "Let g be the gates of all E experts, zeros included. Both answers are a diagonal matrix of g minus an outer "
        "product: of g with g when renormalised, of g with p when not. `torch.diag` and `torch.outer` build them.",
    ),
    reference=gate_jacobian,
    cases=(
        Case("three experts, top-2, renormalised", _three_experts),
        Case("top-2 of five, renormalised", spread_logits(5, top_k=2, renormalize=True)),
        Case("top-2 of five, not renormalised", spread_logits(5, top_k=2, renormalize=False)),
        Case("top-3 of four, not renormalised", spread_logits(4, top_k=3, renormalize=False)),
        Case("top-3 of six, renormalised", spread_logits(6, top_k=3, renormalize=True)),
        Case("top-1, not renormalised", spread_logits(4, top_k=1, renormalize=False)),
        Case("top-1, renormalised", spread_logits(4, top_k=1, renormalize=True)),
        Case("every expert, K = E", spread_logits(4, top_k=4, renormalize=True)),
    ),
    properties=(
        Property("a shift of all logits changes no gate", _rows_that_shift),
        Property("renormalised gates keep their sum", _columns_that_leak),
    ),
    misconceptions=(
        Misconception(
            "diagonal-only",
            "You differentiated each gate by its own logit only. In a softmax the logits share one denominator: when "
            "one rises, the other gates fall, which gives the entries off the diagonal.",
            _built(lambda gates, probs, renormalize: (gates * (1 - (gates if renormalize else probs))).diag()),
        ),
        Misconception(
            "sum-held-constant",
            "You divided by the sum of the chosen scores but did not differentiate it. The sum depends on the logits "
            "too, and for K = 1 it cancels the gate entirely.",
            _built(lambda gates, probs, renormalize: gates.diag() - torch.outer(gates, probs)),
        ),
        Misconception(
            "dropped-logits-forgotten",
            "Without renormalisation you let only the chosen logits matter. The denominator of the full softmax holds "
            "every logit, so a chosen gate also falls when an expert that was not chosen rises.",
            _built(lambda gates, probs, renormalize: gates.diag() - torch.outer(gates, gates)),
        ),
        Misconception(
            "top-k-forgotten",
            "This is the Jacobian of the full softmax. An expert that was not chosen has a gate of 0 that a small "
            "change of the logits leaves at 0: its row is zero.",
            _built(lambda gates, probs, renormalize: probs.diag() - torch.outer(probs, probs)),
        ),
        Misconception(
            "indices-swapped",
            "Your matrix is transposed. Row i belongs to gate i and column j to logit j; without renormalisation the "
            "two are not the same.",
            _built(
                lambda gates, probs, renormalize: gates.diag() - torch.outer(gates if renormalize else probs, gates)
            ),
        ),
        Misconception(
            "sign-flipped",
            "Every sign is the wrong way round: a gate rises with its own logit, so the diagonal cannot be negative.",
            _built(
                lambda gates, probs, renormalize: torch.outer(gates, gates if renormalize else probs) - gates.diag()
            ),
        ),
    ),
    alternatives=(_by_autograd, _entry_by_entry),
)
