"""What keeps a router stable in low precision: logits in float32, and weights that start small.

bfloat16 keeps 8 significant bits. That is enough for experts, and too little for a router: two logits of 128 and 128.5
become the same number, and the choice between their experts an accident of order.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from moe_course.layers.ffn import check_last_dimension
from moe_course.layers.router import Router, Routing, top_k_routing

# The standard deviation of a normal distribution cut off at two of its own.
CUT_AT_TWO = 0.8796256610342398


class Float32Router(Router):
    """A `Router` that computes its logits in float32, whatever the model's dtype: Switch's selective precision.

    Take it in the place of a layer's router: `layer.router = Float32Router(d_model, num_experts, top_k)`.

    Args:
        d_model, num_experts, top_k, **options: as for `Router`.
        init_scale: variance of the weights, times d_model. Switch found 0.1 better than 1.

    Source: Fedus et al. (Switch), arXiv 2101.03961, section 2.4.
    """

    def __init__(self, d_model: int, num_experts: int, top_k: int, *, init_scale: float = 0.1, **options: Any) -> None:
        super().__init__(d_model, num_experts, top_k, **options)
        variance_scaling_(self.weight, init_scale)

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Routing:
        check_last_dimension(x, self.weight.shape[-1], "Router")
        logits = precise_logits(x.reshape(-1, x.shape[-1]), self.weight)
        return top_k_routing(logits, self.top_k, score=self.score, renormalize=self.renormalize)


def precise_logits(x: Float[Tensor, "T D"], weight: Float[Tensor, "E D"]) -> Float[Tensor, "T E"]:
    """Router logits, multiplied and added up in float32 at least, under autocast too.

    Args:
        x: tokens of any floating dtype, (T, D).
        weight: one row for each expert, (E, D).

    Returns:
        (T, E), in float32; in float64 if x or weight is.
    """
    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    # Autocast would round x, weight and the product to bfloat16 again: it looks at the operation, not at the dtypes.
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(dtype), weight.to(dtype))


def variance_scaling_(weight: Float[Tensor, "*stack rows fan_in"], scale: float = 1.0) -> None:
    """Fill a weight, or a stack of them, with a truncated normal of variance scale / fan_in.

    PyTorch's nn.Linear starts uniform within ±1/√fan_in, which is a scale of 1/3.

    Args:
        weight: filled in place; its last dimension is the fan-in.
        scale: of the variance, not of the standard deviation.

    Raises:
        ValueError: the scale is negative.

    Source: Fedus et al. (Switch), arXiv 2101.03961, section 2.4: scale 0.1 in place of 1.
    """
    if scale < 0:
        raise ValueError(f"scale={scale} is negative; choose scale ≥ 0, such as 0.1 (Switch) or 1")
    std = (scale / weight.shape[-1]) ** 0.5 / CUT_AT_TWO
    nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)
