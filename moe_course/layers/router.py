"""The router: one linear map scores every expert for every token, and the best K are kept."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from moe_course.layers.ffn import check_last_dimension, check_positive, init_linear_

Score = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class Routing:
    """What a router decided, for T tokens (a (B, S, D) input counts as T = B·S).

    Attributes:
        logits: router scores before any normalisation, (T, E).
        probs: scores of all experts, (T, E), in float32 at least.
        weights: weights of the chosen experts, (T, K), largest first.
        expert_ids: ids of the chosen experts, (T, K), in the order of `weights`.
    """

    logits: Float[Tensor, "T E"]
    probs: Float[Tensor, "T E"]
    weights: Float[Tensor, "T K"]
    expert_ids: Int64[Tensor, "T K"]

    @property
    def tokens_per_expert(self) -> Int64[Tensor, " E"]:
        """How many tokens chose each expert; sums to T·K."""
        return torch.bincount(self.expert_ids.flatten(), minlength=self.logits.shape[-1])


class Router(nn.Module):
    """A linear gate followed by `top_k_routing`.

    Args:
        d_model: width D of a token.
        num_experts: number of experts E.
        top_k: experts per token K.
        score: "softmax" (Mixtral, OLMoE, Qwen3) or "sigmoid" (DeepSeek-V3).
        renormalize: make the K weights of a token sum to 1. For K = 1 choose False: the one weight would be a constant
            1, and the router would learn nothing from the task.

    Raises:
        ValueError: a size is below 1, top_k is larger than num_experts, or the score is unknown.

    Source: Shazeer et al., arXiv 1701.06538, section 2.1; Fedus et al., arXiv 2101.03961, eq. 1.
    """

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        top_k: int,
        *,
        score: Score = "softmax",
        renormalize: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(d_model=d_model, num_experts=num_experts)
        check_top_k(top_k, num_experts)
        self.top_k, self.score, self.renormalize = top_k, check_score(score), renormalize
        self.weight = nn.Parameter(torch.empty(num_experts, d_model, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        init_linear_(self.weight)

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Routing:
        check_last_dimension(x, self.weight.shape[-1], "Router")
        logits = F.linear(x.reshape(-1, x.shape[-1]), self.weight)
        return top_k_routing(logits, self.top_k, score=self.score, renormalize=self.renormalize)

    def extra_repr(self) -> str:
        num_experts, d_model = self.weight.shape
        return (
            f"d_model={d_model}, num_experts={num_experts}, top_k={self.top_k}, "
            f"score={self.score!r}, renormalize={self.renormalize}"
        )


def top_k_routing(
    logits: Float[Tensor, "T E"], top_k: int, *, score: Score = "softmax", renormalize: bool = True
) -> Routing:
    """Turn router logits into the K experts of each token and their weights.

    Args:
        logits: (T, E).
        top_k: experts per token K.
        score: "softmax" over all experts, or an independent "sigmoid" for each.
        renormalize: divide the K weights by their sum. With softmax this equals a softmax over the K chosen
            logits. With K = 1 it makes the weight a constant 1: the router learns nothing from the task.

    Returns:
        A `Routing`. Scores are computed in float32 at least, weights come back in the logits' dtype.

    Raises:
        ValueError: top_k is below 1 or larger than E, or the score is unknown.

    Source: Jiang et al., arXiv 2401.04088, section 2.1; DeepSeek-AI, arXiv 2412.19437, eq. 13 to 15.
    """
    check_top_k(top_k, logits.shape[-1])
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Both scores grow with the logit, so the logits choose: they still differ where scores have saturated.
    top_scores, expert_ids = scores.topk(top_k, dim=-1)
    if check_score(score) == "softmax":
        probs, log_weights = scores.softmax(dim=-1), top_scores
    else:
        probs, log_weights = scores.sigmoid(), F.logsigmoid(top_scores)
    # p / Σp is the softmax of log p (up to a constant): one step, and never 0/0 where all K scores underflow.
    weights = log_weights.softmax(dim=-1) if renormalize else probs.gather(-1, expert_ids)
    return Routing(logits, probs, weights.to(logits.dtype), expert_ids)


def check_top_k(top_k: int, num_experts: int) -> None:
    if top_k < 1:
        raise ValueError(f"top_k={top_k} sends a token to no expert; choose top_k ≥ 1")
    if top_k > num_experts:
        message = f"top_k={top_k} is larger than num_experts={num_experts}; choose top_k ≤ num_experts"
        raise ValueError(message)


def check_score(score: Score) -> Score:
    if score not in get_args(Score):
        raise ValueError(f"score={score!r} is unknown; choose {' or '.join(map(repr, get_args(Score)))}")
    return score
