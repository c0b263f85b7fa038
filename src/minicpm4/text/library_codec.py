"""A codec on the `tokenizers` library, and the tokenizer.json files that it reads.

The file says itself how its tokens are spelled (its decoder) and which of them are control tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as Library

from minicpm4.errors import CheckpointError
from minicpm4.text.files import AGAIN, MAX_TOKENIZER_BYTES, parse_object, read_text
from minicpm4.text.folder_settings import FolderSettings
from minicpm4.text.library_errors import guarded
from minicpm4.text.token_text import byte_level_bytes, piece_bytes
from minicpm4.text.tokenizer import Tokenizer, WholeToken, check_rows, check_unique

PIECE_DECODERS = {"Metaspace", "ByteFallback"}


class LibraryCodec:
    """bytes_of: what a token's text stands for. literal: texts of tokens that were added later and stand for themselves, by id."""

    def __init__(self, library: Library, bytes_of: Callable[[str], bytes], *, literal: Mapping[int, str] | None = None) -> None:
        library.encode_special_tokens = True  # that is, as ordinary text
        library.no_truncation()
        library.no_padding()
        self.library, self.bytes_of, self._literal = library, bytes_of, literal or {}

    def encode(self, text: str) -> list[int]:
        with guarded("tokenizing the text"):
            return self.library.encode(text, add_special_tokens=False).ids

    def token_bytes(self, token_id: int) -> bytes:
        text = self.library.id_to_token(token_id)
        if token_id in self._literal:
            return self._literal[token_id].encode()
        return b"" if text is None else self.bytes_of(text)


def read_tokenizer_json(path: Path, settings: FolderSettings, *, vocab_size: int) -> Tokenizer:
    """The tokenizer of a tokenizer.json, with the conventions of the files beside it."""
    text = read_text(path, limit=MAX_TOKENIZER_BYTES)
    values = parse_object(text, path.name)
    spaces_first = takes_over_first_space(values)
    with guarded(f"reading {path.name}"):
        library = Library.from_str(json.dumps(values) if spaces_first else text)
        check_vocabulary(library, values, vocab_size=vocab_size)
        add_tokens(library, settings, vocab_size=vocab_size)
        decoders = {part["type"]: part for part in components(values.get("decoder"), "decoders")}
        bytes_of = spelling(decoders)
        added = library.get_added_tokens_decoder()
        literal = {i: token.content for i, token in added.items()} if bytes_of is byte_level_bytes else {}
        codec = LibraryCodec(library, bytes_of, literal=literal)
        before, after = surroundings(library, vocab_size=vocab_size)
        bos_id, eos_id = (usable_id(library, named, vocab_size=vocab_size) for named in (settings.bos, settings.eos))
        return Tokenizer(
            codec=codec,
            vocab_size=vocab_size,
            whole_tokens=tuple(token for token in control_tokens(added) if token.id < vocab_size),
            bos_id=bos_id,
            before=before,
            after=after,
            ends={} if eos_id is None else {eos_id: "eos_token of the tokenizer's settings"},
            spaces_first=spaces_first,
            drops_space=spaces_first or drops_space(decoders),
        )


def add_tokens(library: Library, settings: FolderSettings, *, vocab_size: int) -> None:
    """Adds what the settings have beside the file's own tokens, as the `transformers` library does; known ones keep their ids.

    CheckpointError where the settings give a token another id than it has.
    """
    known_ids = library.get_added_tokens_decoder()
    present = {token.content: token for token in known_ids.values()}
    added = [token for token in settings.added if not (settings.added_give_way and token.id in known_ids)]
    more = [as_library_token(token) for token in sorted(added, key=lambda token: token.id)]
    for one in more:
        before = present.get(one.content)
        one.special = one.special or (before is not None and before.special)  # the library never forgets that a token is special
    library.add_tokens([token for token in more if repr(token) != repr(present.get(token.content))])
    for token in settings.added:
        found = library.token_to_id(token.text)
        if found is not None and found != token.id and min(found, token.id) < vocab_size:
            raise CheckpointError(f"the settings give {token.text!r:.100} the id {token.id}, the tokenizer has it as {found}", hint=AGAIN)
    present = {token.content: token for token in library.get_added_tokens_decoder().values()}
    for named in settings.special:
        known = present.get(named.text)
        if known is None:
            flags = {"lstrip": named.strips_left, "rstrip": named.strips_right, "single_word": named.is_word}
            library.add_special_tokens([AddedToken(named.text, normalized=False, special=True, **flags)])
        elif not known.special:
            flags = {"lstrip": known.lstrip, "rstrip": known.rstrip, "single_word": known.single_word, "normalized": known.normalized}
            library.add_special_tokens([AddedToken(named.text, special=True, **flags)])


def as_library_token(token: WholeToken) -> AddedToken:
    return AddedToken(
        token.text,
        lstrip=token.strips_left,
        rstrip=token.strips_right,
        single_word=token.is_word,
        normalized=token.is_normalized,
        special=token.is_control,
    )


def surroundings(library: Library, *, vocab_size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the file's post-processor puts before and after a text: found by looking at one."""
    bare = library.encode("a", add_special_tokens=False).ids
    whole = library.encode("a", add_special_tokens=True).ids
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            parts = (whole[:start], whole[start + len(bare) :])
            before, after = (tuple(i for i in part if i < vocab_size) for part in parts)
            return before, after
    return (), ()


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
    """CheckpointError unless ids are unique, and added tokens have the ids that the file gives; those past the rows are not used."""
    vocabulary = library.get_vocab(with_added_tokens=True)
    check_rows(vocabulary.values(), vocab_size=vocab_size)
    check_unique(list(vocabulary.values()))
    for added in values.get("added_tokens") or []:
        found = vocabulary.get(added["content"])
        if found != added["id"] and min(added["id"], added["id"] if found is None else found) < vocab_size:
            raise CheckpointError(  # the library numbers them itself
                f"tokenizer.json gives {added['content']!r:.100} the id {added['id']}, which is not free or not next", hint=AGAIN
            )


def control_tokens(added: Mapping[int, AddedToken]) -> Iterator[WholeToken]:
    for i, token in added.items():
        if token.special:
            yield WholeToken(token.content, i, strips_left=token.lstrip, strips_right=token.rstrip, is_word=token.single_word)


def usable_id(library: Library, text: str | None, *, vocab_size: int) -> int | None:
    """The id of a token that the settings name; None for one that has no row."""
    found = None if text is None else library.token_to_id(text)
    return found if found is not None and found < vocab_size else None
