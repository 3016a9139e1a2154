"""Exercise 03.combine_choices: from rows sorted by expert back to tokens, weighted and added up."""

import torch
from torch import Generator, Tensor

from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make, choices


def combine_choices(rows: Tensor, order: Tensor, expert_weights: Tensor) -> Tensor:
    """Undo the sorting and add each token's K rows: rows (T·K, D), order (T·K,), weights (T, K) to (T, D)."""
    num_tokens, top_k = expert_weights.shape
    weighted = rows * expert_weights.flatten()[order, None]
    out = torch.zeros(num_tokens, rows.shape[1], dtype=rows.dtype)
    return out.index_add(0, order // top_k, weighted)


def _two_tokens_by_hand(generator: Generator) -> Inputs:
    return {
        "rows": torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]),
        "order": torch.tensor([1, 2, 3, 0]),  # of expert_ids [[3, 0], [1, 2]]
        "expert_weights": torch.tensor([[0.75, 0.25], [0.5, 0.125]]),
    }


def _rows(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    d_model: int = 4,
    without: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float32,
    transposed: bool = False,
) -> Make:
    def make(generator: Generator) -> Inputs:
        expert_ids, weights = choices(num_tokens, num_experts, top_k, generator, without)
        rows = torch.randn(num_tokens * top_k, d_model, generator=generator) + 0.5
        if transposed:
            rows, weights = rows.T.contiguous().T, weights.T.contiguous().T
        order = expert_ids.flatten().argsort(stable=True)
        return {"rows": rows.to(dtype), "order": order, "expert_weights": weights.to(dtype)}

    return make


# Right answers in other words.


def _inverse_then_sum(rows: Tensor, order: Tensor, expert_weights: Tensor) -> Tensor:
    by_choice = rows[order.argsort()].view(*expert_weights.shape, rows.shape[1])
    return (by_choice * expert_weights[..., None]).sum(1)


def _written_back(rows: Tensor, order: Tensor, expert_weights: Tensor) -> Tensor:
    by_choice = torch.empty_like(rows)
    by_choice[order] = rows
    return torch.einsum("tkd,tk->td", by_choice.view(*expert_weights.shape, rows.shape[1]), expert_weights)


