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
from moe_course.layers.attention import CausalSelfAttention, KVCache, apply_rotary
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
from moe_course.layers.capacity import (
    CapacityRouter,
    CappedRouting,
    cap_routing,
    expert_capacity,
    position_in_expert,
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
from moe_course.layers.generation import generate
from moe_course.layers.moe import MoELayer
from moe_course.layers.published import PUBLISHED
from moe_course.layers.router import Router, Routing, top_k_routing
from moe_course.layers.slots import capped_einsum_dispatch, dispatch_and_combine, expected_drop_rate, slot_usage
from moe_course.layers.sorted import sorted_dispatch
from moe_course.layers.stability import Float32Router, precise_logits, variance_scaling_
from moe_course.layers.transformer import MoETransformer, TransformerConfig, TransformerOutput, model_config

__all__ = [
    "PUBLISHED",
    "Activation",
    "CapacityRouter",
    "CappedRouting",
    "CausalSelfAttention",
    "DenseFFN",
    "Experts",
    "Float32Router",
    "JitteredRouter",
    "KVCache",
    "MoELayer",
    "MoETransformer",
    "ModelConfig",
    "NoisyRouting",
    "NoisyTopKRouter",
    "Router",
    "Routing",
    "TransformerConfig",
    "TransformerOutput",
    "active_parameters",
    "apply_rotary",
    "cap_routing",
    "capped_einsum_dispatch",
    "compute_aux_loss",
    "cv_squared",
    "dispatch_and_combine",
    "einsum_dispatch",
    "expected_drop_rate",
    "expert_capacity",
    "ffn",
    "ffn_flops",
    "ffn_parameters",
    "flops_per_token",
    "flops_table",
    "generate",
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
    "model_config",
    "moe_flops",
    "moe_parameters",
    "noisy_top_k_routing",
    "parameter_table",
    "position_in_expert",
    "precise_logits",
    "router_saturation",
    "router_z_loss",
    "selection_probability",
    "slot_usage",
    "smooth_load",
    "sorted_dispatch",
    "top_k_routing",
    "total_parameters",
    "variance_scaling_",
]
