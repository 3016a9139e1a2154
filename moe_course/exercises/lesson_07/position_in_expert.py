"""Exercise 07.position_in_expert: the place of each choice in its expert's queue, all first choices first."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ...layers import position_in_expert as layers_position_in_expert
from ..spec import Case, Exercise, Misconception, Property
from .inputs import (
    Inputs,
    Make,
    along_order,
    as_choices,
    choices,
    count_along,
    first_choices_first,
    other_layout,
    queue_per_choice,
    token_by_token,
)


def position_in_expert(expert_ids: Tensor, num_experts: int) -> Tensor:
    """Ids (T, K) to the number of choices before each one in its expert's queue, (T, K)."""
    return layers_position_in_expert(expert_ids, num_experts)


def _three_tokens_by_hand(generator: Generator) -> Inputs:
    return {"expert_ids": torch.tensor([[0, 1], [1, 0], [1, 2]]), "num_experts": 3}


def _choices(
    num_tokens: int, num_experts: int, top_k: int, without: tuple[int, ...] = (), transposed: bool = False
) -> Make:
    def make(generator: Generator) -> Inputs:
        expert_ids, _ = choices(num_tokens, num_experts, top_k, generator, without)
        return {"expert_ids": other_layout(expert_ids) if transposed else expert_ids, "num_experts": num_experts}

    return make


def _all_to_one(generator: Generator) -> Inputs:
    return {"expert_ids": torch.full((6, 1), 2), "num_experts": 4}


def _not_a_queue(inputs: Inputs, position: Tensor) -> str | None:
    for expert in range(inputs["num_experts"]):
        places = sorted(position[inputs["expert_ids"] == expert].tolist())
        if places != list(range(len(places))):
            return f"expert {expert} has {len(places)} choices, in places {places}"
    return None


# Right answers in other words.


def _by_cumsum(expert_ids: Tensor, num_experts: int) -> Tensor:
    num_tokens, top_k = expert_ids.shape
    chosen = F.one_hot(expert_ids.T.reshape(-1), num_experts)
    before = chosen.cumsum(0) - chosen
    return (before * chosen).sum(-1).view(top_k, num_tokens).T


def _choice_by_choice(expert_ids: Tensor, num_experts: int) -> Tensor:
    position, taken = torch.zeros_like(expert_ids), [0] * num_experts
    for k in range(expert_ids.shape[1]):
        for t, expert in enumerate(expert_ids[:, k].tolist()):
            position[t, k] = taken[expert]
            taken[expert] += 1
    return position


# Wrong answers.


def _queue(position: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor, int], Tensor]:
    """Right order, wrong `position(queue, num_experts)`, (K·T,)."""
    return lambda expert_ids, num_experts: as_choices(
        position(first_choices_first(expert_ids), num_experts), expert_ids
    )


def _last_come(expert_ids: Tensor, num_experts: int) -> Tensor:
    return along_order(expert_ids, num_experts, torch.arange(expert_ids.numel()).flip(0))


def _of_its_token(expert_ids: Tensor, num_experts: int) -> Tensor:
    return torch.arange(expert_ids.shape[1]).expand(expert_ids.shape).clone()


POSITION_IN_EXPERT = Exercise(
    id="07.position_in_expert",
    entry="position_in_expert",
    title="A place in the queue",
    points=3,
    difficulty=2,
    minutes=12,
    hints=(
        "You counted positions in lesson 03, with the tokens' choices in the order of `expert_ids.flatten()`. What "
        "changes is the order: all first choices, `expert_ids[:, 0]`, come before all second ones.",
        "`expert_ids.T.flatten()` is that queue, (K·T,). `F.one_hot` makes it (K·T, E), and a `cumsum` over dimension "
        "0 counts for each expert, including the choice itself: subtract 1.",
        "Read each choice's own expert with `gather(1, queue[:, None])`, then go back: `.view(K, T).T`.",
    ),
    reference=position_in_expert,
    cases=(
        Case("three tokens by hand", _three_tokens_by_hand),
        Case("top-1", _choices(9, 4, 1)),
        Case("top-2 of four", _choices(10, 4, 2)),
        Case("top-3 of six", _choices(12, 6, 3)),
        Case("experts without tokens", _choices(9, 5, 2, without=(0, 4))),
        Case("every expert, K = E", _choices(5, 3, 3)),
        Case("one expert, E = 1", _choices(5, 1, 1)),
        Case("all to one expert", _all_to_one),
        Case("no tokens", _choices(0, 4, 2)),
        Case("not contiguous", _choices(8, 4, 2, transposed=True)),
    ),
    properties=(Property("the places of an expert are 0, 1, 2, … without a gap", _not_a_queue),),
    misconceptions=(
        Misconception(
            "counted-from-one",
            "Your places start at 1: the running count includes the choice itself. The first in a queue has nobody "
            "before it: subtract 1, or each expert loses a slot.",
            _queue(lambda queue, e: count_along(queue, e) + 1),
        ),
        Misconception(
            "token-by-token",
            "You served token after token, each with all its choices. Then an early token's second choice takes the "
            "slot of a later token's first. GShard seats all first choices before any second one: walk along "
            "`expert_ids.T`.",
            token_by_token,
        ),
        Misconception(
            "not-transposed-back",
            "You counted along `expert_ids.T`, and read the counts as (T, K). They are in the order of (K, T): "
            "`.view(K, T)` first, then `.T`.",
            lambda expert_ids, num_experts: count_along(first_choices_first(expert_ids), num_experts).view(
                expert_ids.shape
            ),
        ),
        Misconception(
            "a-queue-for-each-choice",
            "You count first and second choices apart, so both start at 0, and an expert would seat two tokens in one "
            "slot. All choices of an expert share its queue.",
            queue_per_choice,
        ),
        Misconception(
            "place-among-all",
            "You numbered the choices through, whatever their expert, or added up the running counts of all experts. "
            "Each expert has a queue of its own.",
            _queue(lambda queue, e: torch.arange(len(queue))),
        ),
        Misconception(
            "place-in-its-token",
            "You numbered the choices of each token: 0, 1, … The question is how many came before at the same "
            "*expert*, which other tokens decide.",
            _of_its_token,
        ),
        Misconception(
            "longest-queue",
            "You took the largest of the E running counts, that of the longest queue so far. Read the count of the "
            "chosen expert: pick its column with `gather`, or multiply with the one-hot rows before you reduce.",
            _queue(lambda queue, e: F.one_hot(queue, e).cumsum(0).amax(-1) - 1),
        ),
        Misconception(
            "last-come-first-served",
            "Your queue runs backwards: the last choice stands first.",
            _last_come,
        ),
    ),
    alternatives=(_by_cumsum, _choice_by_choice),
)
