"""The corpus is real text, the same every time, and held-out text shares nothing with training text."""

import pytest
import torch

from moe_course.training import draw_batches, python_docs, windows
from moe_course.training.corpora import CHUNK, HELD_OUT_EVERY, split


@pytest.fixture(scope="module")
def corpus():
    return python_docs()


def test_python_docs_are_a_large_readable_text(corpus):
    assert corpus.train.numel() > 300_000
    assert "statement" in corpus.decode(corpus.train[:3].flatten())


def test_ids_are_those_of_the_vocabulary(corpus):
    both = torch.cat([corpus.train, corpus.held_out])
    assert both.min() >= 0 and both.max() < len(corpus.vocabulary)
    assert len(set(corpus.vocabulary)) == len(corpus.vocabulary)


def test_every_tenth_chunk_is_held_out_and_none_twice():
    chunk_numbers = "".join(chr(0x100 + number) * CHUNK for number in range(21))
    parts = split(chunk_numbers + "incomplete")
    held_out = {parts.decode(row[:1]) for row in parts.held_out}
    assert held_out == {chr(0x100 + 9), chr(0x100 + 19)}
    assert len(parts.train) == 19
    assert not held_out & {parts.decode(row[:1]) for row in parts.train}


def test_too_short_a_text_says_what_it_needs():
    with pytest.raises(ValueError, match=f"at least {HELD_OUT_EVERY * CHUNK}"):
        split("short")


def test_windows_stay_within_a_chunk():
    rows = windows(torch.arange(12).view(2, 6), context=2)
    assert rows.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [6, 7, 8], [7, 8, 9], [8, 9, 10], [9, 10, 11]]


def test_batches_follow_from_the_seed():
    rows = torch.arange(1000)[:, None]
    first, again, other = (torch.cat(list(draw_batches(rows, 8, 5, seed))) for seed in (1, 1, 2))
    assert first.shape == (40, 1)
    assert torch.equal(first, again) and not torch.equal(first, other)
