"""Any text survives the way through a tokenizer and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_course.training import ByteTokenizer, train_bpe

TEXTS = ["for i in range(10):\n    print(i)\n" * 20, "The statement after the colon. " * 20, "größer als 3 € 😀\n" * 5]
BPE = train_bpe(TEXTS, 300)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=["bytes", "bpe"])
@settings(max_examples=60)
@given(text=st.text())
def test_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.dtype == torch.int64 and ids.ndim == 1
    assert ((ids >= 0) & (ids < tokenizer.vocab_size)).all()


def test_bytes_are_the_ids():
    assert ByteTokenizer().encode("Aé").tolist() == [0x41, 0xC3, 0xA9]


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=["bytes", "bpe"])
def test_half_a_character_is_shown_as_such(tokenizer):
    snowman = tokenizer.encode("☃")
    assert len(snowman) == 3, "its bytes"
    assert tokenizer.decode(snowman[:1]) == "�"


def test_bpe_learns_what_goes_together():
    text = TEXTS[0]
    assert BPE.vocab_size == 300
    assert len(BPE.encode(text)) < 0.5 * len(ByteTokenizer().encode(text))
    assert [BPE.decode(i[None]) for i in BPE.encode("for i in range")] == ["for", " i", " in", " range"]


def test_no_token_spans_two_words():
    tokens = [BPE.decode(i[None]) for i in BPE.encode(TEXTS[1])]
    assert not any(" " in token.lstrip(" ") for token in tokens)


def test_bpe_repeats_itself():
    again = train_bpe(TEXTS, 300)
    assert torch.equal(again.encode(TEXTS[1]), BPE.encode(TEXTS[1]))


def test_texts_without_pairs_give_fewer_tokens():
    assert train_bpe(["ab"], 300).vocab_size == 257


def test_too_small_a_vocabulary():
    with pytest.raises(ValueError, match="vocab_size=255 has no room for the 256 bytes; choose vocab_size ≥ 256"):
        train_bpe(TEXTS, 255)
