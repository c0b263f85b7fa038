"""The one tokenizer type: finds the model's own tokens in text, leaves the rest to a codec, and turns ids back into text.

A codec is a library's tokenizer for ordinary text. Control tokens never reach it, so no text can become one by accident.
Knows no files: the loaders put the parts together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Protocol

from minicpm4.errors import CheckpointError, RequestError
from minicpm4.text.token_text import SPACE_PIECE

SPACES = re.compile(r"\s*")
WORD_CHARACTER = re.compile(r"\w")


class Codec(Protocol):
    """A tokenizer of ordinary text; it knows neither control tokens nor BOS."""

    def encode(self, text: str) -> list[int]: ...

    def token_bytes(self, token_id: int) -> bytes:
        """What the token stands for; b"" for an id without a token."""


@dataclass(frozen=True)
class WholeToken:
    """A token that is looked for in the text before the codec sees it.

    is_control: found only where control tokens are asked for, and stands for no text.
    strips_left, strips_right: it takes the white space before or after it along. is_word: it is found only where no letter, digit or
    underscore stands beside it. is_normalized: it is looked for in text as the codec has normalized it.
    """

    text: str
    id: int
    is_control: bool = True
    strips_left: bool = False
    strips_right: bool = False
    is_word: bool = False
    is_normalized: bool = False

    def fits(self, text: str, start: int) -> bool:
        """Whether it may stand at this place of a text that holds it there."""
        stop = start + len(self.text)
        beside = text[max(0, start - 1) : start] + text[stop : stop + 1]
        return not self.is_word or not WORD_CHARACTER.search(beside)


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A model's tokenizer.

    vocab_size: rows of the embedding; tokens without a row are not used. before, after: what the model's own convention puts around raw
    text. ends: the tokens that the tokenizer's files call the end of a text or of a turn, each with what says so. spaces_first: text that
    begins with no space, nor with the character that pieces have for it, is given one. drops_space: decoding drops the one space that
    encoding put first (`spaces_first`, or the codec itself).
    """

    codec: Codec = field(repr=False)
    vocab_size: int
    whole_tokens: tuple[WholeToken, ...] = field(default=(), repr=False)
    bos_id: int | None = None
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    ends: Mapping[int, str] = field(default_factory=dict)
    spaces_first: bool = False
    drops_space: bool = False

    def __post_init__(self) -> None:
        ids = [token.id for token in self.whole_tokens]
        for token_id in (*ids, *self.ends, *self.before, *self.after, self.bos_id or 0):
            check_id(token_id, vocab_size=self.vocab_size)
        check_unique(ids)
        check_unique([token.text for token in self.whole_tokens])

    @cached_property
    def special_tokens(self) -> Mapping[str, int]:
        """The control tokens' ids by their text."""
        return MappingProxyType({token.text: token.id for token in self.whole_tokens if token.is_control})

    def encode(self, text: str, *, add_bos: bool | None = None, parses_special: bool = False) -> list[int]:
        """The text's ids. RequestError for text that is not Unicode, or for a BOS that the model does not have.

        add_bos: None for the model's own convention, True for BOS first, False for the text alone; a BOS that the text begins with is not
        doubled. parses_special: whether the text of a control token becomes that token; text from outside must not.
        """
        ids = self.encode_parts(self.split(text, parses_special=parses_special), add_bos=add_bos)
        return [*ids, *self.after] if add_bos is None else ids

    def split(self, text: str, *, parses_special: bool, foreign: Sequence[tuple[int, int]] = ()) -> list[str | WholeToken]:
        """The whole tokens in the text, and the text between them.

        foreign: stretches of the text, from and to, that came from outside: a control token that begins or ends in one of them is text.
        """
        check_text(text)
        pattern = self._all_tokens if parses_special else self._plain_tokens
        is_foreign = bytearray(len(text))
        for start, stop in foreign:
            is_foreign[start:stop] = b"\x01" * (stop - start)
        parts: list[str | WholeToken] = []
        position = place = 0
        while match := pattern.search(text, place) if pattern else None:
            token, place = self._by_text[match[0]], match.start() + 1
            is_text = token.is_control and (is_foreign[match.start()] or is_foreign[match.end() - 1])
            if match.start() < position or is_text or not token.fits(text, match.start()):
                continue
            before = text[position : match.start()]
            parts += [before.rstrip() if token.strips_left else before, token]
            spaces = SPACES.match(text, match.end()) if token.strips_right else None
            position = place = spaces.end() if spaces else match.end()
        return [part for part in [*parts, text[position:]] if part]

    def encode_parts(self, parts: Sequence[str | WholeToken], *, add_bos: bool | None = None) -> list[int]:
        """The ids of what `split` returned, without what the convention puts after them; the strings are ordinary text, whatever they
        contain."""
        ids: list[int] = []
        for index, part in enumerate(parts):
            if isinstance(part, WholeToken):
                ids.append(part.id)
            else:
                needs_space = self.spaces_first and index == 0 and not part.startswith((" ", SPACE_PIECE))
                ids += self.codec.encode(" " + part if needs_space else part)
        if add_bos and self.bos_id is None:
            raise RequestError("a BOS token was asked for, and this tokenizer has none", hint="leave add_bos out")
        before = list(self.before) if add_bos is None else [self.bos_id] if add_bos and self.bos_id is not None else []
        return ids if ids[: len(before)] == before else [*before, *ids]

    def decode(self, ids: Iterable[int], *, skips_special: bool = True, is_continuation: bool = False) -> str:
        """The text of the ids; bytes that are no UTF-8 become U+FFFD. RequestError for an id that is none of this vocabulary.

        skips_special: leave control tokens out instead of writing their text. is_continuation: the text goes on after other
        text, so a space that it begins with belongs to it.
        """
        data = b"".join(self.shown_bytes(token_id, skips_special=skips_special) for token_id in ids)
        if self.drops_space and not is_continuation:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, possibly a part of a character; b"" for control tokens."""
        return self.shown_bytes(token_id, skips_special=True)

    def shown_bytes(self, token_id: int, *, skips_special: bool) -> bytes:
        """token_bytes, or also the text of control tokens."""
        if not 0 <= token_id < self.vocab_size:
            raise RequestError(f"{token_id} is no token id", hint=f"this tokenizer's ids are 0 to {self.vocab_size - 1}")
        token = self._by_id.get(token_id)
        if token is None:
            return self.codec.token_bytes(token_id)
        return b"" if token.is_control and skips_special else token.text.encode()

    @cached_property
    def _by_text(self) -> dict[str, WholeToken]:
        return {token.text: token for token in self.whole_tokens}

    @cached_property
    def _by_id(self) -> dict[int, WholeToken]:
        return {token.id: token for token in self.whole_tokens}

    @cached_property
    def _all_tokens(self) -> re.Pattern[str] | None:
        return any_of(token.text for token in self.whole_tokens)

    @cached_property
    def _plain_tokens(self) -> re.Pattern[str] | None:
        return any_of(token.text for token in self.whole_tokens if not token.is_control)


def any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Matches the longest of the texts; None where there are none."""
    longest_first = sorted((text for text in texts if text), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def check_text(text: str) -> None:
    """RequestError for a lone surrogate, which no encoding of Unicode can carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the text holds a lone surrogate, U+{ord(text[error.start]):04X}, at position {error.start}",
            hint="decode its bytes with errors='replace', or leave the character out",
        ) from error


def check_id(token_id: int, *, vocab_size: int) -> None:
    """CheckpointError for a token that has no row in the embedding."""
    if not 0 <= token_id < vocab_size:
        raise CheckpointError(
            f"the tokenizer has a token with id {token_id}, but the model's embedding has {vocab_size} rows",
            hint="the tokenizer belongs to another model, or is damaged; get both again",
        )


def check_rows(ids: Iterable[int], *, vocab_size: int) -> None:
    """CheckpointError where most tokens have no row in the embedding; a few past its end are not used, as fine-tunes often have them."""
    ids = list(ids)
    if max(ids, default=0) >= vocab_size and 2 * sum(i >= vocab_size for i in ids) > len(ids):
        check_id(max(ids), vocab_size=vocab_size)


def check_unique(values: Sequence[int] | Sequence[str]) -> None:
    """CheckpointError for a token's id or text that is there twice."""
    if len(set(values)) < len(values):
        twice = Counter(values).most_common(1)[0][0]
        what = "id" if isinstance(twice, int) else "text"
        raise CheckpointError(f"two tokens have the {what} {twice!r:.100}", hint="the tokenizer is damaged; get the model again")
