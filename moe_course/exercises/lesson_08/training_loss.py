"""Exercise 08.training_loss: the next token's cross-entropy, and the balance of all MoE layers."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ...layers import load_balancing_loss
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make

Losses = tuple[Tensor, Tensor, Tensor]
CrossEntropy = Callable[[Tensor, Tensor], Tensor]
Balance = Callable[[Tensor, Tensor], Tensor]


def training_loss(logits: Tensor, ids: Tensor, probs: Tensor, expert_ids: Tensor, balance_weight: float) -> Losses:
    """(loss, cross_entropy, balance) of logits (B, S, V), ids (B, S + 1), probs (L, T, E) and choices (L, T, K)."""
    cross_entropy, balance = _next_token(logits, ids), _mean_balance(probs, expert_ids)
    return cross_entropy + balance_weight * balance, cross_entropy, balance


def _next_token(logits: Tensor, ids: Tensor) -> Tensor:
    return F.cross_entropy(_at_least_float32(logits).flatten(0, 1), ids[:, 1:].flatten())


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _layers(probs: Tensor, expert_ids: Tensor) -> list[Tensor]:
    return [load_balancing_loss(p, chosen) for p, chosen in zip(probs, expert_ids, strict=True)]


def _mean_balance(probs: Tensor, expert_ids: Tensor) -> Tensor:
    losses = _layers(probs, expert_ids)
    return torch.stack(losses).mean() if losses else probs.new_zeros(())


def _batch(
    batch: int, length: int, vocab: int, layers: int, top_k: int = 2, dtype: torch.dtype = torch.float32
) -> Make:
    """Logits that know a little of the text, and layers that each favour other experts."""

    def make(generator: Generator) -> Inputs:
        ids = torch.randint(vocab, (batch, length + 1), generator=generator)
        logits = 1.5 * torch.randn(batch, length, vocab, generator=generator)
        lean = torch.linspace(1.5, 0, 6)
        router = torch.stack(
            [torch.randn(batch * length, 6, generator=generator) + lean.roll(2 * layer) for layer in range(layers)]
            or [torch.zeros(batch * length, 6)]
        )[:layers]
        return {
            "logits": (logits + 2 * F.one_hot(ids[:, 1:], vocab)).to(dtype),
            "ids": ids,
            "probs": router.softmax(dim=-1),
            "expert_ids": router.topk(top_k, dim=-1).indices,
            "balance_weight": 0.25,
        }

    return make


def _sure(generator: Generator) -> Inputs:
    """A model that is sure of every next token, and right."""
    inputs = _batch(2, 5, 7, 1)(generator)
    return inputs | {"logits": 30 * F.one_hot(inputs["ids"][:, 1:], 7).float()}


def _right_and_punished(inputs: Inputs, output: Losses) -> str | None:
    sure = inputs["logits"].float().softmax(-1).gather(-1, inputs["ids"][:, 1:, None]).min()
    if sure < 0.999 or output[1] < 1e-3:
        return None
    return f"the logits are sure of every next token, and right, but the cross-entropy is {output[1]:.3g}"


def _by_gathering(logits: Tensor, ids: Tensor, probs: Tensor, expert_ids: Tensor, balance_weight: float) -> Losses:
    log_probs = _at_least_float32(logits).log_softmax(dim=-1)
    cross_entropy = -log_probs.gather(-1, ids[:, 1:, None]).mean()
    balance = sum(_layers(probs, expert_ids), probs.new_zeros(())) / max(len(probs), 1)
    return cross_entropy + balance_weight * balance, cross_entropy, balance


def _classes_second(logits: Tensor, ids: Tensor, probs: Tensor, expert_ids: Tensor, balance_weight: float) -> Losses:
    cross_entropy = F.cross_entropy(_at_least_float32(logits).transpose(1, 2), ids[:, 1:])
    balance = _mean_balance(probs, expert_ids)
    return cross_entropy + balance_weight * balance, cross_entropy, balance


def _wrong(
    cross_entropy_of: CrossEntropy = _next_token,
    balance_of: Balance = _mean_balance,
    join: Callable[[Tensor, Tensor, float], Losses] = lambda c, b, weight: (c + weight * b, c, b),
) -> Callable[..., Losses]:
    def wrong(logits: Tensor, ids: Tensor, probs: Tensor, expert_ids: Tensor, balance_weight: float) -> Losses:
        return join(cross_entropy_of(logits, ids), balance_of(probs, expert_ids), balance_weight)

    return wrong


def _compared(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(_at_least_float32(logits).flatten(0, 1), targets.flatten())


def _reshaped(logits: Tensor, ids: Tensor) -> Tensor:
    batch, length, vocab = logits.shape
    return F.cross_entropy(_at_least_float32(logits).reshape(batch, vocab, length), ids[:, 1:])


def _summed(logits: Tensor, ids: Tensor) -> Tensor:
    return _next_token(logits, ids) * ids[:, 1:].numel()


def _summed_in_a_sequence(logits: Tensor, ids: Tensor) -> Tensor:
    return _next_token(logits, ids) * logits.shape[1]


def _pooled(probs: Tensor, expert_ids: Tensor) -> Tensor:
    return load_balancing_loss(probs.flatten(0, 1), expert_ids.flatten(0, 1)) if len(probs) else probs.new_zeros(())


def _some(pick: Callable[[list[Tensor]], Tensor]) -> Balance:
    return lambda probs, expert_ids: pick(_layers(probs, expert_ids)) if len(probs) else probs.new_zeros(())


TRAINING_LOSS = Exercise(
    id="08.training_loss",
    entry="training_loss",
    title="The loss of the whole model",
    points=4,
    difficulty=2,
    minutes=15,
    hints=(
        "The model read ids[:, :-1]. Logits at position s speak of the token after it. Which part of `ids` is that?",
        "`F.cross_entropy` wants (N, V) and (N,): flatten batch and sequence of both, `logits.flatten(0, 1)`. Do not "
        "reshape to (B, V, S). The balance is the mean of `load_balancing_loss` over the layers, or 0.",
        "`cross_entropy = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())`; "
        "`balance = torch.stack([...]).mean() if len(probs) else torch.zeros(())`; the loss is cross_entropy + "
        "balance_weight · balance.",
    ),
    reference=training_loss,
    returns=("loss", "cross_entropy", "balance"),
    cases=(
        Case("one sequence, one layer", _batch(1, 4, 5, 1)),
        Case("a batch, three layers", _batch(3, 6, 9, 3), grad=("logits", "probs")),
        Case("top-1", _batch(2, 8, 5, 2, top_k=1), grad=("logits", "probs")),
        Case("sure of every next token, and right", _sure),
        Case("a dense model, no layers", _batch(2, 5, 7, 0), grad=("logits",)),
        Case("bfloat16 logits, a float32 loss", _batch(2, 5, 7, 2, dtype=torch.bfloat16)),
    ),
    properties=(Property("a sure and right model costs nothing", _right_and_punished),),
    misconceptions=(
        Misconception(
            "not-shifted",
            "Your targets are the tokens that the model has just read. Copying its input would make the loss zero, and "
            "the model would never write anything new. The targets are ids[:, 1:].",
            _wrong(lambda logits, ids: _compared(logits, ids[:, :-1])),
        ),
        Misconception(
            "shifted-twice",
            "You shifted twice: the logits at s are compared with the token after the next. `ids` is one token longer "
            "than what the model read, so ids[:, 1:] is shifted already. Some libraries shift inside the loss, too.",
            _wrong(lambda logits, ids: _compared(logits[:, :-1], ids[:, 2:])),
        ),
        Misconception(
            "shifted-backwards",
            "You shifted the wrong way: the logits at s are compared with the token *before* it.",
            _wrong(lambda logits, ids: _compared(logits[:, 1:], ids[:, :-2])),
        ),
        Misconception(
            "first-token-lost",
            "You dropped the first prediction: logits[:, 1:] against ids[:, 2:]. The shift is right, but every "
            "sequence loses one token.",
            _wrong(lambda logits, ids: _compared(logits[:, 1:], ids[:, 2:])),
        ),
        Misconception(
            "last-token-lost",
            "You dropped the last prediction: logits[:, :-1] against ids[:, 1:-1]. The shift is right, but every "
            "sequence loses one token. `ids` has one token more than `logits`, so nothing needs to be cut from these.",
            _wrong(lambda logits, ids: _compared(logits[:, :-1], ids[:, 1:-1])),
        ),
        Misconception(
            "reshaped-not-transposed",
            "You reshaped (B, S, V) to (B, V, S). That shuffles the numbers: a token's logits no longer belong to it. "
            "It takes a transpose, or flatten batch and sequence.",
            _wrong(_reshaped),
        ),
        Misconception(
            "summed-over-tokens",
            "You added up the tokens' losses. A longer batch would weigh more against the balance loss, and need "
            "another learning rate: take the mean.",
            _wrong(_summed),
        ),
        Misconception(
            "summed-in-a-sequence",
            "You added up the losses within each sequence and averaged over the batch. Longer contexts would weigh "
            "more: take the mean over all tokens.",
            _wrong(_summed_in_a_sequence),
        ),
        Misconception(
            "balance-summed",
            "You added the layers' balance losses. Here it is their mean, so that the weight means the same for a "
            "model of any depth.",
            _wrong(balance_of=lambda probs, expert_ids: _mean_balance(probs, expert_ids) * len(probs)),
        ),
        Misconception(
            "balance-of-the-last-layer",
            "Only the last layer's balance counts, as happens when a loss is kept in one place and each layer "
            "overwrites it.",
            _wrong(balance_of=_some(lambda losses: losses[-1])),
        ),
        Misconception(
            "layers-pooled",
            "You put all layers' tokens into one batch. Then a layer that overloads expert 3 is excused by a layer "
            "that starves its own expert 3.",
            _wrong(balance_of=_pooled),
        ),
        Misconception(
            "weight-forgotten",
            "You added the balance loss without its weight. It is at least about 1, and would drown the text.",
            _wrong(join=lambda c, b, weight: (c + b, c, b)),
        ),
        Misconception(
            "weight-counted-twice",
            "The balance that you return is weighted already, and then weighted again in the loss. Report it as it "
            "is, so that 1 means even.",
            _wrong(join=lambda c, b, weight: (c + weight * weight * b, c, weight * b)),
        ),
        Misconception(
            "balance-reported-weighted",
            "The loss is right, but the balance that you report is multiplied by its weight. Report it as it is, so "
            "that 1 means even.",
            _wrong(join=lambda c, b, weight: (c + weight * b, c, weight * b)),
        ),
        Misconception(
            "balance-detached",
            "The numbers are right, but no gradient reaches the probabilities: the routers would never feel the "
            "balance loss. `.item()`, `float()` and `.detach()` cut it.",
            _wrong(balance_of=lambda probs, expert_ids: _mean_balance(probs, expert_ids).detach()),
        ),
        Misconception(
            "balance-left-out",
            "The loss is the cross-entropy alone. You computed the balance and did not add it.",
            _wrong(join=lambda c, b, weight: (c, c, b)),
        ),
        Misconception(
            "nan-without-layers",
            "For a model without MoE layers your balance is a mean over nothing, NaN. Return 0: the same code then "
            "trains the dense model that you compare with.",
            _wrong(
                balance_of=lambda probs, expert_ids: (
                    _mean_balance(probs, expert_ids) if len(probs) else probs.sum() + float("nan")
                )
            ),
        ),
    ),
    alternatives=(_by_gathering, _classes_second),
)
