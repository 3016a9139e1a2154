"""Noise in the router: it lets every expert be tried, and makes an expert's load something that has a gradient."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from moe_course.layers.ffn import check_last_dimension
from moe_course.layers.router import Router, Routing, check_top_k, top_k_routing

# Below this a noise scale counts as this: a division by 0 would make the gradient of a saturated Φ a NaN.
SMALLEST_SCALE = 1e-6


@dataclass(frozen=True)
class NoisyRouting(Routing):
    """What a noisy router decided, and what it takes to ask how it might have decided.

    Attributes:
        logits: H, the logits that chose: with noise in training, clean in evaluation, (T, E).
        clean_logits: the gate's logits without noise, (T, E).
        noise_scale: standard deviation of each logit's noise, (T, E), also where none was added.
    """

    clean_logits: Float[Tensor, "T E"]
    noise_scale: Float[Tensor, "T E"]


class NoisyTopKRouter(Router):
    """A gate whose logits get trained Gaussian noise while it trains: H = x·W_g + ε·softplus(x·W_noise).

    Takes the place of another router: `layer.router = NoisyTopKRouter(d_model, num_experts, top_k)`. The K weights
    are a softmax over the chosen noisy logits, so with K = 1 the task teaches the gate nothing; the paper takes
    K ≥ 2. Both matrices start at zero: no signal and some noise, hence an even load from the first step.

    Noise comes from torch's global generator: `torch.manual_seed` repeats a run, and activation checkpointing
    draws the same noise again when it recomputes. `noisy_top_k_routing` takes noise of your own.

    Args:
        d_model: width D of a token.
        num_experts: number of experts E.
        top_k: experts per token K.

    Raises:
        ValueError: a size is below 1, or top_k is larger than num_experts.

    Source: Shazeer et al., arXiv 1701.06538, eq. 3 to 5 and appendix A.
    """

    def __init__(
        self,
        d_model: int,
        num_experts: int,
        top_k: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(d_model, num_experts, top_k, device=device, dtype=dtype)
        self.noise_weight = nn.Parameter(torch.zeros_like(self.weight))

    def reset_parameters(self) -> None:
        for weight in self.parameters():
            nn.init.zeros_(weight)

    def forward(self, x: Float[Tensor, "*tokens D"]) -> NoisyRouting:
        check_last_dimension(x, self.weight.shape[-1], "NoisyTopKRouter")
        tokens = x.reshape(-1, x.shape[-1])
        clean_logits = F.linear(tokens, self.weight)
        noise_scale = F.softplus(F.linear(tokens, self.noise_weight))
        noise = torch.randn_like(clean_logits) if self.training else None
        return noisy_top_k_routing(clean_logits, noise_scale, self.top_k, noise)


def noisy_top_k_routing(
    clean_logits: Float[Tensor, "T E"],
    noise_scale: Float[Tensor, "T E"],
    top_k: int,
    noise: Float[Tensor, "T E"] | None,
) -> NoisyRouting:
    """Choose K experts by the noisy logits H = clean_logits + noise · noise_scale.

    Args:
        clean_logits: x·W_g, (T, E).
        noise_scale: standard deviation of each logit's noise, softplus(x·W_noise), (T, E).
        top_k: experts per token K.
        noise: draws from a standard normal, (T, E); None in evaluation.

    Returns:
        A `NoisyRouting`. Its weights are a softmax over the K chosen logits.

    Raises:
        ValueError: top_k is below 1 or larger than E.

    Source: Shazeer et al., arXiv 1701.06538, eq. 3 to 5.
    """
    logits = clean_logits if noise is None else clean_logits + noise * noise_scale
    routing = top_k_routing(logits, top_k)
    return NoisyRouting(**vars(routing), clean_logits=clean_logits, noise_scale=noise_scale)


def importance(routing: Routing) -> Float[Tensor, " E"]:
    """Sum of each expert's weights over the batch, (E,), in float32 at least.

    Source: Shazeer et al., arXiv 1701.06538, eq. 6.
    """
    weights = routing.weights.to(routing.probs.dtype).flatten()
    return weights.new_zeros(routing.logits.shape[-1]).index_add(0, routing.expert_ids.flatten(), weights)


def smooth_load(routing: NoisyRouting) -> Float[Tensor, " E"]:
    """Expected tokens of each expert, Σ_x P(x, i), (E,): an estimate of the load that has a gradient.

    Over the noise its mean is the mean of `tokens_per_expert`.

    Source: Shazeer et al., arXiv 1701.06538, eq. 10.
    """
    return selection_probability(routing).sum(0)


def selection_probability(routing: NoisyRouting) -> Float[Tensor, "T E"]:
    """P(x, i): the probability that token x still chooses expert i, if expert i's noise alone is drawn anew.

    In float32 at least. With K = E every expert is chosen for certain. In evaluation the other logits are
    clean, and the answer is finite all the same.

    Source: Shazeer et al., arXiv 1701.06538, eq. 8 and 9.
    """
    dtype, top_k = routing.probs.dtype, routing.weights.shape[-1]
    clean_logits, noise_scale = routing.clean_logits.to(dtype), routing.noise_scale.to(dtype)
    if top_k == clean_logits.shape[-1]:
        return 1 + 0 * clean_logits  # still part of the graph, with a gradient of 0
    margin = clean_logits - kth_excluding(routing.logits.to(dtype), top_k)
    return torch.special.ndtr(margin / noise_scale.clamp_min(SMALLEST_SCALE))


def kth_excluding(values: Float[Tensor, "T E"], k: int) -> Float[Tensor, "T E"]:
    """For each entry of a row, the k-th largest of the *other* entries: what it must beat to be among the top k.

    Args:
        values: (T, E).
        k: 1 to E. With k = E there are too few others, so there is nothing to beat: -inf.

    Returns:
        (T, E).

    Raises:
        ValueError: k is below 1 or larger than E.

    Source: Shazeer et al., arXiv 1701.06538, appendix A.
    """
    num_experts = values.shape[-1]
    check_top_k(k, num_experts)
    if k == num_experts:
        return torch.full_like(values, -torch.inf)
    kth, next_best = values.topk(k + 1, dim=-1).values[:, k - 1 :].split(1, dim=-1)
    # Who is among the top k leaves a gap there, and the next best moves up.
    return torch.where(values > next_best, next_best, kth)


def importance_loss(routing: Routing) -> Float[Tensor, ""]:
    """CV² of the importance; multiply by w_importance, 0.1 in the paper.

    Source: Shazeer et al., arXiv 1701.06538, eq. 7.
    """
    return cv_squared(importance(routing))


def load_loss(routing: NoisyRouting) -> Float[Tensor, ""]:
    """CV² of the smooth load; multiply by w_load, 0.1 in the paper.

    Source: Shazeer et al., arXiv 1701.06538, eq. 11.
    """
    return cv_squared(smooth_load(routing))


def cv_squared(values: Float[Tensor, " E"], eps: float = 1e-10) -> Float[Tensor, ""]:
    """The squared coefficient of variation, variance / mean²: 0 where all are equal, E - 1 where one has everything.

    Args:
        values: not negative, (E,).
        eps: added to mean², so that an empty batch gives 0. The variance is that of the whole, not an estimate from
            a sample, so that one expert alone gives 0 and not NaN.
    """
    return values.var(correction=0) / (values.mean().square() + eps)


class JitteredRouter(Router):
    """A `Router` that sees a slightly disturbed input while it trains; the experts get the input as it is.

    Args:
        d_model, num_experts, top_k, **options: as for `Router`.
        jitter: relative size of the disturbance.

    Source: Fedus et al. (Switch), arXiv 2101.03961, section 2.4 and appendix C.
    """

    def __init__(self, d_model: int, num_experts: int, top_k: int, *, jitter: float = 0.01, **options: Any) -> None:
        super().__init__(d_model, num_experts, top_k, **options)
        self.jitter = jitter

    def forward(self, x: Float[Tensor, "*tokens D"]) -> Routing:
        return super().forward(jittered(x, self.jitter) if self.training else x)


def jittered(x: Float[Tensor, "*tokens D"], jitter: float) -> Float[Tensor, "*tokens D"]:
    """Multiply every feature by a random factor of its own, uniform within 1 ± jitter.

    The factors are drawn in float32: bfloat16 has only a handful of numbers within 1 ± 0.01.
    """
    factor = torch.empty_like(x, dtype=torch.promote_types(x.dtype, torch.float32)).uniform_(1 - jitter, 1 + jitter)
    return (x * factor).to(x.dtype)


def router_saturation(expert_ids: Int64[Tensor, "T K"], final_expert_ids: Int64[Tensor, "T K"]) -> float:
    """Share of the choices of a checkpoint that the final checkpoint makes too, on the same tokens; order is free.

    Choices at random give K/E. An empty batch gives NaN: it says nothing.

    Args:
        expert_ids: of the checkpoint, (T, K), distinct in a row.
        final_expert_ids: of the final checkpoint, (T, K).

    Source: Muennighoff et al. (OLMoE), arXiv 2409.02060, eq. 5.
    """
    agree = expert_ids[:, :, None] == final_expert_ids[:, None, :]
    return agree.any(-1).double().mean().item()
