"""Exercise 02.softmax_over_top_k: the gates of all experts at once, zero where a token does not go."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, far_logits, spread_logits


def softmax_over_top_k(logits: Tensor, top_k: int) -> Tensor:
    """Softmax over the K largest logits of each token, 0 for the others: (T, E) to (T, E)."""
    chosen = logits.topk(top_k, dim=-1).indices
    kept = torch.full_like(logits, -torch.inf).scatter(-1, chosen, logits.gather(-1, chosen))
    return kept.softmax(dim=-1)


def _largest_first(gates: Tensor) -> Tensor:
    """Of tied experts any may be kept, so values are compared in order of size; a law checks the places."""
    return gates.sort(dim=-1, descending=True).values


def _three_experts(generator: Generator) -> Inputs:
    return {"logits": torch.tensor([[1.0, 8.0, 2.0], [6.0, 0.5, 2.0]]).log(), "top_k": 2}


def _tie_for_the_last_place(generator: Generator) -> Inputs:
    logits = torch.tensor([[1.0, 2.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [-1.0, 3.0, 3.0, 3.0]])
    return {"logits": logits + torch.randint(-2, 3, (3, 1), generator=generator), "top_k": 2}


def _wrong_places(inputs: Inputs, gates: Tensor) -> str | None:
    logits, top_k = inputs["logits"], inputs["top_k"]
    if gates.shape != logits.shape:
        return f"gates of shape {tuple(gates.shape)} name no expert; expected {tuple(logits.shape)}"
    kept = (gates != 0).sum(-1)
    for token in (kept != top_k).nonzero().flatten().tolist():
        return f"token {token} has {int(kept[token])} gates that are not zero; expected {top_k}"
    best = logits.gather(-1, gates.argsort(dim=-1, descending=True)[:, :top_k])
    for token in (best != logits.topk(top_k, dim=-1).values).any(-1).nonzero().flatten().tolist():
        return f"the gates of token {token} do not stand at its largest logits, in their order"
    return None


def _scatter_the_softmax(logits: Tensor, top_k: int) -> Tensor:
    best, chosen = logits.topk(top_k, dim=-1)
    return torch.zeros_like(logits).scatter(-1, chosen, best.softmax(-1))


def _mask_the_powers(logits: Tensor, top_k: int) -> Tensor:
    powers = (logits - logits.amax(-1, keepdim=True)).exp()
    places = logits.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    powers = powers * (places < top_k)
    return powers / powers.sum(-1, keepdim=True)


def _filled(fill: float) -> Callable[[Tensor, int], Tensor]:
    def wrong(logits: Tensor, top_k: int) -> Tensor:
        best, chosen = logits.topk(top_k, dim=-1)
        return torch.full_like(logits, fill).scatter(-1, chosen, best).softmax(-1)

    return wrong


def _threshold(logits: Tensor, top_k: int) -> Tensor:
    threshold = logits.topk(top_k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < threshold, -torch.inf).softmax(-1)


def _softmax_then_mask(logits: Tensor, top_k: int) -> Tensor:
    best, chosen = logits.softmax(-1).topk(top_k, dim=-1)
    return torch.zeros_like(logits).scatter(-1, chosen, best)


def _softmax_over_tokens(logits: Tensor, top_k: int) -> Tensor:
    best, chosen = logits.topk(top_k, dim=-1)
    return torch.full_like(logits, -torch.inf).scatter(-1, chosen, best).softmax(0)


def _softmax_of_scores(logits: Tensor, top_k: int) -> Tensor:
    return softmax_over_top_k(logits.softmax(-1), top_k)


SOFTMAX_OVER_TOP_K = Exercise(
    id="02.softmax_over_top_k",
    entry="softmax_over_top_k",
    title="Top-k first, then softmax",
    points=2,
    difficulty=2,
    minutes=10,
    hints=(
        "Give every expert that is not chosen a logit whose `exp` is exactly 0. Which number is that?",
        "Start from a tensor full of `-torch.inf` in the shape of the logits, put the K largest logits back in their "
        "places, and apply one softmax. Use the indices of `topk`: a comparison with the K-th value keeps too many "
        "when experts are tied.",
        "`best, chosen = logits.topk(top_k, dim=-1)`; then `scatter` `best` along `dim=-1` at `chosen` into a tensor "
        "of minus infinity; then the softmax over `dim=-1`.",
    ),
    reference=softmax_over_top_k,
    normalise=_largest_first,
    cases=(
        Case("two tokens, three experts, top-2", _three_experts),
        Case("top-2 of five", spread_logits(8, 5, top_k=2), grad=("logits",)),
        Case("top-4 of six", spread_logits(7, 6, top_k=4), grad=("logits",)),
        Case("top-1: one-hot rows", spread_logits(6, 4, top_k=1)),
        Case("K = E: the plain softmax", spread_logits(4, 3, top_k=3), grad=("logits",)),
        Case("a tie for the last place", _tie_for_the_last_place),
        Case("logits near ±1000", far_logits(1000.0, top_k=2)),
        Case("bfloat16", spread_logits(5, 8, dtype=torch.bfloat16, top_k=3)),
        Case("no tokens", spread_logits(0, 4, top_k=2)),
    ),
    properties=(Property("K gates in a row, at the K largest logits", _wrong_places),),
    misconceptions=(
        Misconception(
            "zero-is-not-minus-infinity",
            "You gave the dropped experts a logit of 0, or multiplied the logits by a mask. `exp(0)` is 1, so they "
            "still take a share: fill with `-torch.inf`.",
            _filled(0.0),
        ),
        Misconception(
            "threshold-keeps-ties",
            "You keep every logit that reaches the K-th largest. Where experts are tied that is more than K, and a "
            "token would cost more compute than planned: keep the K indices that `topk` returns.",
            _threshold,
        ),
        Misconception(
            "softmax-first-without-renormalising",
            "You took the softmax over all experts and then dropped some: the rest sums to less than 1. Either drop "
            "first, or divide by the sum afterwards.",
            _softmax_then_mask,
        ),
        Misconception(
            "softmax-over-tokens",
            "Your softmax runs over the tokens, and an expert that no token chose becomes NaN. Use `dim=-1`.",
            _softmax_over_tokens,
        ),
        Misconception(
            "softmax-twice",
            "You applied the softmax to scores that are a softmax already. The second one works on differences "
            "between probabilities and flattens the gates towards 1/K: feed it the logits.",
            _softmax_of_scores,
        ),
        Misconception(
            "only-the-chosen-columns",
            "You return the K gates alone, (T, K). Here the answer is (T, E): every expert has its own column, with "
            "0 where a token does not go.",
            lambda logits, top_k: logits.topk(top_k, dim=-1).values.softmax(-1),
        ),
    ),
    alternatives=(_scatter_the_softmax, _mask_the_powers),
)
