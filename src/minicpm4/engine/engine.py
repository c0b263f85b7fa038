"""Runs requests on an executor, all of them together: token ids in, token ids out. Knows no text and no model's layers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Sized
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from minicpm4.engine.params import SamplingParams
from minicpm4.engine.sampler import ChosenToken, Sampler, TokenLogprobs
from minicpm4.engine.scheduler import Part, Plan, Scheduler, Sequence, build_step
from minicpm4.engine.score import Scores, score_tokens
from minicpm4.errors import CapacityError, RequestError
from minicpm4.executors import Executor
from minicpm4.model import PAGE_TOKENS, pages_for

FinishReason = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class Limits:
    """vocab_size, eos_ids: the model's. context_length: the most tokens of one sequence, prompt and answer.

    num_pages, max_step_tokens: those that the executor was made for. prefix_cache: whether full pages of what was computed are kept
    for requests that begin alike, as long as nobody needs the pages. tells_prompts: whether the executor computes prompts otherwise than
    generated tokens.
    """

    vocab_size: int
    eos_ids: frozenset[int]
    context_length: int
    num_pages: int
    max_step_tokens: int
    prefix_cache: bool = True
    tells_prompts: bool = False

    @property
    def sequence_tokens(self) -> int:
        """The most tokens that one sequence can have: a context, if the cache holds one."""
        return min(self.context_length, self.num_pages * PAGE_TOKENS)


@dataclass
class Times:
    """When a request was added, first scheduled, got its first and its newest token; seconds of a monotonic clock."""

    added: float = field(default_factory=time.perf_counter)
    started: float | None = None
    first_token: float | None = None
    newest_token: float | None = None


@dataclass(frozen=True)
class Event:
    """What a step brought for one request.

    token: the new token of its answer; None where it ended without one, by a token that is not part of the answer or an error.
    finish_reason: "stop" (the model's own end, or a stop token), "length" (max_tokens or the context), "error" (the
    logits were not numbers), or None while it goes on. times: the request's, so far. reused_tokens: of its prompt, those that were
    found in the cache.
    """

    request: int
    token: int | None
    logprobs: TokenLogprobs | None
    finish_reason: FinishReason | None
    times: Times
    reused_tokens: int


@dataclass
class Running:
    """A request on its way."""

    sampler: Sampler
    last_length: int  # tokens of prompt and answer when the answer is as long as it may get
    ending_tokens: frozenset[int]
    times: Times
    reused_tokens: int = 0


class Engine:
    """Not for use from several threads at once."""

    def __init__(self, executor: Executor, limits: Limits) -> None:
        self.limits = limits
        self.scheduler = Scheduler(
            num_pages=limits.num_pages,
            max_step_tokens=limits.max_step_tokens,
            prefix_cache=limits.prefix_cache,
            tells_prompts=limits.tells_prompts,
        )
        self._executor = executor
        self._running: dict[int, Running] = {}
        self._next_request = 0

    def add(self, prompt: Sized[int], params: SamplingParams) -> list[int]:
        """Queues a request for each sample that params asks for, and returns their numbers; the prompt is computed once for all.

        RequestError, CapacityError where it could never run.
        """
        self._check(prompt, params)
        own = frozenset() if params.ignore_eos else self.limits.eos_ids
        room = self.limits.sequence_tokens - len(prompt)
        numbers = list(range(self._next_request, self._next_request + params.n))
        self._next_request += params.n
        for number, sample in zip(numbers, params.samples, strict=True):
            self._running[number] = Running(
                sampler=Sampler(sample, prompt),
                last_length=len(prompt) + min(room, params.max_tokens or room),
                ending_tokens=own | frozenset(params.stop_token_ids),
                times=Times(),
            )
        self.scheduler.add(Sequence([*numbers], [*prompt]))
        return numbers

    def score(self, tokens: Sized[int], *, first: int = 1) -> Scores:
        """Scores tokens[first:] at once, on pages that are free; requests keep theirs. RequestError, CapacityError where it cannot be."""
        self._check_vocabulary(tokens)
        pool, needed = self.scheduler.pool, pages_for(len(tokens) - 1)
        if not 1 <= first < len(tokens):
            raise RequestError(
                f"tokens from {first} on of {len(tokens)} cannot be scored",
                hint="give at least two; the first is given, not guessed",
            )
        if len(tokens) > self.limits.sequence_tokens:
            raise CapacityError(
                f"there are {len(tokens)} tokens to score, the context holds {self.limits.sequence_tokens}",
                hint="score fewer together, or raise the context (-c, context_length)",
            )
        if needed > pool.num_free:
            raise CapacityError(
                f"scoring takes {needed} pages of the cache, {pool.num_free} are free",
                hint="let the answers that run end first, or raise the cache (cache_tokens)",
            )
        pages = pool.take(needed)
        try:
            return score_tokens(self._executor, tokens, pages=pages, first=first, step_tokens=self.limits.max_step_tokens)
        finally:
            pool.give_back(reversed(pages))

    def _check_vocabulary(self, tokens: Iterable[int]) -> None:
        size = self.limits.vocab_size
        for token in tokens:
            if not 0 <= token < size:
                raise RequestError(f"token {token} is not in the vocabulary of {size}", hint="use this model's tokenizer")

    def _check(self, prompt: Sized[int], params: SamplingParams) -> None:
        limits = self.limits
        if not prompt:
            raise RequestError("the prompt is empty", hint="give at least one token; with a BOS token, empty text is one")
        self._check_vocabulary((*prompt, *params.logit_bias, *params.stop_token_ids))
        if len(prompt) >= limits.sequence_tokens:
            raise CapacityError(
                f"the prompt has {len(prompt)} tokens, the context holds {limits.sequence_tokens} with the answer",
                hint="shorten the prompt, or raise the context (-c, context_length) or the cache (cache_tokens)",
            )

    def cancel(self, request: int) -> None:
        """Ends a request; pages that it alone held are free at once. A request that has ended already, or never was, is no error."""
        if self._running.pop(request, None) is not None:
            self.scheduler.remove(request)

    def step(self) -> list[Event]:
        """Computes one step; an event for each request that got a token or ended. Empty where only parts of prompts ran.

        A step that fails, or is interrupted while it computes or chooses, has changed nothing: the next one computes the same
        tokens into the same slots. Later than that, tokens whose events were lost are computed again as part of their sequence.
        """
        plan = self.scheduler.plan()
        if not plan.parts:
            return []
        self._note_start(plan.parts)
        self._copy_pages(plan)
        choices = self._choose(plan.parts, self._executor.run(build_step(plan.parts)))
        self.scheduler.note_written(plan.parts)
        parts = self.scheduler.split(plan.parts)
        events = [self._advance(part.sequence, choices) for part in parts if part.is_complete]
        for part in parts:  # after the tokens: a running sequence always has something left to compute
            part.sequence.num_cached += part.num_tokens
        return events

    def _note_start(self, parts: Iterable[Part]) -> None:
        now = time.perf_counter()
        for part in parts:
            for request in part.sequence.requests:
                running = self._running[request]
                if running.times.started is None:
                    running.times.started, running.reused_tokens = now, part.sequence.num_cached

    def _copy_pages(self, plan: Plan) -> None:
        if plan.copies:
            sources, targets = np.array([*plan.copies.values()], np.int32), np.array([*plan.copies], np.int32)
            self._executor.copy_pages(sources, targets)
            self.scheduler.note_copied()

    def _choose(self, parts: Iterable[Part], logits: np.ndarray) -> dict[int, ChosenToken | None]:
        """The next token of each request whose tokens are computed; samples of one prompt choose from the same logits."""
        complete, peaks = [part.sequence.requests for part in parts if part.is_complete], self._executor.peaks
        return {
            request: self._running[request].sampler.choose(row, None if peaks is None else peaks[index])
            for index, (requests, row) in enumerate(zip(complete, logits, strict=True))
            for request in requests
        }

    def _advance(self, sequence: Sequence, choices: Mapping[int, ChosenToken | None]) -> Event:
        [request] = sequence.requests
        running, choice = self._running[request], choices[request]
        times, reused = running.times, running.reused_tokens
        times.newest_token = time.perf_counter()
        times.first_token = times.newest_token if times.first_token is None else times.first_token
        if choice is None or choice.token in running.ending_tokens:
            self.cancel(request)
            return Event(request, None, None, "error" if choice is None else "stop", times, reused)
        running.sampler.accept(choice.token)
        sequence.tokens.append(choice.token)
        is_last = len(sequence.tokens) >= running.last_length
        if is_last:
            self.cancel(request)
        return Event(request, choice.token, choice.logprobs, "length" if is_last else None, times, reused)
