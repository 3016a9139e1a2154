"""Exercise 09.checkpointed_moe: compute the experts again in the backward pass, and the router once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.checkpoint import checkpoint

from ..spec import Case, Exercise, Misconception
from ..training_drive import call_checkpointed
from .inputs import Inputs, Make, normal

Router = Callable[[Tensor], tuple[Tensor, Tensor]]
Experts = Callable[[Tensor, Tensor, Tensor], Tensor]

ALL = "x w_router w_in w_out"


def checkpointed_moe(x: Tensor, router: Router, experts: Experts) -> tuple[Tensor, Tensor]:
    """Tokens (T, D) to the layer's output (T, D) and the experts' ids (T, K)."""
    weights, expert_ids = router(x)
    return checkpoint(experts, x, weights, expert_ids, use_reentrant=False), expert_ids


def _layer(num_tokens: int, trained: str = ALL, noise: float = 0.0, dropout: float = 0.0) -> Make:
    def make(generator: Generator) -> Inputs:
        num_experts, d_model, d_ff = 6, 5, 11
        return {
            "x": normal(generator, num_tokens, d_model),
            "w_router": normal(generator, num_experts, d_model),
            "w_in": normal(generator, num_experts, d_ff, d_model),
            "w_out": normal(generator, num_experts, d_model, d_ff),
            "trained": trained,
            "noise": noise,
            "dropout": dropout,
        }

    return make


def _by_function(x: Tensor, router: Router, experts: Experts) -> tuple[Tensor, Tensor]:
    weights, expert_ids = router(x)

    def run(tokens: Tensor, gates: Tensor) -> Tensor:
        return experts(tokens, gates, expert_ids)

    return checkpoint(run, x, weights, use_reentrant=False, preserve_rng_state=True), expert_ids


class _Again(torch.autograd.Function):
    """Checkpointing by hand."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Tensor], expert_ids: Tensor, *given: Tensor) -> Tensor:
        ctx.run, ctx.state = run, torch.get_rng_state()
        ctx.save_for_backward(expert_ids, *given)
        return run(*given, expert_ids)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        expert_ids, *given = ctx.saved_tensors
        again = [tensor.detach().requires_grad_() for tensor in given]
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.set_rng_state(ctx.state)
            out = ctx.run(*again, expert_ids)
        torch.autograd.backward(out, dout)
        return None, None, *(tensor.grad for tensor in again)


def _by_hand(x: Tensor, router: Router, experts: Experts) -> tuple[Tensor, Tensor]:
    weights, expert_ids = router(x)
    # Something has to need a gradient, else the function is left out of the graph, and the experts with it.
    hook = x if x.requires_grad else x.detach().requires_grad_(torch.is_grad_enabled())
    return _Again.apply(experts, expert_ids, hook, weights), expert_ids  # type: ignore[no-untyped-call]


def _nothing(x: Tensor, router: Router, experts: Experts) -> tuple[Tensor, Tensor]:
    weights, expert_ids = router(x)
    return experts(x, weights, expert_ids), expert_ids


def _whole_layer(x: Tensor, router: Router, experts: Experts) -> tuple[Tensor, Tensor]:
    def run(tokens: Tensor) -> tuple[Tensor, Tensor]:
        weights, expert_ids = router(tokens)
        return experts(tokens, weights, expert_ids), expert_ids

    return checkpoint(run, x, use_reentrant=False)  # type: ignore[no-any-return]


def _router_only(x: Tensor, router: Router, experts: Experts) -> tuple[Tensor, Tensor]:
    weights, expert_ids = checkpoint(router, x, use_reentrant=False)
    return experts(x, weights, expert_ids), expert_ids


def _router_twice(x: Tensor, router: Router, experts: Experts) -> tuple[Tensor, Tensor]:
    """The router once for the ids, and once more within the checkpoint: under noise, other ids."""

    def run(tokens: Tensor) -> Tensor:
        return experts(tokens, *router(tokens))

    return checkpoint(run, x, use_reentrant=False), router(x)[1]


