"""From text to token ids and back: a tokenizer of bytes, and one that has learnt which bytes go together."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Int64
from torch import Tensor

if TYPE_CHECKING:
    import tokenizers

BYTES = 256


class Tokenizer(Protocol):
    """What a corpus needs of a tokenizer: `decode(encode(text)) == text` for any text."""

    vocab_size: int

    def encode(self, text: str) -> Int64[Tensor, " N"]: ...

    def decode(self, ids: Int64[Tensor, " N"]) -> str: ...


class ByteTokenizer:
    """Every byte of UTF-8 is a token: nothing to learn, no unknown character, four tokens for an emoji."""

    vocab_size = BYTES

    def encode(self, text: str) -> Int64[Tensor, " N"]:
        return torch.tensor(list(text.encode()), dtype=torch.int64)

    def decode(self, ids: Int64[Tensor, " N"]) -> str:
        """The text of ids; bytes that are no UTF-8, which a model may well write, become �."""
        return bytes(ids.tolist()).decode(errors="replace")


class BPETokenizer:
    """Tokens are bytes and the pairs of tokens that `train_bpe` found most often. Made by `train_bpe`."""

    def __init__(self, trained: "tokenizers.Tokenizer") -> None:
        self._trained = trained
        self.vocab_size = trained.get_vocab_size()

    def encode(self, text: str) -> Int64[Tensor, " N"]:
        return torch.tensor(self._trained.encode(text).ids, dtype=torch.int64)

    def decode(self, ids: Int64[Tensor, " N"]) -> str:
        """The text of ids; bytes that are no UTF-8 become �."""
        return self._trained.decode(ids.tolist())


def train_bpe(texts: Iterable[str], vocab_size: int) -> BPETokenizer:
    """Merge the commonest pair of neighbouring tokens, again and again, until there are `vocab_size` tokens.

    Args:
        texts: what to learn from. No pair is merged across words: a word takes the space before it along.
        vocab_size: 256 bytes, and a token for every merge; fewer where the texts have no pair left.

    Raises:
        ValueError: vocab_size is below the 256 bytes.

    Source: Sennrich et al., arXiv 1508.07909, section 3.2; on bytes: Radford et al. (GPT-2), section 2.2.
    """
    if vocab_size < BYTES:
        raise ValueError(f"vocab_size={vocab_size} has no room for the {BYTES} bytes; choose vocab_size ≥ {BYTES}")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return BPETokenizer(tokenizer)
