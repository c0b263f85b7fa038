"""Folders whose files name tokens in many ways: the ids and special tokens of `transformers` and of the libraries below it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_tokenizers import CONTROL, tokenizer_json

from minicpm4.text import load_tokenizer

NEW = ["<new>", "<tool>", "wörd", "Ġxy", "<|end|>", "▁y"]
NAMES = [*CONTROL, *NEW]
SPELLED = ("wörd", "Ġxy")  # the library takes the letters of added words for bytes when it decodes
FLAGS = ("lstrip", "rstrip", "normalized")
PIECES = [*NAMES, "a", "cat", "x", "wörd", "é", " ", "  ", "\n", "1", "<", "x<new>", "_"]
texts = st.lists(st.sampled_from(PIECES), max_size=9).map("".join)
names = st.sampled_from(NAMES)
flags = st.fixed_dictionaries({flag: st.booleans() for flag in FLAGS})
ROLES = st.sampled_from(["bos_token", "eos_token", "unk_token", "pad_token", "image_token"])
LISTS = st.sampled_from(["extra_special_tokens", "additional_special_tokens"])


def as_object(name: str, chosen: dict[str, bool]) -> dict[str, Any]:
    return {"content": name, "single_word": False, **chosen}


@st.composite
def named(draw: st.DrawFn, looks: dict[str, dict[str, bool] | None], **more: str) -> dict[str, Any]:
    """Tokens by role and in lists. looks: the flags of those that are objects; these have a key more in one file, and are in no list of the
    other."""
    shown = {name: name if chosen is None else as_object(name, chosen) | more for name, chosen in looks.items()}
    listed = [name for name, chosen in looks.items() if more or chosen is None]
    roles = draw(st.dictionaries(ROLES, names, max_size=3))
    lists = draw(st.dictionaries(LISTS, st.lists(st.sampled_from(listed), max_size=2) if listed else st.just([]), max_size=1))
    return {role: shown[name] for role, name in roles.items()} | {key: [shown[name] for name in some] for key, some in lists.items()}


@st.composite
def folders(draw: st.DrawFn) -> dict[str, Any]:
    """The files of a folder by name, of tokenizer.json what is added to its tokens.

    Ids agree wherever two files name one token: 400 and on, in one order, without a gap.
    """
    beside = draw(st.lists(st.sampled_from(NEW), unique=True, max_size=3))
    ids = {name: i for i, name in enumerate(CONTROL)} | {name: 400 + i for i, name in enumerate(beside)}
    in_tokenizer = draw(st.integers(0, len(beside)))
    inside = [{"id": ids[name], **as_object(name, draw(flags)), "special": draw(st.booleans())} for name in beside[:in_tokenizer]]
    looks = draw(st.fixed_dictionaries({name: st.one_of(st.none(), flags) for name in NAMES}))
    config = draw(named(looks, __type="AddedToken"))
    files: dict[str, Any] = {"tokenizer_config.json": config, "tokenizer.json": inside}
    if draw(st.booleans()):
        decoder = {str(i): {**as_object(name, draw(flags)), "special": draw(st.booleans())} for name, i in ids.items()}
        config["added_tokens_decoder"] = decoder
    elif draw(st.booleans()):
        files["added_tokens.json"] = {name: i for name, i in ids.items() if i >= 400}
    if draw(st.booleans()):
        files["special_tokens_map.json"] = draw(named(looks))
    return files


def compare(folder: Path, files: dict[str, Any], sample: list[str]) -> None:
    from transformers import PreTrainedTokenizerFast

    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        (folder / name).unlink(missing_ok=True)
    values = tokenizer_json()
    values["added_tokens"] += files["tokenizer.json"]
    for name, content in {**files, "tokenizer.json": values}.items():
        (folder / name).write_text(json.dumps(content))
    published = PreTrainedTokenizerFast.from_pretrained(str(folder))
    tokenizer = load_tokenizer(folder, vocab_size=1000)
    special = set(published.all_special_ids)
    assert special <= set(tokenizer.special_tokens.values())
    for role, found in (("bos", tokenizer.bos_id), ("eos", next(iter(tokenizer.ends), None))):
        assert found == getattr(published, f"{role}_token_id")
    for text in sample:
        ids = published(text).input_ids
        assert tokenizer.encode(text, parses_special=True) == ids, text
        assert set(tokenizer.encode(text)).isdisjoint(special)
        if not any(name in text for name in SPELLED):
            assert tokenizer.decode(ids, skips_special=False) == published.decode(ids, skip_special_tokens=False)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=folders(), sample=st.lists(texts, min_size=4, max_size=4))
def test_ids_are_those_of_transformers(tmp_path: Path, files: dict[str, Any], sample: list[str]) -> None:
    compare(tmp_path, files, sample)


@pytest.mark.whole
@settings(
    max_examples=1500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(files=folders(), sample=st.lists(texts, min_size=10, max_size=10))
def test_ids_are_those_of_transformers_over_more_folders(tmp_path: Path, files: dict[str, Any], sample: list[str]) -> None:
    compare(tmp_path, files, sample)
