"""What a task asks of a model: a long question, how the answer begins, and what it must hold. Knows no model and no tokens."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True)
class Puzzle:
    """question: what the user says. answer_start: the words that the model's answer is made to begin with. answers: what must be in the
    rest of it. depth: where what is asked for lies, in percent of the text; None where it lies in several places."""

    question: str
    answer_start: str
    answers: tuple[str, ...]
    depth: float | None = None


@dataclass(frozen=True)
class Setting:
    """What a puzzle is made for. length: tokens that prompt and answer may have, by which some tasks choose their numbers.

    depth: where to hide what is asked for, in percent; None for anywhere. sentences: prose, for tasks that hide things in it.
    """

    length: int
    depth: float | None = None
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """name: as RULER calls it. max_new_tokens: of an answer. min_size: the smallest puzzle. has_depth: whether one thing in one place is
    asked for. needs_prose: whether `Setting.sentences` are read. make: a puzzle of a size, which is counted in the task's own units;
    the same random numbers and the same size give the same puzzle."""

    name: str
    max_new_tokens: int
    make: Callable[[Random, int, Setting], Puzzle]
    min_size: int = 1
    has_depth: bool = False
    needs_prose: bool = False


def share_found(text: str, answers: tuple[str, ...]) -> float:
    """RULER's string_match_all: the share of the answers that the text holds, whatever their case; control characters are line ends."""
    cleaned = CONTROL_CHARACTERS.sub("\n", text.strip()).strip().lower()
    return sum(answer.lower() in cleaned for answer in answers) / len(answers)
