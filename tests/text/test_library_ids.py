"""Two hundred texts in every kind of tokenizer.json and tokenizer.model: the ids and the text of the libraries that made them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from many_texts import MANY_TEXTS
from tiny_tokenizers import CONTROL, SENTENCES
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

from minicpm4.text import TextStream, Tokenizer, load_tokenizer

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(*parts: pre_tokenizers.PreTokenizer, prefix: bool = False, own_regex: bool = True) -> Library:
    library = Library(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=own_regex)
    library.pre_tokenizer = pre_tokenizers.Sequence([*parts, last])
    library.decoder = decoders.ByteLevel()
    trained = trainers.BpeTrainer(vocab_size=400, initial_alphabet=sorted(last.alphabet()), special_tokens=CONTROL, show_progress=False)
    library.train_from_iterator(SENTENCES * 3, trained)
    return library


def normalized() -> Library:
    """As Qwen2's files."""
    library = byte_level(pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated"), own_regex=False)
    library.normalizer = normalizers.NFC()
    return library


def with_bos() -> Library:
    library = byte_level()
    library.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    return library


def pieces(scheme: str | None, *, splits: bool = False) -> Library:
    """Pieces with U+2581; scheme: where one is put before the text, None for the normalizer that Llama-2's files have instead."""
    library = Library(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    special = ["<unk>", *CONTROL]
    if scheme:
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=splits)
    else:
        library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.train_from_iterator(
        [text for sentence in SENTENCES for text in (sentence, sentence[::-1])],
        trainers.BpeTrainer(vocab_size=600, special_tokens=[*special, *BYTES], show_progress=False, max_token_length=8),
    )
    strip = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    library.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return without_added(library, BYTES)


def without_added(library: Library, texts: list[str]) -> Library:
    """The tokenizer with these tokens in its vocabulary alone."""
    values = json.loads(library.to_str())
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] not in texts]
    return Library.from_str(json.dumps(values))


KINDS: dict[str, Callable[[], Library]] = {
    "bytes": byte_level,
    "bytes-after-a-space": lambda: byte_level(prefix=True),
    "bytes-llama3": lambda: byte_level(pre_tokenizers.Split(Regex(LLAMA3), "isolated"), own_regex=False),
    "bytes-qwen2": normalized,
    "bytes-digits": lambda: byte_level(pre_tokenizers.Digits(individual_digits=True)),
    "bytes-bos": with_bos,
    "pieces-first": lambda: pieces("first"),
    "pieces-always": lambda: pieces("always"),
    "pieces-never": lambda: pieces("never"),
    "pieces-split": lambda: pieces("always", splits=True),
    "pieces-normalizer": lambda: pieces(None),
}


def streamed(tokenizer: Tokenizer, ids: list[int]) -> str:
    stream = TextStream(tokenizer)
    return "".join(map(stream.push, ids)) + stream.finish()


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text_of_tokenizers(tmp_path: Path, kind: str) -> None:
    library = KINDS[kind]()
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path, vocab_size=1000)
    for text in MANY_TEXTS:
        ids = library.encode(text).ids
        assert tokenizer.encode(text, parses_special=True) == ids, text
        assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=True), text
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize("rule", ["identity", "nmt_nfkc"])
@pytest.mark.parametrize("keeps_spaces", [True, False])
def test_ids_and_text_of_sentencepiece(tmp_path: Path, prefix: bool, rule: str, keeps_spaces: bool) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=480,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=prefix,
        normalization_rule_name=rule,
        remove_extra_whitespaces=not keeps_spaces,
        user_defined_symbols=["<think>"],
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    tokenizer = load_tokenizer(tmp_path, vocab_size=1000)
    for text in [*MANY_TEXTS, "a<think> b"]:
        ids = processor.encode(text)
        assert tokenizer.encode(text, add_bos=False) == ids, text
        if "▁" not in text:  # which the library takes for spaces, and drops some of them
            assert tokenizer.decode(ids) == processor.decode(ids), text
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)
