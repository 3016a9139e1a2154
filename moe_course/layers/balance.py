"""Balance losses: what makes a router give every expert its share of the tokens.

f is the fraction of the choices that went to each expert, P the mean probability that the router gave it. f counts,
so it has no gradient; P carries it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from moe_course.layers.router import Routing

TokenMask = Bool[Tensor, "*tokens"] | Int[Tensor, "*tokens"]


def load_balancing_loss(
    probs: Float[Tensor, "*tokens E"],
    expert_ids: Int64[Tensor, "*tokens K"],
    *,
    token_mask: TokenMask | None = None,
    divide_by_top_k: bool = True,
) -> Float[Tensor, ""]:
    """E · Σ_i f_i · P_i: large where experts that get many tokens also get much probability.

    Multiply it by a small α (Switch: 0.01) and add it to the task's loss, for each MoE layer.

    Args:
        probs: softmax over *all* experts, (…, E). Sigmoid scores: divide each row by its sum first.
        expert_ids: the K experts of each token, (…, K).
        token_mask: True or 1 for tokens that count, False or 0 for padding, (…,). None: all tokens count.
        divide_by_top_k: f sums to 1, and a uniform load costs 1 (MegaBlocks, DeepSpeed). If False, f sums to K, and
            a uniform load costs K (Hugging Face's models). The same for K = 1; else α has to make up for it.

    Returns:
        A scalar in float32 at least; 0 where no token counts.

    Source: Fedus et al. (Switch), arXiv 2101.03961, eq. 4 to 6, for K = 1.
    """
    num_experts = probs.shape[-1]
    fraction = load_fraction(expert_ids, num_experts, token_mask=token_mask, divide_by_top_k=divide_by_top_k)
    mean = mean_probability(probs, token_mask=token_mask)
    return num_experts * (fraction.to(mean.dtype) * mean).sum()


def load_fraction(
    expert_ids: Int64[Tensor, "*tokens K"],
    num_experts: int,
    *,
    token_mask: TokenMask | None = None,
    divide_by_top_k: bool = True,
) -> Float[Tensor, " E"]:
    """f: the fraction of the choices that went to each expert.

    Args:
        expert_ids: the K experts of each token, (…, K).
        num_experts: number of experts E, of which some may not occur.
        token_mask: True or 1 for tokens that count, (…,).
        divide_by_top_k: divide by the number of choices, so that f sums to 1; else by that of tokens: f sums to K.

    Returns:
        (E,), in float32; zeros where no token counts.
    """
    top_k = expert_ids.shape[-1]
    keep = torch.ones(expert_ids.shape[:-1], device=expert_ids.device) if token_mask is None else token_mask.float()
    # scatter_add, not bincount: on a GPU, bincount waits for the device to learn how long its result is.
    counts = keep.new_zeros(num_experts)
    counts = counts.scatter_add(0, expert_ids.flatten(), keep.flatten().repeat_interleave(top_k))
    return counts / (keep.sum() * (top_k if divide_by_top_k else 1)).clamp(min=1)


def mean_probability(probs: Float[Tensor, "*tokens E"], *, token_mask: TokenMask | None = None) -> Float[Tensor, " E"]:
    """P: the mean probability of each expert, over all tokens, whether or not they chose it.

    Args:
        probs: softmax over all experts, (…, E).
        token_mask: True or 1 for tokens that count, (…,).

    Returns:
        (E,), in float32 at least; zeros where no token counts.
    """
    rows = _at_least_float32(probs).reshape(-1, probs.shape[-1])
    return _mean_over_tokens(rows, token_mask)


def compute_aux_loss(probs: Float[Tensor, "*tokens E"], top_k: int = 1) -> Float[Tensor, ""]:
    """The balance loss from the probabilities alone, as tutorials call it: the K most probable experts are chosen.

    Wrong for routers that choose by something else than the probability: by a bias, by noise, by groups.

    Args:
        probs: softmax over all experts, (…, E).
        top_k: experts per token K.

    Returns:
        `load_balancing_loss`, divided by K.
    """
    return load_balancing_loss(probs, probs.topk(top_k, dim=-1).indices)


def kl_balance_loss(probs: Float[Tensor, "*tokens E"], *, token_mask: TokenMask | None = None) -> Float[Tensor, ""]:
    """KL(P ‖ uniform) = Σ_i P_i · ln(E · P_i): the same idea without f, so it never looks at the choices.

    Args:
        probs: softmax over all experts, (…, E).
        token_mask: True or 1 for tokens that count, (…,).

    Returns:
        A scalar from 0, for a uniform P, to ln E, for all probability on one expert; 0 where no token counts.
    """
    mean = mean_probability(probs, token_mask=token_mask)
    # The smallest number in the logarithm alone: 0 · ln 0 is 0, and its gradient stays finite.
    return (mean * (len(mean) * mean).clamp(min=torch.finfo(mean.dtype).tiny).log()).sum()


def gshard_balance_loss(
    probs: Float[Tensor, "*tokens E"],
    expert_ids: Int64[Tensor, "*tokens K"],
    *,
    token_mask: TokenMask | None = None,
) -> Float[Tensor, ""]:
    """The mean over experts of (c_e / S) · m_e, with c_e counting first choices only.

    It is E² times smaller than `load_balancing_loss` of the first choices; implementations often multiply by E².

    Args:
        probs: softmax over all experts, (…, E).
        expert_ids: the K experts of each token, the best one first, (…, K).
        token_mask: True or 1 for tokens that count, (…,).

    Returns:
        A scalar, 1/E² for a uniform load; 0 where no token counts.

    Source: Lepikhin et al. (GShard), arXiv 2006.16668, algorithm 1.
    """
    num_experts = probs.shape[-1]
    return load_balancing_loss(probs, expert_ids[..., :1], token_mask=token_mask) / num_experts**2


def router_z_loss(logits: Float[Tensor, "*tokens E"], *, token_mask: TokenMask | None = None) -> Float[Tensor, ""]:
    """The mean over tokens of (ln Σ_i exp z_i)²: keeps logits small, where low precision still tells them apart.

    Args:
        logits: router scores before the softmax, (…, E).
        token_mask: True or 1 for tokens that count, (…,).

    Returns:
        A scalar in float32 at least; 0 where no token counts.

    Source: Zoph et al. (ST-MoE), arXiv 2202.08906, eq. 5; weight 0.001.
    """
    squares = _at_least_float32(logits).logsumexp(dim=-1).square()
    return _mean_over_tokens(squares.reshape(-1, 1), token_mask)[0]


def model_balance_loss(
    routings: Sequence[Routing],
    *,
    token_mask: TokenMask | None = None,
    divide_by_top_k: bool = True,
    pool_layers: bool = False,
) -> Float[Tensor, ""]:
    """One balance loss for a model of several MoE layers. The order of averaging matters.

    Args:
        routings: one for each layer, all with the same E and K.
        token_mask: True or 1 for tokens that count, the same in all layers, any shape with T entries.
        divide_by_top_k: as in `load_balancing_loss`.
        pool_layers: if False, the mean of the layers' losses (Switch, up to the factor): every layer has to be
            balanced. If True, the loss of f and P averaged over the layers first (Hugging Face's models): a layer
            that overloads an expert is excused by another layer that spares the expert of the same number.

    Returns:
        A scalar in float32 at least.

    Raises:
        ValueError: there is no layer.
    """
    if not routings:
        raise ValueError("routings is empty; pass the Routing of at least one MoE layer")
    mask = None if token_mask is None else token_mask.flatten()
    if pool_layers:
        probs = torch.cat([routing.probs for routing in routings])
        expert_ids = torch.cat([routing.expert_ids for routing in routings])
        masks = None if mask is None else mask.repeat(len(routings))
        return load_balancing_loss(probs, expert_ids, token_mask=masks, divide_by_top_k=divide_by_top_k)
    losses = [
        load_balancing_loss(routing.probs, routing.expert_ids, token_mask=mask, divide_by_top_k=divide_by_top_k)
        for routing in routings
    ]
    return torch.stack(losses).mean()


def max_violation(tokens_per_expert: Int64[Tensor, "*layers E"]) -> Float[Tensor, "*layers"]:
    """MaxVio: by how much the busiest expert exceeds the mean load, as a share of that mean.

    Args:
        tokens_per_expert: loads, (…, E).

    Returns:
        (…,): 0 for an even load, E/K − 1 for one expert that every token chose; 0 where there is no load.

    Source: Wang et al., arXiv 2408.15664, as DeepSeek-V3 uses it.
    """
    mean = tokens_per_expert.double().mean(dim=-1)
    busiest = tokens_per_expert.amax(dim=-1).double()
    return torch.where(mean > 0, busiest / mean.clamp(min=torch.finfo(mean.dtype).tiny) - 1, 0.0)


def _mean_over_tokens(rows: Float[Tensor, "T N"], token_mask: TokenMask | None) -> Float[Tensor, " N"]:
    """The mean of the rows that count; zeros, not NaN, where there are none."""
    if token_mask is None:
        return rows.sum(dim=0) / max(len(rows), 1)
    keep = token_mask.reshape(-1).to(rows.dtype)
    # where, not a product: padding may hold anything, and 0 · inf is NaN.
    kept = torch.where(keep[:, None] > 0, rows, 0)
    return kept.sum(dim=0) / keep.sum().clamp(min=1)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
