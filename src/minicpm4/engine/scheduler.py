"""Decides which tokens of which sequences run in the next step, and on which pages. Deals in token ids and pages.

Sequences that decode go first, one token each; what room is left in the step goes to prompts in order of arrival, cut into
chunks. When pages run out, the sequence that arrived last gives its own back and waits until it can be computed again.

Pages are shared by samples of one prompt, and by sequences that begin with the same full pages. Nobody writes into a page that others
hold: the writer gets a copy first.
"""

# T tokens in the step, S sequences in the step, P pages of the longest sequence

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Sized
from dataclasses import dataclass, field, replace

import numpy as np

from minicpm4.engine.pages import PagePool
from minicpm4.model import PAGE_TOKENS, Step, pages_for


@dataclass(eq=False)
class Sequence:
    """Tokens and where they are cached. Keys and values of tokens[:num_cached] are in `pages`.

    requests: whose tokens they are; several while samples of one prompt have no token of their own yet. num_prompt: of the tokens, the
    others were generated; all that there are unless given.
    """

    requests: list[int]
    tokens: list[int]
    num_cached: int = 0
    pages: list[int] = field(default_factory=list)
    num_prompt: int = -1

    def __post_init__(self) -> None:
        if self.num_prompt < 0:
            self.num_prompt = len(self.tokens)

    @property
    def num_waiting(self) -> int:
        """Tokens that were not computed yet: all of a new prompt, one while decoding."""
        return len(self.tokens) - self.num_cached

    @property
    def num_waiting_of_kind(self) -> int:
        """Of those that wait: all of the prompt, or once these are computed all that were generated."""
        return self.num_prompt - self.num_cached if self.num_cached < self.num_prompt else self.num_waiting


@dataclass(frozen=True)
class Part:
    """A sequence's share of a step: its next `num_tokens` tokens. is_prompt: whether all of them are of its prompt; else all were
    generated. is_complete: the logits of the last are wanted."""

    sequence: Sequence
    num_tokens: int
    is_prompt: bool
    is_complete: bool

    @classmethod
    def next_of(cls, sequence: Sequence, room: int) -> Part:
        """As many tokens as there is room for."""
        count = min(room, sequence.num_waiting_of_kind)
        is_prompt = sequence.num_cached < sequence.num_prompt
        return cls(sequence, count, is_prompt=is_prompt, is_complete=count == sequence.num_waiting)


@dataclass(frozen=True)
class Plan:
    """The parts of a step, which have pages for all their tokens, and the pages to be copied before it: targets with their sources."""

    parts: tuple[Part, ...]
    copies: Mapping[int, int]


