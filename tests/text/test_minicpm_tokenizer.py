"""MiniCPM4's own tokenizer: published and simulated ids, from its folder and from GGUF metadata made of it."""

import json
from pathlib import Path

import pytest
from tiny_tokenizers import metadata_of_model

from minicpm4.text import Tokenizer, encode_chat, load_gguf_tokenizer, load_tokenizer, templates_of_folder

ROWS = 73448
SKY = "What color is the sky?\nA. Red\nB. Blue\nC. Green\nD. Yellow"
GOLDEN = {
    "The capital of France is": [2219, 8107, 1379, 8360, 1410],
    "hello world": [17751, 2809],
    "Hello, world!": [15934, 59342, 2809, 73],
    " Paris.": [11225, 72],
    "推荐5个北京的景点。": [5147, 59367, 59411, 3083, 59350, 20349, 66],
    "Write an article about Artificial Intelligence.": [10643, 1458, 4695, 1835, 46715, 28344, 72],
    "1234 + 5 = 😀": [59345, 59349, 59362, 59370, 59320, 62, 59320, 59367, 59320, 64, 59320, 70571],
    SKY: [
        5856, 4351, 1410, 1358, 18086, 74, 5, 59353, 72, 5430, 5, 59378, 72, 11003, 5, 59357, 72, 7868, 5, 59371, 72, 30510,
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(official: Path) -> Tokenizer:
    return load_tokenizer(official / "0.5B", vocab_size=ROWS)


def gguf(official: Path, *, space_prefix: bool | None) -> Tokenizer:
    added = json.loads((official / "0.5B" / "added_tokens.json").read_text())
    metadata = metadata_of_model(official / "0.5B" / "tokenizer.model", added)
    return load_gguf_tokenizer(metadata, vocab_size=ROWS, space_prefix=space_prefix)


@pytest.fixture(scope="module")
def prefixing(official: Path) -> Tokenizer:
    """As llama.cpp reads the published GGUF files, which do not mention the space."""
    return gguf(official, space_prefix=None)


def test_conventions(tokenizer: Tokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.before) == (ROWS, 1, (1,))
    assert set(tokenizer.ends) == {73440, 2}
    assert tokenizer.special_tokens["<|im_start|>"] == 73441
    assert len(tokenizer.special_tokens) == 11


@pytest.mark.parametrize("text", GOLDEN)
def test_golden_ids(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text, add_bos=False) == GOLDEN[text]
    assert tokenizer.encode(text) == [1, *GOLDEN[text]]
    assert tokenizer.decode(GOLDEN[text]) == text


@pytest.mark.parametrize("text", GOLDEN)
def test_gguf_without_space_has_the_same_ids(official: Path, text: str) -> None:
    assert gguf(official, space_prefix=False).encode(text, add_bos=False) == GOLDEN[text]


def test_published_chat_prompt(tokenizer: Tokenizer, official: Path) -> None:
    ids = encode_chat(tokenizer, templates_of_folder(official / "0.5B"), [{"role": "user", "content": "你好"}])
    assert ids == [1, 73441, 1836, 5, 23523, 73440, 5, 73441, 43686, 5]


def test_llama_cpp_puts_a_space_before_every_text(prefixing: Tokenizer) -> None:
    assert prefixing.encode("The capital of France is", add_bos=False) == [1507, 8107, 1379, 8360, 1410]
    chat = "<|im_start|>user\nThe capital of France is<|im_end|>\n<|im_start|>assistant\n"
    assert prefixing.encode(chat, parses_special=True) == [
        1, 73441, 3060, 5, 2219, 8107, 1379, 8360, 1410, 73440, 59320, 5, 73441, 16434, 5,
    ]  # fmt: skip
    assert set(prefixing.ends) == {2, 73440}


def test_decoding_drops_the_space_that_encoding_put(prefixing: Tokenizer) -> None:
    ids = prefixing.encode("The capital", add_bos=False)
    assert prefixing.decode(ids) == "The capital"
    assert prefixing.decode(ids, is_continuation=True) == " The capital"


@pytest.mark.parametrize("text", ["\n\n", "```python\n\tx += 1\n```", "a  b   c ", "<table><tr>", "é\u0301 한국어", "\x00\x01", "👍🏽"])
def test_round_trip(tokenizer: Tokenizer, prefixing: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert prefixing.decode(prefixing.encode(text)) == text


def test_bytes_of_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes(1099) == b"\n"  # the byte piece
    assert tokenizer.token_bytes(5) == b"\n"  # the user-defined piece
    assert tokenizer.token_bytes(59320) == b" "
    assert tokenizer.token_bytes(73440) == b""
    assert tokenizer.decode([73441, 1836], skips_special=False) == "<|im_start|>user"
