"""Where byte-pair tokenizers cut text, for every rule that GGUF files can name, and pieces of other vocabularies: ids beside llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from many_texts import MANY_TEXTS
from test_turn_ends import write_vocabulary
from tiny_tokenizers import byte_pair_metadata, piece_metadata

from minicpm4.checkpoint import read_gguf
from minicpm4.text import load_gguf_tokenizer
from minicpm4.text.pre_tokenizers import PRE_TOKENIZERS
from minicpm4.text.token_text import BYTE_OF

ALPHABET = "aBz é 汉か12٣\n\r\t's-./<$`|€ſS"
CUTS = [
    "a b", "a  b", "a   b", "ab12 3456", "a1b", "it's S's 'S 'T", "a-b", "a.b", "  a", " \n a", "\n\n a", "\r\na", "a\n", "a \n", "12",
    "123", "1234", "12 34", "é汉", "汉か", "a汉", "<a>", "$1", "`a`", "a/b", "./a", "a\t\tb", "\t a", "a'", "a's", "A'S", "aB", "Ba",
    "BB aa", "Bz1", "٣٣", "1٣", "a€", "-a", " -a", "--a", "- a", "a--\n", "..\n\n", "..\r\n", "a/\n", "//\n", "Bé", "éB", "汉B", "B汉",
    "'s", "'ſ", "1.2", "||", "<<a", "a<", "  \n", "\n  ", "\n \n", "S", " S", "  S",
]  # fmt: skip
LETTERS_WITH_MARKS = ("tekken", "gpt-4o", "llama4", "kanana2")  # here as in the models' own files, where llama.cpp leaves marks out


def spelled(text: str) -> list[str]:
    characters = {byte: character for character, byte in BYTE_OF.items()}
    return [characters[byte] for byte in text.encode()]


@pytest.mark.whole
@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_cuts_are_those_of_llama_cpp(tmp_path: Path, name: str) -> None:
    """Any two neighbours of the alphabet merge, so that what is not merged was cut; then a trained vocabulary on other texts."""
    pytest.importorskip("llama_cpp")
    from tests.llama_peer import ids_of, opened

    symbols = sorted(set(spelled(ALPHABET)))
    pairs = [(left, right) for left in symbols for right in symbols]
    texts = ["<|base|>", *BYTE_OF, *(left + right for left, right in pairs)]
    merges = [f"{left} {right}" for left, right in pairs]
    keys = {"tokenizer.ggml.pre": name, "tokenizer.ggml.merges": merges, "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0}
    write_vocabulary(tmp_path / "v.gguf", texts, [3] + [1] * (len(texts) - 1), keys)
    tokenizer = load_gguf_tokenizer(read_gguf(tmp_path / "v.gguf").metadata, vocab_size=len(texts))
    with opened(tmp_path / "v.gguf", vocab_only=True) as model:
        for text in CUTS:
            assert tokenizer.encode(text, add_bos=False) == ids_of(model, text), text
        assert tokenizer.encode("a") == ids_of(model, "a", adds_special=True)
    trained = byte_pair_metadata(name)
    write_vocabulary(
        tmp_path / "t.gguf",
        trained["tokenizer.ggml.tokens"],
        trained["tokenizer.ggml.token_type"].tolist(),
        {**keys, "tokenizer.ggml.merges": trained["tokenizer.ggml.merges"]},
    )
    tokenizer = load_gguf_tokenizer(read_gguf(tmp_path / "t.gguf").metadata, vocab_size=400)
    with opened(tmp_path / "t.gguf", vocab_only=True) as model:
        for text in [text for text in MANY_TEXTS if not (name in LETTERS_WITH_MARKS and has_marks(text)) and "\x00" not in text]:
            assert tokenizer.encode(text, add_bos=False) == ids_of(model, text), text
            assert tokenizer.encode(text, add_bos=False, parses_special=True) == ids_of(model, text, parses_special=True), text
            assert tokenizer.decode(tokenizer.encode(text)) == text


def has_marks(text: str) -> bool:
    import unicodedata

    return any(unicodedata.category(character).startswith("M") for character in text)


@pytest.mark.whole
@pytest.mark.parametrize("space_prefix", [True, False])
@pytest.mark.parametrize("without", ["", "<0x41>"])
def test_pieces_are_those_of_llama_cpp(tmp_path: Path, space_prefix: bool, without: str) -> None:
    pytest.importorskip("llama_cpp")
    from tests.llama_peer import ids_of, opened

    metadata = piece_metadata()
    texts, types = list(metadata["tokenizer.ggml.tokens"]), metadata["tokenizer.ggml.token_type"].tolist()
    scores = metadata["tokenizer.ggml.scores"].tolist()
    if without:
        place = texts.index(without)
        del texts[place], types[place], scores[place]
    keys = {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": [float(score) for score in scores], "tokenizer.ggml.merges": None,
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.add_space_prefix": space_prefix,
    }  # fmt: skip
    write_vocabulary(tmp_path / "v.gguf", texts, types, keys)
    tokenizer = load_gguf_tokenizer(read_gguf(tmp_path / "v.gguf").metadata, vocab_size=len(texts))
    random = np.random.default_rng(0)
    made = ["".join(random.choice(list("abchi é"), size=random.integers(1, 20))) for _ in range(100)]
    with opened(tmp_path / "v.gguf", vocab_only=True) as model:
        for text in [text for text in (*MANY_TEXTS, *made) if "\x00" not in text and text and not (without and "A" in text)]:
            assert tokenizer.encode(text, add_bos=False) == ids_of(model, text), text
            assert tokenizer.encode(text, parses_special=True) == ids_of(model, text, parses_special=True, adds_special=True), text
