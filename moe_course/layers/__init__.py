"""The reference Mixture-of-Experts code, one idea a file, in lesson order.

Shape legend, used in every signature:
    T tokens    D d_model    F d_ff    E num_experts    K top_k
"""

from moe_course.layers.accounting import (
    ModelConfig,
    active_parameters,
    ffn_flops,
    ffn_parameters,
    flops_per_token,
    flops_table,
    moe_flops,
    moe_parameters,
    parameter_table,
    total_parameters,
)
from moe_course.layers.dispatch import einsum_dispatch, grouped_dispatch, loop_dispatch
from moe_course.layers.experts import Experts
from moe_course.layers.ffn import Activation, DenseFFN, ffn
from moe_course.layers.moe import MoELayer
from moe_course.layers.published import PUBLISHED
from moe_course.layers.router import Router, Routing, top_k_routing
from moe_course.layers.sorted import sorted_dispatch

__all__ = [
    "PUBLISHED",
    "Activation",
    "DenseFFN",
    "Experts",
    "MoELayer",
    "ModelConfig",
    "Router",
    "Routing",
    "active_parameters",
    "einsum_dispatch",
    "ffn",
    "ffn_flops",
    "ffn_parameters",
    "flops_per_token",
    "flops_table",
    "grouped_dispatch",
    "loop_dispatch",
    "moe_flops",
    "moe_parameters",
    "parameter_table",
    "sorted_dispatch",
    "top_k_routing",
    "total_parameters",
]
