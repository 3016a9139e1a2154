"""Exercise 05.expert_importance: how much weight each expert gets in a batch."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make


def expert_importance(weights: Tensor, expert_ids: Tensor, num_experts: int) -> Tensor:
    """Sum each expert's weights over the batch: weights and expert_ids (T, K) to (E,)."""
    return weights.new_zeros(num_experts).index_add(0, expert_ids.flatten(), weights.flatten())


def _routed(num_tokens: int, num_experts: int, top_k: int, without: tuple[int, ...] = ()) -> Make:
    """Random choices with weights that sum to 1, as a noisy router gives them.

    Args:
        without: experts that no token chooses.
    """

    def make(generator: Generator) -> Inputs:
        scores = torch.rand(num_tokens, num_experts, generator=generator)
        scores[:, list(without)] = -1.0
        best = scores.topk(top_k, dim=-1)
        return {"weights": (3 * best.values).softmax(-1), "expert_ids": best.indices, "num_experts": num_experts}

    return make


def _three_tokens(generator: Generator) -> Inputs:
    return {
        "weights": torch.tensor([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]]),
        "expert_ids": torch.tensor([[0, 1], [1, 0], [0, 3]]),
        "num_experts": 4,
    }


def _wrong_sum(inputs: Inputs, output: Tensor) -> str | None:
    total, tokens = output.sum().item(), len(inputs["weights"])
    if abs(total - tokens) < 1e-3 * max(tokens, 1):
        return None
    return f"the importances sum to {total:.4g}; each of {tokens} tokens has a weight of 1 to give"


def _mean_weight(weights: Tensor, expert_ids: Tensor, num_experts: int) -> Tensor:
    return torch.stack([weights[expert_ids == e].mean() for e in range(num_experts)])


def _last_write_wins(weights: Tensor, expert_ids: Tensor, num_experts: int) -> Tensor:
    result = [weights.new_zeros(()) for _ in range(num_experts)]
    for e, weight in zip(expert_ids.flatten().tolist(), weights.flatten(), strict=True):
        result[e] = weight
    return torch.stack(result)


EXPERT_IMPORTANCE = Exercise(
    id="05.expert_importance",
    entry="expert_importance",
    title="Importance: the weight of an expert",
    points=2,
    difficulty=1,
    minutes=7,
    hints=(
        "Every choice adds its weight to its expert. Tokens share experts, so contributions have to add up.",
        "Flatten both: entry by entry, `expert_ids.flatten()` says where `weights.flatten()` goes. `index_add` sums "
        "where an id repeats.",
        "`torch.zeros(num_experts).index_add(0, expert_ids.flatten(), weights.flatten())`. An expert that nobody "
        "chose keeps its 0.",
    ),
    reference=expert_importance,
    cases=(
        Case("three tokens, one expert without any", _three_tokens),
        Case("top-2 of five", _routed(9, 5, 2), grad=("weights",)),
        Case("experts without tokens", _routed(7, 6, 2, without=(2, 5)), grad=("weights",)),
        Case("top-1: every weight is 1", _routed(8, 3, 1)),
        Case("every expert, K = E", _routed(4, 3, 3)),
        Case("no tokens", _routed(0, 4, 2)),
    ),
    properties=(Property("importances sum to the number of tokens", _wrong_sum),),
    misconceptions=(
        Misconception(
            "load-not-importance",
            "You counted choices. That is the load. Importance adds up the weights, so a first choice counts more than "
            "a second; and a count has no gradient.",
            lambda weights, expert_ids, num_experts: torch.bincount(
                expert_ids.flatten(), minlength=num_experts
            ).float(),
        ),
        Misconception(
            "mean-over-its-tokens",
            "You averaged an expert's weights over its own tokens. An expert without tokens then is NaN, and a popular "
            "expert looks no more important than a rare one.",
            _mean_weight,
        ),
        Misconception(
            "divided-by-tokens",
            "You divided by the number of tokens, which turns the sum into a mean share. The paper's importance is the "
            "sum; and an empty batch would be 0/0.",
            lambda weights, expert_ids, num_experts: expert_importance(weights, expert_ids, num_experts) / len(weights),
        ),
        Misconception(
            "first-choice-only",
            "You added only each token's first choice. Its other experts get weight from it, too.",
            lambda weights, expert_ids, num_experts: expert_importance(weights[:, :1], expert_ids[:, :1], num_experts),
        ),
        Misconception(
            "last-write-wins",
            "`result[expert_ids] = weights`, or `+=`, keeps one contribution where an id repeats. Use `index_add`, "
            "which sums them.",
            _last_write_wins,
        ),
        Misconception(
            "weights-detached",
            "The numbers are right, but no gradient reaches the weights, and this sum exists to be a loss: leave out "
            "`detach`, `.data`, `tolist` and `no_grad`.",
            lambda weights, expert_ids, num_experts: expert_importance(weights.detach(), expert_ids, num_experts),
        ),
    ),
    alternatives=(
        lambda weights, expert_ids, num_experts: (F.one_hot(expert_ids, num_experts) * weights[..., None]).sum((0, 1)),
        lambda weights, expert_ids, num_experts: torch.stack(
            [(weights * (expert_ids == e)).sum() for e in range(num_experts)]
        ),
        lambda weights, expert_ids, num_experts: (
            weights.new_zeros(len(weights), num_experts).scatter(1, expert_ids, weights).sum(0)
        ),
    ),
)
