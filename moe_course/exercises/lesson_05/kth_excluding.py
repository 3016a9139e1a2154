"""Exercise 05.kth_excluding: what each expert has to beat to be among the top k."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ...layers import kth_excluding
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, spread


def _rows(num_tokens: int, num_experts: int, k: int, below_zero: bool = False) -> Make:
    def make(generator: Generator) -> Inputs:
        values = spread(num_tokens, num_experts, generator=generator)
        return {"values": values - (values.max() + 1 if num_tokens and below_zero else 0), "k": k}

    return make


def _one_row(generator: Generator) -> Inputs:
    return {"values": torch.tensor([[4.0, 1.0, 3.0, 2.0]]), "k": 2}


def _tied(generator: Generator) -> Inputs:
    """Two values share the place at the border of the top 2."""
    level = torch.randn(2, 1, generator=generator)
    return {"values": torch.tensor([[5.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 1.0]]) + level, "k": 2}


def _not_the_border(inputs: Inputs, output: Tensor) -> str | None:
    values, k = inputs["values"], inputs["k"]
    if any(len(row.unique()) < len(row) for row in values):
        return None
    winners = (values > output).sum(-1)
    for token in (winners != k).nonzero().flatten().tolist():
        return f"{winners[token].item()} entries of row {token} beat their threshold, and k = {k} of them should"
    return None


def _by_removing(values: Tensor, k: int) -> Tensor:
    """A right answer in other words: the definition, column by column."""
    columns = []
    for i in range(values.shape[-1]):
        others = torch.cat([values[:, :i], values[:, i + 1 :]], dim=-1)
        threshold = others.sort(dim=-1, descending=True).values[:, k - 1 : k]
        columns.append(threshold if threshold.shape[-1] else torch.full_like(values[:, :1], -torch.inf))
    return torch.cat(columns, dim=-1)


def _by_masking(values: Tensor, k: int, hole: float = -torch.inf) -> Tensor:
    """A right answer in other words: E copies of a row, each with a hole."""
    num_experts = values.shape[-1]
    copies = values[:, None, :].expand(-1, num_experts, -1)
    return copies.masked_fill(torch.eye(num_experts, dtype=torch.bool), hole).topk(k, dim=-1).values[..., -1]


def _from_the_order(inside: int, outside: int, without: float | None = -torch.inf) -> Callable[[Tensor, int], Tensor]:
    """The answers that pick two of the sorted values: one for entries inside the top k, one for those outside.

    Args:
        inside, outside: places, counted from k: 0 is the k-th largest, 1 the one after it.
        without: the answer where there is no such place; None raises torch's own error.
    """

    def answer(values: Tensor, k: int) -> Tensor:
        num_experts = values.shape[-1]
        if k + max(inside, outside) > num_experts and without is not None:
            return torch.full_like(values, without)
        best = values.topk(k + max(inside, outside), dim=-1).values
        is_inside = values >= best[:, k - 1 : k]
        return torch.where(is_inside, best[:, k - 1 + inside, None], best[:, k - 1 + outside, None])

    return answer


KTH_EXCLUDING = Exercise(
    id="05.kth_excluding",
    entry="kth_excluding",
    title="What an expert has to beat",
    points=3,
    difficulty=2,
    minutes=14,
    hints=(
        "There are only two answers in a row. Write down 4, 1, 3, 2 with k = 2 and find the second largest of the "
        "others for each: one answer for the members of the top 2, another for the rest.",
        "Take out a member of the top k and the others move up: the k-th of the rest is the (k+1)-th of all. Take out "
        "anybody else and nothing changes: the k-th of all. `topk(k + 1)` has both.",
        "`best = values.topk(k + 1, dim=-1).values`, then `torch.where(values > best[:, k:], best[:, k:], "
        "best[:, k - 1 : k])`. For k = E there is no (k+1)-th: return -inf everywhere, before you call `topk`.",
    ),
    reference=kth_excluding,
    cases=(
        Case("4, 1, 3, 2 with k = 2", _one_row),
        Case("k = 2 of six", _rows(5, 6, 2), grad=("values",)),
        Case("k = 1: beat the best of the others", _rows(4, 5, 1)),
        Case("k = E - 1: beat the worst of the others", _rows(4, 4, 3)),
        Case("k = E: nothing to beat", _rows(5, 3, 3)),
        Case("one expert", _rows(4, 1, 1)),
        Case("all values below 0", _rows(4, 5, 2, below_zero=True)),
        Case("ties at the border", _tied),
        Case("no tokens", _rows(0, 4, 2)),
    ),
    properties=(Property("exactly k entries of a row beat their threshold", _not_the_border),),
    misconceptions=(
        Misconception(
            "itself-included",
            "You give everybody the k-th largest of the whole row. A member of the top k must be left out of its own "
            "comparison: the worst of them would otherwise have to beat itself.",
            _from_the_order(0, 0),
        ),
        Misconception(
            "next-best-for-all",
            "You give everybody the (k+1)-th largest. That is right for members of the top k. An outsider must beat "
            "the k-th, which is larger.",
            _from_the_order(1, 1),
        ),
        Misconception(
            "the-two-swapped",
            "Your two thresholds are swapped. Leaving out a member of the top k lets the (k+1)-th move up; leaving out "
            "an outsider changes nothing.",
            _from_the_order(0, 1),
        ),
        Misconception(
            "no-threshold-crashes",
            "With k = E there are only E - 1 others, and your `topk(k + 1)` asks for one too many. All experts are "
            "chosen, so there is nothing to beat: return -inf.",
            _from_the_order(1, 0, without=None),
        ),
        Misconception(
            "no-threshold-is-zero",
            "With k = E you return 0 as the threshold. But 0 is a logit like any other, and a negative one would not "
            "beat it. Nothing to beat is -inf.",
            _from_the_order(1, 0, without=0.0),
        ),
        Misconception(
            "excluded-by-a-zero",
            "You left an entry out by setting it to 0. Among negative logits a 0 is the largest. Set it to -inf.",
            lambda values, k: _by_masking(values, k, hole=0.0),
        ),
        Misconception(
            "over-tokens",
            "You compared tokens instead of experts. The experts of one token compete: `dim=-1`.",
            lambda values, k: kth_excluding(values.T, k).T,
        ),
    ),
    alternatives=(_by_removing, _by_masking),
)
