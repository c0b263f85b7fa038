"""Tiny tokenizers for tests: byte pairs learned from a few sentences, and SentencePiece vocabularies written by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

SENTENCES = [
    "The cat isn't here; they're THERE, aren't they? I'll see.",
    "In 1234 and 56789 there were 10 cats and 2 dogs.",
    "  two spaces, a tab\tand\n\nnew lines\r\n",
    "你好，世界！ Größe, naïve, Ελλάδα, 한국어 😀👍🏽 e\u0301",
    "def f(x):\n    return x**2 + 1  # code",
]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2
TEXTS = [
    *SENTENCES, "", " ", "   ", "a  b   c", "\n", " \n \n", "x\n\n\n  y", "\t\t", "I'M WE'RE don't 'tis", "1 22 333 4444 ½ ²", "…—“”",
    "<|im_end|>", "a<|im_start|>b", "\u00a0nbsp\u3000wide", "🏳️‍🌈", "\x00\x01\x7f", "\ufeffmark", "end ", "CamelCase snake_case",
]  # fmt: skip


@cache
def trained_model() -> str:
    """The model's part of a tokenizer.json."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library.train_from_iterator(
        SENTENCES * 3, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=CONTROL, show_progress=False)
    )
    return json.dumps(json.loads(library.to_str())["model"])


def train_byte_pairs() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a byte-level tokenizer of 400 tokens, the control tokens first."""
    model = json.loads(trained_model())
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def byte_pair_metadata(pre: str = "gpt-2", **changes: Any) -> dict[str, Any]:
    """A GGUF file's metadata of that tokenizer; names in `changes` come under tokenizer.ggml, None leaves a key out."""
    vocabulary, merges = train_byte_pairs()
    texts = sorted(vocabulary, key=vocabulary.__getitem__)
    values = {
        "model": "gpt2",
        "pre": pre,
        "tokens": texts,
        "token_type": np.array([3 if text in CONTROL else 1 for text in texts], np.int32),
        "merges": [f"{left} {right}" for left, right in merges],
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return gguf_metadata({**values, **changes})


def gguf_metadata(values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"tokenizer.ggml.{name}": value for name, value in values.items() if value is not None}


# 3 to 258 are the bytes; a pair's score is minus the order in which it is merged.
PIECES = ["▁", "a", "b", "c", "▁a", "ab", "▁ab", "bc", "h", "i", "hi", "▁hi"]
NUM_PIECES = 3 + 256 + len(PIECES) + 2  # with <|im_end|> and <think> at the end


def piece_metadata(**changes: Any) -> dict[str, Any]:
    """A GGUF file's metadata of a SentencePiece tokenizer: PIECES, all bytes, a control and a user-defined token."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, "<|im_end|>", "<think>"]
    values = {
        "model": "llama",
        "tokens": texts,
        "scores": np.array([0.0] * 259 + [-float(rank) for rank in range(len(PIECES))] + [0.0, 0.0], np.float32),
        "token_type": np.array([2, 3, 3] + [6] * 256 + [1] * len(PIECES) + [3, 4], np.int32),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return gguf_metadata({**values, **changes})


def metadata_of_model(path: Path, added: Mapping[str, int]) -> dict[str, Any]:
    """What llama.cpp's converter makes of a tokenizer.model: user-defined pieces become normal ones, added tokens control."""
    processor = SentencePieceProcessor(model_file=str(path))
    ids = range(processor.get_piece_size())
    kinds = [(processor.is_unknown, 2), (processor.is_control, 3), (processor.is_byte, 6)]
    types = [next((kind for is_kind, kind in kinds if is_kind(i)), 1) for i in ids]
    texts = [processor.id_to_piece(i) for i in ids] + sorted(added, key=added.__getitem__)
    scores = [processor.get_score(i) for i in ids] + [-1000.0] * len(added)
    return gguf_metadata(
        {
            "model": "llama",
            "tokens": texts,
            "scores": np.array(scores, np.float32),
            "token_type": np.array(types + [3] * len(added), np.int32),
            "bos_token_id": 1,
            "eos_token_id": 2,
            "eot_token_id": added["<|im_end|>"],
        }
    )


def tokenizer_json(**changes: Any) -> dict[str, Any]:
    """A tokenizer.json of the byte-pair tokenizer as Hugging Face would write it."""
    vocabulary, merges = train_byte_pairs()
    library = Library(models.BPE(vocab=vocabulary, merges=merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(CONTROL)
    return json.loads(library.to_str()) | changes


def write_tokenizer_folder(folder: Path, values: Mapping[str, Any] | None = None, **settings: Any) -> Path:
    """A folder with a tokenizer.json and a tokenizer_config.json."""
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json() if values is None else values))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
