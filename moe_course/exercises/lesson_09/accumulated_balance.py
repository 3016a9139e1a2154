"""Exercise 09.accumulated_balance: what each micro-batch contributes to the balance loss of the whole step."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, normal

Parts = Callable[[Tensor, Tensor, Tensor], Tensor]


def accumulated_balance(probs: Tensor, expert_ids: Tensor, token_mask: Tensor) -> Tensor:
    """Probabilities (M, T, E), ids (M, T, K) and a mask (M, T) of M micro-batches to their parts of the loss, (M,)."""
    tokens = token_mask.sum().clamp(min=1)
    fraction = _counts(expert_ids, token_mask, probs).sum(0) / (tokens * expert_ids.shape[-1])
    kept = torch.where(token_mask[..., None], probs, 0).sum(1)  # (M, E)
    return probs.shape[-1] * (kept / tokens * fraction).sum(-1)


def _counts(expert_ids: Tensor, token_mask: Tensor, probs: Tensor) -> Tensor:
    """Choices of each expert in each micro-batch, (M, E), in the dtype of `probs`."""
    one_hot = F.one_hot(expert_ids, probs.shape[-1]).sum(2) * token_mask[..., None]
    return one_hot.sum(1).to(probs.dtype)


def _kept(probs: Tensor, token_mask: Tensor) -> Tensor:
    return (probs * token_mask[..., None]).sum(1)


def _step(sizes: tuple[int, ...], num_experts: int, top_k: int) -> Make:
    """Micro-batches of these sizes, filled up to the largest; each favours other experts."""

    def make(generator: Generator) -> Inputs:
        longest = max(sizes, default=0)
        logits = normal(generator, len(sizes), longest, num_experts)
        for i in range(len(sizes)):
            logits[i] += torch.linspace(2.5, 0, num_experts).roll(2 * i)
        token_mask = torch.arange(longest) < torch.tensor(sizes)[:, None]
        return {
            "probs": logits.softmax(-1),
            "expert_ids": logits.topk(top_k, dim=-1).indices,
            "token_mask": token_mask,
        }

    return make


def _opposites(generator: Generator) -> Inputs:
    """Two micro-batches of which each has its own expert: the step is even."""
    logits = torch.tensor([[[3.0, 0.0]] * 4, [[0.0, 3.0]] * 4]) + 0.3 * torch.rand(2, 4, 2, generator=generator)
    return {
        "probs": logits.softmax(-1),
        "expert_ids": logits.topk(1, dim=-1).indices,
        "token_mask": torch.ones(2, 4, dtype=torch.bool),
    }


def _one_by_one(probs: Tensor, expert_ids: Tensor, token_mask: Tensor) -> Tensor:
    num_experts, top_k = probs.shape[-1], expert_ids.shape[-1]
    tokens = max(int(token_mask.sum()), 1)
    counts = torch.bincount(expert_ids[token_mask].flatten(), minlength=num_experts)
    parts = [
        num_experts * (counts / (tokens * top_k) * p[m].sum(0) / tokens).sum()
        for p, m in zip(probs, token_mask, strict=True)
    ]
    return torch.stack(parts)


def _by_einsum(probs: Tensor, expert_ids: Tensor, token_mask: Tensor) -> Tensor:
    keep = token_mask.to(probs.dtype)
    chosen = torch.zeros_like(probs).scatter(-1, expert_ids, 1.0) / expert_ids.shape[-1]
    tokens = keep.sum().clamp(min=1)
    f = torch.einsum("mte,mt->e", chosen, keep) / tokens
    return torch.einsum("mte,mt,e->m", probs, keep, f) * probs.shape[-1] / tokens


def _sizes(token_mask: Tensor, probs: Tensor) -> Tensor:
    return token_mask.sum(1, keepdim=True).clamp(min=1).to(probs.dtype)  # (M, 1)


def _own_losses(probs: Tensor, expert_ids: Tensor, token_mask: Tensor) -> Tensor:
    """The balance loss of each micro-batch by itself, (M,)."""
    sizes = _sizes(token_mask, probs)
    fraction = _counts(expert_ids, token_mask, probs) / (sizes * expert_ids.shape[-1])
    return probs.shape[-1] * (fraction * _kept(probs, token_mask) / sizes).sum(-1)


def _own_fractions(probs: Tensor, expert_ids: Tensor, token_mask: Tensor) -> Tensor:
    """Right weights for the micro-batches, but each with its own f."""
    share = _sizes(token_mask, probs)[:, 0] * token_mask.any(1) / token_mask.sum().clamp(min=1)
    return _own_losses(probs, expert_ids, token_mask) * share


def _so_far(probs: Tensor, expert_ids: Tensor, token_mask: Tensor) -> Tensor:
    """f of the micro-batches up to this one."""
    seen = _counts(expert_ids, token_mask, probs).cumsum(0)
    fraction = seen / seen.sum(-1, keepdim=True).clamp(min=1)
    tokens = token_mask.sum().clamp(min=1)
    return probs.shape[-1] * (fraction * _kept(probs, token_mask)).sum(-1) / tokens


def _mean_fraction(probs: Tensor, expert_ids: Tensor, token_mask: Tensor) -> Tensor:
    """f as the mean of the micro-batches' f, and P as the mean of their P, whatever their sizes."""
    sizes = _sizes(token_mask, probs)
    fraction = (_counts(expert_ids, token_mask, probs) / (sizes * expert_ids.shape[-1])).mean(0)
    return probs.shape[-1] * (fraction * _kept(probs, token_mask) / sizes).sum(-1) / max(len(probs), 1)


