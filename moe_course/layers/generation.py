"""Writing text with a `MoETransformer`, one token at a time."""

import torch
from jaxtyping import Int64
from torch import Tensor

from moe_course.layers.attention import KVCache
from moe_course.layers.transformer import MoETransformer


@torch.no_grad()
def generate(
    model: MoETransformer,
    ids: Int64[Tensor, "B S"],
    new_tokens: int,
    *,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    use_cache: bool = True,
) -> Int64[Tensor, "B S_and_new"]:
    """Continue B prompts of equal length by `new_tokens` tokens each. The model runs in evaluation mode.

    Args:
        model: predicts each next token.
        ids: the prompts, (B, S).
        new_tokens: how many to write.
        temperature: 0 takes the most probable token; else one is drawn from softmax(logits / temperature).
        generator: draws the tokens; torch's global one if None.
        use_cache: read each token once (True), or read the whole text again for every token: the same tokens, slower.

    Returns:
        (B, S + new_tokens): the prompts and what was written.

    Raises:
        ValueError: a prompt is empty, the text would not fit into the context, or the temperature is negative.
    """
    _check(model, ids, new_tokens, temperature)
    was_training = model.training
    model.eval()
    cache = KVCache(model.config.num_layers, ids.shape[1] + new_tokens) if use_cache else None
    unread = ids
    try:
        for _ in range(new_tokens):
            logits = model(unread, cache).logits[:, -1]
            token = _choose(logits, temperature, generator)
            ids = torch.cat([ids, token], dim=1)
            unread = token if use_cache else ids
    finally:
        model.train(was_training)
    return ids


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """One token for each row of logits (B, V): (B, 1)."""
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    probs = (logits.float() / temperature).softmax(dim=-1)
    return torch.multinomial(probs, 1, generator=generator)


def _check(model: MoETransformer, ids: Tensor, new_tokens: int, temperature: float) -> None:
    length, context = ids.shape[1], model.config.context
    if length == 0:
        raise ValueError("the prompt is empty; pass at least one token, such as a newline")
    if length + new_tokens > context:
        raise ValueError(
            f"a prompt of {length} tokens and new_tokens={new_tokens} do not fit into context={context}; "
            f"ask for at most {max(context - length, 0)} new tokens, or cut the prompt with ids[:, -{context // 2}:]"
        )
    if new_tokens < 0 or temperature < 0:
        raise ValueError(f"new_tokens={new_tokens} and temperature={temperature} must not be negative; choose ≥ 0")
