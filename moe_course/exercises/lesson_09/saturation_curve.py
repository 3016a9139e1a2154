"""Exercise 09.saturation_curve: how early each checkpoint chose as the last one does."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ...layers import router_saturation
from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make


def saturation_curve(expert_ids: Tensor) -> Tensor:
    """The choices (C, T, K) of C checkpoints for the same tokens to each one's agreement with the last, (C,)."""
    return torch.tensor([router_saturation(ids, expert_ids[-1]) for ids in expert_ids])


def _settling(checkpoints: int, num_tokens: int, num_experts: int, top_k: int) -> Make:
    """Scores that settle on a final order; experts' ranks within a token's choice go on changing."""

    def make(generator: Generator) -> Inputs:
        final = torch.rand(num_tokens, num_experts, generator=generator)
        stages = []
        for stage in range(checkpoints):
            unrest = 1.5 * (1 - stage / max(checkpoints - 1, 1))
            scores = final + unrest * torch.rand(num_tokens, num_experts, generator=generator)
            ids = scores.topk(top_k, dim=-1).indices
            stages.append(ids[:, torch.randperm(top_k, generator=generator)])
        return {"expert_ids": torch.stack(stages)}

    return make


def _swapped(generator: Generator) -> Inputs:
    """Both checkpoints choose the same pairs, in the other order."""
    ids = torch.stack([torch.randperm(5, generator=generator)[:2] for _ in range(6)])
    return {"expert_ids": torch.stack([ids.flip(-1), ids])}


def _shuffled_tokens(generator: Generator) -> Inputs:
    """Equal loads, other tokens: what a comparison of loads cannot see."""
    ids = torch.arange(12).remainder(4)[:, None]
    return {"expert_ids": torch.stack([ids[torch.randperm(12, generator=generator)], ids.roll(1, 0), ids])}


def _as_sets(expert_ids: Tensor) -> Tensor:
    last = [set(row) for row in expert_ids[-1].tolist()]
    shares = [
        [len(set(row) & final) / len(final) for row, final in zip(ids, last, strict=True)]
        for ids in expert_ids.tolist()
    ]
    return torch.tensor(shares).mean(dim=1)


def _by_one_hot(expert_ids: Tensor) -> Tensor:
    chosen = F.one_hot(expert_ids, int(expert_ids.max()) + 1).sum(2).float()
    return (chosen * chosen[-1]).sum((1, 2)) / expert_ids[-1].numel()


def _common(expert_ids: Tensor, with_ids: Tensor) -> Tensor:
    """How many experts of a token are in both choices, (C, T)."""
    return (expert_ids[..., :, None] == with_ids[..., None, :]).any(-1).sum(-1).float()


def _of_common(curve: Callable[[Tensor, int], Tensor]) -> Callable[[Tensor], Tensor]:
    """`curve(number of common experts (C, T), K)`, averaged over tokens."""
    return lambda expert_ids: curve(_common(expert_ids, expert_ids[-1]), expert_ids.shape[-1]).mean(-1)


def _with_previous(expert_ids: Tensor) -> Tensor:
    return _common(expert_ids, expert_ids.roll(1, 0)).mean(-1) / expert_ids.shape[-1]


def _with_next(expert_ids: Tensor) -> Tensor:
    following = torch.cat([expert_ids[1:], expert_ids[-1:]])
    return _common(expert_ids, following).mean(-1) / expert_ids.shape[-1]


def _of_loads(expert_ids: Tensor) -> Tensor:
    loads = F.one_hot(expert_ids, int(expert_ids.max()) + 1).sum((1, 2)).float()
    return torch.minimum(loads, loads[-1]).sum(-1) / loads[-1].sum()


SATURATION_CURVE = Exercise(
    id="09.saturation_curve",
    entry="saturation_curve",
    title="Router saturation over training",
    points=2,
    difficulty=2,
    minutes=10,
    hints=(
        "Two choices of the same experts in another order send the token to the same experts. So what has to be "
        "compared: rows, or what is in them?",
        "Compare each of the K ids of a checkpoint with each of the K ids of the *last* checkpoint, for the same "
        "token. One that occurs among them counts; divide by T · K.",
        "`same = expert_ids[..., :, None] == expert_ids[-1][..., None, :]`, (C, T, K, K); "
        "`return same.any(-1).float().mean((1, 2))`.",
    ),
    reference=saturation_curve,
    cases=(
        Case("the same pairs in another order", _swapped),
        Case("five checkpoints, top-2", _settling(5, 40, 8, 2)),
        Case("top-1", _settling(4, 30, 6, 1)),
        Case("top-4 of 16", _settling(6, 24, 16, 4)),
        Case("equal loads, other tokens", _shuffled_tokens),
        Case("one checkpoint", _settling(1, 10, 4, 2)),
    ),
    misconceptions=(
        Misconception(
            "by-position",
            "You compared the choices position by position. A token whose two experts have changed places goes to the "
            "same experts as before: compare sets.",
            lambda expert_ids: (expert_ids == expert_ids[-1]).float().mean((1, 2)),
        ),
        Misconception(
            "all-or-nothing",
            "You counted tokens whose *whole* choice is the same. Each common expert counts: a share of T · K, not of "
            "T.",
            _of_common(lambda common, top_k: (common == top_k).float()),
        ),
        Misconception(
            "any-in-common",
            "You counted tokens that have at least one expert in common. Each common expert counts once: a share of "
            "T · K, not of T.",
            _of_common(lambda common, top_k: (common > 0).float()),
        ),
        Misconception(
            "not-divided-by-k",
            "You divided the common experts by T. Divide by T · K, so that full agreement is 1.",
            _of_common(lambda common, top_k: common),
        ),
        Misconception(
            "share-of-the-union",
            "You divided by the size of the union of both choices. Asked for is the share of the K choices, so that "
            "choices at random give K/E.",
            _of_common(lambda common, top_k: common / (2 * top_k - common)),
        ),
        Misconception(
            "with-the-first",
            "You compared with the first checkpoint. Saturation asks how near each one is to the *last*.",
            lambda expert_ids: _common(expert_ids, expert_ids[0]).mean(-1) / expert_ids.shape[-1],
        ),
        Misconception(
            "with-the-one-before",
            "You compared each checkpoint with the one before it. A router may drift slowly, a little each time, and "
            "still end somewhere else: compare with the last.",
            _with_previous,
        ),
        Misconception(
            "with-the-next",
            "You compared each checkpoint with the next one. A router may drift slowly and still end somewhere else: "
            "compare with the last.",
            _with_next,
        ),
        Misconception(
            "loads-compared",
            "You compared how many tokens each expert has. Two routers can have the same loads and send every token "
            "elsewhere: compare token by token.",
            _of_loads,
        ),
    ),
    alternatives=(_as_sets, _by_one_hot),
)
