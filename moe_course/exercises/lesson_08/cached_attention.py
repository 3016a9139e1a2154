"""Exercise 08.cached_attention: causal attention of new tokens to themselves and to a cache."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ...layers.attention import apply_rotary
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make

Output = tuple[Tensor, Tensor, Tensor]
THETA = 10_000.0


def cached_attention(q: Tensor, k: Tensor, v: Tensor, past_keys: Tensor, past_values: Tensor) -> Output:
    """Attention of S new tokens after P old ones: (mixed values, all keys, all values)."""
    past, new = past_keys.shape[2], q.shape[2]
    positions = torch.arange(past, past + new)
    keys = torch.cat([past_keys, apply_rotary(k, positions, THETA)], dim=2)
    values = torch.cat([past_values, v], dim=2)
    visible = torch.ones(new, past + new, dtype=torch.bool).tril(past)
    return F.scaled_dot_product_attention(apply_rotary(q, positions, THETA), keys, values, visible), keys, values


def _step(past: int, new: int, batch: int = 2, heads: int = 2, head_dim: int = 8) -> Make:
    """`new` tokens after `past`; the old keys are rotated already."""

    def make(generator: Generator) -> Inputs:
        def draw(length: int) -> Tensor:
            return torch.randn(batch, heads, length, head_dim, generator=generator)

        return {
            "q": 1.5 * draw(new),
            "k": 1.5 * draw(new),
            "v": draw(new),
            "past_keys": apply_rotary(1.5 * draw(past), torch.arange(past), THETA),
            "past_values": draw(past),
        }

    return make


def _all_values_alike(generator: Generator) -> Inputs:
    """Whatever the weights are, their sum is 1, so every token gets this one value."""
    inputs = _step(3, 4)(generator)
    value = torch.randn(8, generator=generator)
    return inputs | {name: value.expand_as(inputs[name]).clone() for name in ("v", "past_values")}


def _not_a_mean(inputs: Inputs, output: Output) -> str | None:
    values = torch.cat([inputs["past_values"], inputs["v"]], dim=2)
    outside = (output[0] > values.amax(2, keepdim=True) + 1e-3) | (output[0] < values.amin(2, keepdim=True) - 1e-3)
    return "a weighted mean cannot leave the range of the values, and yours does" if outside.any() else None


def _grown_wrong(inputs: Inputs, output: Output) -> str | None:
    old, new = inputs["past_keys"].shape[2], inputs["k"].shape[2]
    for name, tensor in zip(("keys", "values"), output[1:], strict=True):
        if tensor.shape[2] != old + new:
            return f"{name} hold {tensor.shape[2]} tokens; {old} old and {new} new make {old + new}"
    return None


def _by_hand(q: Tensor, k: Tensor, v: Tensor, past_keys: Tensor, past_values: Tensor) -> Output:
    past = past_keys.shape[2]
    positions = past + torch.arange(q.shape[2])
    keys = torch.cat([past_keys, apply_rotary(k, positions, THETA)], dim=2)
    values = torch.cat([past_values, v], dim=2)
    scores = apply_rotary(q, positions, THETA) @ keys.mT / q.shape[-1] ** 0.5
    hidden = torch.arange(keys.shape[2]) > positions[:, None]
    return scores.masked_fill(hidden, float("-inf")).softmax(dim=-1) @ values, keys, values


def _token_by_token(q: Tensor, k: Tensor, v: Tensor, past_keys: Tensor, past_values: Tensor) -> Output:
    keys, values, mixed = past_keys, past_values, []
    for i in range(q.shape[2]):
        here = torch.tensor([keys.shape[2]])
        keys = torch.cat([keys, apply_rotary(k[:, :, i : i + 1], here, THETA)], dim=2)
        values = torch.cat([values, v[:, :, i : i + 1]], dim=2)
        mixed.append(F.scaled_dot_product_attention(apply_rotary(q[:, :, i : i + 1], here, THETA), keys, values))
    return torch.cat(mixed, dim=2), keys, values


# Wrong answers: all of them differ from the reference in one step.


def _wrong(
    turn_q: Callable[[Tensor, int], Tensor] | None = None,
    turn_k: Callable[[Tensor, int], Tensor] | None = None,
    turn_v: Callable[[Tensor, int], Tensor] = lambda v, past: v,
    join: Callable[[Tensor, Tensor], Tensor] = lambda old, new: torch.cat([old, new], dim=2),
    turn_all: Callable[[Tensor], Tensor] = lambda keys: keys,
    hidden: Callable[[int, int], Tensor] = lambda past, new: ~_tril(past, new, past),
    scale: float = 0.5,
    over: int = -1,
) -> Callable[..., Output]:
    def wrong(q: Tensor, k: Tensor, v: Tensor, past_keys: Tensor, past_values: Tensor) -> Output:
        past = past_keys.shape[2]
        keys = join(past_keys, (turn_k or _turned)(k, past))
        values = join(past_values, turn_v(v, past))
        scores = (turn_q or _turned)(q, past) @ turn_all(keys).mT / q.shape[-1] ** scale
        # −1e9 rather than −inf: a row of nothing but hidden tokens stays finite.
        weights = scores.masked_fill(hidden(past, q.shape[2])[:, -keys.shape[2] :], -1e9).softmax(dim=over)
        return weights @ values, keys, values

    return wrong


def _turned(x: Tensor, past: int) -> Tensor:
    return apply_rotary(x, past + torch.arange(x.shape[2]), THETA)


def _turned_from_zero(x: Tensor, past: int) -> Tensor:
    return apply_rotary(x, torch.arange(x.shape[2]), THETA)


def _as_it_is(x: Tensor, past: int) -> Tensor:
    return x


def _tril(past: int, new: int, diagonal: int) -> Tensor:
    return torch.ones(new, past + new, dtype=torch.bool).tril(diagonal)


def _new_keys_only(q: Tensor, k: Tensor, v: Tensor, past_keys: Tensor, past_values: Tensor) -> Output:
    past = past_keys.shape[2]
    turned = _turned(k, past)
    mixed = F.scaled_dot_product_attention(_turned(q, past), turned, v, is_causal=True)
    return mixed, torch.cat([past_keys, turned], dim=2), torch.cat([past_values, v], dim=2)


def _cache_not_grown(q: Tensor, k: Tensor, v: Tensor, past_keys: Tensor, past_values: Tensor) -> Output:
    mixed, keys, values = cached_attention(q, k, v, past_keys, past_values)
    return mixed, keys[:, :, past_keys.shape[2] :], values[:, :, past_keys.shape[2] :]


def _plain_keys_kept(q: Tensor, k: Tensor, v: Tensor, past_keys: Tensor, past_values: Tensor) -> Output:
    mixed, _, values = cached_attention(q, k, v, past_keys, past_values)
    return mixed, torch.cat([past_keys, k], dim=2), values


CACHED_ATTENTION = Exercise(
    id="08.cached_attention",
    entry="cached_attention",
    title="Causal attention with a cache",
    points=4,
    difficulty=3,
    minutes=18,
    hints=(
        "Where do the new tokens stand? Behind the P old ones. That decides their positions and what each may see.",
        "`positions = torch.arange(P, P + S)`. Rotate q and k, not v and not the old keys. Join old and new along the "
        "tokens, dim 2. New token i sees P + i + 1 tokens.",
        "`visible = torch.ones(S, P + S, dtype=torch.bool).tril(P)`, then "
        "`F.scaled_dot_product_attention(q, keys, values, visible)`, which divides by √Dh itself. `is_causal=True` "
        "would be wrong: it lets token i see the *first* i + 1 keys.",
    ),
    reference=cached_attention,
    returns=("mixed", "keys", "values"),
    cases=(
        Case("a prompt, nothing before it", _step(0, 5), grad=("q", "k", "v")),
        Case("one new token after four", _step(4, 1), grad=("q", "past_keys", "past_values")),
        Case("three new tokens after four", _step(4, 3), grad=("q", "k", "v")),
        Case("more new tokens than old ones", _step(2, 5)),
        Case("two tokens after 300", _step(300, 2)),
        Case("all values alike", _all_values_alike),
        Case("one head, wide", _step(3, 3, batch=1, heads=1, head_dim=32)),
    ),
    properties=(
        Property("a mean of values", _not_a_mean),
        Property("the cache grows by the new tokens", _grown_wrong),
    ),
    misconceptions=(
        Misconception(
            "positions-restart",
            "Your new tokens start at position 0 again, although P tokens stand before them. Generation with a cache "
            "then differs from generation without: positions run from P to P + S − 1.",
            _wrong(turn_q=_turned_from_zero, turn_k=_turned_from_zero),
        ),
        Misconception(
            "queries-restart",
            "Your keys stand at P, P + 1, …, but your queries start at 0 again. A token then sees its own key at a "
            "distance of P.",
            _wrong(turn_q=_turned_from_zero),
        ),
        Misconception(
            "cache-rotated-again",
            "You rotated the whole row of keys, old ones included. The cache holds keys that were rotated when they "
            "were new: each call would turn them further.",
            _wrong(
                turn_k=_as_it_is,
                join=lambda old, new: torch.cat([old, new], dim=2),
                turn_all=lambda keys: _turned(keys, 0),
            ),
        ),
        Misconception(
            "plain-keys-kept",
            "The result is right, but the keys you return were not rotated, while those you got were. The next call "
            "will take them for rotated ones.",
            _plain_keys_kept,
        ),
        Misconception(
            "values-rotated",
            "You rotated the values as well. Positions belong into the scores, q · k; the values are what is mixed, "
            "and the mix would depend on where its parts stand.",
            _wrong(turn_v=_turned),
        ),
        Misconception(
            "queries-not-rotated",
            "Only your keys are rotated. A score then depends on where a key stands, and not on its distance from the "
            "query.",
            _wrong(turn_q=_as_it_is),
        ),
        Misconception(
            "mask-from-the-left",
            "Your mask starts at the top left corner, which is what `is_causal=True` means: new token i sees the first "
            "i + 1 keys. Behind P old tokens it must see P + i + 1.",
            _wrong(hidden=lambda past, new: ~_tril(past, new, 0)),
        ),
        Misconception(
            "sees-the-next-token",
            "Your mask is off by one: each token also sees the one after it, the very token it has to predict. "
            "The training loss would look wonderful.",
            _wrong(hidden=lambda past, new: ~_tril(past, new, past + 1)),
        ),
        Misconception(
            "does-not-see-itself",
            "Your mask is off by one: no token sees itself. The first token of a text would see nothing at all.",
            _wrong(hidden=lambda past, new: ~_tril(past, new, past - 1)),
        ),
        Misconception(
            "no-mask",
            "Every token sees all others, later ones included. With one new token this is right; with several they "
            "read the answers.",
            _wrong(hidden=lambda past, new: torch.zeros(new, past + new, dtype=torch.bool)),
        ),
        Misconception(
            "cache-not-read",
            "Your new tokens attend to each other alone. You keep the cache, but nobody reads it.",
            _new_keys_only,
        ),
        Misconception(
            "cache-not-grown",
            "You return the new keys and values only. The caller keeps what you return, so the old tokens are "
            "forgotten at the next call.",
            _cache_not_grown,
        ),
        Misconception(
            "new-before-old",
            "You joined new and old the wrong way round. The mask counts from the left: the old tokens come first.",
            _wrong(join=lambda old, new: torch.cat([new, old], dim=2)),
        ),
        Misconception(
            "not-scaled",
            "The scores are not divided by √Dh. They grow with the width of a head, and the softmax goes to one token.",
            _wrong(scale=0.0),
        ),
        Misconception(
            "scaled-twice",
            "The scores are divided by √Dh twice. `scaled_dot_product_attention` does it for you.",
            _wrong(scale=1.0),
        ),
        Misconception(
            "softmax-over-queries",
            "Your softmax runs over the queries. A token shares its attention among *keys*: `dim=-1`.",
            _wrong(over=-2),
        ),
    ),
    alternatives=(_by_hand, _token_by_token),
)
