"""The dense feed-forward network of an ordinary transformer, which is also what each expert is."""

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["gelu", "swiglu"]


class DenseFFN(nn.Module):
    """Two linear maps without biases around an activation, applied to every token.

    Args:
        d_model: width D of a token.
        d_ff: hidden width F.
        activation: "gelu" (exact, with erf) or "swiglu" (a gate and an up projection, multiplied).

    Raises:
        ValueError: a width is below 1, or the activation is unknown.

    Source: Vaswani et al., arXiv 1706.03762, section 3.3; Shazeer, arXiv 2002.05202, eq. 6 (SwiGLU).
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: Activation = "gelu",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, d_ff=d_ff)
        self.activation: Activation = check_activation(activation)
        rows = in_rows(d_ff, activation)
        self.w_in = nn.Parameter(torch.empty(rows, d_model, device=device, dtype=dtype))
        self.w_out = nn.Parameter(torch.empty(d_model, d_ff, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_linear_(self.w_in)
        init_linear_(self.w_out)

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Float[Tensor, "*tokens D"]:
        check_last_dimension(x, self.w_in.shape[-1], "DenseFFN")
        return ffn(x, self.w_in, self.w_out, self.activation)

    def extra_repr(self) -> str:
        d_model, d_ff = self.w_out.shape
        return f"d_model={d_model}, d_ff={d_ff}, activation={self.activation!r}"


def ffn(
    x: Float[Tensor, "*tokens D"],
    w_in: Float[Tensor, "F_in D"],
    w_out: Float[Tensor, "D F"],
    activation: Activation = "gelu",
) -> Float[Tensor, "*tokens D"]:
    """The functional form of `DenseFFN`: act(x · w_inᵀ) · w_outᵀ.

    Args:
        x: tokens, any leading dimensions.
        w_in: first weight; (F, D) for gelu, (2F, D) for swiglu: the gate's rows, then the up projection's.
        w_out: second weight, (D, F).
        activation: "gelu" or "swiglu".
    """
    return F.linear(activate(F.linear(x, w_in), activation), w_out)


def activate(h: Float[Tensor, "*tokens F_in"], activation: Activation) -> Float[Tensor, "*tokens F"]:
    """GELU(h), or silu(gate) · up where h holds the gate's columns, then up's."""
    if activation == "gelu":
        return F.gelu(h)
    gate, up = h.chunk(2, dim=-1)
    return F.silu(gate) * up


def in_rows(d_ff: int, activation: Activation) -> int:
    """Rows of w_in: F for gelu, 2F for swiglu."""
    return 2 * d_ff if activation == "swiglu" else d_ff


def init_linear_(weight: Tensor) -> None:
    """Fill a weight, or a stack of them, as nn.Linear does: uniform within ±1/√fan_in.

    The last dimension is the fan-in of one matrix. nn.init's Kaiming functions would read a stacked (E, F, D)
    weight as a convolution and take F·D for the fan-in: experts would start far too small.
    """
    bound = weight.shape[-1] ** -0.5
    nn.init.uniform_(weight, -bound, bound)


def check_positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} is not a size; choose {name} ≥ 1")


def check_activation(activation: Activation) -> Activation:
    if activation not in get_args(Activation):
        known = " or ".join(repr(name) for name in get_args(Activation))
        raise ValueError(f"activation={activation!r} is unknown; choose {known}")
    return activation


def check_last_dimension(x: Tensor, d_model: int, layer: str) -> None:
    if x.ndim == 0 or x.shape[-1] != d_model:
        raise ValueError(
            f"x has shape {tuple(x.shape)} but this {layer} has d_model={d_model}; "
            f"pass x of shape (..., {d_model}), or build the layer with x's width"
        )
