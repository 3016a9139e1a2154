"""Exercise 04.balance_gradient: what the balance loss does to every logit, by hand."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ...layers import load_balancing_loss, load_fraction
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, routed


def balance_gradient(probs: Tensor, expert_ids: Tensor) -> Tensor:
    """∂ loss / ∂ logits of the balance loss: probs (T, E) and ids (T, K) to (T, E)."""
    num_tokens, num_experts = probs.shape
    fraction = load_fraction(expert_ids, num_experts).to(probs.dtype)
    return num_experts / max(num_tokens, 1) * probs * (fraction - (probs * fraction).sum(-1, keepdim=True))


def _batch(num_tokens: int, num_experts: int, top_k: int, unused: tuple[int, ...] = ()) -> Make:
    def make(generator: Generator) -> Inputs:
        _, probs, expert_ids, _ = routed(num_tokens, num_experts, top_k, unused=unused)(generator)
        return {"probs": probs, "expert_ids": expert_ids}

    return make


def _three_tokens(generator: Generator) -> Inputs:
    probs = torch.tensor([[0.5, 0.25, 0.25], [0.625, 0.125, 0.25], [0.25, 0.25, 0.5]])
    return {"probs": probs, "expert_ids": torch.tensor([[0], [0], [2]])}


def _one_expert_for_all(generator: Generator) -> Inputs:
    _, probs, _, _ = routed(10, 4, 1)(generator)
    return {"probs": probs, "expert_ids": torch.full((10, 1), 2)}


def _rows_that_shift(inputs: Inputs, gradient: Tensor) -> str | None:
    sums = gradient.sum(-1).abs()
    worst = sums.max().item() if len(sums) else 0.0
    if worst < 1e-5:
        return None
    return f"a row sums to {worst:.3g}: adding the same number to all logits of a token would change the loss"


def _by_autograd(probs: Tensor, expert_ids: Tensor) -> Tensor:
    with torch.enable_grad():
        logits = probs.log().detach().requires_grad_()
        (gradient,) = torch.autograd.grad(load_balancing_loss(logits.softmax(-1), expert_ids), logits)
    return gradient


def _token_by_token(probs: Tensor, expert_ids: Tensor) -> Tensor:
    num_tokens, num_experts = probs.shape
    by_mean = num_experts * torch.bincount(expert_ids.flatten(), minlength=num_experts) / max(expert_ids.numel(), 1)
    rows = [(p.diag() - torch.outer(p, p)) @ by_mean.to(p.dtype) / num_tokens for p in probs]
    return torch.stack(rows) if rows else torch.zeros_like(probs)


def _pulled(gradient: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """E / T · `gradient(probs, f, was chosen)`; f is (E,), was chosen (T, E)."""

    def wrong(probs: Tensor, expert_ids: Tensor) -> Tensor:
        num_tokens, num_experts = probs.shape
        fraction = load_fraction(expert_ids, num_experts).to(probs.dtype)
        chosen = torch.zeros_like(probs).scatter(1, expert_ids, 1.0)
        return num_experts / max(num_tokens, 1) * gradient(probs, fraction, chosen)

    return wrong


def _right(p: Tensor, f: Tensor) -> Tensor:
    return p * (f - (p * f).sum(-1, keepdim=True))


BALANCE_GRADIENT = Exercise(
    id="04.balance_gradient",
    entry="balance_gradient",
    title="What the loss does to each logit",
    points=3,
    difficulty=3,
    minutes=15,
    hints=(
        "f is a constant. So the loss is linear in P, and P is a mean: what is ∂ loss / ∂ p for one token and one "
        "expert? Then go through the softmax, whose Jacobian you know from lesson 02.",
        "∂ loss / ∂ p_ti = (E/T)·f_i, the same for all tokens. The softmax turns a gradient g by probabilities into "
        "p_i·(g_i − Σ_j p_j·g_j) by logits.",
        "Together: (E/T) · p_ti · (f_i − Σ_j p_tj·f_j). The sum is over the experts of a token; keep it a column "
        "with `keepdim=True`.",
    ),
    reference=balance_gradient,
    cases=(
        Case("three tokens, three experts", _three_tokens),
        Case("top-1", _batch(12, 5, 1)),
        Case("top-2", _batch(20, 6, 2)),
        Case("experts that nobody chose", _batch(9, 6, 2, unused=(0, 4))),
        Case("one expert for all tokens", _one_expert_for_all),
        Case("no tokens", _batch(0, 4, 1)),
    ),
    properties=(Property("a shift of all logits of a token changes nothing", _rows_that_shift),),
    misconceptions=(
        Misconception(
            "by-probabilities",
            "This is the gradient by the probabilities. The router makes logits: go on through the softmax, which "
            "couples the experts of a token.",
            _pulled(lambda p, f, chosen: f.expand_as(p)),
        ),
        Misconception(
            "own-logit-only",
            "You differentiated each probability by its own logit only, p(1 − p). When a logit rises the other "
            "probabilities fall, and they are in the loss as well.",
            _pulled(lambda p, f, chosen: f * p * (1 - p)),
        ),
        Misconception(
            "chosen-only",
            "You gave a gradient to the chosen experts only. P is over the full softmax: an expert that nobody chose "
            "is pulled *up* by this loss, and that is how it comes back.",
            _pulled(lambda p, f, chosen: _right(p, f) * chosen),
        ),
        Misconception(
            "f-has-a-gradient",
            "You differentiated f as well, as if it were P. f counts choices: a small change of a logit changes no "
            "choice, so its derivative is zero.",
            _pulled(lambda p, f, chosen: _right(p, f) + _right(p, p.sum(0) / max(len(p), 1))),
        ),
        Misconception(
            "excess-over-uniform",
            "You compare f with 1/E. A token's logits feel the difference from *its own* mean load, Σ_j p_j·f_j: a "
            "token that leans to busy experts feels it more.",
            _pulled(lambda p, f, chosen: p * (f - 1 / f.numel())),
        ),
        Misconception(
            "one-over-t-missing",
            "1/T is missing. P is a mean over T tokens, so each of them moves it by a T-th.",
            _pulled(lambda p, f, chosen: _right(p, f) * len(p)),
        ),
        Misconception(
            "factor-e-missing",
            "The factor E of the loss is missing.",
            _pulled(lambda p, f, chosen: _right(p, f) / f.numel()),
        ),
        Misconception(
            "not-divided-by-k",
            "Your gradient is K times too large. f is the fraction of the choices, which are T·K, and sums to 1.",
            lambda probs, expert_ids: balance_gradient(probs, expert_ids) * expert_ids.shape[1],
        ),
        Misconception(
            "sign-flipped",
            "Every sign is the wrong way round. This is the gradient of the loss: positive where raising a logit "
            "makes the loss worse, which is at busy experts.",
            _pulled(lambda p, f, chosen: -_right(p, f)),
        ),
    ),
    alternatives=(_by_autograd, _token_by_token),
)
