"""Exercises of lesson 08, an MoE transformer: one file each, in the lesson's order."""

from .apply_rotary import APPLY_ROTARY
from .cached_attention import CACHED_ATTENTION
from .expert_by_domain import EXPERT_BY_DOMAIN
from .generate_greedy import GENERATE_GREEDY
from .hybrid_cost import HYBRID_COST
from .my_block import MY_BLOCK
from .permutation_p_value import PERMUTATION_P_VALUE
from .training_loss import TRAINING_LOSS

EXERCISES = (
    APPLY_ROTARY,
    CACHED_ATTENTION,
    MY_BLOCK,
    HYBRID_COST,
    TRAINING_LOSS,
    GENERATE_GREEDY,
    EXPERT_BY_DOMAIN,
    PERMUTATION_P_VALUE,
)