class Scheduler:
    """num_pages: of the cache. max_step_tokens: the most tokens of one step; never fewer sequences than one run at a time.

    prefix_cache: whether pages that are full are known by their tokens, so that another sequence which begins as theirs did need not
    compute them. tells_prompts: whether the executor computes prompts otherwise than generated tokens, so that a page of the ones does not
    stand for the others. num_reused_tokens: those that were not, of all sequences so far.
    """

    def __init__(self, *, num_pages: int, max_step_tokens: int, prefix_cache: bool = True, tells_prompts: bool = False) -> None:
        self.pool = PagePool(num_pages)
        self.max_step_tokens = max_step_tokens
        self.prefix_cache, self.tells_prompts = prefix_cache, tells_prompts
        self.num_preemptions = self.num_reused_tokens = 0
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._copies: dict[int, int] = {}  # planned and not made yet: a step may fail before they are

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, request: int) -> None:
        """Forgets a request, running or waiting; lets go of its pages, unless other samples still wait for them to be computed."""
        queue, sequence = next((queue, s) for queue in (self._running, self._waiting) for s in queue if request in s.requests)
        sequence.requests.remove(request)
        if not sequence.requests:
            queue.remove(sequence)
            self._release(sequence)

    def plan(self) -> Plan:
        """The next step; it has no parts only where there is no work."""
        parts: list[Part] = []
        room = self.max_step_tokens
        for sequence in sorted(self._running, key=lambda s: s.num_waiting > 1):  # those that decode first, else in order
            if room and sequence in self._running:  # it may have been preempted for one before it
                room -= self._schedule(sequence, room, parts)
        while room and self._waiting and self._can_start(self._waiting[0]):
            room -= self._schedule(self._start(), room, parts)
        return Plan(tuple(parts), dict(self._copies))

    def note_copied(self) -> None:
        """The copies of the newest plan were made."""
        self._copies.clear()

    def note_written(self, parts: Iterable[Part]) -> None:
        """The keys and values of these parts are in the cache, though their sequences do not count them yet: full pages become known."""
        for part in parts if self.prefix_cache else ():
            sequence = part.sequence
            for index in range(sequence.num_cached // PAGE_TOKENS, (sequence.num_cached + part.num_tokens) // PAGE_TOKENS):
                self._make_known(sequence, index)

    def split(self, parts: Iterable[Part]) -> list[Part]:
        """The same parts, one for each request: samples whose prompt is complete become sequences of their own on the same pages."""
        return [own for part in parts for own in (self._split(part) if part.is_complete else [part])]

    def _split(self, part: Part) -> list[Part]:
        sequence, [request, *others] = part.sequence, part.sequence.requests
        twins = [replace(sequence, requests=[other], tokens=[*sequence.tokens], pages=[*sequence.pages]) for other in others]
        for twin in twins:
            self.pool.share(twin.pages)
        place = self._running.index(sequence) + 1
        self._running[place:place] = twins
        sequence.requests = [request]
        return [part, *(replace(part, sequence=twin) for twin in twins)]

    def _make_known(self, sequence: Sequence, index: int) -> None:
        """A full page. Where another is known to hold the same, the sequence goes on with that one."""
        own = sequence.pages[index]
        tokens = sequence.tokens[index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS]
        after = sequence.pages[index - 1] if index else None
        known = self.pool.make_known(own, tokens, after=after, num_prompt=self._num_prompt(sequence, index))
        if known != own:
            self.pool.share([known])
            sequence.pages[index] = known
            self.pool.give_back([own])

    def _find(self, sequence: Sequence) -> list[int]:
        """Known pages that the sequence can begin with; at least one token is left to compute."""
        return self.pool.find(sequence.tokens[:-1], num_prompt=lambda index: self._num_prompt(sequence, index)) if self.prefix_cache else []

    def _num_prompt(self, sequence: Sequence, index: int) -> int:
        """Tokens of a page that are of the prompt; 0 where nobody tells."""
        return min(PAGE_TOKENS, max(0, sequence.num_prompt - index * PAGE_TOKENS)) if self.tells_prompts else 0

    def _can_start(self, sequence: Sequence) -> bool:
        """Whether its tokens and the next fit beside those of all that run, so that it does not push them out at once."""
        if not self._running:
            return True
        held = sum(not self.pool.is_free(page) for page in self._find(sequence))
        return sum(map(self._num_promised, (*self._running, sequence))) - held <= self.pool.num_free

    def _num_promised(self, sequence: Sequence) -> int:
        """Pages that a sequence lacks for its tokens and the next of each sample. Each that shares the page of its next token counts a
        copy, though the last of them will not need one."""
        return pages_for(len(sequence.tokens) + 1) - len(sequence.pages) + len(self._shared(sequence)) + len(sequence.requests) - 1

    def _start(self) -> Sequence:
        """The first that waits runs, on known pages as far as there are any."""
        sequence = self._waiting.popleft()
        sequence.pages = self._find(sequence)
        self.pool.share(sequence.pages)
        sequence.num_cached = len(sequence.pages) * PAGE_TOKENS
        self.num_reused_tokens += sequence.num_cached
        self._running.append(sequence)
        return sequence

    def _schedule(self, sequence: Sequence, room: int, parts: list[Part]) -> int:
        """Adds the sequence's part if pages can be had; returns its tokens."""
        part = Part.next_of(sequence, room)
        needed = max(0, pages_for(sequence.num_cached + part.num_tokens) - len(sequence.pages))
        while needed + len(self._shared(sequence)) > self.pool.num_free:
            victim = self._running[-1]
            self._preempt(victim, parts)
            if victim is sequence:
                return 0
        for index in self._shared(sequence):
            self._copy(sequence, index)
        sequence.pages += self.pool.take(needed)
        parts.append(part)
        return part.num_tokens

    def _shared(self, sequence: Sequence) -> list[int]:
        """Which of its pages it will write into, and others hold too."""
        first = sequence.num_cached // PAGE_TOKENS
        return [index for index in range(first, len(sequence.pages)) if self.pool.is_shared(sequence.pages[index])]

    def _copy(self, sequence: Sequence, index: int) -> None:
        source, [target] = sequence.pages[index], self.pool.take(1)
        self._copies[target] = source  # copied before anything is written, so that nobody need hold it until then
        sequence.pages[index] = target
        self.pool.give_back([source])

    def _preempt(self, sequence: Sequence, parts: list[Part]) -> None:
        self.num_preemptions += 1
        self._running.remove(sequence)
        self._release(sequence)
        self._waiting.appendleft(sequence)
        parts[:] = [part for part in parts if part.sequence is not sequence]

    def _release(self, sequence: Sequence) -> None:
        for page in sequence.pages:
            self._copies.pop(page, None)
        self.pool.give_back(reversed(sequence.pages))
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
        is_prompt_S=np.array([part.is_prompt for part in parts], np.int32),
    )
