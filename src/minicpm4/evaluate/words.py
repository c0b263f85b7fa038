"""Random English words, numbers and identifiers. The only place that knows the library of words."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from functools import cache
from random import Random

from minicpm4.errors import UnsupportedError


@dataclass(frozen=True)
class WordList:
    """nouns, adjectives: of the library. all: with its verbs, sorted, each once."""

    nouns: tuple[str, ...]
    adjectives: tuple[str, ...]
    all: tuple[str, ...]


@cache
def word_list() -> WordList:
    """UnsupportedError where the library is not installed."""
    try:
        from wonderwords import RandomWord
    except ImportError as error:
        raise UnsupportedError("the words of these tasks come from wonderwords, which is not installed", hint=INSTALL) from error
    nouns, adjectives, verbs = (tuple(RandomWord().filter(include_categories=[kind])) for kind in ("noun", "adjective", "verb"))
    return WordList(nouns, adjectives, tuple(sorted({*nouns, *adjectives, *verbs})))


INSTALL = "pip install 'minicpm4[evaluate]'"


def random_word(random: Random) -> str:
    """An adjective and a noun, such as tidy-lamp."""
    words = word_list()
    return f"{random.choice(words.adjectives)}-{random.choice(words.nouns)}"


def random_number(random: Random) -> str:
    """Of seven digits."""
    return str(random.randint(10**6, 10**7 - 1))


def random_uuid(random: Random) -> str:
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


MAKERS = {"words": random_word, "numbers": random_number, "uuids": random_uuid}