def _as_a_matrix(rows: Tensor, order: Tensor, expert_weights: Tensor) -> Tensor:
    num_tokens, top_k = expert_weights.shape
    matrix = torch.zeros(num_tokens, len(rows), dtype=rows.dtype)
    matrix[order // top_k, torch.arange(len(rows))] = expert_weights.flatten()[order]
    return matrix @ rows


# Wrong answers.


def _summed(by_choice: Tensor, expert_weights: Tensor) -> Tensor:
    return (by_choice.view(*expert_weights.shape, by_choice.shape[1]) * expert_weights[..., None]).sum(1)


def _order_for_inverse(rows: Tensor, order: Tensor, expert_weights: Tensor) -> Tensor:
    return _summed(rows[order], expert_weights)


def _never_unsorted(rows: Tensor, order: Tensor, expert_weights: Tensor) -> Tensor:
    return _summed(rows.contiguous(), expert_weights)


def _weights_unsorted(rows: Tensor, order: Tensor, expert_weights: Tensor) -> Tensor:
    weighted = rows * expert_weights.reshape(-1, 1)
    out = torch.zeros(len(expert_weights), rows.shape[1], dtype=rows.dtype)
    return out.index_add(0, order // expert_weights.shape[1], weighted)


def _weights_by_inverse(rows: Tensor, order: Tensor, expert_weights: Tensor) -> Tensor:
    weighted = rows * expert_weights.flatten()[order.argsort(), None]
    out = torch.zeros(len(expert_weights), rows.shape[1], dtype=rows.dtype)
    return out.index_add(0, order // expert_weights.shape[1], weighted)


def _unweighted(rows: Tensor, order: Tensor, expert_weights: Tensor) -> Tensor:
    return combine_choices(rows, order, torch.ones_like(expert_weights))


def _mean(rows: Tensor, order: Tensor, expert_weights: Tensor) -> Tensor:
    return combine_choices(rows, order, expert_weights) / expert_weights.shape[1]


def _overwritten(rows: Tensor, order: Tensor, expert_weights: Tensor) -> Tensor:
    out = torch.zeros(len(expert_weights), rows.shape[1], dtype=rows.dtype)
    # Written one after another: with repeated indices `out[tokens] = …` keeps the last, in this order.
    weighted = (rows * expert_weights.flatten()[order, None]).unbind(0)
    for token, row in zip((order // expert_weights.shape[1]).tolist(), weighted, strict=True):
        out[token] = row
    return out


def _remainder(rows: Tensor, order: Tensor, expert_weights: Tensor) -> Tensor:
    weighted = rows * expert_weights.flatten()[order, None]
    out = torch.zeros(len(expert_weights), rows.shape[1], dtype=rows.dtype)
    return out.index_add(0, order % expert_weights.shape[1], weighted)


def _detached(rows: Tensor, order: Tensor, expert_weights: Tensor) -> Tensor:
    return combine_choices(rows, order, expert_weights.detach())


COMBINE_CHOICES = Exercise(
    id="03.combine_choices",
    entry="combine_choices",
    title="Back to tokens",
    points=3,
    difficulty=2,
    minutes=12,
    hints=(
        "Row i of `rows` is the output for choice number `order[i]`, which belongs to token `order[i] // K` "
        "and has weight number `order[i]` among the flattened weights. Each token occurs K times.",
        "Two roads lead back. Either add each weighted row to its token with `index_add`; or restore the "
        "original order first. For the second you need the inverse permutation: `order.argsort()`, or an "
        "assignment `by_choice[order] = rows`.",
        "Along the second road: once the rows are back in the order of choices, `view(T, K, D)` puts a "
        "token's K rows side by side; multiply by `expert_weights[..., None]` and sum over K. Along the "
        "first, the weights must be put in sorted order too.",
    ),
    reference=combine_choices,
    cases=(
        Case("two tokens by hand", _two_tokens_by_hand),
        Case("top-1", _rows(7, 3, 1)),
        Case("top-2 of four", _rows(8, 4, 2), grad=("rows", "expert_weights")),
        Case("top-3 of eight", _rows(9, 8, 3)),
        Case("an expert without tokens", _rows(7, 4, 2, without=(0,))),
        Case("every expert, K = E", _rows(5, 3, 3)),
        Case("one token", _rows(1, 4, 2)),
        Case("one expert, E = 1", _rows(5, 1, 1)),
        Case("no tokens at all", _rows(0, 4, 2)),
        Case("not contiguous", _rows(6, 4, 2, transposed=True)),
        Case("bfloat16", _rows(8, 4, 2, dtype=torch.bfloat16)),
    ),
    misconceptions=(
        Misconception(
            "order-for-inverse",
            "You index the rows with `order` itself, which sorts a second time. To undo a permutation, "
            "index with its inverse, `order.argsort()`, or assign through it: `by_choice[order] = rows`.",
            _order_for_inverse,
        ),
        Misconception(
            "never-unsorted",
            "The rows are still in the experts' order when you group them by token: neighbours share an "
            "expert, not a token. Put them back into the order of choices first.",
            _never_unsorted,
        ),
        Misconception(
            "weights-left-in-token-order",
            "The rows are sorted by expert, the weights are not, so each row meets another choice's weight. "
            "Index the flattened weights with `order`.",
            _weights_unsorted,
        ),
        Misconception(
            "weights-by-the-inverse",
            "You sorted the weights with the inverse permutation. Row i belongs to choice `order[i]`, so "
            "its weight is `expert_weights.flatten()[order[i]]`.",
            _weights_by_inverse,
        ),
        Misconception(
            "overwritten-not-added",
            "Of a token's K rows only the last one written survives. `out[tokens] = …` and also "
            "`out[tokens] += …` keep one value for an index that occurs twice; `index_add` adds them all.",
            _overwritten,
        ),
        Misconception(
            "weights-forgotten",
            "The rows are added without their weights, so every chosen expert counts the same and the "
            "router gets no gradient.",
            _unweighted,
        ),
        Misconception(
            "mean-over-choices",
            "The result is divided by K. The weights already say how much each row counts.",
            _mean,
        ),
        Misconception(
            "token-by-remainder",
            "You take the token as `order % K`, which is the column of the choice. The token is the "
            "quotient, `order // K`.",
            _remainder,
        ),
        Misconception(
            "weights-detached",
            "The numbers are right, but no gradient reaches `expert_weights`. The weighted sum is the "
            "router's only link to the task: do not detach it.",
            _detached,
        ),
    ),
    alternatives=(_inverse_then_sum, _written_back, _as_a_matrix),
)
