"""The tokenizer of a GGUF file's metadata, checked: every token's text and type, and the conventions.

Knows the keys under `tokenizer.ggml`. Ids of BOS and EOS that no token has are left out; the checkpoint's reader warns of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minicpm4.errors import CheckpointError
from minicpm4.model.config import KeyReader
from minicpm4.text.tokenizer import Codec, Tokenizer, WholeToken, check_id, check_unique

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
DAMAGED = "the file is damaged; download it again"


@dataclass(frozen=True)
class GgufVocabulary:
    """vocab_size: rows of the model's embedding. texts, types: of each token, by id."""

    vocab_size: int
    texts: list[str]
    types: list[int]
    metadata: Mapping[str, Any] = field(repr=False)

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """The value of `tokenizer.ggml.<name>`; ConfigError if it is of another type."""
        return read_key(self.metadata, name, kind, default=default)

    def role_ids(self, *roles: str) -> tuple[int, ...]:
        """The ids of `bos`, `eos` and so on, as far as the file gives them."""
        found = [self.get(f"{role}_token_id", int) for role in roles]
        return tuple(dict.fromkeys(i for i in found if i is not None and 0 <= i < len(self.texts)))

    def whole_tokens(self) -> tuple[WholeToken, ...]:
        """Control tokens, and those that the text is searched for before anything else."""
        found = [(i, kind) for i, kind in enumerate(self.types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
        return tuple(WholeToken(self.texts[i], i, is_control=kind != USER_DEFINED) for i, kind in found)

    def tokenizer(self, codec: Codec, *, adds_bos: bool, drops_space: bool) -> Tokenizer:
        """The tokenizer that the file describes. adds_bos: where it does not say whether."""
        bos_ids = self.role_ids("bos")
        return Tokenizer(
            codec=codec,
            vocab_size=self.vocab_size,
            whole_tokens=self.whole_tokens(),
            bos_id=bos_ids[0] if bos_ids else None,
            adds_bos=self.get("add_bos_token", bool, adds_bos) and bool(bos_ids),
            eos_ids=self.role_ids("eos", "eot"),
            drops_space=drops_space,
        )


def read_gguf_vocabulary(metadata: Mapping[str, Any], *, vocab_size: int) -> GgufVocabulary:
    texts = string_array(metadata, "tokens")
    check_id(len(texts) - 1, vocab_size=vocab_size)
    check_unique(texts)
    types = [NORMAL] * len(texts)
    if PREFIX + "token_type" in metadata:
        types = number_array(metadata, "token_type", kinds="iu", count=len(texts)).tolist()
    strange = set(types) - set(range(NORMAL, BYTE + 1))
    if strange:
        raise CheckpointError(f"GGUF metadata: {PREFIX}token_type holds {min(strange)}, types are 1 to 6", hint=DAMAGED)
    return GgufVocabulary(vocab_size, texts, types, metadata)


def read_key(metadata: Mapping[str, Any], name: str, kind: type, *, default: Any = None) -> Any:
    return KeyReader(metadata, "GGUF metadata").get(PREFIX + name, kind, default)


def role_text(metadata: Mapping[str, Any], role: str) -> str:
    """The text of the token that is `bos` or `eos`, read alone; "" where there is none."""
    tokens, token_id = metadata.get(PREFIX + "tokens"), read_key(metadata, f"{role}_token_id", int, default=-1)
    return str(tokens[token_id]) if isinstance(tokens, Sequence) and 0 <= token_id < len(tokens) else ""


def string_array(metadata: Mapping[str, Any], name: str) -> list[str]:
    value = metadata.get(PREFIX + name)
    strings = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if not strings or not all(isinstance(string, str) for string in strings):
        raise CheckpointError(f"GGUF metadata: {PREFIX}{name} is missing, or is no array of strings", hint=DAMAGED)
    return strings


def number_array(metadata: Mapping[str, Any], name: str, *, kinds: str, count: int) -> np.ndarray[Any, Any]:
    """An array with a number for every token. kinds: numpy's letters for the kinds of number that it may hold."""
    value = metadata.get(PREFIX + name)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in kinds or value.shape != (count,):
        found = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        wanted = "floats" if kinds == "f" else "whole numbers"
        raise CheckpointError(f"GGUF metadata: {PREFIX}{name} is {found}, expected {count} {wanted}", hint=DAMAGED)
    return value
