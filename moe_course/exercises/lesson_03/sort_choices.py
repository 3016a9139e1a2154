"""Exercise 03.sort_choices: sort the choices by expert, and say where each expert's rows end."""

import torch
from torch import Generator, Tensor

from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, choices

Sorted = tuple[Tensor, Tensor, Tensor]


def sort_choices(expert_ids: Tensor, num_experts: int) -> Sorted:
    """Sort T·K choices by expert: ids (T, K) to order (T·K,), tokens (T·K,) and ends (E,)."""
    flat = expert_ids.flatten()
    order = flat.argsort(stable=True)
    ends = torch.bincount(flat, minlength=num_experts).cumsum(0)
    return order, order // expert_ids.shape[1], ends


def _three_tokens_by_hand(generator: Generator) -> Inputs:
    return {"expert_ids": torch.tensor([[2, 0], [1, 2], [2, 1]]), "num_experts": 4}


def _choices(
    num_tokens: int, num_experts: int, top_k: int, without: tuple[int, ...] = (), transposed: bool = False
) -> Make:
    def make(generator: Generator) -> Inputs:
        expert_ids, _ = choices(num_tokens, num_experts, top_k, generator, without)
        expert_ids = expert_ids.T.contiguous().T if transposed else expert_ids
        return {"expert_ids": expert_ids, "num_experts": num_experts}

    return make


def _all_to_one(generator: Generator) -> Inputs:
    return {"expert_ids": torch.full((6, 1), 1), "num_experts": 3}


def _not_by_expert(inputs: Inputs, output: Sorted) -> str | None:
    ids = inputs["expert_ids"].flatten()[output[0]]
    if len(ids) < 2 or (ids.diff() >= 0).all():
        return None
    return f"in your order the choices' experts are {ids[:12].tolist()}: not ascending"


def _wrong_total(inputs: Inputs, output: Sorted) -> str | None:
    last, wanted = int(output[2][-1]), inputs["expert_ids"].numel()
    return None if last == wanted else f"ends[-1] is {last}, but there are {wanted} rows"


def _expert_by_expert(expert_ids: Tensor, num_experts: int) -> Sorted:
    found = [(expert_ids.flatten() == e).nonzero().flatten() for e in range(num_experts)]
    order = torch.cat(found)
    ends = torch.tensor([len(positions) for positions in found]).cumsum(0)
    return order, torch.div(order, expert_ids.shape[1], rounding_mode="floor"), ends


def _by_search(expert_ids: Tensor, num_experts: int) -> Sorted:
    ids, order = expert_ids.reshape(-1).sort(stable=True)
    token_of_choice = torch.arange(len(expert_ids)).repeat_interleave(expert_ids.shape[1])
    return order, token_of_choice[order], torch.searchsorted(ids, torch.arange(num_experts), right=True)


def _by_key(expert_ids: Tensor, num_experts: int) -> Sorted:
    """Without a stable sort: the position breaks ties between choices of one expert."""
    size = expert_ids.numel()
    key = (expert_ids.flatten() * size + torch.arange(size)).sort().values
    ends = [int((expert_ids <= e).sum()) for e in range(num_experts)]
    order = key % max(size, 1)
    return order, order // expert_ids.shape[1], torch.tensor(ends)


def _column_by_column(expert_ids: Tensor, num_experts: int) -> Sorted:
    order = expert_ids.T.flatten().argsort(stable=True)
    return order, order // expert_ids.shape[1], sort_choices(expert_ids, num_experts)[2]


def _remainder(expert_ids: Tensor, num_experts: int) -> Sorted:
    order, _, ends = sort_choices(expert_ids, num_experts)
    return order, order % expert_ids.shape[1], ends


def _starts(expert_ids: Tensor, num_experts: int) -> Sorted:
    order, tokens, ends = sort_choices(expert_ids, num_experts)
    return order, tokens, ends - torch.bincount(expert_ids.flatten(), minlength=num_experts)


def _counts(expert_ids: Tensor, num_experts: int) -> Sorted:
    order, tokens, _ = sort_choices(expert_ids, num_experts)
    return order, tokens, torch.bincount(expert_ids.flatten(), minlength=num_experts)


def _no_minlength(expert_ids: Tensor, num_experts: int) -> Sorted:
    order, tokens, _ = sort_choices(expert_ids, num_experts)
    return order, tokens, torch.bincount(expert_ids.flatten()).cumsum(0)


def _last_rows(expert_ids: Tensor, num_experts: int) -> Sorted:
    order, tokens, ends = sort_choices(expert_ids, num_experts)
    return order, tokens, ends - 1


def _ids_for_order(expert_ids: Tensor, num_experts: int) -> Sorted:
    _, tokens, ends = sort_choices(expert_ids, num_experts)
    return expert_ids.flatten().sort().values, tokens, ends


