"""The experts: E feed-forward networks of one shape, stacked in two tensors."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from moe_course.layers.dispatch import einsum_dispatch, grouped_dispatch, loop_dispatch
from moe_course.layers.ffn import (
    Activation,
    check_activation,
    check_last_dimension,
    check_positive,
    in_rows,
    init_linear_,
)
from moe_course.layers.sorted import sorted_dispatch


def _triton_dispatch(*arguments: Any) -> Tensor:
    """`moe_course.kernels.triton_dispatch`; Triton is imported only where somebody asks for it."""
    from moe_course.kernels import triton_dispatch

    return triton_dispatch(*arguments)


DISPATCHES: dict[str, Callable[..., Tensor]] = {
    "loop": loop_dispatch,
    "einsum": einsum_dispatch,
    "grouped": grouped_dispatch,
    "sorted": sorted_dispatch,
    "triton": _triton_dispatch,
}


class Experts(nn.Module):
    """E feed-forward networks; each token goes through the few that the router chose for it.

    Args:
        num_experts: number of experts E.
        d_model: width D of a token.
        d_ff: hidden width F of one expert.
        activation: "gelu" or "swiglu".

    Raises:
        ValueError: a size is below 1, or the activation is unknown.

    Source: Shazeer et al., arXiv 1701.06538, eq. 1.
    """

    def __init__(
        self,
        num_experts: int,
        d_model: int,
        d_ff: int,
        activation: Activation = "gelu",
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(num_experts=num_experts, d_model=d_model, d_ff=d_ff)
        self.activation: Activation = check_activation(activation)
        rows = in_rows(d_ff, activation)
        self.w_in = nn.Parameter(torch.empty(num_experts, rows, d_model, device=device, dtype=dtype))
        self.w_out = nn.Parameter(torch.empty(num_experts, d_model, d_ff, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_linear_(self.w_in)
        init_linear_(self.w_out)

    def forward(
        self,
        x: Float[Tensor, "T D"],
        expert_ids: Int64[Tensor, "T K"],
        expert_weights: Float[Tensor, "T K"],
        dispatch: str = "sorted",
    ) -> Float[Tensor, "T D"]:
        """Send each token to its experts and add up their weighted outputs.

        Args:
            x: tokens, (T, D).
            expert_ids: the K experts of each token, (T, K).
            expert_weights: their weights, (T, K).
            dispatch: how: "loop", "einsum", "grouped", "sorted" or "triton". Same result, different cost.

        Returns:
            (T, D).

        Raises:
            ValueError: shapes that do not fit together, or an unknown dispatch.
            RuntimeError: dispatch is "triton" and Triton does not run here.
        """
        check_last_dimension(x, self.w_in.shape[-1], "Experts")
        run = DISPATCHES[check_dispatch_name(dispatch)]
        return run(x, expert_ids, expert_weights, self.w_in, self.w_out, self.activation)

    def extra_repr(self) -> str:
        num_experts, d_model, d_ff = self.w_out.shape
        return f"num_experts={num_experts}, d_model={d_model}, d_ff={d_ff}, activation={self.activation!r}"


def check_dispatch_name(dispatch: str) -> str:
    if dispatch not in DISPATCHES:
        known = ", ".join(map(repr, DISPATCHES))
        raise ValueError(f"dispatch={dispatch!r} is unknown; choose one of {known}")
    if dispatch == "triton":
        from moe_course.kernels.availability import require_triton

        require_triton()
    return dispatch
