"""Requests go in from any thread, events come out: one engine that many threads share. Knows no text.

Whoever needs results computes, one thread at a time, for everybody: threads that call `run_until`, or one that serves (`run_forever`).
What others want meanwhile lies in two inboxes, of requests and of aborts; who computes looks into them between steps.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Sized
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from operator import call

from minicpm4.engine.engine import Engine
from minicpm4.engine.limits import check_request
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.request import Event
from minicpm4.engine.score import Scores
from minicpm4.engine.turns import Claim, Turns
from minicpm4.errors import RequestError

Sink = Callable[["RequestHandle", Event], object]
ErrorSink = Callable[["RequestHandle", Exception], object]


@dataclass(eq=False)
class Submission:
    """A prompt on its way into the engine, and where its events go. requests: one for each sample."""

    prompt: list[int]
    params: SamplingParams
    sink: Sink
    on_error: ErrorSink | None
    requests: list[RequestHandle] = field(default_factory=list)


class RequestHandle:
    """One answer under way. sample: which of its prompt's samples it is. is_over: it ended, or is about to; no event follows.

    error: why it ended where no event says so, and nobody aborted it: the session was closed or failed, or the sink did.
    """

    def __init__(self, submission: Submission, sample: int) -> None:
        self.sample, self.is_over = sample, False
        self.error: Exception | None = None
        self._submission: Submission | None = submission  # None from the end on, so that nobody holds the sink
        self._number: int | None = None  # the engine's, once it knows the request


class Session:
    """Shares an engine among threads. on_close: frees what the engine runs on; called once, by `close`.

    A step's exception reaches the thread that computed it; the requests go on with the next step.
    """

    def __init__(self, engine: Engine, *, on_close: Callable[[], object] | None = None) -> None:
        self.limits = engine.limits
        self._engine: Engine | None = engine
        self._on_close = on_close
        self._process = os.getpid()
        self._is_closing = self._is_closed = self._is_stopping = False
        self._turns = Turns()
        self._submitted: dict[Submission, None] = {}
        self._aborted: deque[RequestHandle] = deque()
        self._requests: dict[int, RequestHandle] = {}  # by the engine's numbers
        self._events: deque[Event] = deque()  # of the newest step, until their sinks have them
        self._begun: Event | None = None  # the newest that a sink was given
        self._sleepers: dict[Claim, None] = {}  # that serve and have nothing to do

    @property
    def num_requests(self) -> int:
        """Requests that were submitted and have not ended."""
        return sum(not request.is_over for request in self._all_requests())

    def submit(self, prompt: Sized[int], params: SamplingParams, sink: Sink, *, on_error: ErrorSink | None = None) -> list[RequestHandle]:
        """Queues a request for each sample that params asks for; does not wait for a step.

        sink: called with a request and each of its events, by the thread that computes, so it must be quick. It may abort the request, or
        submit others; it cannot compute. Where it raises, the request ends with that error. on_error: called once where a request ends with
        an `error`, by whichever thread ends it; what it raises is dropped. RequestError, CapacityError for what could never run.
        """
        self._check_process()
        check_request(prompt, params, self.limits)
        submission = Submission([*prompt], params, sink, on_error)
        submission.requests = [RequestHandle(submission, sample) for sample in range(params.n)]
        if not self._is_closing:
            self._submitted[submission] = None
        if self._is_closing:  # looked at once more: who closes may have come between
            self._submitted.pop(submission, None)
            raise closed_error()
        self._wake_sleepers()
        return list(submission.requests)

    def abort(self, request: RequestHandle) -> None:
        """Ends a request: no event follows, but of a step that is being handed out, and its pages are free at once, or after the step that
        is being computed. Never waits; for any thread, finalizers and signal handlers. A request that has ended already is no error."""
        if request.is_over or os.getpid() != self._process:
            return
        self._aborted.append(request)
        request.is_over = True
        self._in_turns(Claim(lambda: True), lambda: None)

    def run_until(self, is_done: Callable[[], bool]) -> None:
        """Computes until is_done(), or sleeps while another thread computes. is_done is asked after each step, by the thread that computed
        it: it is quick, and true at the latest when the requests that the caller waits for are over. A step's error is the caller's."""
        if not is_done():
            self._check_usable()
            self._in_turns(Claim(is_done), self._drive)

    def run_forever(self) -> None:
        """Computes whatever is submitted until `stop` or `close`; sleeps while there is nothing to do.

        A step's exception ends it, and all requests, with an error that names the exception; the session can be used after.
        """
        self._check_usable()
        claim = Claim(lambda: self._is_stopping or self._is_closing)
        try:
            self._in_turns(claim, lambda: self._serve(claim))
        finally:
            self._is_stopping = False

    def stop(self) -> None:
        """Ends `run_forever` after the step that it computes, or the next call of it at once. Never waits."""
        self._is_stopping = True
        self._wake_sleepers()

    def score(self, tokens: Sized[int], *, first: int = 1) -> Scores:
        """`Engine.score`, between two steps."""
        self._check_usable()
        results = list[Scores]()
        claim = Claim(lambda: bool(results), needs_turn=True)
        self._in_turns(claim, lambda: results.append(self._open_engine().score(tokens, first=first)))
        return results[0]

    def close(self) -> None:
        """Ends all requests with a RequestError and lets go of the engine, after the step that another thread may be computing; after its
        own step where that called it, from a sink or a signal handler."""
        if os.getpid() != self._process:  # a forked process has none of the threads that closing would wait for
            self._engine = None
            return
        self._is_closing = True
        self._wake_sleepers()
        if not self._turns.is_held_here:
            self._in_turns(Claim(lambda: self._is_closed, needs_turn=True), self._tidy)

    def _in_turns(self, claim: Claim, work: Callable[[], object]) -> None:
        """Does the work whenever it is the claim's turn, until the claim is done. The turn is given back whatever happens."""
        try:
            is_done = claim.is_done  # not the loop first: CPython 3.11 takes an interrupt at its jump back for one before the `try`
            while not is_done():
                if not self._turns.take(claim):
                    self._turns.wait(claim)
                    continue
                work()
                if self._turns.is_needed:
                    self._leave(claim)
        finally:
            try:
                self._leave(claim)
            except BaseException:  # an interrupt in the middle of it: once more, so that others can go on
                self._leave(claim)
                raise

    def _leave(self, claim: Claim) -> None:
        """Gives the turn back, and sees to what others left in the inbox because it was taken."""
        while True:
            if self._turns.holds(claim):
                try:
                    self._tidy()
                finally:
                    self._turns.leave(claim)
            else:
                self._turns.leave(claim)
            if not (self._is_untidy and self._turns.snatch(claim)):
                return

    @property
    def _is_untidy(self) -> bool:
        return bool(self._aborted) or self._is_closing != self._is_closed

    def _tidy(self) -> None:
        """Ends what was aborted, and everything where the session closes."""
        if self._is_untidy:
            while self._aborted:
                self._end(self._aborted[0])
                self._aborted.popleft()  # after it: an interrupt between the two does no harm
            if self._is_closing and not self._is_closed:
                self._shut()
            self._turns.wake_done()

    def _shut(self) -> None:
        self._engine = None
        for request in self._all_requests():
            self._end(request, closed_error())
        free, self._on_close = self._on_close, None
        try:
            if free is not None:
                free()
        finally:
            self._is_closed = True

    def _drive(self) -> None:
        self._step()
        self._open_engine()

    def _serve(self, claim: Claim) -> None:
        """A step; where there is nothing to compute, sleeps without the turn until there is."""
        try:
            self._step()
        except BaseException as error:
            for request in self._all_requests():  # nobody goes on
                self._end(request, failed_error(error))
            self._turns.wake_done()
            raise
        if not self._has_work:
            self._leave(claim)
            try:
                self._sleepers[claim] = None
                while not (self._has_work or claim.is_done()):
                    claim.sleep()
            finally:
                self._sleepers.pop(claim, None)

    @property
    def _has_work(self) -> bool:
        return bool(self._submitted or self._requests)

    def _wake_sleepers(self) -> None:
        for claim in list(self._sleepers):
            claim.wake()

    def _step(self) -> None:
        """Computes one step and hands its events out; only the latter where an interrupt left some. Nothing once the session is closed."""
        self._check_process()
        self._tidy()
        engine = self._engine
        if engine is None:
            return
        if not self._events:
            for submission in list(self._submitted):
                self._admit(submission, engine)
            if self._requests:  # in one go, so that no interrupt comes between a step and its events
                self._events.extend(chain.from_iterable(map(call, [engine.step])))
        while self._events:
            self._hand_out(self._events[0], engine)
            self._events.popleft()
        self._turns.wake_done()

    def _admit(self, submission: Submission, engine: Engine) -> None:
        """Gives a submission to the engine; an interrupt leaves it where it is, for the next step."""
        requests = submission.requests
        try:
            numbers = engine.add(submission.prompt, submission.params)
        except Exception as error:
            for request in requests:
                self._end(request, error)
        else:
            for request, number in zip(requests, numbers, strict=True):
                request._number = number
            self._requests.update(zip(numbers, requests, strict=True))
            for request in requests:
                if request.is_over:
                    self._end(request)
        self._submitted.pop(submission, None)

    def _hand_out(self, event: Event, engine: Engine) -> None:
        request = self._requests.get(event.request)
        if request is None or request._number != event.request:  # it has ended, or an interrupt made us submit it twice
            self._requests.pop(event.request, None)
            engine.cancel(event.request)
        elif event is self._begun:
            self._end(request, RequestError("the answer was interrupted while a token was added to it", hint="ask again"))
        elif not request.is_over and request._submission is not None:
            self._begun = event
            try:
                request._submission.sink(request, event)
            except Exception as error:
                self._end(request, error)
            if event.finish_reason is not None:
                self._end(request)

    def _end(self, request: RequestHandle, error: Exception | None = None) -> None:
        """Forgets a request, here and in the engine; error: why, where it was not over before. What an interrupt left out is made up for
        by the next call."""
        is_told = error is not None and not request.is_over
        if is_told:
            request.error = error
        request.is_over = True
        if request._number is not None:
            if self._engine is not None:
                self._engine.cancel(request._number)
            self._requests.pop(request._number, None)
        submission, request._submission = request._submission, None
        if submission is not None and all(other.is_over for other in submission.requests):
            self._submitted.pop(submission, None)
        if submission is not None and submission.on_error is not None and is_told and error is not None:
            with suppress(Exception):
                submission.on_error(request, error)

    def _all_requests(self) -> list[RequestHandle]:
        submitted = (request for submission in list(self._submitted) for request in submission.requests)
        return list({*submitted, *list(self._requests.values())})

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise closed_error()
        return self._engine

    def _check_usable(self) -> None:
        """RequestError where the calling thread cannot wait for a turn, or would never have one."""
        self._check_process()
        if self._is_closing:
            raise closed_error()
        if self._turns.is_held_here:
            raise RequestError("this thread computes a step and would wait for itself", hint="ask from another thread, or after it")

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RequestError(
                "this LLM was made in another process, whose threads are not in this one",
                hint="make it in the process that uses it; with multiprocessing, also choose the start method 'spawn'",
            )


def closed_error() -> RequestError:
    return RequestError("this LLM was closed", hint="make a new one")


def failed_error(error: BaseException) -> RequestError:
    failed = RequestError(f"the step that computed this answer failed: {type(error).__name__}: {error}", hint="ask again")
    failed.__cause__ = error
    return failed
