"""A codec on the `tokenizers` library, and the tokenizer.json files that it reads.

The file says itself how its tokens are spelled (its decoder) and which of them are control tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Library

from minicpm4.errors import CheckpointError
from minicpm4.text.files import AGAIN, MAX_TOKENIZER_BYTES, parse_object, read_text
from minicpm4.text.folder_settings import FolderSettings
from minicpm4.text.library_errors import guarded
from minicpm4.text.token_text import byte_level_bytes, piece_bytes
from minicpm4.text.tokenizer import Tokenizer, WholeToken, check_id, check_unique

PIECE_DECODERS = {"Metaspace", "ByteFallback"}


class LibraryCodec:
    """bytes_of: what a token's text stands for."""

    def __init__(self, library: Library, bytes_of: Callable[[str], bytes]) -> None:
        library.encode_special_tokens = True  # that is, as ordinary text
        library.no_truncation()
        library.no_padding()
        self.library, self.bytes_of = library, bytes_of

    def encode(self, text: str) -> list[int]:
        with guarded("tokenizing the text"):
            return self.library.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token_id: int) -> bytes:
        text = self.library.id_to_token(token_id)
        return b"" if text is None else self.bytes_of(text)


def read_tokenizer_json(path: Path, settings: FolderSettings, *, vocab_size: int) -> Tokenizer:
    """The tokenizer of a tokenizer.json, with the conventions of the files beside it."""
    text = read_text(path, limit=MAX_TOKENIZER_BYTES)
    values = parse_object(text, path.name)
    spaces_first = takes_over_first_space(values)
    with guarded(f"reading {path.name}"):
        library = Library.from_str(json.dumps(values) if spaces_first else text)
        check_vocabulary(library, values, vocab_size=vocab_size)
        decoders = {part["type"]: part for part in components(values.get("decoder"), "decoders")}
        bos_id, eos_id = token_id(library, settings.bos), token_id(library, settings.eos)
        starts_with_bos = library.encode("").ids[:1] == [bos_id]  # by the file's own post-processor
        return Tokenizer(
            codec=LibraryCodec(library, spelling(decoders)),
            vocab_size=vocab_size,
            whole_tokens=control_tokens(library),
            bos_id=bos_id,
            adds_bos=starts_with_bos if settings.adds_bos is None else settings.adds_bos and bos_id is not None,
            eos_ids=() if eos_id is None else (eos_id,),
            spaces_first=spaces_first,
            drops_space=spaces_first or drops_space(decoders),
        )


def components(value: Any, key: str) -> Iterator[dict[str, Any]]:
    """A decoder or pre-tokenizer as the file holds it, or the parts of a sequence of them."""
    if isinstance(value, dict) and isinstance(value.get("type"), str):
        parts = value.get(key)
        if value["type"] == "Sequence" and isinstance(parts, list):
            for part in parts:
                yield from components(part, key)
        else:
            yield value


def takes_over_first_space(values: dict[str, Any]) -> bool:
    """Whether only the very first text gets a space, and not each between control tokens; then the library is told to give none."""
    found = [part for part in components(values.get("pre_tokenizer"), "pretokenizers") if part.get("prepend_scheme") == "first"]
    for part in found:
        part["prepend_scheme"] = "never"
    return bool(found)


def drops_space(decoders: dict[str, dict[str, Any]]) -> bool:
    """Whether the file's decoder drops a space at the start."""
    metaspace = decoders.get("Metaspace", {"prepend_scheme": "never"})
    scheme = metaspace.get("prepend_scheme", "always" if metaspace.get("add_prefix_space", True) else "never")
    return scheme != "never" or decoders.get("Strip", {}).get("start", 0) > 0


def spelling(decoders: dict[str, dict[str, Any]]) -> Callable[[str], bytes]:
    if "ByteLevel" in decoders:
        return byte_level_bytes
    if PIECE_DECODERS & decoders.keys():
        return piece_bytes
    raise CheckpointError(
        f"tokenizer.json has the decoder {', '.join(decoders) or 'null':.100}", hint="supported: ByteLevel, Metaspace, ByteFallback"
    )


def check_vocabulary(library: Library, values: dict[str, Any], *, vocab_size: int) -> None:
    """CheckpointError unless every id has a row of the embedding and one token, and added tokens have the ids that the file gives."""
    vocabulary = library.get_vocab(with_added_tokens=True)
    check_id(max(vocabulary.values(), default=0), vocab_size=vocab_size)
    check_unique(list(vocabulary.values()))
    for added in values.get("added_tokens") or []:
        if vocabulary.get(added["content"]) != added["id"]:  # the library numbers them itself
            check_id(added["id"], vocab_size=vocab_size)
            raise CheckpointError(
                f"tokenizer.json gives {added['content']!r:.100} the id {added['id']}, which is not free or not next", hint=AGAIN
            )


def control_tokens(library: Library) -> tuple[WholeToken, ...]:
    added = library.get_added_tokens_decoder().items()
    return tuple(WholeToken(t.content, i, strips_left=t.lstrip, strips_right=t.rstrip) for i, t in added if t.special)


def token_id(library: Library, text: str | None) -> int | None:
    """The id of a token that the settings name."""
    found = None if text is None else library.token_to_id(text)
    if text is not None and found is None:
        raise CheckpointError(f"the tokenizer's settings name the token {text!r:.100}, which the tokenizer lacks", hint=AGAIN)
    return found
