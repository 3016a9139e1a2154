"""Exercises of lesson 09, stable training: one file each, in the lesson's order."""

from .accumulated_balance import ACCUMULATED_BALANCE
from .checkpointed_moe import CHECKPOINTED_MOE
from .clip_gradients import CLIP_GRADIENTS
from .gradient_noise import GRADIENT_NOISE
from .learning_rate import LEARNING_RATE
from .precise_router_logits import PRECISE_ROUTER_LOGITS
from .saturation_curve import SATURATION_CURVE
from .scaled_start import SCALED_START

EXERCISES = (
    PRECISE_ROUTER_LOGITS,
    SCALED_START,
    ACCUMULATED_BALANCE,
    CHECKPOINTED_MOE,
    LEARNING_RATE,
    CLIP_GRADIENTS,
    GRADIENT_NOISE,
    SATURATION_CURVE,
)
