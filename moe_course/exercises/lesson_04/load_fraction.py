"""Exercise 04.load_fraction: the fraction of the choices that went to each expert, padding left out."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ...layers import load_fraction as layers_load_fraction
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, padding


def load_fraction(expert_ids: Tensor, num_experts: int, token_mask: Tensor | None = None) -> Tensor:
    """f: ids (T, K) and a mask (T,) to fractions (E,) that sum to 1."""
    return layers_load_fraction(expert_ids, num_experts, token_mask=token_mask)


def _choices(num_tokens: int, num_experts: int, top_k: int, padded: int | None, unused: tuple[int, ...] = ()) -> Make:
    """K different experts for each token, early ones favoured; padding always goes to the last experts."""

    def make(generator: Generator) -> Inputs:
        scores = torch.rand(num_tokens, num_experts, generator=generator) + torch.linspace(0.4, 0, num_experts)
        scores[:, list(unused)] -= 2.0
        expert_ids = scores.topk(top_k, dim=-1).indices
        if padded is None:
            return {"expert_ids": expert_ids, "num_experts": num_experts, "token_mask": None}
        token_mask = padding(num_tokens, padded, generator)
        expert_ids[~token_mask] = num_experts - 1 - torch.arange(top_k)
        return {"expert_ids": expert_ids, "num_experts": num_experts, "token_mask": token_mask}

    return make


def _four_tokens(generator: Generator) -> Inputs:
    expert_ids = torch.tensor([[2, 0], [2, 1], [0, 2], [3, 1]])
    return {"expert_ids": expert_ids, "num_experts": 5, "token_mask": torch.tensor([True, True, True, False])}


def _wrong_sum(inputs: Inputs, fraction: Tensor) -> str | None:
    mask = inputs["token_mask"]
    counts = len(inputs["expert_ids"]) if mask is None else int(mask.sum())
    total = float(fraction.sum())
    if counts and not abs(total - 1) < 1e-4:
        return f"the fractions sum to {total:.4g}, not 1"
    if not counts and total != 0:
        return f"no token counts, and yet the fractions sum to {total:.4g}, not 0"
    return None


def _chosen(expert_ids: Tensor, token_mask: Tensor | None) -> Tensor:
    return (expert_ids if token_mask is None else expert_ids[token_mask]).flatten()


def _by_one_hot(expert_ids: Tensor, num_experts: int, token_mask: Tensor | None = None) -> Tensor:
    one_hot = F.one_hot(expert_ids, num_experts).float().sum(1)
    if token_mask is not None:
        one_hot = one_hot * token_mask[:, None]
    return one_hot.sum(0) / one_hot.sum().clamp(min=1)


def _by_loop(expert_ids: Tensor, num_experts: int, token_mask: Tensor | None = None) -> Tensor:
    chosen = _chosen(expert_ids, token_mask).tolist()
    return torch.tensor([chosen.count(e) / max(len(chosen), 1) for e in range(num_experts)])


def _counting(finish: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """Right counts, then `finish(counts, number of choices that count, expert_ids)`."""

    def wrong(expert_ids: Tensor, num_experts: int, token_mask: Tensor | None = None) -> Tensor:
        chosen = _chosen(expert_ids, token_mask)
        counts = torch.bincount(chosen, minlength=num_experts).float()
        return finish(counts, torch.tensor(max(len(chosen), 1)), expert_ids)

    return wrong


def _padding_to_expert_0(expert_ids: Tensor, num_experts: int, token_mask: Tensor | None = None) -> Tensor:
    if token_mask is not None:
        expert_ids = expert_ids * token_mask[:, None]
    return load_fraction(expert_ids, num_experts)


def _no_minlength(expert_ids: Tensor, num_experts: int, token_mask: Tensor | None = None) -> Tensor:
    chosen = _chosen(expert_ids, token_mask)
    return torch.bincount(chosen) / max(len(chosen), 1)


LOAD_FRACTION = Exercise(
    id="04.load_fraction",
    entry="load_fraction",
    title="f, the fraction of the load",
    points=2,
    difficulty=1,
    minutes=8,
    hints=(
        "You counted tokens per expert in lesson 02. Here the count comes from the tokens that are no padding, and a "
        "division follows. By what, so that the fractions sum to 1?",
        "`expert_ids[token_mask]` keeps the rows of the tokens that count. Each of them makes K choices. When none "
        "is left, 0/0 is NaN: divide by at least 1.",
        "Drop the padded rows if there is a mask, flatten, `torch.bincount` with `minlength=num_experts`, and divide "
        "by `max(number of ids, 1)`.",
    ),
    reference=load_fraction,
    cases=(
        Case("three tokens and one of padding", _four_tokens),
        Case("top-1, no mask", _choices(20, 6, 1, None)),
        Case("top-2 with padding", _choices(24, 6, 2, 9)),
        Case("top-4 of 16, hardly any padding", _choices(30, 16, 4, 3)),
        Case("a mask without padding", _choices(12, 4, 2, 0)),
        Case("experts that nobody chose", _choices(12, 8, 2, 0, unused=(2, 6, 7))),
        Case("nothing but padding", _choices(6, 4, 2, 6)),
        Case("no tokens", _choices(0, 4, 2, None)),
    ),
    properties=(Property("fractions sum to 1, or to 0 where no token counts", _wrong_sum),),
    misconceptions=(
        Misconception(
            "padding-counted",
            "You counted padding. It is routed like any token, all of it to the same experts, and would make the loss "
            "fight a load that does not exist.",
            lambda expert_ids, num_experts, token_mask=None: load_fraction(expert_ids, num_experts),
        ),
        Misconception(
            "divided-by-all-tokens",
            "You left padding out of the counts but not out of the divisor. Divide by the choices of the tokens that "
            "count, or f depends on how much padding a batch has.",
            _counting(lambda counts, made, expert_ids: counts / max(expert_ids.numel(), 1)),
        ),
        Misconception(
            "not-divided-by-k",
            "You divided by the number of tokens, so f sums to K. Some libraries do, and their loss is K times as "
            "large at the same α. Here f is a fraction of the *choices*: divide by T·K.",
            _counting(lambda counts, made, expert_ids: counts / (made / expert_ids.shape[1]).clamp(min=1)),
        ),
        Misconception(
            "not-divided-by-k-and-padding-counted",
            "Two things: you did not use the mask, so padding counts; and you divided by the number of tokens, so that "
            "f sums to K. Divide by the number of choices that count.",
            lambda expert_ids, num_experts, token_mask=None: (
                load_fraction(expert_ids, num_experts) * expert_ids.shape[1]
            ),
        ),
        Misconception(
            "divided-by-k-twice",
            "Your fractions sum to 1/K: a mean over all choices divides by K already, and you divided once more.",
            _counting(lambda counts, made, expert_ids: counts / made / expert_ids.shape[1]),
        ),
        Misconception(
            "first-choice-only",
            "You counted each token's first choice only. An expert works as much for a token that ranks it second.",
            lambda expert_ids, num_experts, token_mask=None: load_fraction(expert_ids[:, :1], num_experts, token_mask),
        ),
        Misconception(
            "padding-sent-to-expert-0",
            "Multiplying ids by the mask turns padding into expert 0, which is an expert like any other. Leave the "
            "padded rows out, or weigh each choice with 0.",
            _padding_to_expert_0,
        ),
        Misconception(
            "counts-not-fractions",
            "You returned counts. The loss would grow with the batch; divide by the number of choices.",
            _counting(lambda counts, made, expert_ids: counts),
        ),
        Misconception(
            "nan-without-tokens",
            "Where no token counts you compute 0/0, which is NaN, and one NaN ruins the whole model. A batch of "
            "padding has no load: return zeros.",
            _counting(lambda counts, made, expert_ids: counts / counts.sum()),
        ),
        Misconception(
            "last-experts-forgotten",
            "Your result ends at the largest id that occurs. An expert without tokens has f = 0, and the loss needs "
            "its entry: give `bincount` a `minlength`.",
            _no_minlength,
        ),
    ),
    alternatives=(_by_one_hot, _by_loop),
)
