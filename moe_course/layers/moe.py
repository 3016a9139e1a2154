"""The Mixture-of-Experts layer: a router and its experts, in place of a dense feed-forward network."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from moe_course.layers.experts import Experts, check_dispatch_name
from moe_course.layers.ffn import Activation, check_last_dimension
from moe_course.layers.router import Router, Routing, Score


class MoELayer(nn.Module):
    """Route every token to K of E experts and return their weighted sum. None is dropped, unless the router is a
    `CapacityRouter`.

    Works under `torch.compile`; the graph breaks around the default dispatch, which runs as written.

    Args:
        d_model: width D of a token.
        d_ff: hidden width F of one expert.
        num_experts: number of experts E.
        top_k: experts per token K.
        activation: "gelu" or "swiglu".
        score: "softmax" or "sigmoid".
        renormalize: make the K weights of a token sum to 1. For K = 1 choose False: the one weight would be a constant
            1, and the router would learn nothing from the task.
        dispatch: "sorted" (the fast one), "grouped", "einsum" or "loop", or "triton": the kernels of
            `moe_course.kernels`, for a GPU. Same result, different cost. On a GPU "sorted" is PyTorch's grouped GEMM;
            the kernels are not chosen for you, because they were never timed against it. `moe-course bench kernel`
            times both on your GPU.

    Raises:
        ValueError: top_k is not within 1 to num_experts, or a name is unknown.
        RuntimeError: dispatch is "triton" and Triton does not run here.

    Source: Shazeer et al., arXiv 1701.06538; Fedus et al. (Switch), arXiv 2101.03961.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        num_experts: int,
        top_k: int,
        *,
        activation: Activation = "gelu",
        score: Score = "softmax",
        renormalize: bool = True,
        dispatch: str = "sorted",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.router = Router(
            d_model, num_experts, top_k, score=score, renormalize=renormalize, device=device, dtype=dtype
        )
        self.experts = Experts(num_experts, d_model, d_ff, activation, device=device, dtype=dtype)
        self.dispatch = check_dispatch_name(dispatch)

    def forward(self, x: Float[Tensor, "*tokens D"]) -> tuple[Float[Tensor, "*tokens D"], Routing]:
        """Apply the layer.

        Args:
            x: tokens with any leading dimensions, such as (T, D) or (B, S, D).

        Returns:
            The output, shaped like x, and the `Routing` of the flattened tokens.

        Raises:
            ValueError: x's last dimension is not d_model.
        """
        check_last_dimension(x, self.router.weight.shape[-1], "MoELayer")
        tokens = x.reshape(-1, x.shape[-1])
        routing = self.router(tokens)
        out = self.experts(tokens, routing.expert_ids, routing.weights, dispatch=self.dispatch)
        return out.reshape(x.shape), routing

    def extra_repr(self) -> str:
        return f"dispatch={self.dispatch!r}"
