"""Puzzles of a length in tokens: as large as fit, put into the model's own chat template. Decides every random number from the seed.

A prompt is the chat template around the question, and then the words that the answer begins with, as RULER does it: the model
goes on in the middle of its own answer. Without a template, or where it is not wanted, question and beginning follow each other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from minicpm4.engine import LLM
from minicpm4.errors import CapacityError, CheckpointError, RequestError
from minicpm4.evaluate.puzzle import Puzzle, Setting, Task

PLACE = "(here)"  # stands for a question while the template is rendered


@dataclass(frozen=True)
class Cell:
    """One of the kinds of samples that are averaged. depth: where things are hidden, in percent; None for anywhere."""

    task: str
    length: int
    depth: float | None

    def key(self, index: int) -> str:
        """Names a sample of this cell, and is what its random numbers come from."""
        return f"{self.task}/{self.length}/{'any' if self.depth is None else f'{self.depth:g}'}/{index}"


@dataclass(frozen=True)
class Sample:
    """num_tokens: of the prompt. size: of the puzzle, in its task's units."""

    key: str
    prompt: str
    puzzle: Puzzle
    num_tokens: int
    size: int


@dataclass(frozen=True)
class Frame:
    """What goes before and after a question."""

    before: str
    after: str

    def prompt(self, puzzle: Puzzle) -> str:
        return f"{self.before}{puzzle.question}{self.after}{puzzle.answer_start}"


def frame_of(llm: LLM, *, is_plain: bool) -> Frame:
    """The chat template's, or nothing where the model has none or it is not wanted."""
    templates = llm.loaded.templates
    if is_plain or templates is None:
        return Frame("", " ")
    before, place, after = templates.choose().render([{"role": "user", "content": PLACE}]).text.partition(PLACE)
    if not place or PLACE in after:
        raise CheckpointError("the chat template does not write a message once", hint="give --plain to leave the template out")
    return Frame(before, after)


def make_sample(llm: LLM, task: Task, *, cell: Cell, index: int, seed: int, frame: Frame, sentences: tuple[str, ...]) -> Sample:
    """The largest sample whose prompt, with room for the answer, has no more than the cell's tokens. CapacityError where none has."""
    key, setting = cell.key(index), Setting(cell.length, cell.depth, sentences if task.needs_prose else ())

    def puzzle(size: int) -> Puzzle:
        return task.make(Random(f"{seed}/{key}"), size, setting)

    def num_tokens(size: int) -> int:
        return len(llm.encode(frame.prompt(puzzle(size))))

    room = cell.length - task.max_new_tokens
    size = largest(lambda size: num_tokens(size) <= room, smallest=task.min_size, limit=cell.length)
    if size is None:
        needed = num_tokens(task.min_size) + task.max_new_tokens
        raise CapacityError(f"{task.name} does not fit {cell.length} tokens, it takes at least {needed}", hint="give longer --lengths")
    return Sample(key, frame.prompt(puzzle(size)), puzzle(size), num_tokens(size), size)


def largest(fits: Callable[[int], bool], *, smallest: int, limit: int) -> int | None:
    """A size that fits and whose next one does not, or is beyond the limit; None where even the smallest does not fit."""
    if not fits(smallest):
        return None
    good, bad = smallest, 2 * smallest
    while bad <= limit and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, limit + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def check_prose(llm: LLM, text: str, *, name: str) -> None:
    """RequestError where prose holds a control token's text, which in a prompt would be that token."""
    found = next((token for token in llm.loaded.tokenizer.special_tokens if token and token in text), None)
    if found is not None:
        raise RequestError(f"{name} holds {found!r}, a control token of this model", hint="give another text with --prose")
