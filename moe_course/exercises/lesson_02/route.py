"""Exercise 02.route: keep the K best experts of each token and weigh them."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from ...layers import top_k_routing
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, far_logits, spread_logits

Score = Literal["softmax", "sigmoid"]
Routed = tuple[Tensor, Tensor]


def route(logits: Tensor, top_k: int, score: Score = "softmax", renormalize: bool = True) -> Routed:
    """Choose K experts for each token: logits (T, E) to weights (T, K) and expert_ids (T, K)."""
    routing = top_k_routing(logits, top_k, score=score, renormalize=renormalize)
    return routing.weights, routing.expert_ids


def _by_expert_id(routed: Routed) -> Routed:
    """The order of a token's experts is free: sort them by id."""
    weights, expert_ids = routed
    order = expert_ids.argsort(dim=-1)
    return weights.gather(-1, order), expert_ids.gather(-1, order)


def _four_experts(generator: Generator) -> Inputs:
    return {"logits": torch.tensor([[0.0, 2.0, -1.0, 1.0]]), "top_k": 2, "score": "softmax", "renormalize": True}


def _case(
    name: str,
    num_tokens: int,
    num_experts: int,
    top_k: int,
    score: Score = "softmax",
    renormalize: bool = True,
    grad: tuple[str, ...] = (),
    **layout: Any,
) -> Case:
    make = spread_logits(num_tokens, num_experts, top_k=top_k, score=score, renormalize=renormalize, **layout)
    return Case(name, make, grad)


def _two_share_the_lead(generator: Generator) -> Inputs:
    logits = torch.tensor([[3.0, 1.0, 3.0, 0.0], [0.0, 2.0, 1.0, 2.0]]) + torch.randn(2, 1, generator=generator)
    return {"logits": logits, "top_k": 2, "score": "softmax", "renormalize": True}


def _not_the_best(inputs: Inputs, routed: Routed) -> str | None:
    logits, (_, expert_ids) = inputs["logits"], routed
    chosen = logits.gather(-1, expert_ids).sort(dim=-1, descending=True).values
    best = logits.topk(inputs["top_k"], dim=-1).values
    for token in (chosen != best).any(-1).nonzero().flatten().tolist():
        return f"token {token} goes to experts {expert_ids[token].tolist()}, which are not its {len(best[token])} best"
    return None


def _wrong_sum(inputs: Inputs, routed: Routed) -> str | None:
    if not inputs["renormalize"]:
        return None
    for total in routed[0].float().sum(-1).tolist():
        if not abs(total - 1) < 1e-2:
            return f"the weights of a token sum to {total:.3g}, not 1"
    return None


# Right answers in other words.


def _best_logits_first(logits: Tensor, top_k: int, score: Score, renormalize: bool) -> Routed:
    best, expert_ids = logits.float().topk(top_k, dim=-1, sorted=False)
    if score == "softmax":
        total = best.logsumexp(-1, True) if renormalize else logits.float().logsumexp(-1, True)
        return (best - total).exp().to(logits.dtype), expert_ids
    weights = best.sigmoid()
    return (weights / weights.sum(-1, True) if renormalize else weights).to(logits.dtype), expert_ids


def _one_expert_at_a_time(logits: Tensor, top_k: int, score: Score, renormalize: bool) -> Routed:
    scores = _scores(logits, score)
    left, ids = scores.detach().clone(), []
    for _ in range(top_k):
        ids.append(left.argmax(-1, keepdim=True))
        left = left.scatter(-1, ids[-1], -torch.inf)
    return _weigh(scores, torch.cat(ids, dim=-1), renormalize, logits.dtype)


def _through_a_mask(logits: Tensor, top_k: int, score: Score, renormalize: bool) -> Routed:
    expert_ids = logits.argsort(dim=-1, descending=True)[:, :top_k]
    kept = _scores(logits, score) * torch.zeros_like(logits).scatter(-1, expert_ids, 1.0)
    if renormalize:
        kept = kept / kept.sum(-1, keepdim=True)
    return kept.gather(-1, expert_ids).to(logits.dtype), expert_ids


def _scores(logits: Tensor, score: Score) -> Tensor:
    return logits.float().softmax(-1) if score == "softmax" else logits.float().sigmoid()


