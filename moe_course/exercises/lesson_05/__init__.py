"""Exercises of lesson 05, noisy gating: one file each, in the lesson's order."""

from .cv_squared import CV_SQUARED
from .expert_importance import EXPERT_IMPORTANCE
from .jitter_input import JITTER_INPUT
from .kth_excluding import KTH_EXCLUDING
from .noisy_gate import NOISY_GATE
from .noisy_logits import NOISY_LOGITS
from .selection_probability import SELECTION_PROBABILITY

EXERCISES = (
    CV_SQUARED,
    EXPERT_IMPORTANCE,
    NOISY_LOGITS,
    KTH_EXCLUDING,
    SELECTION_PROBABILITY,
    NOISY_GATE,
    JITTER_INPUT,
)
