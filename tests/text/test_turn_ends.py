"""What ends an answer: by name, by text and by the settings of a folder, against llama.cpp and the rules of `transformers`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_tokenizers import write_tokenizer_folder

from minicpm4.checkpoint import read_gguf
from minicpm4.engine.ends import end_tokens
from minicpm4.text import load_gguf_tokenizer, load_tokenizer, templates_of_folder
from minicpm4.text.token_text import BYTE_OF
from minicpm4.text.turn_ends import (
    CONVERSATION_PARTS,
    END_TEXTS,
    FILL_TEXTS,
    ONLY_WITHOUT_ANOTHER,
    TURN_TEXTS,
    ends_by_text,
    without_parts,
)
from tests.checkpoint.checkpoint_files import add_key
from tests.toy import toy_config

CANDIDATES = [
    *END_TEXTS, ONLY_WITHOUT_ANOTHER, *(text for group in FILL_TEXTS.values() for text in group), "<|im_start|>", "<|user|>",
    "<|assistant|>", "<s>", "<pad>", "<|eot|>", "<|EOT|>", "<|end_of_turn|>", "<|turn_end|>", "<sep>", "<|channel|>", "<|fim_middle|>",
    "<|im_sep|>", "word",
]  # fmt: skip


def test_known_texts() -> None:
    ids = {text: i for i, text in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "x"])}
    assert ends_by_text(ids) == {0: "<|endoftext|>", 2: "<|im_end|>"}
    assert list(ends_by_text({"[PAD]": 5, "<|fim_pad|>": 6})) == [6]
    assert list(ends_by_text({ONLY_WITHOUT_ANOTHER: 5})) == [5]
    assert list(ends_by_text({ONLY_WITHOUT_ANOTHER: 5, "<|im_end|>": 6})) == [6]
    for pair in CONVERSATION_PARTS:
        texts = dict(enumerate(["<|end|>", "</s>", *pair]))
        assert 0 not in without_parts(texts, texts)
        assert 1 in without_parts(texts, texts)
    assert list(without_parts({0: "eos", 1: "eos"}, {0: "</s>", 1: "<|tool_response>"})) == [1]


def write_vocabulary(path: Path, texts: list[str], types: list[int], keys: dict[str, Any]) -> None:
    """A GGUF file of a vocabulary alone."""
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"block_count": 1, "context_length": 256, "embedding_length": 64, "feed_forward_length": 64, "attention.head_count": 4}
    values = {f"llama.{key}": value for key, value in sizes.items()} | {"llama.attention.layer_norm_rms_epsilon": 1e-5}
    values |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": texts}
    values |= {"tokenizer.ggml.token_type": types, "tokenizer.ggml.merges": ["a b"], **keys}
    for key, value in values.items():
        add_key(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


@pytest.mark.whole
@pytest.mark.parametrize("seed", range(40))
def test_the_same_ends_as_llama_cpp(tmp_path: Path, seed: int) -> None:
    """Random vocabularies of candidates, of random types, with random keys; one text for each role in filling code."""
    pytest.importorskip("llama_cpp")
    from tests.llama_peer import ends_of, opened

    random = np.random.default_rng(seed)
    fills = {group[random.integers(len(group))] for group in FILL_TEXTS.values()}
    left_out = {text for group in FILL_TEXTS.values() for text in group} - fills
    chosen = [text for text in CANDIDATES if text not in left_out and random.random() < 0.3]
    texts = ["<|base|>", *chosen, *BYTE_OF]
    types = [3, *(int(random.choice([1, 3, 4])) for _ in chosen), *[1] * 256]
    roles = [role for role in ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep") if random.random() < 0.4]
    keys = {f"tokenizer.ggml.{role}_token_id": int(random.integers(0, len(chosen) + 1)) for role in roles}
    write_vocabulary(tmp_path / "v.gguf", texts, types, {"tokenizer.ggml.eos_token_id": 0, **keys})
    with opened(tmp_path / "v.gguf", vocab_only=True) as model:
        wanted = ends_of(model)
    tokenizer = load_gguf_tokenizer(read_gguf(tmp_path / "v.gguf").metadata, vocab_size=len(texts))
    unsure = {ONLY_WITHOUT_ANOTHER} if set(TURN_TEXTS) & set(texts) else set[str]()  # llama.cpp takes whichever a hash table gives first
    assert {texts[i] for i in tokenizer.ends} - unsure == {texts[i] for i in wanted} - unsure


CHATML = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
# What generation_config.json, config.json and the tokenizer's settings say; 0 is <|endoftext|>, 2 is <|im_end|>.
FOLDERS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any], set[int]]] = {
    "config": (None, (5,), {}, {5}),
    "generation-before-config": ([6, 7], (5,), {}, {6, 7}),
    "one-of-generation": (6, (5,), {}, {6}),
    "tokenizer-too": (None, (5,), {"eos_token": "<|endoftext|>"}, {5, 0}),
    "a-chat-model-by-its-tokenizer": (0, (0,), {"eos_token": "<|im_end|>"}, {0, 2}),
    "a-chat-model-by-its-template": (0, (0,), {"eos_token": "<|endoftext|>", "chat_template": CHATML}, {0, 2}),
    "no-row": ([6, 4000], (5,), {}, {6}),
    "nothing": (None, (), {}, set()),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_ends_of_a_folder(tmp_path: Path, case: str) -> None:
    generation, of_config, settings, wanted = FOLDERS[case]
    write_tokenizer_folder(tmp_path, **settings)
    tokenizer, templates = load_tokenizer(tmp_path, vocab_size=450), templates_of_folder(tmp_path)
    config = toy_config(vocab_size=450, eos_ids=of_config)
    ends = end_tokens(config, tokenizer, generation={"eos_token_id": generation}, templates=templates)
    assert set(ends) == wanted
    assert all(ends.values())
    assert json.dumps(ends)
