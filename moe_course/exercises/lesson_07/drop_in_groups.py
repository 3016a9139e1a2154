"""Exercise 07.drop_in_groups: which choices are dropped when each group of tokens has slots of its own."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ...layers import expert_capacity, position_in_expert
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, choices, queue_per_choice


def drop_in_groups(expert_ids: Tensor, num_experts: int, capacity_factor: float) -> Tensor:
    """Ids (G, T, K) of G groups to a mask (G, T, K), True for dropped choices."""
    _, num_tokens, top_k = expert_ids.shape
    return _position(expert_ids, num_experts) >= expert_capacity(num_tokens, num_experts, top_k, capacity_factor)


def _position(expert_ids: Tensor, num_experts: int) -> Tensor:
    """Positions in queues that start anew in each group."""
    if not len(expert_ids):
        return expert_ids
    return torch.stack([position_in_expert(group, num_experts) for group in expert_ids])


def _groups(num_groups: int, num_tokens: int, num_experts: int, top_k: int, capacity_factor: float) -> Make:
    def make(generator: Generator) -> Inputs:
        drawn = [choices(num_tokens, num_experts, top_k, generator)[0] for _ in range(num_groups)]
        # Each group has other favourites, as texts do: what one lacks, another has.
        shifted = [(ids + 2 * group) % num_experts for group, ids in enumerate(drawn)]
        expert_ids = torch.stack(shifted) if shifted else torch.zeros(0, num_tokens, top_k, dtype=torch.int64)
        return {"expert_ids": expert_ids, "num_experts": num_experts, "capacity_factor": capacity_factor}

    return make


def _two_groups_by_hand(generator: Generator) -> Inputs:
    expert_ids = torch.tensor([[[0], [0], [0], [1]], [[1], [1], [0], [1]]])
    return {"expert_ids": expert_ids, "num_experts": 2, "capacity_factor": 1.0}


def _too_many(inputs: Inputs, dropped: Tensor) -> str | None:
    expert_ids, num_experts = inputs["expert_ids"], inputs["num_experts"]
    _, num_tokens, top_k = expert_ids.shape
    capacity = expert_capacity(num_tokens, num_experts, top_k, inputs["capacity_factor"])
    for group, (ids, lost) in enumerate(zip(expert_ids, dropped, strict=True)):
        kept = torch.bincount(ids[~lost], minlength=num_experts)
        if int(kept.max()) > capacity:
            return f"group {group} fills {int(kept.max())} slots of expert {int(kept.argmax())}, which has {capacity}"
    return None


# Right answers in other words.


def _as_more_experts(expert_ids: Tensor, num_experts: int, capacity_factor: float) -> Tensor:
    """An expert counts as another one in each group; then one queue serves all."""
    num_groups, num_tokens, top_k = expert_ids.shape
    apart = expert_ids + num_experts * torch.arange(num_groups)[:, None, None]
    position = position_in_expert(apart.reshape(-1, top_k), max(num_groups, 1) * num_experts)
    return position.view_as(expert_ids) >= expert_capacity(num_tokens, num_experts, top_k, capacity_factor)


def _group_by_group(expert_ids: Tensor, num_experts: int, capacity_factor: float) -> Tensor:
    dropped = torch.zeros(expert_ids.shape, dtype=torch.bool)
    for mask, ids in zip(dropped, expert_ids, strict=True):
        capacity = expert_capacity(len(ids), num_experts, ids.shape[1], capacity_factor)
        mask |= position_in_expert(ids, num_experts) >= capacity
    return dropped


# Wrong answers.


def _as_one(expert_ids: Tensor, num_experts: int) -> Tensor:
    """Positions in one queue over all groups."""
    return position_in_expert(expert_ids.flatten(0, 1), num_experts).view_as(expert_ids)


def _dropping(
    position: Callable[[Tensor, int], Tensor], tokens: Callable[[int, int], int], limit: int = 0
) -> Callable[..., Tensor]:
    """A wrong answer: `position(expert_ids, num_experts)` against the capacity of `tokens(groups, T)`, plus `limit`."""

    def wrong(expert_ids: Tensor, num_experts: int, capacity_factor: float) -> Tensor:
        num_groups, num_tokens, top_k = expert_ids.shape
        capacity = expert_capacity(tokens(num_groups, num_tokens), num_experts, top_k, capacity_factor)
        return position(expert_ids, num_experts) >= capacity + limit

    return wrong


def _with_capacity_of_top_1(expert_ids: Tensor, num_experts: int, capacity_factor: float) -> Tensor:
    capacity = expert_capacity(expert_ids.shape[1], num_experts, 1, capacity_factor)
    return _position(expert_ids, num_experts) >= capacity


def _queues_of_choices(expert_ids: Tensor, num_experts: int) -> Tensor:
    if not len(expert_ids):
        return expert_ids
    return torch.stack([queue_per_choice(group, num_experts) for group in expert_ids])


DROP_IN_GROUPS = Exercise(
    id="07.drop_in_groups",
    entry="drop_in_groups",
    title="Groups with slots of their own",
    points=3,
    difficulty=2,
    minutes=10,
    hints=(
        "A group is a batch in small: T tokens, its own queues, its own capacity. Nothing in one group depends on "
        "another.",
        "Compute the capacity once, from the T tokens of *one* group. Then call `position_in_expert` for each group "
        "and compare.",
        "`torch.stack([position_in_expert(ids, num_experts) >= capacity for ids in expert_ids])`, with "
        "`_, T, K = expert_ids.shape` and `capacity = expert_capacity(T, num_experts, K, capacity_factor)`.",
    ),
    reference=drop_in_groups,
    cases=(
        Case("two groups by hand", _two_groups_by_hand),
        Case("top-1", _groups(3, 12, 4, 1, 1.0)),
        Case("top-2, factor 1.25", _groups(4, 10, 4, 2, 1.25)),
        Case("top-2 of six", _groups(3, 15, 6, 2, 1.0)),
        Case("half the room", _groups(2, 12, 4, 2, 0.5)),
        Case("room for all", _groups(2, 8, 4, 1, 4.0)),
        Case("one group", _groups(1, 12, 4, 2, 1.0)),
        Case("groups of one token", _groups(6, 1, 4, 2, 1.0)),
        Case("no tokens", _groups(3, 0, 4, 2, 1.0)),
    ),
    properties=(Property("no group uses more than its slots", _too_many),),
    misconceptions=(
        Misconception(
            "one-large-group",
            "You made one group of all tokens. Then a quiet group lends its slots to a busy one, which is just what "
            "groups on different devices cannot do.",
            _dropping(_as_one, lambda groups, tokens: groups * tokens),
        ),
        Misconception(
            "capacity-of-the-batch",
            "Your queues start anew in each group, but each has the capacity of the whole batch: G times the slots "
            "that it owns, so next to nothing is dropped. Compute the capacity from the T tokens of one group.",
            _dropping(_position, lambda groups, tokens: groups * tokens),
        ),
        Misconception(
            "k-forgotten",
            "Your capacity is for one choice a token. The T tokens of a group make T·K choices: pass K on to "
            "`expert_capacity`.",
            _with_capacity_of_top_1,
        ),
        Misconception(
            "queue-runs-on",
            "Your capacity is that of one group, but the queue runs on from group to group. The later groups find all "
            "slots taken, though they have slots of their own.",
            _dropping(_as_one, lambda groups, tokens: tokens),
        ),
        Misconception(
            "a-queue-for-each-choice",
            "Within a group you count first and second choices apart, so an expert seats up to K·C of them. All "
            "choices of an expert share its C slots.",
            _dropping(_queues_of_choices, lambda groups, tokens: tokens),
        ),
        Misconception(
            "one-slot-too-many",
            "You kept choices at place C. Places count from 0: dropped are those with `position >= capacity`.",
            _dropping(_position, lambda groups, tokens: tokens, limit=1),
        ),
        Misconception(
            "kept-not-dropped",
            "Your mask is True for the choices that are kept. Turn it round.",
            lambda expert_ids, num_experts, capacity_factor: ~drop_in_groups(expert_ids, num_experts, capacity_factor),
        ),
    ),
    alternatives=(_as_more_experts, _group_by_group),
)
