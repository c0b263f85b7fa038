"""Text that remembers which of its characters came from the messages, through whatever a template does with it.

`Marked` is a str in every other respect: each method returns what str's returns. Results whose characters cannot be followed count
as message text as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, SupportsIndex

FOREIGN = b"\x01"  # the mark of a character that came from the messages; a template's own has 0
CASES = ("capitalize", "casefold", "lower", "swapcase", "title", "upper")
NOT_FOLLOWED = ("expandtabs", "translate", "zfill")  # not format: the sandbox wraps str's own


class Marked(str):
    """_marks: a byte for each character (see FOREIGN)."""

    __slots__ = ("_marks",)
    _marks: bytes

    def __new__(cls, text: str = "", marks: bytes | None = None) -> Marked:
        self = super().__new__(cls, text)
        self._marks = bytes(len(self)) if marks is None else marks
        return self

    def __str__(self) -> str:
        return self

    def __iter__(self) -> Iterator[str]:
        return (self._part(index, index + 1) for index in range(len(self)))

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        text = super().__getitem__(key)
        marks = self._marks[key] if isinstance(key, slice) else bytes([self._marks[key]])
        return Marked(text, marks)

    def __add__(self, other: str) -> str:
        return Marked(super().__add__(other), self._marks + marks_of(other))

    def __radd__(self, other: Any) -> str:
        return Marked(other, marks_of(other)) + self if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> str:
        return Marked(super().__mul__(count), self._marks * count)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return Marked(*percent_formatted(self, values))

    def __rmod__(self, pattern: Any) -> str:
        return Marked(*percent_formatted(pattern, self)) if isinstance(pattern, str) else NotImplemented

    def _part(self, start: int, stop: int) -> str:
        return Marked(plain(self)[start:stop], self._marks[start:stop])

    def _in_order(self, parts: Iterable[str], *, gap: int | None) -> list[str]:
        """Parts that follow each other in this text. gap: characters between two of them; None: white space."""
        found, start = [], 0
        for part in parts:
            start = start if gap is not None else plain(self).index(part, start)
            found.append(self._part(start, start + len(part)))
            start += len(part) + (gap or 0)
        return found

    def lstrip(self, chars: str | None = None, /) -> str:
        return self._part(len(self) - len(super().lstrip(chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> str:
        return self._part(0, len(super().rstrip(chars)))

    def strip(self, chars: str | None = None, /) -> str:
        stop = len(super().rstrip(chars))
        return self._part(min(stop, len(self) - len(super().lstrip(chars))), stop)

    def removeprefix(self, prefix: str, /) -> str:
        return self._part(len(self) - len(super().removeprefix(prefix)), len(self))

    def removesuffix(self, suffix: str, /) -> str:
        return self._part(0, len(super().removesuffix(suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._in_order(super().split(sep, maxsplit), gap=None if sep is None else len(sep))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._in_order(super().rsplit(sep, maxsplit), gap=None if sep is None else len(sep))

    def splitlines(self, keepends: bool = False) -> list[str]:
        whole_lines = self._in_order(super().splitlines(True), gap=0)
        kept = map(len, super().splitlines(keepends))
        return [line[:size] for line, size in zip(whole_lines, kept, strict=True)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._in_order(super().partition(sep), gap=0)
        return before, found, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        before, found, after = self._in_order(super().rpartition(sep), gap=0)
        return before, found, after

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        parts = super().split(old, count) if old else self._between_characters(count)
        pieces = self._in_order(parts, gap=len(old))
        return join(new, pieces)

    def _between_characters(self, count: SupportsIndex) -> list[str]:
        """What `replace` of nothing puts its new text between."""
        limit = int(count) if int(count) >= 0 else len(self) + 1
        if limit == 0:
            return [plain(self)]
        parts = ["", *plain(self)[: limit - 1]]
        rest = plain(self)[limit - 1 :]
        return [*parts, rest] if rest or limit > len(self) else parts

    def join(self, parts: Iterable[str], /) -> str:
        return join(self, parts)

    def ljust(self, width: SupportsIndex, fill: str = " ", /) -> str:
        return self + fill * (len(super().ljust(width, fill)) - len(self))

    def rjust(self, width: SupportsIndex, fill: str = " ", /) -> str:
        return Marked(fill) * (len(super().rjust(width, fill)) - len(self)) + self

    def center(self, width: SupportsIndex, fill: str = " ", /) -> str:
        total = len(super().center(width, fill)) - len(self)
        left = total // 2 + (total & int(width) & 1)
        return Marked(fill) * left + self + fill * (total - left)


def plain(text: str) -> str:
    """The same text without marks."""
    return str.__str__(text)


def marks_of(text: str) -> bytes:
    """Text that forgot where it came from is a template's own, but for markup, which may be anybody's."""
    if isinstance(text, Marked):
        return text._marks
    return bytes(len(text)) if type(text) is str else FOREIGN * len(text)


def foreign(text: str) -> Marked:
    return Marked(text, FOREIGN * len(text))


def is_foreign(value: Any) -> bool:
    """Whether any character in a value, or in the lists and objects that it is made of, came from the messages."""
    if isinstance(value, str):
        return FOREIGN in marks_of(value)
    if isinstance(value, Mapping):
        return any(is_foreign(key) or is_foreign(item) for key, item in value.items())
    return isinstance(value, list | tuple | set) and any(map(is_foreign, value))


def unmarked(value: Any) -> Any:
    """The same JSON value made of plain text."""
    if isinstance(value, Marked):
        return plain(value)
    if isinstance(value, dict):
        return {unmarked(key): unmarked(item) for key, item in value.items()}
    return type(value)(map(unmarked, value)) if type(value) in (list, tuple) else value


def mark_all(value: Any) -> Any:
    """A JSON value from outside, with all its text marked, keys of objects too."""
    if isinstance(value, str):
        return foreign(value)
    if isinstance(value, dict):
        return {mark_all(key): mark_all(item) for key, item in value.items()}
    return [mark_all(item) for item in value] if isinstance(value, list) else value


def as_text(value: Any) -> str:
    """What a template prints of a value; of a list or object with message text in it, all of it counts as that."""
    if isinstance(value, str):
        return value
    return foreign(str(value)) if is_foreign(value) else str(value)


def join(separator: str, parts: Iterable[str]) -> str:
    parts = list(parts)
    text = plain(separator).join(parts)
    return Marked(text, marks_of(separator).join(map(marks_of, parts)))


def concat(parts: Iterable[str]) -> str:
    return join("", parts)


def percent_formatted(pattern: str, values: Any) -> tuple[str, bytes]:
    """pattern % values, and its marks."""
    text = plain(pattern) % unmarked(values)
    given = list(values.values()) if isinstance(values, Mapping) else list(values) if isinstance(values, tuple) else [values]
    return text, follow(text, pattern, given)


def follow(text: str, pattern: str, values: list[Any]) -> bytes:
    """The marks of a formatted text: each value keeps its own where the pattern only puts texts between its own words; else all of the
    text counts as the messages' if any value did."""
    if not is_foreign(values) and not is_foreign(pattern):
        return bytes(len(text))
    if is_foreign(pattern) or not all(isinstance(value, str) for value in values):
        return FOREIGN * len(text)
    literals = literal_parts(pattern)
    if literals is None or len(literals) != len(values) + 1:
        return FOREIGN * len(text)
    expected, marks = literals[0], bytes(len(literals[0]))
    for value, literal in zip(values, literals[1:], strict=True):
        expected += plain(value) + literal
        marks += marks_of(value) + bytes(len(literal))
    return marks if expected == text else FOREIGN * len(text)


def literal_parts(pattern: str) -> list[str] | None:
    """The text around the fields of a pattern whose fields are all `%s`, or all `{}`; None for another."""
    for field, special in (("%s", "%"), ("{}", "{}")):
        parts = plain(pattern).split(field)
        if len(parts) > 1 and not any(character in part for part in parts for character in special):
            return parts
    return None


def same_length(name: str) -> Callable[..., str]:
    """A method that changes characters in their places, where it does."""

    def method(self: Marked, *values: Any) -> str:
        text = getattr(plain(self), name)(*values)
        return Marked(text, self._marks) if len(text) == len(self) else foreign(text) if is_foreign(self) else text

    return method


def not_followed(name: str) -> Callable[..., str]:
    """A method whose result counts as message text if anything in it did."""

    def method(self: Marked, *values: Any, **named: Any) -> str:
        text = getattr(plain(self), name)(*unmarked(values), **unmarked(named))
        return Marked(text, follow(text, self, [*values, *named.values()]))

    return method


for case in CASES:
    setattr(Marked, case, same_length(case))
for other in NOT_FOLLOWED:
    setattr(Marked, other, not_followed(other))