def _weigh(scores: Tensor, expert_ids: Tensor, renormalize: bool, dtype: torch.dtype) -> Routed:
    kept = scores.gather(-1, expert_ids)
    return (kept / kept.sum(-1, keepdim=True) if renormalize else kept).to(dtype), expert_ids


# Wrong answers. Most go wrong in the last step only: from the K kept scores to the weights.


def _weighing(weigh: Callable[[Tensor, bool], Tensor]) -> Callable[..., Routed]:
    """A right choice of experts, then `weigh(kept scores, renormalize)`."""

    def wrong(logits: Tensor, top_k: int, score: Score, renormalize: bool) -> Routed:
        kept, expert_ids = _scores(logits, score).topk(top_k, dim=-1)
        return weigh(kept, renormalize).to(logits.dtype), expert_ids

    return wrong


def _raw_logits(logits: Tensor, top_k: int, score: Score, renormalize: bool) -> Routed:
    best, expert_ids = logits.topk(top_k, dim=-1)
    return route(logits, top_k, score, True) if renormalize else (best, expert_ids)


def _softmax_over_tokens(logits: Tensor, top_k: int, score: Score, renormalize: bool) -> Routed:
    scores = logits.float().softmax(0) if score == "softmax" else logits.float().sigmoid()
    return _weigh(scores, scores.topk(top_k, dim=-1).indices, renormalize, logits.dtype)


def _ids_sorted_alone(logits: Tensor, top_k: int, score: Score, renormalize: bool) -> Routed:
    weights, expert_ids = route(logits, top_k, score, renormalize)
    return weights, expert_ids.sort(dim=-1).values


def _ties_removed_together(logits: Tensor, top_k: int, score: Score, renormalize: bool) -> Routed:
    left, ids = logits, []
    for _ in range(top_k):
        best = left.max(dim=-1, keepdim=True)
        ids.append(best.indices)
        left = left.masked_fill(left == best.values, -torch.inf)
    return _weigh(_scores(logits, score), torch.cat(ids, dim=-1), renormalize, logits.dtype)


