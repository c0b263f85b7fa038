"""Runs requests on an executor, all of them together: token ids in, token ids out. Knows no text and no model's layers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Sized

import numpy as np

from minicpm4.engine.draft import Accepted, Draft, Drafter, choose
from minicpm4.engine.limits import Limits, check_request, check_vocabulary
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.request import Event, FinishReason, Request
from minicpm4.engine.sampler import Sampler
from minicpm4.engine.scheduler import Chunk, Plan, Scheduler, Sequence
from minicpm4.engine.score import Scores, score_tokens
from minicpm4.errors import CapacityError, RequestError
from minicpm4.executors import Executor, StepResult
from minicpm4.model import pages_for


class Engine:
    """Not for use from several threads at once: that is `engine.session`'s matter."""

    def __init__(self, executor: Executor, limits: Limits, *, drafter: Drafter | None = None) -> None:
        """drafter: guesses tokens, which are computed beside the last one of each request that decodes; answers stay the same."""
        self.limits = limits
        self.scheduler = Scheduler(
            num_pages=limits.num_pages,
            max_step_tokens=limits.max_step_tokens,
            prefix_cache=limits.prefix_cache and limits.shares_pages,
        )
        self._executor, self._drafter = executor, drafter
        self._running: dict[int, Request] = {}
        self._next_request = 0
        self._committed: deque[tuple[int, Accepted]] = deque()  # and not reported yet
        self._events: list[Event] = []

    def add(self, prompt: Sized[int], params: SamplingParams) -> list[int]:
        """Queues a request for each sample that params asks for, and returns their numbers; the prompt is computed once for all.

        RequestError, CapacityError where it could never run.
        """
        check_request(prompt, params, self.limits)
        ends = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self.limits.eos_ids)
        room = self.limits.sequence_tokens - len(prompt)
        last_length = len(prompt) + min(room, params.max_tokens or room)
        first, self._next_request = self._next_request, self._next_request + params.n
        requests = [
            Request(number, Sampler(sample, prompt), len(prompt), last_length, ends)
            for number, sample in enumerate(params.samples, start=first)
        ]
        self._running |= {request.number: request for request in requests}
        for together in [requests] if self.limits.shares_pages else [[request] for request in requests]:
            self.scheduler.add(Sequence(together, [*prompt], prompt_numerics=self._executor.prompt_numerics))
        return [request.number for request in requests]

    def score(self, tokens: Sized[int], *, first: int = 1) -> Scores:
        """Scores tokens[first:] at once, on pages that are free; requests keep theirs. RequestError, CapacityError where it cannot be."""
        check_vocabulary(tokens, self.limits.vocab_size)
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
        pages = pool.allocate(needed)
        try:
            return score_tokens(self._executor, tokens, pages=pages, first=first, step_tokens=self.limits.max_step_tokens)
        finally:
            pool.release(reversed(pages))

    def cancel(self, number: int) -> None:
        """Ends a request; pages that it alone held are free at once. A request that has ended already, or never was, is no error."""
        request = self._running.pop(number, None)
        if request is not None:
            self.scheduler.remove(request)

    def step(self) -> list[Event]:
        """Computes one step; an event for each request that got tokens or ended. Empty where only chunks of prompts ran.

        One transaction: a step that fails, or is interrupted while it computes or chooses, has changed nothing, and the next one computes
        the same tokens into the same slots.
        """
        if self._committed:  # of a step that was interrupted after its commit
            return self._report()
        plan = self.scheduler.plan(self._draft if self._drafter else None)
        if not plan.chunks:
            return []
        self._note_start(plan.chunks)
        self._copy_pages(plan)
        accepted = self._sample(plan, self._executor.run(plan.step()))
        self._keep_branches(plan, accepted)
        self.scheduler.commit(plan, accepted)
        self._committed += accepted.items()
        return self._report()

    def _draft(self, sequence: Sequence, room: int) -> Draft | None:
        [request] = sequence.requests
        assert self._drafter is not None
        left = min(room, request.last_length - len(sequence.tokens) - 1)  # the last token of an answer is never computed
        return self._drafter.draft(request.number, sequence.tokens, left) if left > 0 else None

    def _note_start(self, chunks: Iterable[Chunk]) -> None:
        now = time.perf_counter()
        for chunk in chunks:
            for request in chunk.sequence.requests:
                if request.times.started is None:
                    request.times.started, request.reused_tokens = now, chunk.sequence.num_cached

    def _copy_pages(self, plan: Plan) -> None:
        if plan.copies:
            sources, targets = np.array([*plan.copies.values()], np.int32), np.array([*plan.copies], np.int32)
            self._executor.copy_pages(sources, targets)
            self.scheduler.note_copied()

    def _sample(self, plan: Plan, result: StepResult) -> dict[int, Accepted]:
        """What is chosen for each request whose tokens are computed; samples of one prompt choose from the same logits."""
        accepted, row = {}, 0
        for chunk in plan.chunks:
            if chunk.is_complete:
                for request in chunk.sequence.requests:
                    accepted[request.number] = choose(request.sampler, chunk.draft, result, first_row=row, ends=request.ending_tokens)
            row += chunk.num_logits
        return accepted

    def _keep_branches(self, plan: Plan, accepted: Mapping[int, Accepted]) -> None:
        """Moves what was accepted of draft trees to where it would be without the rest."""
        for chunk in plan.chunks:
            if chunk.draft is not None and not chunk.draft.is_chain:
                rows = np.array(chunk.kept_rows(accepted[chunk.sequence.requests[0].number]), np.int32)
                pages = np.asarray(chunk.sequence.pages, np.int32)
                self._executor.copy_slots(pages, start=chunk.sequence.num_cached, rows=rows)

    def _report(self) -> list[Event]:
        """The events of what was committed."""
        while self._committed:
            number, outcome = self._committed[0]
            request = self._running.get(number)
            if request is not None:
                self._events.append(self._advance(request, outcome))
            self._committed.popleft()
        events, self._events = self._events, []
        return events

    def _advance(self, request: Request, outcome: Accepted) -> Event:
        """Notes in the request what its sequence has got already; ends it where its answer does."""
        times = request.times
        times.newest_token = time.perf_counter()
        times.first_token = times.newest_token if times.first_token is None else times.first_token
        request.sampler = outcome.sampler
        *chosen, last = outcome.choices
        finish: FinishReason | None = None
        if last is None:
            finish = "error"
        elif last.token in request.ending_tokens:
            finish = "stop"
        else:
            chosen.append(last)
            finish = "length" if request.length + len(chosen) >= request.last_length else None
        request.length += len(chosen)
        if finish is not None or last is None:
            self.cancel(request.number)
        else:
            request.sampler.accept(last.token)
        tokens = tuple([choice.token for choice in chosen if choice])
        logprobs = tuple([choice.logprobs for choice in chosen if choice and choice.logprobs])
        return Event(request.number, tokens, logprobs, finish, times, request.reused_tokens)
