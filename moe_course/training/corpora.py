"""Text for training that needs no download: Python's own language reference, cut into characters."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

CHUNK = 4096  # characters; train and held-out text are cut apart at this size
HELD_OUT_EVERY = 10


@dataclass(frozen=True)
class Characters:
    """A text as character ids, split into training and held-out chunks.

    Whole chunks are held out, not single characters: windows of the two parts share no text.

    Attributes:
        vocabulary: the characters, in the order of their ids.
        train: ids, one chunk a row, (chunks, CHUNK).
        held_out: every 10th chunk, likewise.
    """

    vocabulary: str
    train: Int64[Tensor, "chunks length"]
    held_out: Int64[Tensor, "chunks length"]

    def decode(self, ids: Tensor) -> str:
        """The text of a vector of ids."""
        return "".join(self.vocabulary[i] for i in ids.tolist())


def python_docs() -> Characters:
    """The language reference that comes with Python, `help()`'s own text: some 465 000 characters of English and code.

    Versions of Python differ a little in this text, and so does what is learnt from it.
    """
    from pydoc_data.topics import topics

    return split("\n".join(topics[name] for name in sorted(topics)))


def split(text: str) -> Characters:
    """Turn a text into ids and hold out every 10th chunk. A last incomplete chunk is dropped.

    Raises:
        ValueError: the text is too short to hold anything out.
    """
    if len(text) < HELD_OUT_EVERY * CHUNK:
        raise ValueError(f"the text has {len(text)} characters; give at least {HELD_OUT_EVERY * CHUNK}")
    vocabulary = "".join(sorted(set(text)))
    id_of = {character: i for i, character in enumerate(vocabulary)}
    ids = torch.tensor([id_of[character] for character in text])
    chunks = ids[: len(ids) // CHUNK * CHUNK].view(-1, CHUNK)
    held_out = torch.arange(len(chunks)) % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
    return Characters(vocabulary, chunks[~held_out], chunks[held_out])


def windows(chunks: Int64[Tensor, "chunks length"], context: int) -> Int64[Tensor, "windows context_and_next"]:
    """Every run of `context` characters and the one after it, (windows, context + 1). None crosses two chunks."""
    return chunks.unfold(1, context + 1, 1).flatten(0, 1)


def draw_batches(rows: Tensor, batch_size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """Yield `steps` batches of rows drawn with replacement; the same for the same seed, whatever trains on them."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield rows[torch.randint(len(rows), (batch_size,), generator=generator)]
