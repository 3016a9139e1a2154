"""Exercise 07.capped_experts: what an MoE layer returns when some choices are dropped."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ...layers import loop_dispatch, position_in_expert
from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make, choices, queue_per_choice, token_by_token


def capped_experts(
    x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor, capacity: int
) -> Tensor:
    """Tokens (T, D), choices (T, K), stacked weights and C to the layer's output, (T, D)."""
    kept = position_in_expert(expert_ids, len(w_in)) < capacity
    return _weighted(x, expert_ids, torch.where(kept, expert_weights, 0), w_in, w_out)


def _weighted(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    return loop_dispatch(x, expert_ids, expert_weights, w_in, w_out)


def _layer(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    capacity: int,
    without: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
    whole: bool = True,
) -> Make:
    """Random tokens, choices and experts. `whole`: the weights of a token sum to 1."""

    def make(generator: Generator) -> Inputs:
        expert_ids, weights = choices(num_tokens, num_experts, top_k, generator, without)
        if whole:
            weights = weights / weights.sum(-1, keepdim=True)
        d_model, d_ff = 4, 6
        drawn = {
            "x": torch.randn(num_tokens, d_model, generator=generator),
            "expert_weights": weights,
            "w_in": torch.randn(num_experts, d_ff, d_model, generator=generator) * d_model**-0.5,
            "w_out": torch.randn(num_experts, d_model, d_ff, generator=generator) * d_ff**-0.5,
        }
        return {name: tensor.to(dtype) for name, tensor in drawn.items()} | {
            "expert_ids": expert_ids,
            "capacity": capacity,
        }

    return make


# Right answers in other words.


def _by_slots(
    x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor, capacity: int
) -> Tensor:
    position = position_in_expert(expert_ids, len(w_in)).clamp(max=capacity)
    slots = F.one_hot(position, capacity + 1)[..., :capacity].to(x.dtype)
    choice = F.one_hot(expert_ids, len(w_in)).to(x.dtype)[..., None] * slots[:, :, None, :]
    rows = F.gelu(torch.einsum("tkec,td->ecd", choice, x) @ w_in.mT) @ w_out.mT
    return torch.einsum("tkec,tk,ecd->td", choice, expert_weights, rows)


def _expert_by_expert(
    x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor, capacity: int
) -> Tensor:
    out = torch.zeros_like(x)
    for expert in range(len(w_in)):
        choice, token = expert_ids.T.eq(expert).nonzero(as_tuple=True)  # first choices first
        choice, token = choice[:capacity], token[:capacity]
        y = F.gelu(x[token] @ w_in[expert].T) @ w_out[expert].T
        out = out.index_add(0, token, y * expert_weights[token, choice, None])
    return out


# Wrong answers: other weights, or something added to what the experts return.


def _reweighted(weights: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A wrong answer whose experts count `weights(expert_weights, kept)`."""

    def wrong(
        x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor, capacity: int
    ) -> Tensor:
        kept = position_in_expert(expert_ids, len(w_in)) < capacity
        return _weighted(x, expert_ids, weights(expert_weights, kept), w_in, w_out)

    return wrong


def _queued(position: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """A wrong answer that seats the choices by another `position`."""

    def wrong(
        x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor, capacity: int
    ) -> Tensor:
        kept = position(expert_ids, len(w_in)) < capacity
        return _weighted(x, expert_ids, torch.where(kept, expert_weights, 0), w_in, w_out)

    return wrong


def _plus(identity: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A wrong answer that adds `identity(expert_weights, kept)` times the token itself, (T,)."""

    def wrong(
        x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor, capacity: int
    ) -> Tensor:
        kept = position_in_expert(expert_ids, len(w_in)) < capacity
        out = _weighted(x, expert_ids, torch.where(kept, expert_weights, 0), w_in, w_out)
        return out + identity(expert_weights, kept)[:, None] * x

    return wrong


def _on_the_input(
    x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor, capacity: int
) -> Tensor:
    kept = position_in_expert(expert_ids, len(w_in)) < capacity
    parts = [
        _weighted(x * expert_weights[:, [k]], expert_ids[:, [k]], kept[:, [k]].to(x.dtype), w_in, w_out)
        for k in range(expert_ids.shape[1])
    ]
    return torch.stack(parts).sum(0)


def _renormalised(expert_weights: Tensor, kept: Tensor) -> Tensor:
    left = torch.where(kept, expert_weights, 0)
    return left / left.sum(-1, keepdim=True).clamp(min=1e-9)


CAPPED_EXPERTS = Exercise(
    id="07.capped_experts",
    entry="capped_experts",
    title="What a dropped token gets",
    points=4,
    difficulty=2,
    minutes=12,
    hints=(
        "The layer adds up the weighted outputs of the choices that found a slot. What does a sum without a term come "
        "to? The residual connection is outside, in the block.",
        "You have everything: positions, slots, and `run_experts`, which takes (E, C, D). Two einsums bring tokens "
        'there, `"tec,td->ecd"`, and back, `"tec,ecd->td"`.',
        "`dispatch, combine = capacity_slots(expert_ids, expert_weights, position_in_expert(expert_ids, E), E, "
        "capacity)`; run the experts on the dispatched tokens; combine. Nothing else: no mask, no division.",
    ),
    reference=capped_experts,
    cases=(
        Case("top-1, short of slots", _layer(10, 4, 1, 2, whole=False)),
        Case("top-2, short of slots", _layer(9, 4, 2, 3), grad=("x", "expert_weights", "w_in")),
        Case("top-3, one slot each", _layer(8, 6, 3, 1)),
        Case("weights that do not sum to 1", _layer(9, 4, 2, 3, whole=False)),
        Case("room for all", _layer(6, 4, 2, 6)),
        Case("experts without tokens", _layer(8, 5, 2, 2, without=(0, 4))),
        Case("every expert, K = E", _layer(5, 3, 3, 3)),
        Case("one expert, E = 1", _layer(5, 1, 1, 3, whole=False)),
        Case("no tokens", _layer(0, 3, 2, 2)),
        Case("bfloat16", _layer(9, 4, 2, 3, dtype=torch.bfloat16)),
    ),
    misconceptions=(
        Misconception(
            "dropped-as-identity",
            "You returned a token without a slot as it came. The block adds the layer's output to its input, so that "
            "token would be doubled. Its output is 0, and the residual connection carries it on.",
            _plus(lambda weights, kept: (~kept).all(-1).to(weights.dtype)),
        ),
        Misconception(
            "dropped-as-weighted-identity",
            "You let a dropped choice contribute its weight times the token itself, as if its expert were the "
            "identity. `transformers` did so for Switch until 2025. A dropped choice contributes 0.",
            _plus(lambda weights, kept: torch.where(kept, 0, weights).sum(-1)),
        ),
        Misconception(
            "residual-inside",
            "You added x to the output. The residual connection belongs to the block around the layer, and would add "
            "it a second time.",
            _plus(lambda weights, kept: torch.ones_like(weights[:, 0])),
        ),
        Misconception(
            "renormalised-after-dropping",
            "You divided a token's remaining weights by their sum. DeepSpeed does that for K > 1; GShard, Mesh "
            "TensorFlow and Megatron leave the weights as the router made them, and so does this exercise. With K = 1 "
            "it would turn each gate into a constant 1.",
            _reweighted(_renormalised),
        ),
        Misconception(
            "token-lost-with-one-choice",
            "You dropped all choices of a token when one of them found no slot. The others have theirs: only the "
            "dropped choice is lost.",
            _reweighted(lambda weights, kept: torch.where(kept.all(-1, keepdim=True), weights, 0)),
        ),
        Misconception(
            "nothing-dropped",
            "Your layer drops nothing: every choice counts, whatever the capacity.",
            _reweighted(lambda weights, kept: weights),
        ),
        Misconception(
            "one-slot-too-many",
            "You kept choices at place C. Places count from 0, so those below C fit.",
            lambda x, expert_ids, expert_weights, w_in, w_out, capacity: capped_experts(
                x, expert_ids, expert_weights, w_in, w_out, capacity + 1
            ),
        ),
        Misconception(
            "token-by-token",
            "You seated token after token, each with all its choices. All first choices come before any second one: "
            "use `position_in_expert`.",
            _queued(token_by_token),
        ),
        Misconception(
            "a-queue-for-each-choice",
            "You gave first and second choices queues of their own, so an expert takes up to K·C tokens. The capacity "
            "is that of an expert, for all choices together.",
            _queued(queue_per_choice),
        ),
        Misconception(
            "weights-on-the-input",
            "You scaled the experts' input by the weight. An expert is not linear: weigh its output, in the combine.",
            _on_the_input,
        ),
    ),
    alternatives=(_by_slots, _expert_by_expert),
)
