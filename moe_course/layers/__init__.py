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
from moe_course.layers.balance import (
    compute_aux_loss,
    gshard_balance_loss,
    kl_balance_loss,
    load_balancing_loss,
    load_fraction,
    max_violation,
    mean_probability,
    model_balance_loss,
    router_z_loss,
)
from moe_course.layers.dispatch import einsum_dispatch, grouped_dispatch, loop_dispatch
from moe_course.layers.experts import Experts
from moe_course.layers.ffn import Activation, DenseFFN, ffn
from moe_course.layers.gating import (
    JitteredRouter,
    NoisyRouting,
    NoisyTopKRouter,
    cv_squared,
    importance,
    importance_loss,
    jittered,
    kth_excluding,
    load_loss,
    noisy_top_k_routing,
    router_saturation,
    selection_probability,
    smooth_load,
)
from moe_course.layers.moe import MoELayer
from moe_course.layers.published import PUBLISHED
from moe_course.layers.router import Router, Routing, top_k_routing
from moe_course.layers.sorted import sorted_dispatch

__all__ = [
    "PUBLISHED",
    "Activation",
    "DenseFFN",
    "Experts",
    "JitteredRouter",
    "MoELayer",
    "ModelConfig",
    "NoisyRouting",
    "NoisyTopKRouter",
    "Router",
    "Routing",
    "active_parameters",
    "compute_aux_loss",
    "cv_squared",
    "einsum_dispatch",
    "ffn",
    "ffn_flops",
    "ffn_parameters",
    "flops_per_token",
    "flops_table",
    "grouped_dispatch",
    "gshard_balance_loss",
    "importance",
    "importance_loss",
    "jittered",
    "kl_balance_loss",
    "kth_excluding",
    "load_balancing_loss",
    "load_fraction",
    "load_loss",
    "loop_dispatch",
    "max_violation",
    "mean_probability",
    "model_balance_loss",
    "moe_flops",
    "moe_parameters",
    "noisy_top_k_routing",
    "parameter_table",
    "router_saturation",
    "router_z_loss",
    "selection_probability",
    "smooth_load",
    "sorted_dispatch",
    "top_k_routing",
    "total_parameters",
]
