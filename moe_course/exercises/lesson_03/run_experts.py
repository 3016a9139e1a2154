"""Exercise 03.run_experts: every expert on tokens of its own, from weights stacked in two tensors."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make, stacked_weights


def run_experts(tokens: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """Every expert's FFN on its own C tokens: (E, C, D), (E, F, D), (E, D, F) to (E, C, D)."""
    h = F.gelu(torch.einsum("ecd,efd->ecf", tokens, w_in))
    return torch.einsum("ecf,edf->ecd", h, w_out)


def _batch_of_matrices(tokens: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    return torch.bmm(F.gelu(torch.bmm(tokens, w_in.mT)), w_out.mT)


def _one_after_another(tokens: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    parts = zip(tokens, w_in, w_out, strict=True)
    return torch.stack([F.linear(F.gelu(F.linear(x, a)), b) for x, a, b in parts])


def _two_experts_by_hand(generator: Generator) -> Inputs:
    return {
        "tokens": torch.tensor([[[1.0, 2.0]], [[1.0, 2.0]]]),
        "w_in": torch.tensor([[[3.0, 0.0], [0.0, 3.0]], [[0.0, 3.0], [3.0, 0.0]]]),
        "w_out": torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, -1.0]]]),
    }


def _experts(
    num_experts: int,
    slots: int,
    d_model: int,
    d_ff: int,
    dtype: torch.dtype = torch.float32,
    transposed: bool = False,
) -> Make:
    def make(generator: Generator) -> Inputs:
        tokens = torch.randn(num_experts, slots, d_model, generator=generator)
        tokens = tokens.mT.contiguous().mT if transposed else tokens
        w_in, w_out = stacked_weights(num_experts, d_model, d_ff, generator, transposed)
        return {"tokens": tokens.to(dtype), "w_in": w_in.to(dtype), "w_out": w_out.to(dtype)}

    return make


def _averaged(tokens: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    h = F.gelu(torch.einsum("ecd,efd->cf", tokens, w_in))
    return torch.einsum("cf,edf->ecd", h, w_out)


RUN_EXPERTS = Exercise(
    id="03.run_experts",
    entry="run_experts",
    title="E experts in two matrix products",
    points=2,
    difficulty=1,
    minutes=8,
    hints=(
        "For one expert, this is the dense FFN of lesson 01: a matrix product, a GELU, a matrix product. "
        "Write down the shape of each: (C, D) times (D, F), then (C, F) times (F, D).",
        "Now every tensor has a leading E that all of them share. `@` and `torch.bmm` treat leading "
        "dimensions as a batch; `einsum` does if you write `e` in both operands and in the result. The "
        "weights are stored as (out, in), so they have to be transposed: `.mT` swaps the last two "
        "dimensions.",
        "First product: `tokens @ w_in.mT`, of shape (E, C, F). Then `F.gelu`. The second product is built "
        "the same way from the result and `w_out`. Nothing in it loops over experts.",
    ),
    reference=run_experts,
    cases=(
        Case("two experts by hand", _two_experts_by_hand),
        Case("three experts, D ≠ F", _experts(3, 4, 6, 10), grad=("tokens", "w_in", "w_out")),
        Case("square weights, D = F", _experts(4, 5, 8, 8), grad=("w_in", "w_out")),
        Case("as many experts as tokens each", _experts(5, 5, 4, 8)),
        Case("one expert", _experts(1, 6, 4, 8)),
        Case("no slots", _experts(3, 0, 4, 8)),
        Case("not contiguous", _experts(3, 4, 8, 12, transposed=True)),
        Case("bfloat16", _experts(3, 4, 8, 16, dtype=torch.bfloat16)),
    ),
    misconceptions=(
        Misconception(
            "weights-not-transposed",
            "You multiply by the weights as they are stored. They are (out, in), as in nn.Linear, so each "
            "product needs the transpose; with D = F the shapes fit by accident and the numbers are wrong.",
            lambda tokens, w_in, w_out: F.gelu(tokens @ w_in) @ w_out,
        ),
        Misconception(
            "first-expert-for-all",
            "All tokens went through expert 0. Each expert has weights of its own: keep the dimension E in "
            "both products.",
            lambda tokens, w_in, w_out: F.gelu(tokens @ w_in[0].T) @ w_out[0].T,
        ),
        Misconception(
            "experts-summed",
            "The hidden activations of all experts were added up: the einsum has no `e` in its result, so "
            "it sums over it. Experts never see each other's tokens.",
            _averaged,
        ),
        Misconception(
            "activation-missing",
            "There is no activation between the two products. Without it an expert is one linear map, and "
            "so is any weighted sum of experts that all tokens share.",
            lambda tokens, w_in, w_out: (tokens @ w_in.mT) @ w_out.mT,
        ),
        Misconception(
            "activation-last",
            "The GELU comes after the second product. It belongs between the two, on the F hidden units.",
            lambda tokens, w_in, w_out: F.gelu((tokens @ w_in.mT) @ w_out.mT),
        ),
        Misconception(
            "relu-for-gelu",
            "This is a ReLU, where the layer asks for a GELU. A one-expert MoE with another activation does "
            "not equal the dense FFN it replaces.",
            lambda tokens, w_in, w_out: F.relu(tokens @ w_in.mT) @ w_out.mT,
        ),
        Misconception(
            "gelu-approximated",
            "This is the tanh approximation of GELU. It is off by up to 5e-4, enough that weights copied "
            "from a dense FFN give another answer: call `F.gelu` without `approximate`.",
            lambda tokens, w_in, w_out: F.gelu(tokens @ w_in.mT, approximate="tanh") @ w_out.mT,
        ),
    ),
    alternatives=(_batch_of_matrices, _one_after_another),
)