def _inverse(expert_ids: Tensor, num_experts: int) -> Sorted:
    order, _, ends = sort_choices(expert_ids, num_experts)
    inverse = order.argsort()
    return inverse, inverse // expert_ids.shape[1], ends


def _descending(expert_ids: Tensor, num_experts: int) -> Sorted:
    order = expert_ids.flatten().argsort(stable=True, descending=True)
    return order, order // expert_ids.shape[1], sort_choices(expert_ids, num_experts)[2]


def _choices_as_tokens(expert_ids: Tensor, num_experts: int) -> Sorted:
    order, _, ends = sort_choices(expert_ids, num_experts)
    return order, order, ends


SORT_CHOICES = Exercise(
    id="03.sort_choices",
    entry="sort_choices",
    title="Neighbours by sorting",
    points=3,
    difficulty=2,
    minutes=10,
    hints=(
        "Lay the T·K choices in a row, token after token: choice k of token t is number t·K + k. You want "
        "the order in which to read them so that the ids ascend. That is `argsort`, not `sort`.",
        "`stable=True` keeps the tokens of an expert in their old order. From the number of a choice you "
        "get its token back by integer division. How many rows an expert has is a `bincount`; where its "
        "rows end is a running total.",
        "`order = expert_ids.flatten().argsort(stable=True)`. For `tokens`, divide `order` by K with `//`. "
        "For `ends`, take `torch.bincount(…, minlength=num_experts)` and its `cumsum(0)`; without "
        "`minlength`, idle last experts are missing.",
    ),
    reference=sort_choices,
    cases=(
        Case("three tokens by hand", _three_tokens_by_hand),
        Case("top-1", _choices(8, 3, 1)),
        Case("top-2 of four", _choices(7, 4, 2)),
        Case("top-3 of eight", _choices(9, 8, 3)),
        Case("first expert without tokens", _choices(6, 4, 2, without=(0,))),
        Case("last two experts without tokens", _choices(6, 5, 2, without=(3, 4))),
        Case("every expert, K = E", _choices(5, 3, 3)),
        Case("all tokens to one expert", _all_to_one),
        Case("no tokens at all", _choices(0, 3, 2)),
        Case("not contiguous", _choices(6, 4, 2, transposed=True)),
    ),
    properties=(
        Property("the experts' ids ascend in your order", _not_by_expert),
        Property("the last end is the number of rows", _wrong_total),
    ),
    returns=("order", "tokens", "ends"),
    misconceptions=(
        Misconception(
            "token-by-remainder",
            "You take the remainder of the division by K, which is the column k. The choices of token t are "
            "t·K to t·K + K − 1, so the token is the quotient: `order // K`.",
            _remainder,
        ),
        Misconception(
            "tokens-are-choices",
            "`tokens` holds numbers of choices, up to T·K. Row i of the sorted list belongs to one of only "
            "T tokens: divide by K.",
            _choices_as_tokens,
        ),
        Misconception(
            "starts-not-ends",
            "You return where each expert's rows start. `ends[e]` is one past its last row, so `ends[-1]` "
            "is T·K; `F.grouped_mm` wants them this way.",
            _starts,
        ),
        Misconception(
            "last-row-not-end",
            "You return the number of each expert's last row. An end is one past it, as in Python's slices: "
            "an empty expert has the same end as the one before.",
            _last_rows,
        ),
        Misconception(
            "counts-not-ends",
            "You return how many rows each expert has. Where they end is the running total, `cumsum(0)`.",
            _counts,
        ),
        Misconception(
            "idle-experts-missing",
            "`bincount` stops at the largest id it sees, so experts at the end without a token are missing. "
            "Pass `minlength=num_experts`.",
            _no_minlength,
        ),
        Misconception(
            "ids-for-order",
            "`order` holds the sorted expert ids themselves. What is needed is where each came from: "
            "`argsort`, or the indices of `sort`.",
            _ids_for_order,
        ),
        Misconception(
            "inverse-for-order",
            "This is the inverse permutation: it says where each choice goes, not which choice comes next. "
            "Reading rows in sorted order needs `argsort` of the ids, once.",
            _inverse,
        ),
        Misconception(
            "columns-flattened-first",
            "You flattened column by column: first choices of all tokens, then second choices. `flatten()` "
            "of the (T, K) tensor keeps the K choices of a token together, and `order // K` relies on it.",
            _column_by_column,
        ),
        Misconception(
            "descending",
            "The last expert comes first. Expert 0 owns the first rows, since `ends` counts from it.",
            _descending,
        ),
    ),
    alternatives=(_expert_by_expert, _by_search, _by_key),
)
