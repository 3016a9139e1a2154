"""The loop over experts that indexes its stacked weights, as public models have written it; lesson 03 times it."""

import torch
from torch import Tensor
from torch.nn import functional as F


def indexing_loop(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """`loop_dispatch` with w_in[e] in place of unbind: backward writes a whole (E, F, D) gradient for each expert.

    Args:
        x: tokens, (T, D).
        expert_ids, expert_weights: the K experts of each token and their weights, (T, K).
        w_in, w_out: stacked weights of GELU experts, (E, F, D) and (E, D, F).

    Returns:
        (T, D).
    """
    out = torch.zeros_like(x)
    for e in range(len(w_in)):
        tokens, choice = torch.where(expert_ids == e)
        y = F.linear(F.gelu(F.linear(x[tokens], w_in[e])), w_out[e])
        out.index_add_(0, tokens, y * expert_weights[tokens, choice, None])
    return out
