"""Exercise 02.router_scores: softmax or sigmoid, over the right dimension and without overflow."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor

from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, far_logits, spread_logits

Score = Literal["softmax", "sigmoid"]


def router_scores(logits: Tensor, score: Score = "softmax") -> Tensor:
    """Turn logits (…, E) into scores (…, E) between 0 and 1, in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits.softmax(dim=-1) if score == "softmax" else logits.sigmoid()


def _logs_of_powers(generator: Generator) -> Inputs:
    return {"logits": torch.tensor([[1.0, 2.0, 4.0], [8.0, 8.0, 16.0]]).log(), "score": "softmax"}


def _wrong_sum(inputs: Inputs, scores: Tensor) -> str | None:
    if inputs["score"] != "softmax":
        return None
    sums = scores.float().sum(-1).flatten()
    worst = sums[(sums - 1).abs().nan_to_num(torch.inf).argmax()].item()
    return None if abs(worst - 1) < 1e-4 else f"a row of softmax scores sums to {worst:.4g}, not 1"


def _by_hand(logits: Tensor, score: Score = "softmax") -> Tensor:
    logits = logits.float()
    if score == "sigmoid":
        return 1 / (1 + torch.exp(-logits))
    powers = (logits - logits.max(dim=-1, keepdim=True).values).exp()
    return powers / powers.sum(dim=-1, keepdim=True)


def _through_logsumexp(logits: Tensor, score: Score = "softmax") -> Tensor:
    logits = logits.float()
    if score == "sigmoid":
        return 0.5 * (1 + torch.tanh(logits / 2))
    return (logits - logits.logsumexp(-1, keepdim=True)).exp()


def _with_softmax(softmax: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """An answer with a softmax of its own and a right sigmoid."""

    def wrong(logits: Tensor, score: Score = "softmax") -> Tensor:
        return softmax(logits.float()) if score == "softmax" else logits.float().sigmoid()

    return wrong


def _naive_exp(logits: Tensor, score: Score = "softmax") -> Tensor:
    powers = logits.float().exp()
    return powers / powers.sum(-1, keepdim=True) if score == "softmax" else powers / (1 + powers)


def _one_maximum(logits: Tensor) -> Tensor:
    powers = (logits - logits.max()).exp()
    return powers / powers.sum(-1, keepdim=True)


def _sum_to_one(logits: Tensor, score: Score = "softmax") -> Tensor:
    scores = router_scores(logits, score)
    return scores / scores.sum(-1, keepdim=True)


ROUTER_SCORES = Exercise(
    id="02.router_scores",
    entry="router_scores",
    title="From logits to scores",
    points=2,
    difficulty=2,
    minutes=8,
    hints=(
        "A softmax shares 1 out among the experts of one token. Which dimension holds the experts?",
        "Bring the logits to float32 first, `logits.float()`. If you write the softmax yourself, subtract each row's "
        "own maximum before `exp`: it cancels in the quotient, and nothing overflows.",
        "Convert the logits, then return `torch.softmax` over `dim=-1` or `torch.sigmoid`, whichever `score` names. "
        "Both are stable for huge logits.",
    ),
    reference=router_scores,
    cases=(
        Case("logs of 1, 2, 4", _logs_of_powers),
        Case("softmax over a batch of sequences", spread_logits(3, 4, 5, score="softmax"), grad=("logits",)),
        Case("sigmoid over a batch of sequences", spread_logits(3, 4, 5, score="sigmoid"), grad=("logits",)),
        Case("softmax of logits near ±1000", far_logits(1000.0, score="softmax")),
        Case("sigmoid of logits near ±1000", far_logits(1000.0, score="sigmoid")),
        Case("bfloat16 logits, float32 scores", spread_logits(6, 8, dtype=torch.bfloat16, score="softmax")),
        Case("one expert", spread_logits(4, 1, score="softmax")),
        Case("no tokens", spread_logits(0, 5, score="sigmoid", dtype=torch.bfloat16)),
        Case("logits are not contiguous", spread_logits(6, 5, transposed=True, score="softmax")),
    ),
    properties=(Property("softmax scores of a token sum to 1", _wrong_sum),),
    misconceptions=(
        Misconception(
            "softmax-over-tokens",
            "Your softmax runs over the tokens: columns sum to 1, rows do not. The experts compete for a token, not "
            "the tokens for an expert, so the softmax belongs on the last dimension.",
            _with_softmax(lambda logits: logits.softmax(dim=-2)),
        ),
        Misconception(
            "softmax-without-dim",
            "Without `dim`, `F.softmax` guesses: the last dimension of a matrix, but the first of a (B, S, E) batch, "
            "where tokens of different sequences then compete. Say `dim=-1`.",
            _with_softmax(lambda logits: logits.softmax(dim=0 if logits.dim() == 3 else 1)),
        ),
        Misconception(
            "exp-overflows",
            "Your formula is right on paper, but `exp` of a large logit is infinite and of a very negative one zero: "
            "inf/inf and 0/0 are NaN. Subtract each row's maximum first, or use `torch.softmax` and `torch.sigmoid`.",
            _naive_exp,
        ),
        Misconception(
            "one-maximum-for-all",
            "You subtract the largest logit of the whole batch. A token whose logits all lie far below it gets 0 from "
            "every `exp`, and 0/0 is NaN. Subtract each row's own maximum.",
            _with_softmax(_one_maximum),
        ),
        Misconception(
            "scores-in-low-precision",
            "You stayed in the logits' dtype. bfloat16 keeps 8 significant bits, too few to tell close experts apart: "
            "routers compute scores in float32.",
            lambda logits, score="softmax": logits.softmax(-1) if score == "softmax" else logits.sigmoid(),
        ),
        Misconception(
            "sigmoid-ignored",
            "You return a softmax whatever `score` says. Sigmoid scores are independent: each depends on its own "
            "logit alone, and a row need not sum to 1.",
            lambda logits, score="softmax": logits.float().softmax(-1),
        ),
        Misconception(
            "sigmoids-made-to-sum-to-one",
            "You divided the sigmoids by their sum over all experts, which makes the experts compete again. Only the "
            "K chosen weights are renormalised, later, in `route`.",
            _sum_to_one,
        ),
    ),
    alternatives=(_by_hand, _through_logsumexp),
)
