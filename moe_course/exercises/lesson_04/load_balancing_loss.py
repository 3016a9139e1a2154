"""Exercise 04.load_balancing_loss: E · Σ f·P, whose minimum among decided routers is 1."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ...layers import load_balancing_loss as layers_load_balancing_loss
from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make, fraction_of, keep_of, mean_of, routed


def load_balancing_loss(probs: Tensor, expert_ids: Tensor, token_mask: Tensor | None = None) -> Tensor:
    """E · Σ f·P: probs (T, E), ids (T, K) and a mask (T,) to a scalar."""
    return layers_load_balancing_loss(probs, expert_ids, token_mask=token_mask)


def _batch(
    num_tokens: int, num_experts: int, top_k: int, padded: int | None = None, unused: tuple[int, ...] = ()
) -> Make:
    def make(generator: Generator) -> Inputs:
        _, probs, expert_ids, token_mask = routed(num_tokens, num_experts, top_k, padded, unused)(generator)
        return {"probs": probs, "expert_ids": expert_ids, "token_mask": token_mask}

    return make


def _two_experts(generator: Generator) -> Inputs:
    probs = torch.tensor([[0.75, 0.25], [0.5625, 0.4375], [0.875, 0.125], [0.25, 0.75]])
    return {"probs": probs, "expert_ids": torch.tensor([[0], [0], [0], [1]]), "token_mask": None}


def _collapsed(generator: Generator) -> Inputs:
    probs = F.one_hot(torch.zeros(8, dtype=torch.int64), 4) * 0.96 + 0.01
    return {"probs": probs, "expert_ids": torch.tensor([[0, 2]] * 8), "token_mask": None}


def _with_full_sums(probs: Tensor, expert_ids: Tensor, token_mask: Tensor | None = None) -> Tensor:
    num_experts, top_k, keep = probs.shape[-1], expert_ids.shape[-1], keep_of(token_mask, probs)
    one_hot = F.one_hot(expert_ids, num_experts).sum(1) * keep[:, None]
    tokens = keep.sum().clamp(min=1)
    return num_experts * (one_hot.sum(0) * (probs * keep[:, None]).sum(0)).sum() / (top_k * tokens**2)


def _rows_dropped_first(probs: Tensor, expert_ids: Tensor, token_mask: Tensor | None = None) -> Tensor:
    if token_mask is not None:
        probs, expert_ids = probs[token_mask], expert_ids[token_mask]
    if not len(probs):
        return probs.sum()
    fraction = torch.bincount(expert_ids.flatten(), minlength=probs.shape[1]) / expert_ids.numel()
    return probs.shape[1] * fraction.to(probs.dtype).dot(probs.mean(0))


Combine = Callable[[Tensor, Tensor, int, int], Tensor]


def _combining(combine: Combine) -> Callable[..., Tensor]:
    """Right f, which sums to 1, and right P, then `combine(f, P, E, K)`."""

    def wrong(probs: Tensor, expert_ids: Tensor, token_mask: Tensor | None = None) -> Tensor:
        num_experts, top_k, keep = probs.shape[-1], expert_ids.shape[-1], keep_of(token_mask, probs)
        fraction = fraction_of(expert_ids, num_experts, keep) / top_k
        return combine(fraction, mean_of(probs, keep), num_experts, top_k)

    return wrong


def _with_probs(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """The right loss of `change(probs, expert_ids)`."""
    return lambda probs, expert_ids, token_mask=None: load_balancing_loss(
        change(probs, expert_ids), expert_ids, token_mask
    )


def _renormalised(probs: Tensor, expert_ids: Tensor) -> Tensor:
    kept = probs.gather(-1, expert_ids)
    return torch.zeros_like(probs).scatter(-1, expert_ids, kept / kept.sum(-1, keepdim=True))


def _only_chosen(probs: Tensor, expert_ids: Tensor) -> Tensor:
    return torch.zeros_like(probs).scatter(-1, expert_ids, probs.gather(-1, expert_ids))


def _mask_on_f_only(probs: Tensor, expert_ids: Tensor, token_mask: Tensor | None = None) -> Tensor:
    num_experts, top_k = probs.shape[-1], expert_ids.shape[-1]
    fraction = fraction_of(expert_ids, num_experts, keep_of(token_mask, probs)) / top_k
    return num_experts * (fraction * probs.sum(0) / max(len(probs), 1)).sum()


def _product_before_mean(probs: Tensor, expert_ids: Tensor, token_mask: Tensor | None = None) -> Tensor:
    keep = keep_of(token_mask, probs)
    return probs.shape[-1] * mean_of(probs.gather(-1, expert_ids), keep).mean()


def _nan_without_tokens(probs: Tensor, expert_ids: Tensor, token_mask: Tensor | None = None) -> Tensor:
    keep = keep_of(token_mask, probs)
    fraction = F.one_hot(expert_ids, probs.shape[-1]).sum(1).mul(keep[:, None]).sum(0) / keep.sum()
    return probs.shape[-1] * (fraction / expert_ids.shape[-1] * (probs * keep[:, None]).sum(0) / keep.sum()).sum()


LOAD_BALANCING_LOSS = Exercise(
    id="04.load_balancing_loss",
    entry="load_balancing_loss",
    title="The load-balancing loss",
    points=3,
    difficulty=2,
    minutes=12,
    hints=(
        "You have both parts. `load_fraction` takes the ids as they are. `mean_router_probability` takes logits, and "
        "here you get probabilities: what is left of it without its softmax?",
        "P is the mean of `probs` over the tokens that count. Multiply f and P expert by expert, sum, and multiply "
        "by E so that an even load costs 1 however many experts there are.",
        "`fraction = load_fraction(expert_ids, E, token_mask)`; drop the padded rows of `probs`; `mean = "
        "probs.sum(0) / max(len(probs), 1)`; return `E * (fraction * mean).sum()` with `E = probs.shape[-1]`.",
    ),
    reference=load_balancing_loss,
    cases=(
        Case("four tokens, two experts", _two_experts, grad=("probs",)),
        Case("top-1", _batch(24, 6, 1), grad=("probs",)),
        Case("top-2 with padding", _batch(30, 6, 2, padded=11), grad=("probs",)),
        Case("top-4 of 16", _batch(40, 16, 4), grad=("probs",)),
        Case("experts that nobody chose", _batch(20, 8, 2, unused=(1, 7))),
        Case("every token to the same two experts", _collapsed),
        Case("nothing but padding", _batch(6, 4, 2, padded=6)),
        Case("no tokens", _batch(0, 4, 2)),
    ),
    misconceptions=(
        Misconception(
            "p-over-renormalised-top-k",
            "You averaged the renormalised weights of the chosen experts. P is over the full softmax. With K = 1 "
            "those weights are a constant 1, and the loss has no gradient at all.",
            _with_probs(_renormalised),
        ),
        Misconception(
            "p-over-chosen-only",
            "You averaged only the probabilities of chosen experts. Those of the others belong to P as well: that is "
            "how an expert that nobody chooses is pulled back.",
            _with_probs(_only_chosen),
        ),
        Misconception(
            "softmax-twice",
            "`probs` are probabilities already. Your second softmax flattens them, every P comes out near 1/E, and "
            "the loss hardly sees an imbalance.",
            _with_probs(lambda probs, expert_ids: probs.softmax(-1)),
        ),
        Misconception(
            "factor-e-missing",
            "The factor E is missing (or you took a mean over experts and left the E² that would make up for it). "
            "Without it an even load costs 1/E, and α would mean something else for every number of experts.",
            _combining(lambda f, p, num_experts, top_k: (f * p).sum()),
        ),
        Misconception(
            "factor-e-squared",
            "You multiply by E once too often. E² belongs to a *mean* over experts, E to a sum.",
            _combining(lambda f, p, num_experts, top_k: num_experts**2 * (f * p).sum()),
        ),
        Misconception(
            "not-divided-by-k",
            "Your f sums to K, so the loss is K times as large and an even load costs K. Hugging Face's models count "
            "so; here f is the fraction of the choices, and an even load costs 1.",
            _combining(lambda f, p, num_experts, top_k: num_experts * top_k * (f * p).sum()),
        ),
        Misconception(
            "not-divided-by-k-and-padding-counted",
            "Two things: you did not use the mask, so padding counts in f and in P; and your f sums to K, so that an "
            "even load costs K and not 1.",
            lambda probs, expert_ids, token_mask=None: load_balancing_loss(probs, expert_ids) * expert_ids.shape[1],
        ),
        Misconception(
            "divided-by-k-twice",
            "You divided by K twice: `load_fraction` has done it already.",
            _combining(lambda f, p, num_experts, top_k: num_experts / top_k * (f * p).sum()),
        ),
        Misconception(
            "padding-counted",
            "You did not use the mask. Padding is routed too, all of it alike, and here it counts in f and in P.",
            lambda probs, expert_ids, token_mask=None: load_balancing_loss(probs, expert_ids),
        ),
        Misconception(
            "mask-on-f-only",
            "f leaves padding out, P does not. Both are means over the same tokens.",
            _mask_on_f_only,
        ),
        Misconception(
            "f-squared",
            "You used f for both factors. The value looks right, but f is made of counts and has no gradient: the "
            "router cannot learn from it.",
            _combining(lambda f, p, num_experts, top_k: num_experts * (f * f).sum()),
        ),
        Misconception(
            "p-squared",
            "You used P for both factors. That loss never looks at who was chosen: with narrow favourites P is even "
            "while one expert does all the work.",
            _combining(lambda f, p, num_experts, top_k: num_experts * (p * p).sum()),
        ),
        Misconception(
            "product-before-mean",
            "You averaged f·P over tokens instead of averaging each first: that is the mean probability of the chosen "
            "experts. It punishes a router for being sure, not for being uneven.",
            _product_before_mean,
        ),
        Misconception(
            "p-detached",
            "The value is right, but P is detached. f has no gradient, so nothing is left that could teach the router.",
            _combining(lambda f, p, num_experts, top_k: num_experts * (f * p.detach()).sum()),
        ),
        Misconception(
            "first-choice-only",
            "Your f counts first choices only. GShard's loss does that; this one counts all K choices of a token.",
            lambda probs, expert_ids, token_mask=None: load_balancing_loss(probs, expert_ids[:, :1], token_mask),
        ),
        Misconception(
            "nan-without-tokens",
            "A batch in which no token counts gives 0/0, NaN. It has no imbalance: the loss is 0.",
            _nan_without_tokens,
        ),
    ),
    alternatives=(_with_full_sums, _rows_dropped_first),
)
