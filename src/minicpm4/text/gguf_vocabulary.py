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
from minicpm4.text.tokenizer import Codec, Tokenizer, WholeToken, check_rows, check_unique
from minicpm4.text.turn_ends import FILL_TEXTS, ends_by_text, without_parts

PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
END_ROLES = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")
ROLE_NAMES = {
    "bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "seperator": "sep_token", "padding": "pad_token", "cls": "cls_token",
    "mask": "mask_token",
}  # fmt: skip  # the format writes seperator
DAMAGED = "the file is damaged; download it again"


@dataclass(frozen=True)
class GgufVocabulary:
    """vocab_size: rows of the model's embedding. texts, types: of each token, by id. ids: by text, in the same order."""

    vocab_size: int
    texts: list[str]
    types: list[int]
    ids: dict[str, int]
    metadata: Mapping[str, Any] = field(repr=False)

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """The value of `tokenizer.ggml.<name>`; ConfigError if it is of another type."""
        return read_key(self.metadata, name, kind, default=default)

    def role_ids(self, *roles: str) -> dict[int, str]:
        """The ids of `bos`, `eos` and so on, as far as the file gives them and they have rows, each with the key that says so."""
        found = dict[int, str]()
        for role in roles:
            for token_id in ids_of_key(self.metadata, f"{role}_token_id"):
                if 0 <= token_id < min(len(self.texts), self.vocab_size):
                    found.setdefault(token_id, f"{PREFIX}{role}_token_id")
        return found

    def whole_tokens(self) -> tuple[WholeToken, ...]:
        """Control tokens, and those that the text is searched for before anything else."""
        found = [(i, kind) for i, kind in enumerate(self.types[: self.vocab_size]) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
        return tuple(WholeToken(self.texts[i], i, is_control=kind != USER_DEFINED) for i, kind in found)

    def tokenizer(self, codec: Codec, *, adds_bos: bool, drops_space: bool) -> Tokenizer:
        """The tokenizer that the file describes. adds_bos: where it does not say whether."""
        bos_id, eos_id = (next(iter(self.role_ids(role)), None) for role in ("bos", "eos"))
        given = [role for role in (*END_ROLES, *FILL_TEXTS) if self.role_ids(role)]
        by_text = {i: f"the text {text}" for i, text in ends_by_text(self.ids, given=given).items() if i < self.vocab_size}
        ends = {**by_text, **self.role_ids(*END_ROLES)}
        return Tokenizer(
            codec=codec,
            vocab_size=self.vocab_size,
            whole_tokens=self.whole_tokens(),
            bos_id=bos_id,
            before=(bos_id,) if self.get("add_bos_token", bool, adds_bos) and bos_id is not None else (),
            after=(eos_id,) if self.get("add_eos_token", bool, False) and eos_id is not None else (),
            ends=without_parts(ends, {i: self.texts[i] for i in ends}),
            drops_space=drops_space,
        )


def read_gguf_vocabulary(metadata: Mapping[str, Any], *, vocab_size: int) -> GgufVocabulary:
    texts = string_array(metadata, "tokens")
    if "" in texts:
        texts = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]  # as llama.cpp names them
    check_rows(range(len(texts)), vocab_size=vocab_size)
    ids = dict(zip(texts, range(len(texts)), strict=True))
    if len(ids) < len(texts):
        check_unique(texts)
    types = [NORMAL] * len(texts)
    if PREFIX + "token_type" in metadata:
        types = number_array(metadata, "token_type", kinds="iu", count=len(texts)).tolist()
    strange = set(types) - set(range(NORMAL, BYTE + 1))
    if strange:
        raise CheckpointError(f"GGUF metadata: {PREFIX}token_type holds {min(strange)}, types are 1 to 6", hint=DAMAGED)
    for token_id in ends_by_text(ids):
        types[token_id] = CONTROL  # whatever the file calls it
    return GgufVocabulary(vocab_size, texts, types, ids, metadata)


def ids_of_key(metadata: Mapping[str, Any], name: str) -> list[int]:
    """An id, or some of them; a key that is not there gives none."""
    value = metadata.get(PREFIX + name)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        return [int(one) for one in value]
    one = read_key(metadata, name, int)
    return [] if one is None else [one]


def read_key(metadata: Mapping[str, Any], name: str, kind: type, *, default: Any = None) -> Any:
    return KeyReader(metadata, "GGUF metadata").get(PREFIX + name, kind, default)


def role_texts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the tokens with a role, by the name that templates read, such as bos_token."""
    tokens = metadata.get(PREFIX + "tokens")
    if not isinstance(tokens, Sequence):
        return {}
    ids = {name: next(iter(ids_of_key(metadata, f"{role}_token_id")), -1) for role, name in ROLE_NAMES.items()}
    return {name: str(tokens[token_id]) for name, token_id in ids.items() if 0 <= token_id < len(tokens)}


def string_array(metadata: Mapping[str, Any], name: str) -> list[str]:
    value = metadata.get(PREFIX + name)
    strings = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
    if not strings or not set(map(type, strings)) <= {str}:
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