def _without_gradient(x: Tensor, router: Router, experts: Experts) -> tuple[Tensor, Tensor]:
    weights, expert_ids = router(x)
    with torch.no_grad():
        return experts(x, weights, expert_ids), expert_ids


def _weights_detached(x: Tensor, router: Router, experts: Experts) -> tuple[Tensor, Tensor]:
    weights, expert_ids = router(x)
    return checkpoint(experts, x, weights.detach(), expert_ids, use_reentrant=False), expert_ids


def _reentrant(x: Tensor, router: Router, experts: Experts) -> tuple[Tensor, Tensor]:
    weights, expert_ids = router(x)
    return checkpoint(experts, x, weights, expert_ids, use_reentrant=True), expert_ids


def _other_dropout(x: Tensor, router: Router, experts: Experts) -> tuple[Tensor, Tensor]:
    weights, expert_ids = router(x)
    run = checkpoint(experts, x, weights, expert_ids, use_reentrant=False, preserve_rng_state=False)
    return run, expert_ids


CHECKPOINTED_MOE = Exercise(
    id="09.checkpointed_moe",
    entry="checkpointed_moe",
    title="Checkpoint the experts",
    points=4,
    difficulty=2,
    minutes=12,
    hints=(
        "What is large: the T · E logits of the router, or the hidden activations of the experts? And what must not "
        "turn out otherwise when it is computed a second time?",
        "Call the router yourself, once. Then hand `experts` and all that it needs to "
        "`torch.utils.checkpoint.checkpoint`, of the kind that is not re-entrant.",
        "`weights, expert_ids = router(x)`; "
        "`out = checkpoint(experts, x, weights, expert_ids, use_reentrant=False)`; `return out, expert_ids`.",
    ),
    reference=checkpointed_moe,
    cases=(
        Case("everything is trained", _layer(12)),
        Case("only the experts are trained", _layer(10, "w_in w_out")),
        Case("only the router is trained", _layer(9, "w_router")),
        Case("a noisy router", _layer(16, noise=2.0)),
        Case("dropout in the experts", _layer(14, dropout=0.4)),
        Case("one token", _layer(1)),
    ),
    misconceptions=(
        Misconception(
            "nothing-checkpointed",
            "All activations are kept. Hand the experts to `checkpoint`, which runs them now without keeping anything "
            "and again in the backward pass.",
            _nothing,
        ),
        Misconception(
            "router-checkpointed-too",
            "You checkpointed the router with the experts, so it runs twice. It saves next to nothing, naive load "
            "counters count twice, and on a GPU a token between two experts may go elsewhere the second time: route "
            "once, outside.",
            _whole_layer,
        ),
        Misconception(
            "only-the-router",
            "You checkpointed the router, which is small, and kept the hidden activations of the experts, which are "
            "not.",
            _router_only,
        ),
        Misconception(
            "routed-once-more",
            "You called the router once for the ids and again inside the checkpoint. With noise the two calls decide "
            "otherwise, and the ids you return are not those of the experts that ran. Route once, and pass the "
            "decision on.",
            _router_twice,
        ),
        Misconception(
            "no-grad",
            "You ran the experts under `torch.no_grad()`. That keeps nothing, and no gradient comes back either: "
            "`checkpoint` also arranges for the second run.",
            _without_gradient,
        ),
        Misconception(
            "weights-detached",
            "You cut the routing weights off the graph, so the router learns nothing from the task. They are an input "
            "of the experts like any other.",
            _weights_detached,
        ),
        Misconception(
            "re-entrant",
            "The older, re-entrant kind needs an *input* with a gradient. Where only the experts' own weights are "
            "trained there is none, and they get no gradient. Use `use_reentrant=False`.",
            _reentrant,
        ),
        Misconception(
            "other-dropout",
            "Your second run draws other random numbers than the first, so dropout zeroes other activations, and the "
            "gradient belongs to a pass that never was. Leave `preserve_rng_state` at True.",
            _other_dropout,
        ),
    ),
    alternatives=(_by_function, _by_hand),
    drive=call_checkpointed,
)