ROUTE = Exercise(
    id="02.route",
    entry="route",
    title="Top-k routing",
    points=3,
    difficulty=2,
    minutes=15,
    hints=(
        "Three steps: scores of all experts, the K best of each row, their weights. `router_scores` is the first.",
        "`torch.topk(scores, top_k, dim=-1)` returns the K largest values of each row together with their indices: "
        "the indices are the expert ids. To renormalise, divide each row by its own sum; `keepdim=True` keeps the "
        "sum a column.",
        "Take values and indices from `topk` on the scores. If `renormalize`, divide the values by "
        "`values.sum(dim=-1, keepdim=True)`; if not, leave them. Convert them to `logits.dtype` and return both.",
    ),
    reference=route,
    returns=("weights", "expert_ids"),
    normalise=_by_expert_id,
    cases=(
        Case("one token, four experts, top-2", _four_experts),
        _case("softmax, top-2, renormalised (Mixtral)", 8, 5, 2, grad=("logits",)),
        _case("softmax, top-3, not renormalised (OLMoE)", 8, 6, 3, renormalize=False, grad=("logits",)),
        _case("softmax, top-1, not renormalised (Switch)", 6, 4, 1, renormalize=False, grad=("logits",)),
        _case("softmax, top-1, renormalised: weights of 1", 6, 4, 1, grad=("logits",)),
        _case("sigmoid, top-2, renormalised (DeepSeek-V3)", 8, 5, 2, "sigmoid", grad=("logits",)),
        _case("sigmoid, top-1, not renormalised (Llama 4)", 6, 4, 1, "sigmoid", renormalize=False, grad=("logits",)),
        _case("every expert, K = E", 4, 3, 3),
        Case("two experts share the lead", _two_share_the_lead),
        Case("logits near ±1000", far_logits(1000.0, top_k=2, score="softmax", renormalize=True)),
        _case("bfloat16", 5, 8, 2, renormalize=False, dtype=torch.bfloat16),
        _case("no tokens", 0, 4, 2),
        _case("logits are not contiguous", 6, 5, 2, transposed=True),
    ),
    properties=(
        Property("the K best experts are chosen", _not_the_best),
        Property("renormalised weights sum to 1", _wrong_sum),
    ),
    misconceptions=(
        Misconception(
            "divided-by-k",
            "You renormalise by dividing by K. The K scores do not sum to K: divide each row by its own sum.",
            _weighing(lambda kept, renormalize: kept / kept.shape[-1] if renormalize else kept),
        ),
        Misconception(
            "always-renormalised",
            "Your weights sum to 1 even with `renormalize=False`; a softmax over the chosen logits does that too. "
            "Without renormalisation a weight is the score among all experts, so a row sums to less than 1.",
            _weighing(lambda kept, renormalize: kept / kept.sum(-1, keepdim=True)),
        ),
        Misconception(
            "never-renormalised",
            "You ignore `renormalize=True`: the weights of a row sum to less than 1. Divide each row by its sum.",
            _weighing(lambda kept, renormalize: kept),
        ),
        Misconception(
            "raw-logits-as-weights",
            "Without renormalisation you return the logits themselves as weights. They may be negative and have no "
            "scale: take the scores, softmax or sigmoid, at the chosen ids.",
            _raw_logits,
        ),
        Misconception(
            "softmax-twice",
            "You renormalise with a softmax over scores that went through a softmax already. That flattens them "
            "towards 1/K; divide by the sum instead, or apply one softmax to the chosen logits.",
            _weighing(lambda kept, renormalize: kept.softmax(-1) if renormalize else kept),
        ),
        Misconception(
            "sum-over-everything",
            "You divide by the sum over all tokens, so a token's weights depend on its neighbours. Give `sum` the "
            "dimension: `sum(dim=-1, keepdim=True)`.",
            _weighing(lambda kept, renormalize: kept / kept.sum() if renormalize else kept),
        ),
        Misconception(
            "sum-over-tokens",
            "You divide by the sum down a column, over tokens. The weights of one token, a row, must sum to 1: use "
            "`dim=-1`.",
            _weighing(lambda kept, renormalize: kept / kept.sum(0, keepdim=True) if renormalize else kept),
        ),
        Misconception(
            "keepdim-forgotten",
            "`sum(dim=-1)` gives a row of T sums, which is laid along the K weights, not beside the T tokens. Keep it "
            "a column with `keepdim=True`.",
            _weighing(lambda kept, renormalize: kept / kept.sum(-1) if renormalize else kept),
        ),
        Misconception(
            "weights-and-ids-swapped",
            "You return the ids first. `topk` gives (values, indices), and the exercise asks for the same order: "
            "weights, then expert ids.",
            lambda logits, top_k, score, renormalize: route(logits, top_k, score, renormalize)[::-1],
        ),
        Misconception(
            "weights-left-in-float32",
            "The numbers are right, but scores in float32 made the weights float32 too. Give them back in the dtype of "
            "the logits, or every tensor they meet in a bfloat16 model is promoted.",
            lambda logits, top_k, score, renormalize: route(logits.float(), top_k, score, renormalize),
        ),
        Misconception(
            "ids-sorted-without-weights",
            "Weights and ids no longer belong together: one was sorted and the other not. Position k of a row must "
            "name an expert and that expert's own weight.",
            _ids_sorted_alone,
        ),
        Misconception(
            "weights-detached",
            "The numbers are right, but no gradient reaches the logits: `detach`, `.data` or `no_grad` cut it. The "
            "weights are the only way by which the router learns from the task.",
            _weighing(lambda kept, renormalize: (kept / kept.sum(-1, True) if renormalize else kept).detach()),
        ),
        Misconception(
            "sigmoid-ignored",
            "You use softmax scores whatever `score` says. Pass it on to `router_scores`.",
            lambda logits, top_k, score, renormalize: route(logits, top_k, "softmax", renormalize),
        ),
        Misconception(
            "always-top-1",
            "You keep one expert whatever `top_k` says; `argmax` finds only the best. Both results have K columns.",
            lambda logits, top_k, score, renormalize: route(logits, 1, score, renormalize),
        ),
        Misconception(
            "softmax-over-tokens",
            "Your softmax runs over the tokens, so experts are compared by how unusual a token is for them. Scores "
            "compete within a row: `dim=-1`.",
            _softmax_over_tokens,
        ),
        Misconception(
            "ties-removed-together",
            "When two experts share the best score, you strike out both after choosing one. Strike out the chosen "
            "index, not every entry that equals its value.",
            _ties_removed_together,
        ),
    ),
    alternatives=(_best_logits_first, _one_expert_at_a_time, _through_a_mask),
)
