"""Exercise 03.visit_experts: the loop over experts, each of which fetches its own tokens."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ...layers import ffn
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, choices, stacked_weights


def visit_experts(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """The MoE layer as a loop over experts: x (T, D), ids and weights (T, K), stacked weights, to (T, D)."""
    out = torch.zeros_like(x)
    for expert, (w_in_e, w_out_e) in enumerate(zip(w_in.unbind(0), w_out.unbind(0), strict=True)):
        tokens, choice = torch.where(expert_ids == expert)
        y = F.linear(F.gelu(F.linear(x[tokens], w_in_e)), w_out_e)
        out.index_add_(0, tokens, y * expert_weights[tokens, choice, None])
    return out


def _tokens(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    without: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
    transposed: bool = False,
) -> Make:
    def make(generator: Generator) -> Inputs:
        x = torch.randn(num_tokens, 6, generator=generator)
        x = x.mT.contiguous().mT if transposed else x
        expert_ids, weights = choices(num_tokens, num_experts, top_k, generator, without)
        w_in, w_out = stacked_weights(num_experts, 6, 8, generator, transposed)
        floats = {"x": x, "expert_weights": weights, "w_in": w_in, "w_out": w_out}
        return {"expert_ids": expert_ids, **{name: tensor.to(dtype) for name, tensor in floats.items()}}

    return make


def _two_tokens_by_hand(generator: Generator) -> Inputs:
    eye = torch.eye(2)
    return {
        "x": torch.tensor([[5.0, 0.0], [0.0, 5.0]]),
        "expert_ids": torch.tensor([[0, 2], [2, 1]]),
        "expert_weights": torch.tensor([[0.75, 0.25], [0.5, 0.25]]),
        "w_in": torch.stack([eye, 2 * eye, 3 * eye]),
        "w_out": torch.stack([eye, eye, eye]),
    }


def _all_to_one(generator: Generator) -> Inputs:
    inputs = _tokens(7, 4, 1)(generator)
    return inputs | {"expert_ids": torch.full((7, 1), 2)}


def _depends_on_neighbours(inputs: Inputs, out: Tensor) -> str | None:
    """A token's output may depend on its own row only; checked on the first token, alone."""
    if len(out) < 2 or out.dtype != torch.float32:
        return None
    first = {name: inputs[name][:1] for name in ("x", "expert_ids", "expert_weights")}
    alone = visit_experts(**first, w_in=inputs["w_in"], w_out=inputs["w_out"])
    if torch.allclose(out[:1], alone, rtol=1e-3, atol=1e-4):
        return None
    return "token 0 alone in a batch gets another output than among its neighbours"


# Right answers in other words.


