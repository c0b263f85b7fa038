"""Byte-pair tokenizers of GGUF files (`gpt2`): vocabulary and merges from the file, the cutting rule by its name.

Text is not normalized, as llama.cpp does not either. A byte that the vocabulary lacks leaves no id.
"""

from __future__ import annotations

from collections.abc import Mapping

from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from minicpm4.errors import CheckpointError
from minicpm4.text.gguf_vocabulary import DAMAGED, NORMAL, PREFIX, GgufVocabulary, string_array
from minicpm4.text.library_codec import LibraryCodec
from minicpm4.text.library_errors import guarded
from minicpm4.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from minicpm4.text.token_text import byte_level_bytes
from minicpm4.text.tokenizer import Tokenizer


def byte_pair_tokenizer(vocabulary: GgufVocabulary) -> Tokenizer:
    name = vocabulary.get("pre", str, "default")
    if name not in PRE_TOKENIZERS:
        raise CheckpointError(f"GGUF metadata: {PREFIX}pre is {name!r:.80}", hint=f"supported: {', '.join(sorted(PRE_TOKENIZERS))}")
    rule = PRE_TOKENIZERS[name]
    normal = {text: i for (text, i), kind in zip(vocabulary.ids.items(), vocabulary.types, strict=True) if kind == NORMAL}
    merges = read_merges(vocabulary)
    library = byte_pair_library(with_missing(normal, merges, first=len(vocabulary.texts)), merges, rule)
    added = {token.id: token.text for token in vocabulary.whole_tokens() if not token.is_control}
    codec = BytePairCodec(library, num_tokens=len(vocabulary.texts), normal=normal, literal=added)
    return vocabulary.tokenizer(codec, adds_bos=rule.adds_bos, drops_space=False)


class BytePairCodec(LibraryCodec):
    """num_tokens: ids from there on stand for merged texts that are no tokens; their characters take their place, those that are tokens."""

    def __init__(self, library: Library, *, num_tokens: int, normal: Mapping[str, int], literal: Mapping[int, str]) -> None:
        super().__init__(library, byte_level_bytes, literal=literal)
        self._num_tokens, self._normal = num_tokens, normal
        self._has_others = library.get_vocab_size(with_added_tokens=False) > len(normal)

    def encode(self, text: str) -> list[int]:
        ids = super().encode(text)
        return [own for i in ids for own in ([i] if i < self._num_tokens else self._characters(i))] if self._has_others else ids

    def _characters(self, token_id: int) -> list[int]:
        text = self.library.id_to_token(token_id) or ""
        return [self._normal[character] for character in text if character in self._normal]


def read_merges(vocabulary: GgufVocabulary) -> list[tuple[str, str]]:
    """The pairs, most urgent first; each once. CheckpointError for a line that is no pair."""
    halves = [line.partition(" ") for line in dict.fromkeys(string_array(vocabulary.metadata, "merges"))]
    if not all(map(all, halves)):
        wrong = next("".join(parts) for parts in halves if not all(parts))
        raise CheckpointError(f"GGUF metadata: {PREFIX}merges holds {wrong!r:.100}, which is no pair", hint=DAMAGED)
    return [(left, right) for left, _, right in halves]


def with_missing(normal: dict[str, int], merges: list[tuple[str, str]], *, first: int) -> dict[str, int]:
    """The vocabulary with what merges name and it lacks, under ids from `first` on: the library merges only what has an id."""
    others = [(left, right) for left, right in merges if not (left in normal and right in normal and left + right in normal)]
    texts = (text for left, right in others for text in (left, right, left + right))
    missing = dict.fromkeys(text for text in texts if text not in normal)
    return {**normal, **{text: first + place for place, text in enumerate(missing)}} if missing else normal


def byte_pair_library(vocabulary: dict[str, int], merges: list[tuple[str, str]], rule: PreTokenizer) -> Library:
    """The library's tokenizer. Control tokens are not in its vocabulary, so that nothing is merged into one."""
    with guarded("building the byte-pair tokenizer"):
        library = Library(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule.ignores_merges))
        cuts = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in rule.expressions]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.pre_tokenizer = pre_tokenizers.Sequence([*cuts, to_bytes])
    return library
