"""Exercise 01.gelu_ffn: the two matrices of a dense FFN and the GELU between them."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ...layers import ffn
from ..spec import Case, Exercise, Misconception
from .inputs import weighted_tokens


def gelu_ffn(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """A dense FFN: x (…, D), w_in (F, D), w_out (D, F) to (…, D)."""
    return ffn(x, w_in, w_out, "gelu")


def _by_the_formula(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    h = torch.einsum("...d,fd->...f", x, w_in)
    return torch.einsum("...f,df->...d", 0.5 * h * (1 + torch.erf(h / 2**0.5)), w_out)


def _as_modules(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    return F.linear(torch.nn.GELU()(F.linear(x, w_in)), w_out)


def _with(activation: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """An FFN that is right but for its activation."""
    return lambda x, w_in, w_out: activation(x @ w_in.T) @ w_out.T


def _reshaped(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    d_ff, d_model = w_in.shape
    return F.gelu(x @ w_in.reshape(d_model, d_ff)) @ w_out.reshape(d_ff, d_model)


GELU_FFN = Exercise(
    id="01.gelu_ffn",
    entry="gelu_ffn",
    title="The dense FFN",
    points=2,
    difficulty=1,
    minutes=8,
    hints=(
        "Three steps: to the hidden width, the activation, back to the model's width. Follow the shapes: (…, D), "
        "(…, F), (…, F), (…, D).",
        "`w_in` is (F, D), as `nn.Linear` stores it: a row for each output. So the first step is `x @ w_in.T`. `@` "
        "keeps all leading dimensions of `x` as they are.",
        "`torch.nn.functional.gelu(h)` is the exact GELU. Apply it to `h = x @ w_in.T` and multiply the result by "
        "`w_out.T`.",
    ),
    reference=gelu_ffn,
    cases=(
        Case("one token, d_model = 2, d_ff = 3", weighted_tokens(1, d_model=2, d_ff=3)),
        Case("a batch (B, S, D)", weighted_tokens(2, 5, d_model=6, d_ff=16), grad=("x", "w_in", "w_out")),
        Case("one token as a plain vector (D,)", weighted_tokens(d_model=4, d_ff=8)),
        Case("d_ff = d_model", weighted_tokens(3, d_model=5, d_ff=5)),
        Case("float64, to nine digits", weighted_tokens(7, d_model=6, d_ff=24, dtype=torch.float64)),
        Case("large hidden values", weighted_tokens(4, d_model=4, d_ff=8, scale=30.0)),
        Case("bfloat16", weighted_tokens(3, d_model=8, d_ff=16, dtype=torch.bfloat16)),
        Case("tokens are not contiguous", weighted_tokens(6, d_model=4, d_ff=8, transposed=True)),
        Case("no tokens", weighted_tokens(0, d_model=4, d_ff=8)),
    ),
    misconceptions=(
        Misconception(
            "no-activation",
            "There is no activation between the two matrices. Without one they multiply out to a single (D, D) "
            "matrix, and the hidden width buys nothing.",
            _with(lambda h: h),
        ),
        Misconception(
            "relu",
            "You used ReLU, the activation of the first transformers. GELU is smooth: it lets small negative values "
            "through.",
            _with(F.relu),
        ),
        Misconception(
            "gelu-tanh",
            "You used the tanh approximation of GELU, which is off by up to 0.0005. GPT-2 uses it; here the exact "
            "one is asked, with `erf`, which is `F.gelu`'s default.",
            _with(lambda h: F.gelu(h, approximate="tanh")),
        ),
        Misconception(
            "sigmoid-gelu",
            "You approximated GELU by h · sigmoid(1.702 h), which is off by up to 0.02. The exact GELU is h · Φ(h), "
            "with `erf`.",
            _with(lambda h: h * torch.sigmoid(1.702 * h)),
        ),
        Misconception(
            "silu",
            "You used SiLU, h · sigmoid(h). It looks like GELU but is wider; it belongs into SwiGLU, the next "
            "exercise.",
            _with(F.silu),
        ),
        Misconception(
            "activated-after",
            "The activation comes after `w_out` instead of before. The two matrices then multiply out to one, and "
            "the layer can hardly lower a value of the residual stream, since GELU is never below -0.17.",
            lambda x, w_in, w_out: F.gelu(x @ w_in.T @ w_out.T),
        ),
        Misconception(
            "activated-before",
            "You applied the activation to the tokens, before `w_in`. It belongs between the matrices, where there "
            "are F hidden values for it to act on.",
            lambda x, w_in, w_out: F.gelu(x) @ w_in.T @ w_out.T,
        ),
        Misconception(
            "activated-twice",
            "You applied GELU to the output as well. Only the hidden values go through it; the output is linear.",
            lambda x, w_in, w_out: F.gelu(F.gelu(x @ w_in.T) @ w_out.T),
        ),
        Misconception(
            "residual-added",
            "You added x to the output. The residual connection belongs to the transformer's block, around the FFN, "
            "and would be added twice.",
            lambda x, w_in, w_out: x + gelu_ffn(x, w_in, w_out),
        ),
        Misconception(
            "reshaped-not-transposed",
            "You used `reshape` or `view` to make the shapes fit. That keeps the order in memory and scrambles the "
            "rows; swapping rows and columns is `.T`.",
            _reshaped,
        ),
        Misconception(
            "batch-flattened",
            "The numbers are right, but you return (T, D) whatever shape came in. The leading dimensions of the "
            "output are those of `x`.",
            lambda x, w_in, w_out: gelu_ffn(x, w_in, w_out).reshape(-1, x.shape[-1]),
        ),
    ),
    alternatives=(_by_the_formula, _as_modules),
)
