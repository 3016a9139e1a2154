"""Exercise 01.swiglu_ffn: a gate beside the up-projection, in one packed matrix."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ...layers import ffn
from ..spec import Case, Exercise, Misconception
from .inputs import weighted_tokens


def swiglu_ffn(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """A SwiGLU FFN: x (…, D), w_in (2F, D) with the gate's rows first, w_out (D, F) to (…, D)."""
    return ffn(x, w_in, w_out, "swiglu")


def _rows_split_first(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    w_gate, w_up = w_in.split(len(w_in) // 2)
    gate = x @ w_gate.T
    return (gate * torch.sigmoid(gate) * (x @ w_up.T)) @ w_out.T


def _unflattened(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    gate, up = F.linear(x, w_in).unflatten(-1, (2, -1)).unbind(-2)
    return F.linear(F.silu(gate) * up, w_out)


def _with(combine: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """An FFN that is right but for what it makes of gate and up."""

    def wrong(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        gate, up = (x @ w_in.T).chunk(2, dim=-1)
        return combine(gate, up) @ w_out.T

    return wrong


def _interleaved(x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    h = x @ w_in.T
    return (F.silu(h[..., ::2]) * h[..., 1::2]) @ w_out.T


SWIGLU_FFN = Exercise(
    id="01.swiglu_ffn",
    entry="swiglu_ffn",
    title="SwiGLU",
    points=2,
    difficulty=1,
    minutes=8,
    hints=(
        "One product with `w_in` gives both halves, 2F values for each token. Which half came from the first F rows?",
        "Row r of `w_in` makes value r of `h = x @ w_in.T`. So the first F values are the gate, the last F are up: "
        "`h.chunk(2, dim=-1)` splits them.",
        "`torch.nn.functional.silu` goes on the gate only. Multiply the result by up, value by value, and then by "
        "`w_out.T`.",
    ),
    reference=swiglu_ffn,
    cases=(
        Case("one token, d_model = 2, d_ff = 2", weighted_tokens(1, d_model=2, d_ff=2, rows_in=2)),
        Case("a batch (B, S, D)", weighted_tokens(2, 4, d_model=6, d_ff=12, rows_in=2), grad=("x", "w_in", "w_out")),
        Case("one token as a plain vector (D,)", weighted_tokens(d_model=4, d_ff=6, rows_in=2)),
        Case("2F = D, d_ff half of d_model", weighted_tokens(5, d_model=8, d_ff=4, rows_in=2)),
        Case("float64, to nine digits", weighted_tokens(6, d_model=6, d_ff=16, rows_in=2, dtype=torch.float64)),
        Case("large hidden values", weighted_tokens(4, d_model=4, d_ff=8, rows_in=2, scale=20.0)),
        Case("bfloat16", weighted_tokens(3, d_model=8, d_ff=16, rows_in=2, dtype=torch.bfloat16)),
        Case("no tokens", weighted_tokens(0, d_model=4, d_ff=8, rows_in=2)),
    ),
    misconceptions=(
        Misconception(
            "gate-and-up-swapped",
            "Gate and up are swapped: you activated the second half. The gate's rows come first in `w_in`. A "
            "checkpoint loaded this way runs without an error and writes nonsense.",
            _with(lambda gate, up: gate * F.silu(up)),
        ),
        Misconception(
            "interleaved-rows",
            "You took even rows for the gate and odd rows for up. gpt-oss stores its experts like that; here the "
            "first F rows are the gate, the last F are up.",
            _interleaved,
        ),
        Misconception(
            "sigmoid-gate",
            "You gated with a sigmoid. That is GLU, the ancestor; SwiGLU gates with silu(g) = g · sigmoid(g).",
            _with(lambda gate, up: torch.sigmoid(gate) * up),
        ),
        Misconception(
            "gelu-gate",
            "You gated with GELU. That is GEGLU, from the same paper; SwiGLU gates with SiLU, also called Swish.",
            _with(lambda gate, up: F.gelu(gate) * up),
        ),
        Misconception(
            "no-activation",
            "You multiplied gate and up without an activation. The paper calls that one Bilinear; SwiGLU puts SiLU "
            "on the gate.",
            _with(lambda gate, up: gate * up),
        ),
        Misconception(
            "activated-product",
            "You applied SiLU to the product of gate and up. It goes on the gate alone, before the product.",
            _with(lambda gate, up: F.silu(gate * up)),
        ),
        Misconception(
            "both-activated",
            "You applied SiLU to gate and up. Up stays linear: it is the value that the gate lets through.",
            _with(lambda gate, up: F.silu(gate) * F.silu(up)),
        ),
        Misconception(
            "added",
            "You added gate and up. A gate multiplies: where it is near 0, nothing passes.",
            _with(lambda gate, up: F.silu(gate) + up),
        ),
        Misconception(
            "up-ignored",
            "You used only the gate's half. The second half of `w_in` is computed and thrown away; multiply by it.",
            _with(lambda gate, up: F.silu(gate)),
        ),
    ),
    alternatives=(_rows_split_first, _unflattened),
)
