"""Decides which tokens of which sequences run in the next step, and on which pages. Deals in token ids and pages.

Sequences that decode go first, one token each and what was drafted to follow it; what room is left in the step goes to prompts in order of
arrival, cut into chunks. When pages run out, the sequence that arrived last gives its own back and waits until it can be computed again.

Pages are shared by samples of one prompt, and by sequences that begin with the same full pages. Nobody writes into a page that others
hold: the writer gets a copy first. `plan` reserves pages; only `commit` moves a sequence on and publishes what it has filled.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import NamedTuple

from minicpm4.engine.draft import Accepted, Draft
from minicpm4.engine.pages import PagePool
from minicpm4.engine.request import Request
from minicpm4.model import PAGE_TOKENS, Segment, Step, make_step, pages_for
from minicpm4.model.step import MAX_TREE_ROWS

SERIALS = count(1)
DraftOf = Callable[["Sequence", int], Draft | None]


@dataclass(eq=False)
class Sequence:
    """Tokens and where they are cached. Keys and values of tokens[:num_cached] are in `pages`.

    requests: whose tokens they are; several while samples of one prompt have no token of their own yet. num_prompt: of the tokens, the
    others were generated; all that there are unless given. prompt_numerics: the tag of rows of the prompt (`Executor.prompt_numerics`).
    adapter: of the weights. salt: what else pages depend on, such as a tenant whose prefixes nobody else may match.
    """

    requests: list[Request]
    tokens: list[int]
    num_cached: int = 0
    pages: array[int] = field(default_factory=lambda: array("i"))
    num_prompt: int = -1
    prompt_numerics: int = 0
    adapter: int = 0
    salt: Hashable = None
    serial: int = field(default_factory=lambda: next(SERIALS))

    def __post_init__(self) -> None:
        if self.num_prompt < 0:
            self.num_prompt = len(self.tokens)

    @property
    def num_waiting(self) -> int:
        """Tokens that were not computed yet: all of a new prompt, one while decoding."""
        return len(self.tokens) - self.num_cached

    @property
    def num_waiting_alike(self) -> int:
        """Of those that wait: how many are computed with the same numerics as the first."""
        is_prompt = self.num_cached < self.num_prompt
        return self.num_prompt - self.num_cached if is_prompt and self.prompt_numerics else self.num_waiting

    @property
    def numerics(self) -> int:
        """The tag of the next token to compute."""
        return self.prompt_numerics if self.num_cached < self.num_prompt else 0

    def twin(self, request: Request) -> Sequence:
        """Another sequence of the same tokens on the same pages."""
        return replace(self, requests=[request], tokens=[*self.tokens], pages=self.pages[:], serial=next(SERIALS))

    def page_salt(self, index: int) -> Hashable:
        """What a page's contents depend on beside its tokens: how many of them are computed with the prompt's numerics, adapter, salt."""
        num_prompt = min(PAGE_TOKENS, max(0, self.num_prompt - index * PAGE_TOKENS)) if self.prompt_numerics else 0
        return num_prompt, self.adapter, self.salt


class Chunk(NamedTuple):
    """A sequence's rows of a step: its next `num_tokens` tokens, and after them what was drafted. is_complete: these are all that wait, so
    that their last one gives logits, and each drafted one does."""

    sequence: Sequence
    num_tokens: int
    is_complete: bool
    draft: Draft | None = None

    @property
    def num_rows(self) -> int:
        return self.num_tokens if self.draft is None else self.num_tokens + len(self.draft.tokens)

    @property
    def num_logits(self) -> int:
        return 0 if not self.is_complete else 1 if self.draft is None else 1 + len(self.draft.tokens)

    def segment(self) -> Segment:
        sequence, draft, start = self.sequence, self.draft, self.sequence.num_cached
        tokens = sequence.tokens[start : start + self.num_tokens]
        parents = None
        if draft is not None:
            tokens += draft.tokens
            if not draft.is_chain:
                parents = [*range(-1, self.num_tokens - 1), *(parent + self.num_tokens for parent in draft.parents)]
        return Segment(
            tokens=tokens,
            start=start,
            pages=sequence.pages,
            num_logits=self.num_logits,
            parents=parents,
            numerics=sequence.numerics,
            adapter=sequence.adapter,
            sequence=sequence.serial,
        )

    def kept_rows(self, accepted: Accepted) -> list[int]:
        """The rows of this chunk that stay in the cache."""
        return [*range(self.num_tokens), *(self.num_tokens + row for row in accepted.rows)]


@dataclass(frozen=True)
class Plan:
    """The chunks of a step, which have pages for all their rows, and the pages to be copied before it: targets with their sources."""

    chunks: tuple[Chunk, ...]
    copies: Mapping[int, int]

    def step(self) -> Step:
        return make_step([chunk.segment() for chunk in self.chunks])


class Scheduler:
    """num_pages: of the cache. max_step_tokens: the most rows of one step; never fewer sequences than one run at a time.

    prefix_cache: whether pages that are full are published under their tokens, so that another sequence which begins as theirs did need
    not compute them. num_reused_tokens: those that were not, of all sequences so far.
    """

    def __init__(self, *, num_pages: int, max_step_tokens: int, prefix_cache: bool = True) -> None:
        self.pool = PagePool(num_pages)
        self.max_step_tokens = max_step_tokens
        self.prefix_cache = prefix_cache
        self.num_preemptions = self.num_reused_tokens = 0
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._copies: dict[int, int] = {}  # planned and not made yet: a step may fail before they are

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def remove(self, request: Request) -> None:
        """Forgets a request, running or waiting; lets go of its pages, unless other samples still wait for them to be computed."""
        queue, sequence = next((queue, s) for queue in (self._running, self._waiting) for s in queue if request in s.requests)
        sequence.requests.remove(request)
        if not sequence.requests:
            queue.remove(sequence)
            self._release(sequence)

    def plan(self, draft_of: DraftOf | None = None) -> Plan:
        """The next step; it has no chunks only where there is no work. draft_of: called with each sequence that decodes, and the most
        tokens that it may draft."""
        chunks: list[Chunk] = []
        room = self.max_step_tokens
        for sequence in sorted(self._running, key=lambda s: s.num_waiting > 1):  # those that decode first, else in order
            if room and sequence in self._running:  # it may have been preempted for one before it
                room -= self._schedule(self._chunk(sequence, room, draft_of), chunks)
        while room and self._waiting and self._can_start(self._waiting[0]):
            room -= self._schedule(self._chunk(self._start(), room), chunks)
        return Plan(tuple(chunks), dict(self._copies))

    def note_copied(self) -> None:
        """The copies of the newest plan were made."""
        self._copies.clear()

    def commit(self, plan: Plan, accepted: Mapping[int, Accepted]) -> None:
        """Moves the plan's sequences on: their rows are in the cache, in place, and these tokens were chosen, by number of request.

        Full pages are published. Samples whose prompt is complete become sequences of their own on the same pages. Requests whose answer
        ends are still there; the caller removes them.
        """
        for chunk in plan.chunks:
            sequence, first = chunk.sequence, chunk.sequence.num_cached
            sequence.num_cached += chunk.num_tokens
            self._publish(sequence, first)
            for own in self._split(sequence) if chunk.is_complete else []:
                outcome, first = accepted[own.requests[0].number], own.num_cached
                own.tokens += [choice.token for choice in outcome.choices if choice is not None]
                if outcome.rows:
                    own.num_cached += len(outcome.rows)
                    self._publish(own, first)

    def _split(self, sequence: Sequence) -> list[Sequence]:
        request, *others = sequence.requests
        if not others:
            return [sequence]
        twins = [sequence.twin(other) for other in others]
        for twin in twins:
            self.pool.retain(twin.pages)
        place = self._running.index(sequence) + 1
        self._running[place:place] = twins
        sequence.requests = [request]
        return [sequence, *twins]

    def _publish(self, sequence: Sequence, first: int) -> None:
        """The pages that were filled since `first` tokens were cached. Where another is published for the same, the sequence goes on with
        that one."""
        for index in range(first // PAGE_TOKENS, sequence.num_cached // PAGE_TOKENS if self.prefix_cache else 0):
            own, after = sequence.pages[index], sequence.pages[index - 1] if index else None
            tokens = sequence.tokens[index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS]
            published = self.pool.publish(own, tokens, after=after, salt=sequence.page_salt(index))
            if published != own:
                self.pool.retain([published])
                sequence.pages[index] = published
                self.pool.release([own])

    def _match(self, sequence: Sequence) -> list[int]:
        """Published pages that the sequence can begin with; at least one token is left to compute."""
        return self.pool.match_prefix(sequence.tokens[:-1], salt=sequence.page_salt) if self.prefix_cache else []

    def _can_start(self, sequence: Sequence) -> bool:
        """Whether its tokens and the next fit beside those of all that run, so that it does not push them out at once."""
        if not self._running:
            return True
        held = sum(not self.pool.is_free(page) for page in self._match(sequence))
        return sum(map(self._num_promised, (*self._running, sequence))) - held <= self.pool.num_free

    def _num_promised(self, sequence: Sequence) -> int:
        """Pages that a sequence lacks for its tokens and the next of each sample. Each that shares the page of its next token counts a
        copy, though the last of them will not need one."""
        return pages_for(len(sequence.tokens) + 1) - len(sequence.pages) + len(self._shared(sequence)) + len(sequence.requests) - 1

    def _start(self) -> Sequence:
        """The first that waits runs, on published pages as far as there are any."""
        sequence = self._waiting.popleft()
        sequence.pages = array("i", self._match(sequence))
        self.pool.retain(sequence.pages)
        sequence.num_cached = len(sequence.pages) * PAGE_TOKENS
        self.num_reused_tokens += sequence.num_cached
        self._running.append(sequence)
        return sequence

    def _schedule(self, chunk: Chunk, chunks: list[Chunk]) -> int:
        """Adds the chunk if pages can be had; returns its rows."""
        sequence = chunk.sequence
        lacks = pages_for(sequence.num_cached + chunk.num_rows) - len(sequence.pages)
        shared = self._shared(sequence)
        if chunk.draft is not None and lacks + len(shared) > self.pool.num_free:  # a guess is not worth another's pages
            chunk = chunk._replace(draft=None)
            lacks = pages_for(sequence.num_cached + chunk.num_rows) - len(sequence.pages)
        while max(0, lacks) + len(shared) > self.pool.num_free:
            victim = self._running[-1]
            self._preempt(victim, chunks)
            if victim is sequence:
                return 0
            shared = self._shared(sequence)
        for index in shared:
            self._copy(sequence, index)
        if lacks > 0:
            sequence.pages.extend(self.pool.allocate(lacks))
        chunks.append(chunk)
        return chunk.num_rows

    def _chunk(self, sequence: Sequence, room: int, draft_of: DraftOf | None = None) -> Chunk:
        """As many tokens as there is room for; a draft behind the last token of a sequence that decodes."""
        num_tokens = min(room, sequence.num_waiting_alike)
        is_complete = num_tokens == sequence.num_waiting
        draft = None
        if draft_of is not None and is_complete and num_tokens == 1 and len(sequence.requests) == 1:
            most = min(room, MAX_TREE_ROWS) - num_tokens
            guess = draft_of(sequence, most)
            draft = guess.cut(most) if guess is not None else None
        return Chunk(sequence, num_tokens, is_complete, draft)

    def _shared(self, sequence: Sequence) -> list[int]:
        """Which of its pages it will write into, and others hold too."""
        first = sequence.num_cached // PAGE_TOKENS
        return [index for index in range(first, len(sequence.pages)) if self.pool.is_shared(sequence.pages[index])]

    def _copy(self, sequence: Sequence, index: int) -> None:
        source, [target] = sequence.pages[index], self.pool.allocate(1)
        self._copies[target] = source  # copied before anything is written, so that nobody need hold it until then
        sequence.pages[index] = target
        self.pool.release([source])

    def _preempt(self, sequence: Sequence, chunks: list[Chunk]) -> None:
        self.num_preemptions += 1
        self._running.remove(sequence)
        self._release(sequence)
        self._waiting.appendleft(sequence)
        chunks[:] = [chunk for chunk in chunks if chunk.sequence is not sequence]

    def _release(self, sequence: Sequence) -> None:
        for page in sequence.pages:
            self._copies.pop(page, None)
        self.pool.release(reversed(sequence.pages))
        sequence.pages, sequence.num_cached = array("i"), 0