def _token_by_token(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    rows = [
        sum(weight * ffn(row, w_in[e], w_out[e]) for e, weight in zip(ids.tolist(), weights, strict=True))
        for row, ids, weights in zip(x, expert_ids, expert_weights, strict=True)
    ]
    return torch.stack(rows) if rows else torch.zeros_like(x)


def _all_then_mask(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """Every expert on every token, each weighted by its gate, which is 0 where it was not chosen."""
    gates = torch.zeros(len(x), len(w_in), dtype=x.dtype).scatter(1, expert_ids, expert_weights)
    out = torch.zeros_like(x)
    for e in range(len(w_in)):
        out = out + gates[:, e, None] * ffn(x, w_in[e], w_out[e])
    return out


def _in_place_addition(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for k in range(expert_ids.shape[1]):
        for e in expert_ids[:, k].unique():
            mask = expert_ids[:, k] == e
            out[mask] += expert_weights[mask, k, None] * ffn(x[mask], w_in[e], w_out[e])
    return out


# Wrong answers: a loop that goes wrong in one place.


def _looping(add: Callable[..., None]) -> Callable[..., Tensor]:
    """The loop with another body: `add(out, x, tokens, choice, expert_weights, expert, w_in_e, w_out_e)`."""

    def wrong(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for e in range(len(w_in)):
            tokens, choice = torch.where(expert_ids == e)
            add(out, x, tokens, choice, expert_weights, e, w_in[e], w_out[e])
        return out

    return wrong


def _overwrite(out, x, tokens, choice, expert_weights, e, w_in, w_out) -> None:
    out[tokens] = expert_weights[tokens, choice, None] * ffn(x[tokens], w_in, w_out)


def _unweighted(out, x, tokens, choice, expert_weights, e, w_in, w_out) -> None:
    out[tokens] += ffn(x[tokens], w_in, w_out)


def _weighted_input(out, x, tokens, choice, expert_weights, e, w_in, w_out) -> None:
    out[tokens] += ffn(expert_weights[tokens, choice, None] * x[tokens], w_in, w_out)


def _mean_of_choices(out, x, tokens, choice, expert_weights, e, w_in, w_out) -> None:
    weights = expert_weights[tokens, choice, None] / expert_weights.shape[1]
    out[tokens] += weights * ffn(x[tokens], w_in, w_out)


def _first_weight(out, x, tokens, choice, expert_weights, e, w_in, w_out) -> None:
    out[tokens] += expert_weights[tokens, 0, None] * ffn(x[tokens], w_in, w_out)


def _detached(out, x, tokens, choice, expert_weights, e, w_in, w_out) -> None:
    out[tokens] += expert_weights[tokens, choice, None].detach() * ffn(x[tokens], w_in, w_out)


def _every_token(out, x, tokens, choice, expert_weights, e, w_in, w_out) -> None:
    out += ffn(x, w_in, w_out)


def _divided_by_load(out, x, tokens, choice, expert_weights, e, w_in, w_out) -> None:
    out[tokens] += expert_weights[tokens, choice, None] * ffn(x[tokens], w_in, w_out) / len(tokens)


def _stacked_rows(out, x, tokens, choice, expert_weights, e, w_in, w_out) -> None:
    rows = torch.stack([x[token] for token in tokens])  # RuntimeError: stack expects a non-empty list
    out[tokens] += expert_weights[tokens, choice, None] * ffn(rows, w_in, w_out)


def _first_choice_only(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    return visit_experts(x, expert_ids[:, :1], expert_weights[:, :1], w_in, w_out)


VISIT_EXPERTS = Exercise(
    id="03.visit_experts",
    entry="visit_experts",
    title="The loop over experts",
    points=4,
    difficulty=1,
    minutes=12,
    hints=(
        "Turn the sum over a token's experts around: visit the experts one after another, and let each look "
        "for its own tokens. `expert_ids == e` is a (T, K) mask of the choices that went to expert `e`.",
        "`tokens, choice = torch.where(expert_ids == e)` gives row and column of each such choice. The rows "
        "say which tokens to fetch from `x`, both together say which weight: the columns of "
        "`expert_weights` are choices, not experts. Nothing breaks when they are empty.",
        "Start with `out = torch.zeros_like(x)`. For each expert: run its FFN on `x[tokens]`, multiply each "
        "row by `expert_weights[tokens, choice]` with a trailing dimension of 1, and *add* that to the rows "
        "`tokens` of `out`, with `+=` or `index_add`.",
    ),
    reference=visit_experts,
    cases=(
        Case("two tokens by hand, K = 2", _two_tokens_by_hand),
        Case("top-1", _tokens(6, 3, 1)),
        Case("top-2 of four", _tokens(9, 4, 2), grad=("x", "expert_weights", "w_in", "w_out")),
        Case("top-3 of eight", _tokens(10, 8, 3)),
        Case("an expert without tokens", _tokens(8, 4, 2, without=(1,))),
        Case("every expert, K = E", _tokens(5, 3, 3)),
        Case("one expert, E = 1", _tokens(5, 1, 1)),
        Case("all tokens to one expert", _all_to_one),
        Case("no tokens at all", _tokens(0, 4, 2)),
        Case("not contiguous", _tokens(7, 4, 2, transposed=True)),
        Case("bfloat16", _tokens(7, 4, 2, dtype=torch.bfloat16)),
    ),
    properties=(Property("a token's output does not depend on its neighbours", _depends_on_neighbours),),
    misconceptions=(
        Misconception(
            "overwritten-not-added",
            "Each expert overwrites what an earlier one wrote, so only a token's last expert counts. With K "
            "> 1 the contributions must be added: `out[tokens] += …`, not `out[tokens] = …`.",
            _looping(_overwrite),
        ),
        Misconception(
            "weights-forgotten",
            "The experts' outputs are added without their weights. The weight is also the only way by which "
            "the router gets a gradient.",
            _looping(_unweighted),
        ),
        Misconception(
            "weights-on-the-input",
            "You weigh the token before the expert instead of its output. An expert is not linear: ffn(g·x) "
            "is not g·ffn(x).",
            _looping(_weighted_input),
        ),
        Misconception(
            "mean-over-choices",
            "The result is divided by K. The weights already say how much each expert counts; a mean on top "
            "shrinks the output.",
            _looping(_mean_of_choices),
        ),
        Misconception(
            "first-weight-for-every-choice",
            "Every expert of a token got the weight of its first choice. Take the weight from the column in "
            "which the expert's id stood: `expert_weights[tokens, choice]`.",
            _looping(_first_weight),
        ),
        Misconception(
            "weights-detached",
            "The numbers are right, but no gradient reaches `expert_weights`: `detach`, `.data`, `.item()` "
            "or `no_grad` cut it. The router would never learn.",
            _looping(_detached),
        ),
        Misconception(
            "every-expert-on-every-token",
            "Every expert adds its output for every token, chosen or not. Only the K chosen ones count, and "
            "running the rest is the compute that the layer exists to save.",
            _looping(_every_token),
        ),
        Misconception(
            "divided-by-the-load",
            "You divide by the number of tokens of the expert, as in a mean. A token's output must not "
            "depend on how many others chose the same expert.",
            _looping(_divided_by_load),
        ),
        Misconception(
            "empty-expert-crashes",
            "This fails when no token chose an expert: `torch.stack` or `torch.cat` of an empty list "
            "raises. Indexing, `x[tokens]`, gives a (0, D) tensor instead, and every step after it works on "
            "that.",
            _looping(_stacked_rows),
        ),
        Misconception(
            "first-choice-only",
            "Only the first of the K choices is used. Look for expert `e` in all columns of `expert_ids`.",
            _first_choice_only,
        ),
    ),
    alternatives=(_token_by_token, _all_then_mask, _in_place_addition),
)
