"""Streams of text: the pieces make up the whole, and no character comes in parts."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import NUM_PIECES, byte_pair_metadata, piece_metadata

from minicpm4.errors import RequestError
from minicpm4.text import TextStream, Tokenizer, load_gguf_tokenizer

BYTES = load_gguf_tokenizer(byte_pair_metadata(), vocab_size=400)
PIECES = load_gguf_tokenizer(piece_metadata(), vocab_size=NUM_PIECES)


def stream(tokenizer: Tokenizer, ids: list[int], **options: bool) -> list[str]:
    texts = TextStream(tokenizer, **options)
    return [*map(texts.push, ids), texts.finish()]


def byte_ids(data: bytes) -> list[int]:
    return [3 + byte for byte in data]  # in PIECES


@settings(max_examples=300, deadline=None)
@given(data=st.data(), tokenizer=st.sampled_from([BYTES, PIECES]), skips_special=st.booleans(), is_continuation=st.booleans())
def test_pieces_make_up_the_whole(data: st.DataObject, tokenizer: Tokenizer, skips_special: bool, is_continuation: bool) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    options = {"skips_special": skips_special, "is_continuation": is_continuation}
    assert "".join(stream(tokenizer, ids, **options)) == tokenizer.decode(ids, **options)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=20))
def test_any_bytes_make_up_what_they_decode_to(data: bytes) -> None:
    assert "".join(stream(PIECES, byte_ids(data), is_continuation=True)) == data.decode("utf-8", "replace")


def test_a_character_comes_whole() -> None:
    assert stream(PIECES, byte_ids("é😀x".encode())) == ["", "é", "", "", "", "😀", "x", ""]


def test_bytes_that_are_no_character() -> None:
    assert stream(PIECES, byte_ids(b"\xf0\x9fab")) == ["", "", "\ufffda", "b", ""]
    assert stream(PIECES, byte_ids(b"\xff\xe4\xbd")) == ["\ufffd", "", "", "\ufffd"]


def test_control_tokens_within_a_character() -> None:
    assert stream(PIECES, [*byte_ids(b"\xc3"), 2, *byte_ids(b"\xa9")]) == ["", "", "é", ""]


def test_the_space_that_encoding_put_first() -> None:
    ids = PIECES.encode("hi hi")
    assert stream(PIECES, ids) == ["", "hi", " hi", ""]
    assert stream(PIECES, ids, is_continuation=True) == ["", " hi", " hi", ""]
    assert stream(PIECES, ids, skips_special=False) == ["<s>", " hi", " hi", ""]


@pytest.mark.parametrize("token_id", [-1, 400, 1 << 40])
def test_an_id_that_is_none(token_id: int) -> None:
    for use in (TextStream(BYTES).push, BYTES.token_bytes, lambda one: BYTES.decode([one])):
        with pytest.raises(RequestError, match=f"{token_id} is no token id; this tokenizer's ids are 0 to 399"):
            use(token_id)
