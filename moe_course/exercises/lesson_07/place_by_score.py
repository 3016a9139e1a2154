"""Exercise 07.place_by_score: queues in the order of the router's weights instead of first come, first served."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ...layers import position_in_expert
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, along_order, as_choices, choices, first_choices_first, other_layout


def place_by_score(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> Tensor:
    """Ids and weights (T, K) to positions (T, K): the largest weight of an expert stands first."""
    return position_in_expert(expert_ids, num_experts, expert_weights)


def _four_tokens_by_hand(generator: Generator) -> Inputs:
    return {
        "expert_ids": torch.tensor([[0, 1], [0, 2], [0, 1], [1, 0]]),
        "expert_weights": torch.tensor([[0.5, 0.25], [0.75, 0.125], [0.625, 0.375], [0.4375, 0.3125]]),
        "num_experts": 3,
    }


def _choices(
    num_tokens: int, num_experts: int, top_k: int, without: tuple[int, ...] = (), transposed: bool = False
) -> Make:
    def make(generator: Generator) -> Inputs:
        expert_ids, weights = choices(num_tokens, num_experts, top_k, generator, without)
        if transposed:
            expert_ids, weights = other_layout(expert_ids), other_layout(weights)
        return {"expert_ids": expert_ids, "expert_weights": weights, "num_experts": num_experts}

    return make


def _ties(generator: Generator) -> Inputs:
    inputs = _choices(8, 3, 2)(generator)
    weights = torch.where(torch.rand(8, 2, generator=generator) < 0.5, 0.25, 0.5)
    return inputs | {"expert_weights": weights}


def _overtaken(inputs: Inputs, position: Tensor) -> str | None:
    for expert in range(inputs["num_experts"]):
        mine = inputs["expert_ids"] == expert
        in_order = inputs["expert_weights"][mine][position[mine].argsort()]
        if (in_order.diff() > 0).any():
            return f"in the queue of expert {expert} a choice stands before one with a larger weight"
    return None


# Right answers in other words.


def _compared_in_pairs(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> Tensor:
    ids, weights = expert_ids.T.flatten(), expert_weights.T.flatten()
    earlier = torch.ones(len(ids), len(ids)).tril(-1).bool()  # [i, j]: j comes before i
    ahead = (weights[None] > weights[:, None]) | ((weights[None] == weights[:, None]) & earlier)
    return as_choices((ahead & (ids[None] == ids[:, None])).sum(1), expert_ids)


def _expert_by_expert(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> Tensor:
    ids, weights = expert_ids.T.flatten(), expert_weights.T.flatten()
    position = torch.zeros_like(ids)
    for expert in range(num_experts):
        mine = (ids == expert).nonzero().squeeze(1)
        best_first = mine[weights[mine].argsort(descending=True, stable=True)]
        position[best_first] = torch.arange(len(mine))
    return as_choices(position, expert_ids)


# Wrong answers.


def _served(order: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """A wrong answer that serves the choices in `order(weights (K·T,), expert_weights (T, K))`."""

    def wrong(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> Tensor:
        return along_order(expert_ids, num_experts, order(expert_weights.T.flatten(), expert_weights))

    return wrong


def _tokens_by_best(weights: Tensor, expert_weights: Tensor) -> Tensor:
    num_tokens, top_k = expert_weights.shape
    tokens = expert_weights.amax(-1).argsort(descending=True, stable=True) if num_tokens else torch.zeros(0).long()
    return (torch.arange(top_k)[:, None] * num_tokens + tokens).flatten()


def _choices_apart(weights: Tensor, expert_weights: Tensor) -> Tensor:
    num_tokens = len(expert_weights)
    columns = [column.argsort(descending=True, stable=True) for column in expert_weights.unbind(1)]
    return torch.cat([order + k * num_tokens for k, order in enumerate(columns)])


def _not_put_back(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> Tensor:
    order = expert_weights.T.flatten().argsort(descending=True, stable=True)
    place = position_in_expert(first_choices_first(expert_ids)[order, None], num_experts).squeeze(1)
    return as_choices(place, expert_ids)


def _rank_of_all(expert_ids: Tensor, expert_weights: Tensor, num_experts: int) -> Tensor:
    order = expert_weights.T.flatten().argsort(descending=True, stable=True)
    return as_choices(order.argsort(), expert_ids)


PLACE_BY_SCORE = Exercise(
    id="07.place_by_score",
    entry="place_by_score",
    title="The best first",
    points=4,
    difficulty=3,
    minutes=15,
    hints=(
        "The counting is that of `position_in_expert`. Only the order in which choices are counted changes: by weight, "
        "the largest first. Sort all choices, count along the sorted queue, and bring the counts back.",
        "Start from the queue of first come, `expert_ids.T.flatten()`, with its weights. A stable descending argsort "
        "gives `order`, and keeps first come among equal weights. To bring counts back: `position[order] = counts`.",
        "`order = expert_weights.T.flatten().argsort(descending=True, stable=True)`; one-hot, `cumsum` and `gather` "
        "along `expert_ids.T.flatten()[order]`; then an empty (K·T,) tensor, `position[order] = counts`, "
        "`.view(K, T).T`.",
    ),
    reference=place_by_score,
    cases=(
        Case("four tokens by hand", _four_tokens_by_hand),
        Case("top-1", _choices(9, 4, 1)),
        Case("top-2 of four", _choices(10, 4, 2)),
        Case("top-3 of six", _choices(12, 6, 3)),
        Case("equal weights", _ties),
        Case("experts without tokens", _choices(9, 5, 2, without=(0, 4))),
        Case("every expert, K = E", _choices(6, 3, 3)),
        Case("one expert, E = 1", _choices(6, 1, 1)),
        Case("no tokens", _choices(0, 4, 2)),
        Case("not contiguous", _choices(8, 4, 2, transposed=True)),
    ),
    properties=(Property("in each queue the weights fall", _overtaken),),
    misconceptions=(
        Misconception(
            "least-first",
            "Your queues begin with the smallest weight, so the choices that matter most are dropped. Sort in "
            "descending order.",
            _served(lambda weights, of_tokens: weights.argsort(stable=True)),
        ),
        Misconception(
            "first-come",
            "That is first come, first served: the weights play no part.",
            _served(lambda weights, of_tokens: torch.arange(len(weights))),
        ),
        Misconception(
            "tokens-sorted",
            "You sorted the *tokens* by their largest weight and kept first choices before second ones. That is "
            "V-MoE's batch priority. Here the choices themselves are sorted, as in Megatron: a strong second choice "
            "goes before a weak first one.",
            _served(_tokens_by_best),
        ),
        Misconception(
            "first-choices-first",
            "You sorted first choices by weight, and after them the second ones. Here all choices of an expert stand "
            "in one queue, whatever they are to their tokens.",
            _served(_choices_apart),
        ),
        Misconception(
            "not-put-back",
            "Your counts are in the order of the sorted queue, each beside another choice. Bring them back: "
            "`position[order] = counts`.",
            _not_put_back,
        ),
        Misconception(
            "rank-among-all",
            "You ranked the choices of all experts together. A choice competes only with those that want the same "
            "expert.",
            _rank_of_all,
        ),
        Misconception(
            "ties-reversed",
            "Among equal weights your last choice comes first: you sorted in ascending order and flipped. Use "
            "`descending=True, stable=True`, or two runs of the same batch may drop different tokens.",
            _served(lambda weights, of_tokens: weights.argsort(stable=True).flip(0)),
        ),
    ),
    alternatives=(_compared_in_pairs, _expert_by_expert),
)
