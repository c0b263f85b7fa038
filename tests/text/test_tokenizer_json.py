"""Folders with a tokenizer.json: the conventions of the files beside it, spellings and spaces, and hostile files."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_tokenizers import CONTROL, TEXTS, tokenizer_json, write_tokenizer_folder
from tokenizers import Tokenizer as Library

from minicpm4.errors import CheckpointError
from minicpm4.text import Tokenizer, load_tokenizer

ROWS = 450  # of the embedding; the tokenizer has 400 tokens


def load(folder: Path, values: dict[str, Any] | None = None, *, vocab_size: int = ROWS, **config: Any) -> Tokenizer:
    return load_tokenizer(write_tokenizer_folder(folder, values, **config), vocab_size=vocab_size)


def added(token_id: int, content: str, **flags: bool) -> dict[str, Any]:
    return {"id": token_id, "content": content} | {
        flag: flags.get(flag, False) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")
    }


def test_same_ids_as_the_library(tmp_path: Path) -> None:
    tokenizer, library = load(tmp_path), Library.from_str(json.dumps(tokenizer_json()))
    for text in TEXTS:
        assert tokenizer.encode(text, parses_special=True) == library.encode(text).ids
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_control_text_stays_text(tmp_path: Path) -> None:
    tokenizer = load(tmp_path)
    assert tokenizer.special_tokens == {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    assert set(tokenizer.encode("<|im_end|>")).isdisjoint({0, 1, 2})
    assert tokenizer.encode("<|im_end|>", parses_special=True) == [2]


def test_conventions_of_the_config(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, bos_token="<|im_start|>", eos_token={"content": "<|im_end|>"}, add_bos_token=True)
    assert (tokenizer.bos_id, tokenizer.before, list(tokenizer.ends)) == (1, (), [2])  # transformers 5 asks the post-processor alone
    assert tokenizer.encode("", add_bos=True) == [1]


@pytest.mark.parametrize("before", [(), (1,), (0, 1)], ids=str)
@pytest.mark.parametrize("after", [(), (2,)], ids=str)
def test_the_post_processor_tells_what_stands_around_a_text(tmp_path: Path, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """Whatever add_bos_token and add_eos_token say, as in transformers 5."""
    names = [{"SpecialToken": {"id": CONTROL[i], "type_id": 0}} for i in (*before, *after)]
    parts = [*names[: len(before)], {"Sequence": {"id": "A", "type_id": 0}}, *names[len(before) :]]
    tokens = {CONTROL[i]: {"id": CONTROL[i], "ids": [i], "tokens": [CONTROL[i]]} for i in (*before, *after)}
    values = tokenizer_json(post_processor={"type": "TemplateProcessing", "single": parts, "pair": parts, "special_tokens": tokens})
    tokenizer = load(tmp_path, values, bos_token="<|im_start|>", add_bos_token=False, add_eos_token=True)
    assert (tokenizer.before, tokenizer.after) == (before, after)
    assert tokenizer.encode("cat") == Library.from_str(json.dumps(values)).encode("cat").ids
    assert tokenizer.encode("cat", add_bos=False) == Library.from_str(json.dumps(values)).encode("cat", add_special_tokens=False).ids


def test_names_from_the_special_tokens_map(tmp_path: Path) -> None:
    write_tokenizer_folder(tmp_path)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}))
    tokenizer = load_tokenizer(tmp_path, vocab_size=ROWS)
    assert (tokenizer.bos_id, list(tokenizer.ends)) == (1, [2])


def test_truncation_and_padding_in_the_file_are_not_applied(tmp_path: Path) -> None:
    values = tokenizer_json(
        truncation={"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        },
    )
    tokenizer = load(tmp_path, values)
    assert tokenizer.decode(tokenizer.encode("The cat isn't here")) == "The cat isn't here"
    assert len(tokenizer.encode("a")) == 1


def test_white_space_that_control_tokens_take_along(tmp_path: Path) -> None:
    values = tokenizer_json()
    values["added_tokens"] = [added(0, "<|endoftext|>", special=True), added(1, "<|im_start|>", special=True, rstrip=True)]
    values["added_tokens"].append(added(2, "<|im_end|>", special=True, lstrip=True))
    library, tokenizer = Library.from_str(json.dumps(values)), load(tmp_path, values)
    for text in ("<|im_start|> \n cat \n<|im_end|> dog", "  <|im_end|>", "<|im_start|>  ", "<|im_start|> <|im_end|>", " <|endoftext|> "):
        assert tokenizer.encode(text, parses_special=True) == library.encode(text).ids, text


def test_added_tokens_that_are_no_control_tokens(tmp_path: Path) -> None:
    values = tokenizer_json()
    values["added_tokens"].append(added(len(values["model"]["vocab"]), "<思考>"))
    tokenizer = load(tmp_path, values)
    ids = tokenizer.encode("a<思考>b")
    assert ids[1] == len(values["model"]["vocab"])
    assert tokenizer.decode(ids) == "a<思考>b"


def metaspace_json(scheme: str) -> dict[str, Any]:
    """A vocabulary of pieces with U+2581 for the space, and bytes, as Llama's tokenizer.json."""
    texts = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    model = {"type": "BPE", "unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True}
    return {
        "version": "1.0",
        "added_tokens": [added(0, "<unk>", special=True), added(1, "<s>", special=True)],
        "pre_tokenizer": metaspace,
        "decoder": {"type": "Sequence", "decoders": [metaspace, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {**model, "vocab": {text: i for i, text in enumerate(texts)}, "merges": [["▁", "a"]]},
    }


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("text", ["a", "a b", " a", "a<s>a", "<s>a<s> a", "aé\n", ""])
def test_spaces_before_text_are_the_librarys(tmp_path: Path, scheme: str, text: str) -> None:
    values = metaspace_json(scheme)
    library, tokenizer = Library.from_str(json.dumps(values)), load(tmp_path, values)
    ids = tokenizer.encode(text, parses_special=True)
    assert ids == library.encode(text).ids
    if "<s>" not in text and not text.startswith(" "):
        assert tokenizer.decode(ids) == text


def test_the_decoder_of_older_files_drops_one_space(tmp_path: Path) -> None:
    values = metaspace_json("always")
    replace = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    values["decoder"] = {"type": "Sequence", "decoders": [replace, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]}
    tokenizer = load(tmp_path, values)
    assert tokenizer.decode(tokenizer.encode("a b")) == "a b"


def change(**model: Any) -> dict[str, Any]:
    values = tokenizer_json()
    values["model"] |= model
    return values


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


HOSTILE: dict[str, tuple[Any, str]] = {
    "no-object": ([1], "holds a list"),
    "no-model": ({"version": "1.0"}, "reading tokenizer.json failed"),
    "wrong-regex": (tokenizer_json(pre_tokenizer=split("(a")), "unmatched parenthesis"),
    "id-beyond-embedding": (
        change(vocab={"a": ROWS, "b": ROWS + 1}, merges=[]) | {"added_tokens": []},
        "the model's embedding has 450 rows",
    ),
    "id-max": (change(vocab={"a": (1 << 32) - 1}, merges=[]) | {"added_tokens": []}, "id 4294967295"),
    "id-negative": (change(vocab={"a": -1}, merges=[]), "reading tokenizer.json failed"),
    "id-twice": (change(vocab={"a": 5, "b": 5}, merges=[]), "two tokens have the id 5"),
    "merge-unknown": (change(merges=[["a", "zzz"]]), "out of vocabulary"),
    "merge-makes-unknown": (change(vocab={"a": 0, "b": 1}, merges=[["a", "b"]]), "reading tokenizer.json failed"),
    "added-id-taken": (tokenizer_json(added_tokens=[added(7, "<x>", special=True)]), "'<x>' the id 7, which is not free"),
    "added-id-not-next": (
        tokenizer_json(added_tokens=[added(420, "<x>", special=True)]),
        "'<x>' the id 420, which is not free or not next",
    ),
    "no-decoder": (tokenizer_json(decoder=None), "decoder null"),
    "other-decoder": (tokenizer_json(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}), "supported: ByteLevel"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_wrong_files_are_refused_with_their_reason(tmp_path: Path, case: str) -> None:
    values, reason = HOSTILE[case]
    with pytest.raises(CheckpointError, match=reason) as refusal:
        load(tmp_path, values)
    assert refusal.value.hint
    assert len(str(refusal.value)) < 600


def test_a_named_token_that_the_tokenizer_lacks_is_added(tmp_path: Path) -> None:
    """As `transformers` does: it comes after all others, where the embedding may have a row for it."""
    size = len(tokenizer_json()["model"]["vocab"])
    assert list(load(tmp_path, eos_token="<nowhere>").ends) == [size]
    assert load_tokenizer(tmp_path, vocab_size=size).ends == {}


def test_a_regex_that_backtracks_without_end_is_an_error_of_the_file(tmp_path: Path) -> None:
    """The library panics, which is no Exception."""
    tokenizer = load(tmp_path, tokenizer_json(pre_tokenizer={"type": "Sequence", "pretokenizers": [split("(a+)+$")]}))
    with pytest.raises(CheckpointError, match="tokenizing the text failed"):
        tokenizer.encode("a" * 40 + "b")


def test_files_that_are_no_json(tmp_path: Path) -> None:
    for data, reason in ((b"{", "not valid JSON"), (b"\xff{}", "not UTF-8"), (b"[" * 100_000, "not valid JSON"), (b"", "not valid JSON")):
        (tmp_path / "tokenizer.json").write_bytes(data)
        with pytest.raises(CheckpointError, match=reason):
            load_tokenizer(tmp_path, vocab_size=ROWS)


def test_files_out_of_bounds(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(b"{" * 4_000_001)
    with pytest.raises(CheckpointError, match="more than 4000000 lists and objects"):
        load_tokenizer(tmp_path, vocab_size=ROWS)
    with open(path, "r+b") as file:
        file.truncate(500 << 20)  # sparse: no disk is used
    with pytest.raises(CheckpointError, match="not a regular file of at most"):
        load_tokenizer(tmp_path, vocab_size=ROWS)
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_tokenizer(tmp_path, vocab_size=ROWS)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    write_tokenizer_folder(tmp_path)
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(CheckpointError, match="Permission denied; check the folder"):
        load_tokenizer(tmp_path, vocab_size=ROWS)


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no tokenizer; put the model's tokenizer.json or tokenizer.model there"):
        load_tokenizer(tmp_path, vocab_size=ROWS)
