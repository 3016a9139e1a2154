"""Exercise 02.router_logits: the linear gate."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make


def router_logits(x: Tensor, weight: Tensor) -> Tensor:
    """Score every expert for every token: x (…, D) and weight (E, D) to logits (…, E)."""
    return F.linear(x, weight)


def _gate(*shape: int, num_experts: int, dtype: torch.dtype = torch.float32, transposed: bool = False) -> Make:
    def make(generator: Generator) -> Inputs:
        x = torch.randn(shape, generator=generator).to(dtype)
        weight = torch.randn(num_experts, shape[-1], generator=generator).to(dtype)
        return {"x": x.mT.contiguous().mT if transposed else x, "weight": weight}

    return make


def _two_tokens(generator: Generator) -> Inputs:
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    return {"x": torch.tensor([[3.0, 0.0], [1.0, 2.0]]), "weight": weight}


def _route_the_sequence(x: Tensor, weight: Tensor) -> Tensor:
    if x.dim() > 1:
        x = x.mean(dim=-2, keepdim=True).expand_as(x)
    return x @ weight.T


ROUTER_LOGITS = Exercise(
    id="02.router_logits",
    entry="router_logits",
    title="The linear gate",
    points=1,
    difficulty=1,
    minutes=5,
    hints=(
        "A logit is a dot product: of one token, D numbers, with one expert's row of the weight, D numbers.",
        "All dot products at once are one matrix product. The weight is (E, D), so it has to be turned round "
        "first; `@` leaves the leading dimensions of `x` alone.",
        "Multiply `x` by the transposed weight, `weight.T`, which is (D, E). `F.linear` does the same in one call.",
    ),
    reference=router_logits,
    cases=(
        Case("two tokens in the plane, three experts", _two_tokens),
        Case("a batch of sequences (B, S, D)", _gate(2, 5, 4, num_experts=3), grad=("x", "weight")),
        Case("as many experts as dimensions, E = D", _gate(6, 4, num_experts=4), grad=("x", "weight")),
        Case("one token (D,)", _gate(8, num_experts=5)),
        Case("no tokens (2, 0, D)", _gate(2, 0, 4, num_experts=3)),
        Case("x is not contiguous", _gate(7, 4, num_experts=6, transposed=True)),
        Case("bfloat16", _gate(9, 16, num_experts=4, dtype=torch.bfloat16)),
    ),
    misconceptions=(
        Misconception(
            "not-transposed",
            "You multiplied by the weight as it is. It is (E, D), so the shapes fit only where E = D, and there the "
            "numbers are wrong: a logit is the dot product of a token with one expert's row. Transpose the weight.",
            lambda x, weight: x @ weight,
        ),
        Misconception(
            "reshape-is-not-transpose",
            "Your weight has a shape that fits but its numbers are in the wrong places: `reshape` and `view` refill "
            "them row by row. A logit is the dot product of a token with one expert's row, so the weight has to be "
            "transposed.",
            lambda x, weight: x @ weight.reshape(weight.shape[1], weight.shape[0]),
        ),
        Misconception(
            "scaled-like-attention",
            "Your logits are too small by √D. That factor belongs to attention scores. A gate has none: its weight "
            "learns the scale.",
            lambda x, weight: x @ weight.T / x.shape[-1] ** 0.5,
        ),
        Misconception(
            "probabilities-not-logits",
            "You already applied the softmax. Logits are the plain scores: sigmoid gating, for one, needs them "
            "before any normalisation.",
            lambda x, weight: (x @ weight.T).softmax(-1),
        ),
        Misconception(
            "batch-shape-lost",
            "You flattened the batch to (T, D) and did not restore its shape. The output must keep the leading "
            "dimensions of `x`.",
            lambda x, weight: x.reshape(-1, x.shape[-1]) @ weight.T,
        ),
        Misconception(
            "routes-the-sequence",
            "All tokens of a sequence get the same logits: you averaged over the tokens. The router decides for "
            "each token on its own, not for a sentence or a prompt.",
            _route_the_sequence,
        ),
    ),
    alternatives=(
        lambda x, weight: x @ weight.T,
        lambda x, weight: torch.einsum("...d,ed->...e", x, weight),
        lambda x, weight: torch.stack([(x * row).sum(-1) for row in weight], dim=-1),
    ),
)
