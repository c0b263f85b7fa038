"""Decides which tokens of which sequences run in the next step, and plans that step. Deals in token ids and pages.

Sequences that decode go first, one token each; what room is left in the step goes to prompts in order of arrival, cut into
chunks. When pages run out, the sequence that arrived last gives its own back and waits until it can be computed again.
"""

# T tokens in the step, S sequences in the step, P pages of the longest sequence

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Sized
from dataclasses import dataclass, field

import numpy as np

from minicpm4.engine.pages import PagePool
from minicpm4.model import PAGE_TOKENS, Step, pages_for


@dataclass(eq=False)
class Sequence:
    """A request's tokens and where they are cached. Keys and values of tokens[:num_cached] are in `pages`."""

    request: int
    tokens: list[int]
    num_cached: int = 0
    pages: list[int] = field(default_factory=list)

    @property
    def num_waiting(self) -> int:
        """Tokens that were not computed yet: all of a new prompt, one while decoding."""
        return len(self.tokens) - self.num_cached


@dataclass(frozen=True)
class Part:
    """A sequence's share of a step: its next `num_tokens` tokens. is_complete: the logits of the last are wanted."""

    sequence: Sequence
    num_tokens: int
    is_complete: bool


class Scheduler:
    """num_pages: of the cache. max_step_tokens: the most tokens of one step; never fewer sequences than one run at a time."""

    def __init__(self, *, num_pages: int, max_step_tokens: int) -> None:
        self.pool = PagePool(num_pages)
        self.max_step_tokens = max_step_tokens
        self.num_preemptions = 0
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forgets a sequence, running or waiting, and frees its pages."""
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._release(sequence)

    def plan(self) -> list[Part]:
        """The parts of the next step, with pages for all their tokens; empty only where there is no work."""
        parts: list[Part] = []
        room = self.max_step_tokens
        for sequence in sorted(self._running, key=lambda s: s.num_waiting > 1):  # those that decode first, else in order
            if room and sequence in self._running:  # it may have been preempted for one before it
                room -= self._schedule(sequence, room, parts)
        while room and self._waiting and self._can_start(self._waiting[0]):
            self._running.append(self._waiting.popleft())
            room -= self._schedule(self._running[-1], room, parts)
        return parts

    def _can_start(self, sequence: Sequence) -> bool:
        """Whether its tokens and the next fit beside those of all that run, so that it does not push them out at once."""
        promised = sum(pages_for(len(s.tokens) + 1) - len(s.pages) for s in (*self._running, sequence))
        return not self._running or promised <= self.pool.num_free

    def _schedule(self, sequence: Sequence, room: int, parts: list[Part]) -> int:
        """Adds the sequence's part if pages can be had; returns its tokens."""
        count = min(room, sequence.num_waiting)
        needed = pages_for(sequence.num_cached + count) - len(sequence.pages)
        while needed > self.pool.num_free:
            victim = self._running[-1]
            self._preempt(victim, parts)
            if victim is sequence:
                return 0
        sequence.pages += self.pool.take(needed)
        parts.append(Part(sequence, count, is_complete=count == sequence.num_waiting))
        return count

    def _preempt(self, sequence: Sequence, parts: list[Part]) -> None:
        self.num_preemptions += 1
        self._running.remove(sequence)
        self._release(sequence)
        self._waiting.appendleft(sequence)
        parts[:] = [part for part in parts if part.sequence is not sequence]

    def _release(self, sequence: Sequence) -> None:
        self.pool.give_back(sequence.pages)
        sequence.pages, sequence.num_cached = [], 0


def build_step(parts: Sized[Part]) -> Step:
    """The step that computes these parts; the logits of complete parts are wanted, in order."""
    assert all(part.num_tokens > 0 for part in parts), "a part computes at least one token"
    counts = np.array([part.num_tokens for part in parts], np.int32)
    starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
    firsts = np.array([part.sequence.num_cached for part in parts], np.int32)
    positions_T = (np.arange(starts[-1], dtype=np.int32) - np.repeat(starts[:-1] - firsts, counts)).astype(np.int32)
    pages_SP = np.full((len(parts), max(len(part.sequence.pages) for part in parts)), -1, np.int32)
    for row, part in enumerate(parts):
        pages_SP[row, : len(part.sequence.pages)] = part.sequence.pages
    rows_T = np.repeat(np.arange(len(parts)), counts)
    return Step(
        tokens_T=np.concatenate([np.asarray(p.sequence.tokens[p.sequence.num_cached :][: p.num_tokens], np.int32) for p in parts]),
        positions_T=positions_T,
        slots_T=pages_SP[rows_T, positions_T // PAGE_TOKENS] * np.int32(PAGE_TOKENS) + positions_T % PAGE_TOKENS,
        starts_S1=starts,
        lengths_S=firsts + counts,
        pages_SP=pages_SP,
        wanted_R=(starts[1:] - 1)[[part.is_complete for part in parts]],
    )
