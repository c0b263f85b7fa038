"""Folders with a tokenizer.model: added tokens, spaces and conventions from the small files beside it, and wrong ones."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import NUM_PIECES, PIECES, piece_metadata

from minicpm4.errors import CheckpointError
from minicpm4.text import Tokenizer, load_tokenizer
from minicpm4.text.piece_model import byte_pair_model

ID = {piece: 259 + index for index, piece in enumerate(PIECES)}
USER, TOOL = NUM_PIECES, NUM_PIECES + 1
ROWS = NUM_PIECES + 3


def load(folder: Path, *, adds_space: bool = False, files: dict[str, Any] | None = None, vocab_size: int = ROWS) -> Tokenizer:
    metadata = piece_metadata()
    texts, scores, types = (metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    (folder / "tokenizer.model").write_bytes(byte_pair_model(texts, scores.tolist(), types.tolist(), adds_space=adds_space))
    for name, values in (files or {}).items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return load_tokenizer(folder, vocab_size=vocab_size)


def test_the_model_alone(tmp_path: Path) -> None:
    tokenizer = load(tmp_path)
    assert tokenizer.encode("hi ab") == [1, ID["hi"], ID["▁ab"]]
    assert (tokenizer.bos_id, tokenizer.before, list(tokenizer.ends)) == (1, (1,), [2])
    assert tokenizer.decode(tokenizer.encode("hi ab\n")) == "hi ab\n"


def test_added_tokens_from_either_file(tmp_path: Path) -> None:
    files = {
        "added_tokens": {"<user>": USER, "<tool>": TOOL},
        "special_tokens_map": {"additional_special_tokens": ["<user>"], "eos_token": {"content": "<user>"}},
    }
    tokenizer = load(tmp_path, files=files)
    assert tokenizer.special_tokens["<user>"] == USER
    assert "<tool>" not in tokenizer.special_tokens
    assert tokenizer.encode("<user>hi<tool>", parses_special=True) == [1, USER, ID["hi"], TOOL]
    assert TOOL in tokenizer.encode("<user>hi<tool>")
    assert USER not in tokenizer.encode("<user>hi<tool>")
    assert set(tokenizer.ends) == {USER, 2}
    config = {"added_tokens_decoder": {str(TOOL): {"content": "<tool>", "special": True}}, "add_bos_token": False}
    tokenizer = load(tmp_path, files={**files, "tokenizer_config": config})
    assert tokenizer.special_tokens["<tool>"] == TOOL
    assert tokenizer.before == ()


@pytest.mark.parametrize(
    ("legacy", "ids"), [(True, ["▁hi", "</s>", "▁hi"]), (False, ["▁hi", "</s>", "hi"]), (None, ["▁hi", "</s>", "▁hi"])]
)
def test_space_before_every_text_or_only_the_first(tmp_path: Path, legacy: bool | None, ids: list[str]) -> None:
    tokenizer = load(tmp_path, adds_space=True, files={"tokenizer_config": {"legacy": legacy}})
    assert tokenizer.encode("hi</s>hi", parses_special=True, add_bos=False) == [{"</s>": 2, **ID}[text] for text in ids]
    assert tokenizer.decode(tokenizer.encode("hi ab")) == "hi ab"


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "added-id-taken": ({"added_tokens": {"<x>": 5}}, "'<x>' has the id 5, which is that of '<0x02>'"),
    "added-id-negative": ({"added_tokens": {"<x>": -1}}, "id -1"),
    "added-id-text": ({"added_tokens": {"<x>": "7"}}, "expected a whole number"),
    "two-ids": (
        {"added_tokens": {"<x>": USER}, "tokenizer_config": {"added_tokens_decoder": {str(TOOL): {"content": "<x>"}}}},
        "text '<x>'",
    ),
    "decoder-list": ({"tokenizer_config": {"added_tokens_decoder": [1]}}, "no object"),
    "decoder-key": ({"tokenizer_config": {"added_tokens_decoder": {"x": {"content": "<x>"}}}}, "holds 'x'"),
    "decoder-key-long": ({"tokenizer_config": {"added_tokens_decoder": {"9" * 5000: {"content": "<x>"}}}}, "holds '999"),
    "decoder-value": ({"tokenizer_config": {"added_tokens_decoder": {"5": {"content": 5}}}}, "expected a string"),
    "flag-text": ({"tokenizer_config": {"add_bos_token": "yes"}}, "expected true or false"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_wrong_settings_are_refused_with_their_reason(tmp_path: Path, case: str) -> None:
    files, reason = HOSTILE[case]
    with pytest.raises(CheckpointError, match=reason) as refusal:
        load(tmp_path, files=files)
    assert refusal.value.hint


def test_a_model_of_another_size(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="belongs to another model"):
        load(tmp_path, vocab_size=NUM_PIECES // 2 - 1)


def test_tokens_that_cannot_be_used_are_left_out(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, files={"added_tokens": {"<x>": ROWS}, "tokenizer_config": {"bos_token": "<nowhere>"}})
    assert tokenizer.before == ()
    assert "<x>" not in tokenizer.special_tokens


def test_bytes_that_are_no_model(tmp_path: Path) -> None:
    for data in (b"", b"\x00" * 100, b"<html>", bytes(range(256))):
        (tmp_path / "tokenizer.model").write_bytes(data)
        with pytest.raises(CheckpointError, match="reading the SentencePiece model failed"):
            load_tokenizer(tmp_path, vocab_size=ROWS)
