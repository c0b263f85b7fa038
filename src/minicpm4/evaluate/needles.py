"""Needles in a haystack: values of keys, hidden among other lines or in prose, and asked for at the end.

The words of questions and needles, and how many there are, are those of RULER (arXiv 2404.06654; NVIDIA, Apache-2.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from minicpm4.evaluate.puzzle import Puzzle, Setting, Task
from minicpm4.evaluate.words import MAKERS

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
NEEDLE = "One of the special magic {kind} for {key} is: {value}."
ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will quiz you about the {kind} afterwards.\n"
    "{context}\nWhat is the special magic {kind} for {query} mentioned in the provided text?",
    "The special magic {kind} for {query} mentioned in the provided text is",
)
MANY = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I will quiz you about the {kind} "
    "afterwards.\n{context}\nWhat are all the special magic {kind} for {query} mentioned in the provided text?",
    "The special magic {kind} for {query} mentioned in the provided text are",
)
PLACES_IN_PROSE = 40  # evenly spread, the first and the last among them
MAX_NEW_TOKENS = 128

Kind = Literal["words", "numbers", "uuids"]


@dataclass(frozen=True)
class Needles:
    """haystack: a line that repeats, other needles of the same kinds, or prose. keys: things that have values; values: of each key;
    queries: keys that are asked for."""

    haystack: Literal["noise", "needles", "prose"]
    key_kind: Kind = "words"
    value_kind: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1

    def make(self, random: Random, size: int, setting: Setting) -> Puzzle:
        """size: lines, or sentences of prose."""
        keys = [MAKERS[self.key_kind](random) for _ in range(self.keys)]
        values = [[MAKERS[self.value_kind](random) for _ in range(self.values)] for _ in keys]
        asked = random.sample(range(self.keys), self.queries)
        hidden = [(owner, self.needle(key, value)) for owner, key in enumerate(keys) for value in values[owner]]
        random.shuffle(hidden)
        places, depth = places_of(random, size, len(hidden), is_prose=self.haystack == "prose"), None
        if self.is_single:
            own = next(index for index, (owner, _) in enumerate(hidden) if owner == asked[0])
            places[own] = places[own] if setting.depth is None else round(size * setting.depth / 100)
            depth = 100 * places[own] / size
        lines = with_hidden(self.lines(random, size, setting), [text for _, text in hidden], places)
        question, answer_start = ONE if self.is_single else MANY
        kind = self.value_kind[:-1] if self.is_single else self.value_kind
        names = {"kind": kind, "query": listed([keys[owner] for owner in asked])}
        context = (" " if self.haystack == "prose" else "\n").join(lines)
        answers = tuple(value for owner in asked for value in values[owner])
        return Puzzle(question.format(context=context, **names), answer_start.format(**names), answers, depth)

    @property
    def is_single(self) -> bool:
        """Whether one value is asked for."""
        return self.queries * self.values == 1

    def needle(self, key: str, value: str) -> str:
        return NEEDLE.format(kind=self.value_kind, key=key, value=value)

    def lines(self, random: Random, size: int, setting: Setting) -> list[str]:
        """The haystack. Prose that is too short begins again."""
        if self.haystack == "noise":
            return [NOISE] * size
        if self.haystack == "prose":
            return [setting.sentences[index % len(setting.sentences)] for index in range(size)]
        return [self.needle(MAKERS[self.key_kind](random), MAKERS[self.value_kind](random)) for _ in range(size)]


def places_of(random: Random, size: int, count: int, *, is_prose: bool) -> list[int]:
    """How many lines of the haystack lie before each of the needles."""
    if not is_prose:
        return random.sample(range(size), count)
    return [size * step // (PLACES_IN_PROSE - 1) for step in random.sample(range(PLACES_IN_PROSE), count)]


def with_hidden(lines: list[str], hidden: list[str], places: list[int]) -> list[str]:
    found, start = list[str](), 0
    for place, text in sorted(zip(places, hidden, strict=True), key=lambda pair: pair[0]):
        found += [*lines[start:place], text]
        start = place
    return [*found, *lines[start:]]


def listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}, and {names[-1]}"


def task(name: str, needles: Needles) -> Task:
    return Task(
        name,
        MAX_NEW_TOKENS,
        needles.make,
        min_size=needles.keys * needles.values,
        has_depth=needles.is_single,
        needs_prose=needles.haystack == "prose",
    )


NEEDLE_TASKS = (
    task("niah_single_1", Needles("noise")),
    task("niah_single_2", Needles("prose")),
    task("niah_single_3", Needles("prose", value_kind="uuids")),
    task("niah_multikey_1", Needles("prose", keys=4)),
    task("niah_multikey_2", Needles("needles")),
    task("niah_multikey_3", Needles("needles", key_kind="uuids", value_kind="uuids")),
    task("niah_multivalue", Needles("prose", values=4)),
    task("niah_multiquery", Needles("prose", keys=4, queries=4)),
)
