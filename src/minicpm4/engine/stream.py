"""A prompt's answers while a session computes them: events in, text out, all at once or piece by piece. Knows no model."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType

from minicpm4.engine.answer import Answer, Completion, check_numbers
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.request import Event
from minicpm4.engine.session import RequestHandle, Session


class Call:
    """A prompt that is asked of a session. answers: one for each sample that params asks for."""

    def __init__(self, session: Session, prompt: Sequence[int], params: SamplingParams, *, answers: Sequence[Answer]) -> None:
        self.session, self.answers = session, answers
        self._prompt, self._params = prompt, params
        self._requests: list[RequestHandle] = []
        self._is_dropped = False

    def start(self) -> None:
        """Submits it. RequestError, CapacityError where it could never run."""
        self._requests = self.session.submit(self._prompt, self._params, self._take)

    def drop(self) -> None:
        """Ends what still runs of it. Never waits; for any thread, finalizers and signal handlers."""
        self._is_dropped = True
        for request in self._requests:
            self.session.abort(request)

    @property
    def is_over(self) -> bool:
        return all(request.is_over for request in self._requests)

    def check(self) -> None:
        """Raises what ended one of the answers from outside."""
        for request in self._requests:
            if request.error is not None:
                raise request.error

    def completion(self) -> Completion:
        """The answer with its other samples."""
        self.check()
        first, *others = (answer.completion() for answer in self.answers)
        return replace(first, other_choices=tuple(others))

    def _take(self, request: RequestHandle, event: Event) -> None:
        answer = self.answers[request.sample]
        answer.push(event)
        ends_early = answer.finish_reason is not None and event.finish_reason is None  # by a stop text
        if ends_early or self._is_dropped:  # the latter where an interrupt came before `start` had the requests
            self.session.abort(request)


class Stream(Iterator[str]):
    """Pieces of one answer as they become certain; never half a character, never part of a stop text.

    Close it, leave its `with`, or let go of it, to end the answer early. `completion` is the answer so far. CheckpointError
    where the model computes what is not a number; RequestError for the rest of an answer whose LLM was closed.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        [self._answer] = call.answers
        weakref.finalize(self, call.drop).atexit = False

    def __next__(self) -> str:
        answer, call = self._answer, self._call
        call.session.run_until(lambda: answer.has_text or call.is_over)
        if text := answer.take_text():
            return text
        call.check()
        check_numbers(self.completion)
        raise StopIteration

    def stop(self) -> None:
        """Ends the answer after the step that runs now; may be called from a signal handler."""
        self._call.drop()

    @property
    def completion(self) -> Completion:
        return self._answer.completion()

    def close(self) -> None:
        self._call.drop()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
