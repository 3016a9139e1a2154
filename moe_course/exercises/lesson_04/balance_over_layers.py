"""Exercise 04.balance_over_layers: one loss for several layers, averaged in the right order."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ...layers import load_balancing_loss
from ..spec import Case, Exercise, Misconception
from .inputs import Inputs, Make, routed


def balance_over_layers(probs: Tensor, expert_ids: Tensor) -> Tensor:
    """The mean over layers of each layer's balance loss: probs (L, T, E) and ids (L, T, K) to a scalar."""
    return torch.stack(_of_layers(probs, expert_ids)).mean()


def _of_layers(probs: Tensor, expert_ids: Tensor) -> list[Tensor]:
    return [load_balancing_loss(p, ids) for p, ids in zip(probs, expert_ids, strict=True)]


def _layers(num_layers: int, num_tokens: int, num_experts: int, top_k: int) -> Make:
    """Each layer favours other experts."""

    def make(generator: Generator) -> Inputs:
        drawn = [routed(num_tokens, num_experts, 1)(generator)[0].roll(2 * layer, -1) for layer in range(num_layers)]
        logits = torch.stack(drawn)
        return {"probs": logits.softmax(-1), "expert_ids": logits.topk(top_k, dim=-1).indices}

    return make


def _opposites(generator: Generator) -> Inputs:
    favourite = torch.tensor([[0] * 6, [1] * 6])
    logits = 3 * torch.eye(2)[favourite] + 0.4 * torch.rand(2, 6, 2, generator=generator)
    return {"probs": logits.softmax(-1), "expert_ids": logits.topk(1, dim=-1).indices}


def _all_at_once(probs: Tensor, expert_ids: Tensor) -> Tensor:
    num_layers, num_tokens, num_experts = probs.shape
    counts = probs.new_zeros(num_layers, num_experts).scatter_add(
        1, expert_ids.flatten(1), torch.ones_like(expert_ids.flatten(1), dtype=probs.dtype)
    )
    mean = probs.sum(1) / max(num_tokens, 1)
    return num_experts * (counts / max(expert_ids[0].numel(), 1) * mean).sum(-1).mean()


def _one_by_one(probs: Tensor, expert_ids: Tensor) -> Tensor:
    total = probs.new_zeros(())
    for layer in range(len(probs)):
        total = total + load_balancing_loss(probs[layer], expert_ids[layer]) / len(probs)
    return total


def _pooled(probs: Tensor, expert_ids: Tensor) -> Tensor:
    return load_balancing_loss(probs.flatten(0, 1), expert_ids.flatten(0, 1))


def _joining(join: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """Right losses of all layers, (L,), then `join(losses, K)`."""
    return lambda probs, expert_ids: join(torch.stack(_of_layers(probs, expert_ids)), expert_ids.shape[-1])


BALANCE_OVER_LAYERS = Exercise(
    id="04.balance_over_layers",
    entry="balance_over_layers",
    title="Several layers",
    points=2,
    difficulty=2,
    minutes=8,
    hints=(
        "Expert 3 of one layer and expert 3 of the next are different networks that share nothing but a number. "
        "Should a quiet one make up for a busy one?",
        "The loss is a product of two means. First the loss of each layer, then the mean of the losses; not the other "
        "way round.",
        "`torch.stack([load_balancing_loss(p, ids) for p, ids in zip(probs, expert_ids)]).mean()`.",
    ),
    reference=balance_over_layers,
    cases=(
        Case("two layers with opposite favourites", _opposites, grad=("probs",)),
        Case("three layers, top-1", _layers(3, 16, 6, 1), grad=("probs",)),
        Case("four layers, top-2", _layers(4, 20, 8, 2), grad=("probs",)),
        Case("one layer", _layers(1, 12, 4, 2)),
        Case("no tokens", _layers(2, 0, 4, 2)),
    ),
    misconceptions=(
        Misconception(
            "layers-pooled-first",
            "You averaged f and P over the layers before multiplying them, or put all layers into one batch. Then a "
            "layer that overloads expert 3 is excused by a layer that starves its own expert 3.",
            _pooled,
        ),
        Misconception(
            "sum-over-layers",
            "You added the layers' losses. Here it is their mean, so that α means the same for a model of any depth. "
            "Switch adds the losses: there α counts for each layer.",
            _joining(lambda losses, top_k: losses.sum()),
        ),
        Misconception(
            "last-layer-only",
            "Only the last layer counts in your result, as if the loss were overwritten inside a loop.",
            _joining(lambda losses, top_k: losses[-1]),
        ),
        Misconception(
            "first-layer-only",
            "Only the first layer counts in your result, as if a `return` stood inside the loop.",
            _joining(lambda losses, top_k: losses[0]),
        ),
        Misconception(
            "worst-layer-only",
            "You took the largest of the losses. The other layers then get no gradient until they are the worst.",
            _joining(lambda losses, top_k: losses.max()),
        ),
        Misconception(
            "not-divided-by-k",
            "Your loss is K times too large: f has to sum to 1 in each layer.",
            _joining(lambda losses, top_k: losses.mean() * top_k),
        ),
        Misconception(
            "detached",
            "The value is right, but no gradient reaches the probabilities. `.item()`, `float()` and "
            "`torch.tensor([...])` of losses cut it; `torch.stack` does not.",
            _joining(lambda losses, top_k: losses.detach().mean()),
        ),
    ),
    alternatives=(_all_at_once, _one_by_one),
)
