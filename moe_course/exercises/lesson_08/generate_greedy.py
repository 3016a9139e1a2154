"""Exercise 08.generate_greedy: write text, reading each token once."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from ..spec import Case, Exercise, Misconception, Property
from ..with_decoder import continue_text
from .inputs import Inputs, Make

Written = tuple[Tensor, bool]
VOCAB, WIDTH = 13, 6


def generate_greedy(model: Any, cache: Any, ids: Tensor, new_tokens: int) -> Tensor:
    """Continue prompts (B, S) by the most probable tokens: (B, S + new_tokens). The cache starts empty."""
    unread = ids
    for _ in range(new_tokens):
        unread = model(unread, cache).logits[:, -1].argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, unread], dim=1)
    return ids


def _prompts(batch: int, length: int, new_tokens: int) -> Make:
    def make(generator: Generator) -> Inputs:
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        return {
            "state": {
                "embedding": draw(VOCAB, WIDTH),
                "query": draw(WIDTH, WIDTH),
                "key": draw(WIDTH, WIDTH),
                "value": draw(WIDTH, WIDTH),
                "head": draw(VOCAB, WIDTH),
            },
            "ids": torch.randint(VOCAB, (batch, length), generator=generator),
            "new_tokens": new_tokens,
        }

    return make


def _prompt_changed(inputs: Inputs, output: Written) -> str | None:
    ids, prompt = output[0], inputs["ids"]
    if ids.shape[1] < prompt.shape[1] or not torch.equal(ids[:, : prompt.shape[1]], prompt):
        return "the text does not begin with the prompt"
    return None


def _tokens_in_a_list(model: Any, cache: Any, ids: Tensor, new_tokens: int) -> Tensor:
    """Reads the prompt first; the last token is read as well, which is once too often and no harm."""
    tokens = [ids]
    logits = model(ids, cache).logits
    for _ in range(new_tokens):
        tokens.append(logits[:, -1:].argmax(dim=-1))
        logits = model(tokens[-1], cache).logits
    return torch.cat(tokens, dim=1)


def _loop(
    pick: Callable[[Tensor], Tensor] = lambda logits: logits[:, -1].argmax(dim=-1, keepdim=True),
    first: Callable[[Tensor], Tensor] = lambda ids: ids,
    then: Callable[[Tensor, Tensor], Tensor] = lambda ids, token: token,
    cached: bool = True,
    more: int = 0,
) -> Callable[..., Tensor]:
    """The right loop with one step changed: what is picked, read first, read then, and how often."""

    def wrong(model: Any, cache: Any, ids: Tensor, new_tokens: int) -> Tensor:
        unread = first(ids)
        for _ in range(new_tokens + more if new_tokens else 0):
            token = pick(model(unread, cache if cached else None).logits)
            ids = torch.cat([ids, token], dim=1)
            unread = then(ids, token)
        return ids

    return wrong


def _last_prompt_token_again(model: Any, cache: Any, ids: Tensor, new_tokens: int) -> Tensor:
    model(ids, cache)
    for _ in range(new_tokens):
        token = model(ids[:, -1:], cache).logits[:, -1].argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, token], dim=1)
    return ids


def _never_reads_on(model: Any, cache: Any, ids: Tensor, new_tokens: int) -> Tensor:
    if not new_tokens:
        return ids
    token = model(ids, cache).logits[:, -1].argmax(dim=-1, keepdim=True)
    return torch.cat([ids, token.expand(-1, new_tokens)], dim=1)


def _prompt_left_out(model: Any, cache: Any, ids: Tensor, new_tokens: int) -> Tensor:
    return generate_greedy(model, cache, ids, new_tokens)[:, ids.shape[1] :]


GENERATE_GREEDY = Exercise(
    id="08.generate_greedy",
    entry="generate_greedy",
    title="Write text, reading each token once",
    points=3,
    difficulty=2,
    minutes=12,
    hints=(
        "What has the model not read yet? At first the whole prompt; after that, one token at a time.",
        "Keep two things: `ids`, the text so far, and `unread`. Each round reads `unread`, picks a token from the "
        "logits at the *last* position, and appends it to `ids`. The token is then the new `unread`.",
        "`logits = model(unread, cache).logits[:, -1]`; `token = logits.argmax(dim=-1, keepdim=True)`; "
        "`ids = torch.cat([ids, token], dim=1)`; `unread = token`.",
    ),
    reference=generate_greedy,
    returns=("ids", "each token read once"),
    drive=continue_text,
    cases=(
        Case("one prompt, one token", _prompts(1, 4, 1)),
        Case("one prompt, nine tokens", _prompts(1, 4, 9)),
        Case("three prompts, eight tokens", _prompts(3, 5, 8)),
        Case("a prompt of one token", _prompts(2, 1, 7)),
        Case("a long prompt", _prompts(2, 20, 6)),
        Case("no new token", _prompts(2, 3, 0)),
    ),
    properties=(Property("the text begins with the prompt", _prompt_changed),),
    misconceptions=(
        Misconception(
            "cache-left-out",
            "The text is right, but the model reads all of it again for every token: you did not hand it the cache, "
            "and the work grows with the square of the length.",
            _loop(then=lambda ids, token: ids, cached=False),
        ),
        Misconception(
            "everything-read-again",
            "You pass the whole text *and* the cache, which holds it already. The model reads the prompt twice, three "
            "times, …, at ever later positions. After the prompt, pass the new token alone.",
            _loop(then=lambda ids, token: ids),
        ),
        Misconception(
            "cache-only-for-tokens",
            "You pass one token at a time and no cache. The model then knows nothing of the text before it.",
            _loop(cached=False),
        ),
        Misconception(
            "last-prompt-token-twice",
            "You read the prompt and threw its logits away, then passed the prompt's last token again. The cache now "
            "holds it twice. The first new token comes from the logits of the prompt.",
            _last_prompt_token_again,
        ),
        Misconception(
            "prompt-not-read",
            "You passed only the last token of the prompt. The cache is empty at first: read all of it.",
            _loop(first=lambda ids: ids[:, -1:]),
        ),
        Misconception(
            "first-position",
            "You took the logits at the first position. They predict the prompt's second token; the next new token "
            "stands in the last ones.",
            _loop(pick=lambda logits: logits[:, 0].argmax(dim=-1, keepdim=True)),
        ),
        Misconception(
            "one-token-for-all",
            "You gave all sequences the token of the first one. Take the argmax over the vocabulary, row by row.",
            _loop(pick=lambda logits: logits[:1, -1].argmax(dim=-1, keepdim=True).expand(len(logits), 1)),
        ),
        Misconception(
            "same-token-repeated",
            "You read the prompt once and repeated the token that follows. Each new token has to be read before the "
            "next.",
            _never_reads_on,
        ),
        Misconception(
            "prompt-left-out",
            "You return the new tokens without the prompt.",
            _prompt_left_out,
        ),
        Misconception(
            "one-token-short",
            "Your text is one token short. Reading the prompt yields the first new token, and each new token but the "
            "last yields another.",
            _loop(more=-1),
        ),
        Misconception(
            "one-token-too-many",
            "Your text is one token too long. Reading the prompt yields the first new token already.",
            _loop(more=1),
        ),
    ),
    alternatives=(_tokens_in_a_list,),
)
