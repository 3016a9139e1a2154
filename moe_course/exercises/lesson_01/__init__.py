"""Exercises of lesson 01, the dense FFN: one file each, in the lesson's order."""

from .ffn_cost import FFN_COST
from .ffn_roofline import FFN_ROOFLINE
from .gelu_ffn import GELU_FFN
from .model_parameters import MODEL_PARAMETERS
from .moe_cost import MOE_COST
from .swiglu_ffn import SWIGLU_FFN

EXERCISES = (GELU_FFN, SWIGLU_FFN, FFN_COST, FFN_ROOFLINE, MOE_COST, MODEL_PARAMETERS)
