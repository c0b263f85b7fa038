"""SentencePiece tokenizers of GGUF files, small enough to merge by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import NUM_PIECES, PIECES, piece_metadata

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.text import Tokenizer, load_gguf_tokenizer
from minicpm4.text.piece_model import varint

ID = {piece: 259 + index for index, piece in enumerate(PIECES)}
END, THINK = NUM_PIECES - 2, NUM_PIECES - 1


def tiny(*, space_prefix: bool | None = None, **changes: Any) -> Tokenizer:
    return load_gguf_tokenizer(piece_metadata(**changes), vocab_size=NUM_PIECES, space_prefix=space_prefix)


def test_merges_the_best_score_first() -> None:
    plain = tiny(space_prefix=False)
    assert plain.encode("abc", add_bos=False) == [ID["ab"], ID["c"]]
    assert plain.encode(" abc", add_bos=False) == [ID["▁ab"], ID["c"]]
    assert plain.encode("hi hi", add_bos=False) == [ID["hi"], ID["▁hi"]]
    assert plain.encode("aé", add_bos=False) == [ID["a"], 3 + 0xC3, 3 + 0xA9]


def test_a_space_before_every_text_unless_told_otherwise() -> None:
    text = "hi<|im_end|>hi"
    assert tiny().encode(text, parses_special=True) == [1, ID["▁hi"], END, ID["▁hi"]]
    assert tiny(space_prefix=False).encode(text, parses_special=True) == [1, ID["hi"], END, ID["hi"]]
    assert tiny(add_space_prefix=False).encode(text, parses_special=True) == [1, ID["hi"], END, ID["hi"]]
    assert tiny(add_space_prefix=False, space_prefix=True).encode("hi") == [1, ID["▁hi"]]


def test_user_defined_tokens_are_found_in_all_text() -> None:
    assert tiny().encode("hi<think>hi", add_bos=False) == [ID["▁hi"], THINK, ID["▁hi"]]
    assert tiny().decode([THINK]) == "<think>"


def test_conventions() -> None:
    assert (tiny().bos_id, tiny().before, tiny().after, list(tiny().ends)) == (1, (1,), (), [END, 2])
    assert tiny(add_bos_token=False).before == ()
    assert tiny(add_eos_token=True).encode("hi") == [1, ID["▁hi"], 2]
    assert dict(tiny().special_tokens) == {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_end|>": END}


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40).filter(lambda text: "▁" not in text), space_prefix=st.booleans())
def test_round_trip(text: str, space_prefix: bool) -> None:
    tokenizer = TOKENIZERS[space_prefix]
    assert tokenizer.decode(tokenizer.encode(text)) == text


TOKENIZERS = {prefix: tiny(space_prefix=prefix) for prefix in (False, True)}


def test_without_byte_pieces_a_strange_character_is_unknown() -> None:
    texts = ["<unk>", "a"]
    metadata = piece_metadata(tokens=texts, scores=np.zeros(2, np.float32), token_type=np.array([2, 1]), bos_token_id=None)
    tokenizer = load_gguf_tokenizer(metadata, vocab_size=2, space_prefix=False)
    assert tokenizer.encode("aé") == [1, 0]
    assert tokenizer.decode([1, 0]) == "a"


def small(texts: list[str], types: list[int]) -> Tokenizer:
    scores = -np.arange(len(texts), dtype=np.float32)
    metadata = piece_metadata(tokens=texts, scores=scores, token_type=np.array(types), bos_token_id=None, eos_token_id=None)
    return load_gguf_tokenizer(metadata, vocab_size=len(texts), space_prefix=False)


def test_odd_vocabularies_that_llama_cpp_loads() -> None:
    """Its issue 5112 (an empty token), its pull request 5478 (a byte piece is missing), and others of the kind."""
    assert small(["<unk>", "a", ""], [2, 1, 1]).encode("aa") == [1, 1]
    assert small(["<unk>", "a", "<unk2>"], [2, 1, 2]).encode("aa") == [1, 1]
    assert small(["a", "b"], [1, 1]).encode("ab") == [0, 1]
    assert small(["a", "b"], [1, 1]).encode("ac") == [0]  # there is nothing that could stand for it
    some_bytes = small(["<unk>", "a", "<0xC3>"], [2, 1, 6])
    assert some_bytes.encode("aé") == [1, 2, 0]
    assert some_bytes.decode([1, 2]) == "a\ufffd"
    assert tiny(scores=None).encode("a", add_bos=False)[-1] in (ID["a"], ID["▁a"])


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "scores-int8": ({"scores": np.zeros(NUM_PIECES, np.int8)}, "scores is int8"),
    "scores-short": ({"scores": np.zeros(5, np.float32)}, "expected 273 floats"),
    "scores-nan": ({"scores": np.full(NUM_PIECES, np.nan, np.float32)}, "no numbers"),
    "scores-infinite": ({"scores": np.full(NUM_PIECES, -np.inf, np.float32)}, "infinities"),
    "all-byte-type": ({"token_type": np.array([2, 3, 3] + [6] * 270)}, "reading the SentencePiece model failed"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_wrong_metadata_is_refused_with_its_reason(case: str) -> None:
    changes, reason = HOSTILE[case]
    with pytest.raises(CheckpointError, match=reason) as refusal:
        tiny(**changes)
    assert refusal.value.hint


def test_wrong_types_of_single_values_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.ggml\.add_space_prefix is 1"):
        tiny(add_space_prefix=1)


@pytest.mark.parametrize(("value", "encoded"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02"), (1 << 32, "8080808010")])
def test_numbers_of_the_wire_format(value: int, encoded: str) -> None:
    assert varint(value).hex() == encoded
