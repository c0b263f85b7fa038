"""Byte-pair tokenizers of GGUF files, against the same tokenizer put together independently, and the real default model."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import CONTROL, TEXTS, byte_pair_metadata, train_byte_pairs
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from minicpm4.checkpoint import read_gguf
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.text import Tokenizer, load_gguf_tokenizer

RULES = ["gpt-2", "smollm", "llama-bpe", "qwen2"]
ROWS = 400


def tiny(pre: str = "gpt-2", **changes: Any) -> Tokenizer:
    return load_gguf_tokenizer(byte_pair_metadata(pre, **changes), vocab_size=ROWS)


TINY = {pre: tiny(pre) for pre in RULES}


def independent_library(pre: str) -> Library:
    """The rule as the `tokenizers` and `transformers` libraries have it, for models of that kind."""
    from transformers.convert_slow_tokenizer import TikTokenConverter
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    vocabulary, merges = train_byte_pairs()
    library = Library(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre == "llama-bpe"))
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    gpt_2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.pre_tokenizer = {
        "gpt-2": gpt_2,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt_2]),
        "llama-bpe": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(TikTokenConverter().pattern), "isolated"), to_bytes]),
        "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"), to_bytes]),
    }[pre]
    return library


@pytest.mark.parametrize("pre", RULES)
def test_same_ids_as_an_independent_tokenizer(pre: str) -> None:
    library = independent_library(pre)
    for text in [*TEXTS, "\n".join(TEXTS)]:
        assert TINY[pre].encode(text) == ([1] if pre == "llama-bpe" else []) + library.encode(text).ids, text


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=60), pre=st.sampled_from(RULES))
def test_round_trip(text: str, pre: str) -> None:
    ids = TINY[pre].encode(text, add_bos=False)
    assert TINY[pre].decode(ids) == text
    assert b"".join(map(TINY[pre].token_bytes, ids)) == text.encode()
    assert not set(ids) & set(TINY[pre].special_tokens.values())


def test_control_tokens_are_parsed_only_where_asked() -> None:
    text = "<|im_start|>cat<|im_end|>"
    assert set(TINY["gpt-2"].encode(text)).isdisjoint({0, 1, 2})
    ids = TINY["gpt-2"].encode(text, parses_special=True)
    assert (ids[0], ids[-1]) == (1, 2)
    assert TINY["gpt-2"].decode(ids) == "cat"
    assert TINY["gpt-2"].decode(ids, skips_special=False) == text


def test_control_tokens_are_out_of_reach_of_merges() -> None:
    """Even where the vocabulary would allow it: a whole piece of text that is spelled like a control token."""
    metadata = byte_pair_metadata("llama-bpe")
    metadata["tokenizer.ggml.tokens"][0] = "secret"
    tokenizer = load_gguf_tokenizer(metadata, vocab_size=ROWS)
    assert 0 not in tokenizer.encode("secret")
    assert tokenizer.encode("secret", parses_special=True, add_bos=False) == [0]


def test_bos_conventions() -> None:
    assert (tiny().before, tiny("llama-bpe").before, tiny(add_bos_token=True).before) == ((), (1,), (1,))
    assert tiny(add_bos_token=True, bos_token_id=None).before == ()
    assert tiny(add_eos_token=True).encode("a")[-1:] == [2]
    assert tiny(add_eos_token=True).encode("a", add_bos=False) == tiny().encode("a")
    assert tiny().encode("", add_bos=True) == [1]
    assert tiny().encode("<|im_start|>", add_bos=True, parses_special=True) == [1]
    assert tiny(bos_token_id=ROWS + 5).bos_id is None  # the checkpoint's reader warns of it
    assert tiny(eot_token_id=1).ends == {
        2: "tokenizer.ggml.eos_token_id", 1: "tokenizer.ggml.eot_token_id", 0: "the text <|endoftext|>",
    }  # fmt: skip
    assert list(tiny(eos_token_id=np.array([5, 6])).ends) == [2, 0, 5, 6]


def test_user_defined_tokens_are_found_in_all_text() -> None:
    types = byte_pair_metadata()["tokenizer.ggml.token_type"].copy()
    types[:2] = 4
    tokenizer = tiny(token_type=types)
    ids = tokenizer.encode("a<|im_start|>b")
    assert ids[1] == 1
    assert tokenizer.decode(ids) == "a<|im_start|>b"
    assert tokenizer.token_bytes(1) == b"<|im_start|>"
    assert tokenizer.special_tokens.keys() == {"<|endoftext|>", "<|im_end|>"}  # which end turns, whatever the file calls them


def test_without_types_every_token_is_ordinary_but_those_that_end_turns() -> None:
    tokenizer = tiny(token_type=None)
    assert tokenizer.special_tokens == {"<|endoftext|>": 0, "<|im_end|>": 2}
    assert tokenizer.encode("cat") == TINY["gpt-2"].encode("cat")


def test_merges_of_what_is_no_token_leave_its_characters() -> None:
    """As in llama.cpp: what is merged stays merged, and is written by its characters where it has no id."""
    tokenizer = tiny(merges=["x y", "a b", "ab c"], token_type=None)
    single = {text: tokenizer.encode(text)[0] for text in "abcxy"}
    assert tokenizer.encode("xy") == [single["x"], single["y"]]
    assert tokenizer.encode("abc") == [single[character] for character in "abc"]


def test_without_a_rule_the_default_one_applies() -> None:
    assert tiny(pre=None).encode("12 cats") == tiny("default").encode("12 cats")


def test_tokens_past_the_rows_are_not_used() -> None:
    metadata = byte_pair_metadata()
    texts = [*metadata["tokenizer.ggml.tokens"], "[PAD]"]
    more = byte_pair_metadata(tokens=texts, token_type=np.append(metadata["tokenizer.ggml.token_type"], 3).astype(np.int32))
    tokenizer = load_gguf_tokenizer(more, vocab_size=ROWS)
    assert "[PAD]" not in tokenizer.special_tokens
    assert tokenizer.encode("cat[PAD]", parses_special=True) == TINY["gpt-2"].encode("cat[PAD]")


def test_ids_without_a_token_have_no_text() -> None:
    tokenizer = load_gguf_tokenizer(byte_pair_metadata(), vocab_size=512)
    assert tokenizer.vocab_size == 512
    assert tokenizer.decode([511]) == ""


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "model-other": ({"model": "bert"}, "supported: gpt2, llama"),
    "model-missing": ({"model": None}, "supported: gpt2, llama"),
    "pre-other": ({"pre": "deepseek-llm"}, "pre is 'deepseek-llm'; supported: a.x-4.0, chatglm-bpe"),
    "tokens-missing": ({"tokens": None}, "tokens is missing"),
    "tokens-numbers": ({"tokens": np.arange(5)}, "tokens is missing, or is no array of strings"),
    "tokens-text": ({"tokens": "abc"}, "no array of strings"),
    "tokens-twice": ({"tokens": ["a", "b", "a"], "token_type": None}, "two tokens have the text 'a'"),
    "tokens-too-many": (
        {"tokens": [f"t{i}" for i in range(2 * ROWS + 1)], "token_type": None},
        "id 800, but the model's embedding has 400 rows",
    ),
    "types-short": ({"token_type": np.ones(3, np.int32)}, r"token_type is int32 \(3,\), expected 400 whole numbers"),
    "types-floats": ({"token_type": np.ones(ROWS, np.float32)}, "token_type is float32"),
    "types-list": ({"token_type": [1] * ROWS}, "token_type is list"),
    "types-strange": ({"token_type": np.full(ROWS, 77, np.int32)}, "token_type holds 77"),
    "merges-missing": ({"merges": None}, "merges is missing"),
    "merge-no-pair": ({"merges": ["a"]}, "holds 'a', which is no pair"),
    "merge-of-nothing": ({"merges": [" a"]}, "holds ' a', which is no pair"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_wrong_metadata_is_refused_with_its_reason(case: str) -> None:
    changes, reason = HOSTILE[case]
    with pytest.raises(CheckpointError, match=reason) as refusal:
        tiny(**changes)
    assert refusal.value.hint
    assert len(str(refusal.value)) < 600


def test_wrong_types_of_single_values_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.ggml\.add_bos_token is 'yes'"):
        tiny(add_bos_token="yes")


@pytest.fixture(scope="module")
def default_metadata(default_gguf: Path) -> Any:
    return read_gguf(default_gguf).metadata


@pytest.fixture(scope="module")
def smollm(default_metadata: Any) -> Tokenizer:
    return load_gguf_tokenizer(default_metadata, vocab_size=49152)


def test_default_model_conventions(smollm: Tokenizer) -> None:
    assert (smollm.bos_id, smollm.before, set(smollm.ends)) == (1, (), {0, 2, 4})
    assert len(smollm.special_tokens) == 17
    assert [smollm.special_tokens[text] for text in CONTROL] == [0, 1, 2]


KNOWN = {
    "What is the capital of France?": [1780, 314, 260, 3575, 282, 4649, 47],
    "it's 2024": [269, 506, 216, 34, 32, 34, 36],
    "don't  stop\n\n": [12420, 982, 216, 2853, 1116],
    "你好 😀": [18645, 250, 48392, 138, 40303, 218],
}


@pytest.mark.parametrize("text", KNOWN)
def test_default_model_known_ids(smollm: Tokenizer, text: str) -> None:
    assert smollm.encode(text) == KNOWN[text]


@pytest.mark.parametrize("text", [text for text in TEXTS if "\x01" not in text] + ["I'll we've they'd", "汉字 and ひらがな", "٣٤ १२"])
def test_default_model_round_trips(smollm: Tokenizer, text: str) -> None:
    assert smollm.decode(smollm.encode(text)) == text


def test_default_model_agrees_with_an_independent_tokenizer(smollm: Tokenizer, default_metadata: Any) -> None:
    vocabulary = {text: i for i, text in enumerate(default_metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(line.split(" ")) for line in default_metadata["tokenizer.ggml.merges"]]
    library = Library.from_str(
        json.dumps({"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocabulary, "merges": merges}})
    )
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
    for text in TEXTS:
        assert smollm.encode(text) == library.encode(text).ids, text


def test_default_model_loads_quickly(default_metadata: Any) -> None:
    """0.11 s on a quiet machine; the best of three, with room for a busy one."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        load_gguf_tokenizer(default_metadata, vocab_size=49152)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5
