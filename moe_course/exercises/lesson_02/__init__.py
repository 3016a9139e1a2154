"""Exercises of lesson 02, the router: one file each, in the lesson's order."""

from .gate_jacobian import GATE_JACOBIAN
from .route import ROUTE
from .router_logits import ROUTER_LOGITS
from .router_scores import ROUTER_SCORES
from .softmax_over_top_k import SOFTMAX_OVER_TOP_K
from .tokens_per_expert import TOKENS_PER_EXPERT

EXERCISES = (ROUTER_LOGITS, TOKENS_PER_EXPERT, ROUTER_SCORES, ROUTE, SOFTMAX_OVER_TOP_K, GATE_JACOBIAN)
