"""A decoder small enough to know by heart, for exercises that write text: it counts what it has to read."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Output:
    """As a `MoETransformer`'s output: logits (B, S, V) of the token after each one read."""

    logits: Tensor


class TinyCache:
    """Keys and values of what was read; empty at first."""

    def __init__(self) -> None:
        self.kept: tuple[Tensor, Tensor] | None = None

    @property
    def length(self) -> int:
        return 0 if self.kept is None else self.kept[0].shape[1]

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if self.kept is not None:
            keys, values = torch.cat([self.kept[0], keys], dim=1), torch.cat([self.kept[1], values], dim=1)
        self.kept = keys, values
        return keys, values


class TinyDecoder:
    """One attention head over embeddings and positions. Called as a `MoETransformer`: `model(ids, cache).logits`.

    Args:
        state: "embedding" (V, D), "query", "key" and "value" (D, D), "head" (V, D).
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        self.read = 0  # tokens of each sequence so far

    def __call__(self, ids: Tensor, cache: TinyCache | None = None) -> Output:
        past, new, width = (cache.length if cache is not None else 0), ids.shape[1], self.state["embedding"].shape[1]
        self.read += new
        position = torch.arange(past, past + new, dtype=self.state["head"].dtype)[:, None]
        x = self.state["embedding"][ids] + torch.sin(position * torch.linspace(0.3, 2.9, width) + 0.5)
        query, key, value = (x @ self.state[name] for name in ("query", "key", "value"))
        if cache is not None:
            key, value = cache.extend(key, value)
        hidden = ~torch.ones(new, past + new, dtype=torch.bool).tril(past)
        scores = (query @ key.mT / width**0.5).masked_fill(hidden, float("-inf"))
        return Output((x + 2 * scores.softmax(dim=-1) @ value) @ self.state["head"].mT)


def continue_text(entry: Callable[..., Any], inputs: dict[str, Any]) -> tuple[Any, bool]:
    """`entry(model, cache, ids, new_tokens)` on a decoder of the given weights and an empty cache.

    Returns:
        What the entry returned, and whether the model read no token of a sequence more than once.
    """
    model = TinyDecoder(inputs["state"])
    ids = entry(model, TinyCache(), inputs["ids"], inputs["new_tokens"])
    return ids, model.read <= inputs["ids"].shape[1] + inputs["new_tokens"]
