"""Tokens that somebody guesses will follow, as a tree, and what of them came true.

A drafted token is computed beside the token before it; whether it stays is decided by the sampler, which chooses as it would have without
a draft: so answers are the same with any draft.
"""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Sized
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from minicpm4.engine.sampler import ChosenToken, Sampler
from minicpm4.executors import StepResult


@dataclass(frozen=True)
class Draft:
    """tokens: guessed ones. parents: of each token the one of these that it follows, -1 for the
    sequence's last token; before its children."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]

    @property
    def is_chain(self) -> bool:
        """Whether each token follows the one before it."""
        return all(parent == index - 1 for index, parent in enumerate(self.parents))

    def cut(self, room: int) -> Draft | None:
        """The first `room` tokens, whose parents are among them."""
        return Draft(self.tokens[:room], self.parents[:room]) if room > 0 and self.tokens else None


class Drafter(Protocol):
    """Guesses what follows. Called before a step for each request that decodes."""

    def draft(self, request: int, tokens: Sized[int], room: int) -> Draft | None:
        """At most `room` tokens that may follow these; None for no guess."""


class Accepted(NamedTuple):
    """What a step brings for one request.

    choices: the tokens chosen, in order; None in the last place where the logits were not numbers. rows: of the draft, those whose tokens
    were chosen: all choices but the last, which nothing was computed for. sampler: as it is after all choices but the last.
    """

    choices: tuple[ChosenToken | None, ...]
    rows: tuple[int, ...]
    sampler: Sampler


def choose(sampler: Sampler, draft: Draft | None, result: StepResult, *, first_row: int, ends: Collection[int]) -> Accepted:
    """Chooses a token from the logits of the last token, then from those of the drafted token that was chosen, as long as there is one.

    first_row: of the result's logits, the last token's; those of drafted tokens follow. ends: tokens that end the answer.
    """
    choices, rows, maxima = list[ChosenToken | None](), list[int](), result.block_maxima
    while True:
        row = first_row + (rows[-1] + 1 if rows else 0)
        choice = sampler.choose(result.logits[row], None if maxima is None else maxima[row])
        if draft is None:
            return Accepted((choice,), (), sampler)
        choices.append(choice)
        next_row = None if choice is None or choice.token in ends else child_of(draft, rows[-1] if rows else -1, token=choice.token)
        if choice is None or next_row is None:
            return Accepted(tuple(choices), tuple(rows), sampler)
        sampler = sampler.fork()
        sampler.accept(choice.token)
        rows.append(next_row)


def child_of(draft: Draft, parent: int, *, token: int) -> int | None:
    """The row of a draft that guesses this token after its row `parent`, -1 for the sequence's last token; None where there is none."""
    pairs = zip(draft.tokens, draft.parents, strict=True)
    return next((row for row, pair in enumerate(pairs) if pair == (token, parent)), None)