def _times(factor: Callable[[Tensor, Tensor], Tensor | float]) -> Parts:
    """The right parts, times `factor(probs, expert_ids)`."""
    return lambda probs, expert_ids, token_mask: (
        accumulated_balance(probs, expert_ids, token_mask) * factor(probs, expert_ids)
    )


def _divided_by_own_size(probs: Tensor, expert_ids: Tensor, token_mask: Tensor) -> Tensor:
    """The f of the step, and each micro-batch's own mean probability: M times too much."""
    tokens = token_mask.sum().clamp(min=1)
    fraction = _counts(expert_ids, token_mask, probs).sum(0) / (tokens * expert_ids.shape[-1])
    return probs.shape[-1] * (fraction * _kept(probs, token_mask) / _sizes(token_mask, probs)).sum(-1)


def _padding_counted(probs: Tensor, expert_ids: Tensor, token_mask: Tensor) -> Tensor:
    return accumulated_balance(probs, expert_ids, torch.ones_like(token_mask))


def _detached(probs: Tensor, expert_ids: Tensor, token_mask: Tensor) -> Tensor:
    return accumulated_balance(probs.detach(), expert_ids, token_mask)


def _sum_is_not_the_loss(inputs: Inputs, output: Tensor) -> str | None:
    probs, expert_ids, token_mask = (inputs[name] for name in ("probs", "expert_ids", "token_mask"))
    kept, ids = probs[token_mask].double(), expert_ids[token_mask]
    fraction = torch.bincount(ids.flatten(), minlength=probs.shape[-1]) / max(ids.numel(), 1)
    whole = probs.shape[-1] * (fraction * kept.sum(0) / max(len(kept), 1)).sum().item()
    total = output.double().sum().item()
    return (
        None if abs(total - whole) < 1e-4 else f"they add up to {total:.4f}; the loss of the whole step is {whole:.4f}"
    )


