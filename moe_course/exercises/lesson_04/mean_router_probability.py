"""Exercise 04.mean_router_probability: the mean of the full softmax over the tokens that are no padding."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ...layers import mean_probability
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, keep_of, mean_of, routed


def mean_router_probability(logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """P: logits (T, E) and a mask (T,) to mean probabilities (E,), in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return mean_probability(logits.softmax(dim=-1), token_mask=token_mask)


def _logits(num_tokens: int, num_experts: int, padded: int | None, dtype: torch.dtype = torch.float32) -> Make:
    def make(generator: Generator) -> Inputs:
        logits, _, _, token_mask = routed(num_tokens, num_experts, 1, padded)(generator)
        return {"logits": logits.to(dtype), "token_mask": token_mask}

    return make


def _logs_of_powers(generator: Generator) -> Inputs:
    logits = torch.tensor([[1.0, 3.0, 4.0], [6.0, 1.0, 1.0], [1.0, 1.0, 998.0]]).log()
    return {"logits": logits, "token_mask": torch.tensor([True, True, False])}


def _many_in_bfloat16(generator: Generator) -> Inputs:
    logits = torch.randn(3000, 4, generator=generator) + torch.tensor([1.0, 0.5, 0.0, -0.5])
    return {"logits": logits.bfloat16(), "token_mask": None}


def _wrong_sum(inputs: Inputs, mean: Tensor) -> str | None:
    mask = inputs["token_mask"]
    total, counts = float(mean.sum()), len(inputs["logits"]) if mask is None else int(mask.sum())
    if counts and not abs(total - 1) < 1e-3:
        return f"the mean probabilities sum to {total:.4g}, not 1"
    return None


def _one_token_at_a_time(logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    rows = [row.float().softmax(0) for t, row in enumerate(logits) if token_mask is None or token_mask[t]]
    return torch.stack(rows).mean(0) if rows else logits.float().sum(0) * 0


def _as_a_product(logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    probs = (logits.float() - logits.float().logsumexp(-1, keepdim=True)).exp()
    keep = keep_of(token_mask, probs)
    return keep @ probs / keep.sum().clamp(min=1)


def _from(probs: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A right mean over tokens of `probs(logits)`."""

    def wrong(logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
        rows = probs(logits.float())
        return mean_of(rows, keep_of(token_mask, rows))

    return wrong


def _averaging(mean: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A right softmax, then `mean(probs, keep)`."""

    def wrong(logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
        probs = logits.float().softmax(-1)
        return mean(probs, keep_of(token_mask, probs))

    return wrong


def _mask_before_softmax(logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    keep = keep_of(token_mask, logits)
    return mean_router_probability(logits * keep[:, None])


def _softmax_of_mean(logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    logits = logits.float()
    return mean_of(logits, keep_of(token_mask, logits)).softmax(-1)


def _only_the_best(logits: Tensor) -> Tensor:
    probs = logits.softmax(-1)
    return probs * F.one_hot(probs.argmax(-1), probs.shape[-1])


def _in_the_logits_dtype(logits: Tensor, token_mask: Tensor | None = None) -> Tensor:
    probs = logits.softmax(-1)
    keep = keep_of(token_mask, probs)
    return (probs * keep[:, None]).sum(0) / keep.sum().clamp(min=1)


MEAN_ROUTER_PROBABILITY = Exercise(
    id="04.mean_router_probability",
    entry="mean_router_probability",
    title="P, the mean probability",
    points=2,
    difficulty=1,
    minutes=8,
    hints=(
        "First the softmax of each token over *all* experts, then the mean over tokens. What must the mean leave out, "
        "and what does it divide by?",
        "`logits.float().softmax(dim=-1)` is (T, E). With a mask, keep the rows where it is True. A mean over no rows "
        "is NaN: a sum divided by at least 1 is not.",
        "`probs = logits.float().softmax(dim=-1)`; if there is a mask, `probs = probs[token_mask]`; return "
        "`probs.sum(dim=0) / max(len(probs), 1)`.",
    ),
    reference=mean_router_probability,
    cases=(
        Case("two tokens and one of padding", _logs_of_powers),
        Case("no mask", _logits(16, 5, None), grad=("logits",)),
        Case("with padding", _logits(20, 6, 8), grad=("logits",)),
        Case("nothing but padding", _logits(5, 4, 5)),
        Case("no tokens", _logits(0, 4, None)),
        Case("3000 bfloat16 tokens, a float32 mean", _many_in_bfloat16),
        Case("one expert", _logits(6, 1, 2)),
    ),
    properties=(Property("mean probabilities sum to 1", _wrong_sum),),
    misconceptions=(
        Misconception(
            "padding-counted",
            "Your mean includes padding. It leans to experts of its own, and P no longer says what the router thinks "
            "of real tokens.",
            lambda logits, token_mask=None: mean_router_probability(logits),
        ),
        Misconception(
            "divided-by-all-tokens",
            "You left padding out of the sum but divided by all T tokens. Divide by the number of tokens that count: "
            "`token_mask.sum()`.",
            _averaging(lambda probs, keep: (probs * keep[:, None]).sum(0) / max(len(probs), 1)),
        ),
        Misconception(
            "mask-before-softmax",
            "You set the logits of padding to 0. Their softmax is then 1/E for every expert, not nothing. Mask the "
            "probabilities, not the logits.",
            _mask_before_softmax,
        ),
        Misconception(
            "softmax-of-the-mean",
            "You averaged the logits and took one softmax of that. A softmax is not linear: take it for each token, "
            "and average the probabilities.",
            _softmax_of_mean,
        ),
        Misconception(
            "softmax-over-tokens",
            "Your softmax runs over the tokens, so every expert's column sums to 1. The experts compete for a token: "
            "`dim=-1`.",
            _from(lambda logits: logits.softmax(0)),
        ),
        Misconception(
            "softmax-twice",
            "You took a softmax of a softmax. Probabilities differ by less than 1, so the second one makes every "
            "expert look almost alike.",
            _from(lambda logits: logits.softmax(-1).softmax(-1)),
        ),
        Misconception(
            "only-the-chosen",
            "You averaged only the probability of each token's best expert. P is over the full softmax: probability "
            "given to experts that were *not* chosen counts, and carries gradient to them.",
            _from(_only_the_best),
        ),
        Misconception(
            "mean-over-experts",
            "You averaged over the experts, which gives 1/E for every token. Average over the tokens: `dim=0`.",
            _averaging(lambda probs, keep: probs.mean(-1)),
        ),
        Misconception(
            "detached",
            "The numbers are right, but no gradient reaches the logits: `detach`, `no_grad` or `.data` cut it. P is "
            "the only part of the balance loss that the router can learn from.",
            _averaging(lambda probs, keep: mean_of(probs.detach(), keep)),
        ),
        Misconception(
            "nan-without-tokens",
            "Where no token counts you compute 0/0, which is NaN. Divide by at least 1: without tokens P is zero.",
            _averaging(lambda probs, keep: (probs * keep[:, None]).sum(0) / keep.sum()),
        ),
        Misconception(
            "low-precision",
            "You stayed in bfloat16, which keeps 8 significant bits. Take the softmax and the mean in float32.",
            _in_the_logits_dtype,
        ),
    ),
    alternatives=(_one_token_at_a_time, _as_a_product),
)
