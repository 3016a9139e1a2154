"""Exercise 02.tokens_per_expert: count the load of every expert, those without tokens included."""

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make


def tokens_per_expert(expert_ids: Tensor, num_experts: int) -> Tensor:
    """Count the tokens of every expert: ids (T, K) to counts (E,)."""
    return torch.bincount(expert_ids.flatten(), minlength=num_experts)


def _ids(num_tokens: int, num_experts: int, top_k: int, unused: tuple[int, ...] = (), transposed: bool = False) -> Make:
    """K different experts for each token, never one of `unused`."""

    def make(generator: Generator) -> Inputs:
        used = torch.tensor([e for e in range(num_experts) if e not in unused])
        choices = torch.rand(num_tokens, len(used), generator=generator).argsort(dim=-1)[:, :top_k]
        expert_ids = used[choices]
        return {"expert_ids": expert_ids.mT.contiguous().mT if transposed else expert_ids, "num_experts": num_experts}

    return make


def _four_tokens(generator: Generator) -> Inputs:
    return {"expert_ids": torch.tensor([[2], [0], [2], [2]]), "num_experts": 4}


def _wrong_sum(inputs: Inputs, counts: Tensor) -> str | None:
    total, made = float(counts.sum()), inputs["expert_ids"].numel()
    return None if total == made else f"the counts sum to {total:g}, but {made} choices were made"


TOKENS_PER_EXPERT = Exercise(
    id="02.tokens_per_expert",
    entry="tokens_per_expert",
    title="Count the tokens of each expert",
    points=1,
    difficulty=1,
    minutes=6,
    hints=(
        "A token's row holds K different experts, and it counts once for each of them: the counts sum to T·K.",
        "`torch.bincount` counts how often each whole number occurs, in a tensor of one dimension. How should it "
        "know of experts that occur nowhere?",
        "Flatten the ids, pass them to `torch.bincount`, and give it a `minlength` so that the result has E entries.",
    ),
    reference=tokens_per_expert,
    cases=(
        Case("four tokens, top-1, two experts without tokens", _four_tokens),
        Case("two experts a token", _ids(12, 6, 2, unused=(1,))),
        Case("the last experts get nothing", _ids(10, 8, 2, unused=(6, 7))),
        Case("all tokens to one expert", _ids(9, 4, 1, unused=(0, 1, 3))),
        Case("every expert for every token, K = E", _ids(5, 4, 4)),
        Case("no tokens", _ids(0, 3, 2)),
        Case("64 experts, ids not contiguous", _ids(40, 64, 8, unused=(0, 63), transposed=True)),
    ),
    properties=(Property("the counts sum to T·K", _wrong_sum),),
    misconceptions=(
        Misconception(
            "last-experts-forgotten",
            "Your result ends at the largest id that occurs. An expert without tokens still exists: give `bincount` "
            "a `minlength`, or loop over `num_experts`, not over `expert_ids.max() + 1`.",
            lambda expert_ids, num_experts: torch.bincount(expert_ids.flatten()),
        ),
        Misconception(
            "empty-experts-skipped",
            "Experts without tokens are missing, so later counts slide into their places. `unique` reports only "
            "what occurs; entry e of the result must belong to expert e.",
            lambda expert_ids, num_experts: expert_ids.unique(return_counts=True)[1],
        ),
        Misconception(
            "first-choice-only",
            "You counted only each token's first choice. With top-k a token goes to K experts and loads all of them.",
            lambda expert_ids, num_experts: torch.bincount(expert_ids[:, 0], minlength=num_experts),
        ),
        Misconception(
            "repeated-index-adds-once",
            "`counts[expert_ids] += 1` adds 1 to each expert that occurs, however often it occurs: with repeated "
            "indices the last write wins. Use `bincount`, or `index_add_`, which sums.",
            lambda expert_ids, num_experts: torch.zeros(num_experts, dtype=torch.int64).index_fill(
                0, expert_ids.flatten(), 1
            ),
        ),
        Misconception(
            "fractions-not-counts",
            "You returned fractions of the load. Counts are whole numbers that sum to T·K, and fractions of an "
            "empty batch would be 0/0.",
            lambda expert_ids, num_experts: (
                torch.bincount(expert_ids.flatten(), minlength=num_experts) / expert_ids.numel()
            ),
        ),
        Misconception(
            "divided-by-k",
            "Your counts are divided by K. An expert's load is the number of tokens it must process, and it "
            "processes every token that chose it, first choice or last.",
            lambda expert_ids, num_experts: (
                torch.bincount(expert_ids.flatten(), minlength=num_experts) / expert_ids.shape[-1]
            ),
        ),
        Misconception(
            "one-row-per-choice",
            "You kept the K axis: one row of counts for the first choices, one for the second, and so on. An "
            "expert's load is their sum.",
            lambda expert_ids, num_experts: F.one_hot(expert_ids, num_experts).sum(0),
        ),
    ),
    alternatives=(
        lambda expert_ids, num_experts: F.one_hot(expert_ids, num_experts).sum((0, 1)),
        lambda expert_ids, num_experts: torch.stack([(expert_ids == e).sum() for e in range(num_experts)]),
        lambda expert_ids, num_experts: torch.zeros(num_experts, dtype=torch.int64).index_add(
            0, expert_ids.flatten(), torch.ones(expert_ids.numel(), dtype=torch.int64)
        ),
    ),
)
