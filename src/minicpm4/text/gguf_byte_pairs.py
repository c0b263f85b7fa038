"""Byte-pair tokenizers of GGUF files (`gpt2`): vocabulary and merges from the file, the cutting rule by its name.

Text is not normalized, as llama.cpp does not either. A byte that the vocabulary lacks leaves no id.
"""

from __future__ import annotations

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
    name = vocabulary.get("pre", str)
    if name not in PRE_TOKENIZERS:
        raise CheckpointError(f"GGUF metadata: {PREFIX}pre is {name!r:.80}", hint=f"supported: {', '.join(PRE_TOKENIZERS)}")
    rule = PRE_TOKENIZERS[name]
    normal = {text: i for i, text in enumerate(vocabulary.texts) if vocabulary.types[i] == NORMAL}
    library = byte_pair_library(normal, read_merges(vocabulary, normal), rule)
    return vocabulary.tokenizer(LibraryCodec(library, byte_level_bytes), adds_bos=rule.adds_bos, drops_space=False)


def read_merges(vocabulary: GgufVocabulary, normal: dict[str, int]) -> list[tuple[str, str]]:
    """The pairs, most urgent first. What each makes is a token; that its halves are, the library checks."""
    halves = (line.partition(" ") for line in string_array(vocabulary.metadata, "merges"))
    merges = [(left, right) for left, _, right in halves]
    unknown = {left + right for left, right in merges}.difference(normal)
    if unknown:
        raise CheckpointError(f"GGUF metadata: {PREFIX}merges make {min(unknown)!r:.100}, which is no token", hint=DAMAGED)
    return merges


def byte_pair_library(vocabulary: dict[str, int], merges: list[tuple[str, str]], rule: PreTokenizer) -> Library:
    """The library's tokenizer. Control tokens are not in its vocabulary, so that nothing is merged into one."""
    with guarded("building the byte-pair tokenizer"):
        library = Library(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule.ignores_merges))
        cuts = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in rule.expressions]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        library.pre_tokenizer = pre_tokenizers.Sequence([*cuts, to_bytes])
    return library
