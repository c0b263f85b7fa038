"""Text from outside: long, empty, not Unicode. Every kind of tokenizer either takes it or says why not."""

import time

import pytest
from tiny_tokenizers import NUM_PIECES, byte_pair_metadata, piece_metadata

from minicpm4.errors import CheckpointError, RequestError
from minicpm4.text import Tokenizer, load_gguf_tokenizer
from minicpm4.text.library_errors import guarded
from minicpm4.text.tokenizer import WholeToken

TOKENIZERS = {pre: load_gguf_tokenizer(byte_pair_metadata(pre), vocab_size=400) for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2")} | {
    "pieces": load_gguf_tokenizer(piece_metadata(), vocab_size=NUM_PIECES)
}
kinds = pytest.mark.parametrize("kind", TOKENIZERS)


@kinds
@pytest.mark.parametrize("unit", ["a", " ", "<", "1", "\n", "<|im_end|>", "ab ", "好"])
def test_time_grows_with_the_text_and_not_with_its_square(kind: str, unit: str) -> None:
    """0.1 MB take up to 0.1 s; squared, they would take many minutes."""
    text = unit * (100_000 // len(unit))
    start = time.perf_counter()
    ids = TOKENIZERS[kind].encode(text, add_bos=False, parses_special=True)
    assert TOKENIZERS[kind].decode(ids, skips_special=False) == text
    assert time.perf_counter() - start < 10


@kinds
@pytest.mark.parametrize(("text", "what"), [("a\ud83d", r"U\+D83D, at position 1"), ("\udc00", r"U\+DC00, at position 0")])
def test_lone_surrogates_are_refused_with_a_remedy(kind: str, text: str, what: str) -> None:
    with pytest.raises(RequestError, match=what) as refusal:
        TOKENIZERS[kind].encode(text)
    assert "errors='replace'" in refusal.value.hint


@kinds
def test_empty_text_and_only_control_tokens(kind: str) -> None:
    tokenizer = TOKENIZERS[kind]
    assert tokenizer.encode("", add_bos=False) == []
    assert tokenizer.encode("", add_bos=True) == [1]
    ids = tokenizer.encode("<|im_end|>" * 3, parses_special=True, add_bos=False)
    assert ids == [tokenizer.special_tokens["<|im_end|>"]] * 3
    assert tokenizer.decode(ids) == ""
    assert tokenizer.decode([]) == ""


def test_bos_where_there_is_none() -> None:
    tokenizer = load_gguf_tokenizer(byte_pair_metadata(bos_token_id=None), vocab_size=400)
    with pytest.raises(RequestError, match="this tokenizer has none; leave add_bos out"):
        tokenizer.encode("a", add_bos=True)


def test_a_tokenizer_is_checked_when_made() -> None:
    codec = TOKENIZERS["gpt-2"].codec
    with pytest.raises(CheckpointError, match="two tokens have the id 3"):
        Tokenizer(codec, vocab_size=9, whole_tokens=(WholeToken("a", 3), WholeToken("b", 3)))
    with pytest.raises(CheckpointError, match="id 9, but the model's embedding has 9 rows"):
        Tokenizer(codec, vocab_size=9, ends={9: "a test"})


def test_an_interrupt_is_no_damage() -> None:
    """What a user does while a library works is not taken for an error of the model."""
    with pytest.raises(KeyboardInterrupt), guarded("tokenizing"):
        raise KeyboardInterrupt