ACCUMULATED_BALANCE = Exercise(
    id="09.accumulated_balance",
    entry="accumulated_balance",
    title="The balance loss in parts",
    points=4,
    difficulty=3,
    minutes=15,
    hints=(
        "Which of f and P has to be that of the whole step before you can say what one micro-batch contributes? And "
        "which is a sum over tokens that can be taken apart?",
        "Count f over all tokens of all micro-batches that the mask keeps. Then E · Σ f·P is a sum over tokens: each "
        "kept token brings E · Σ_i f_i · p_i / N, where N is the number of tokens kept in the *step*.",
        "`tokens = token_mask.sum().clamp(min=1)`; `f = bincount(expert_ids[token_mask]) / (tokens * K)`; "
        "`kept = (probs * token_mask[..., None]).sum(1)`, (M, E); return `E * (f * kept).sum(-1) / tokens`.",
    ),
    reference=accumulated_balance,
    cases=(
        Case("two micro-batches with opposite favourites", _opposites, grad=("probs",)),
        Case("three of the same size, top-2", _step((6, 6, 6), 5, 2), grad=("probs",)),
        Case("sizes 9, 3 and 6", _step((9, 3, 6), 6, 1), grad=("probs",)),
        Case("four sizes, top-2", _step((2, 12, 5, 8), 8, 2), grad=("probs",)),
        Case("one micro-batch", _step((10,), 4, 2)),
        Case("an empty one among them", _step((7, 0, 4), 4, 1)),
        Case("nothing but padding", _step((0, 0), 4, 1)),
    ),
    properties=(Property("the parts add up to the loss of the step", _sum_is_not_the_loss),),
    misconceptions=(
        Misconception(
            "each-with-its-own-f",
            "Each of your micro-batches has its own f. A product of means is not the mean of products: a micro-batch "
            "of one kind of text is then pushed to spread over experts that the others keep busy anyway. Count f over "
            "the whole step.",
            _own_fractions,
        ),
        Misconception(
            "losses-of-the-micro-batches",
            "You returned the balance loss of each micro-batch by itself. Their sum is M times too large, and each "
            "has its own f. Count f over the step, and divide by the tokens of the step.",
            _own_losses,
        ),
        Misconception(
            "mean-of-the-micro-batches",
            "You divided each micro-batch's own balance loss by the number of micro-batches. It is the usual way, and "
            "it is another loss: f has to be that of the step, and a token of a small micro-batch weighs too much.",
            lambda probs, expert_ids, token_mask: _own_losses(probs, expert_ids, token_mask) / max(len(probs), 1),
        ),
        Misconception(
            "not-divided",
            "f is that of the step, but you divided each micro-batch's probabilities by its own number of tokens. "
            "Gradients add up over the micro-batches, so yours is about M times too large: divide by the tokens of "
            "the step.",
            _divided_by_own_size,
        ),
        Misconception(
            "divided-twice",
            "You divided by the number of micro-batches once more. The tokens of the step are in the denominator "
            "already: the parts have to *add up* to the loss.",
            _times(lambda probs, expert_ids: 1 / max(len(probs), 1)),
        ),
        Misconception(
            "means-of-means",
            "You averaged the micro-batches' f, and their P, as if all had the same number of tokens. Count choices "
            "and tokens over the step instead.",
            _mean_fraction,
        ),
        Misconception(
            "f-so-far",
            "Your f knows only the micro-batches up to the present one. Early ones then see an f from few tokens. It "
            "saves the second pass, and is what some large trainings do; it is not the loss of the step.",
            _so_far,
        ),
        Misconception(
            "k-forgotten",
            "Your f sums to K. Divide the choices by tokens times K.",
            _times(lambda probs, expert_ids: expert_ids.shape[-1]),
        ),
        Misconception(
            "e-forgotten",
            "The factor E is missing: an even step costs 1, whatever E is.",
            _times(lambda probs, expert_ids: 1 / probs.shape[-1]),
        ),
        Misconception(
            "padding-counted",
            "You counted tokens that the mask leaves out.",
            _padding_counted,
        ),
        Misconception(
            "detached",
            "The values are right, but no gradient reaches the probabilities.",
            _detached,
        ),
    ),
    alternatives=(_one_by_one, _by_einsum),
)
