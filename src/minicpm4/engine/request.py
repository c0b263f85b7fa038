"""A request on its way through the engine: what was asked, how its tokens are chosen, how far it is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from minicpm4.engine.sampler import Sampler, TokenLogprobs

FinishReason = Literal["stop", "length", "error"]


@dataclass
class Times:
    """When a request was added, first scheduled, got its first and its newest token; seconds of a monotonic clock."""

    added: float = field(default_factory=time.perf_counter)
    started: float | None = None
    first_token: float | None = None
    newest_token: float | None = None


@dataclass(eq=False)
class Request:
    """number: what the caller knows it by. sampler: chooses its next token. length: tokens of prompt and answer so far;
    last_length: when the answer is as long as it may get. ending_tokens: those that end it and are no part of it. reused_tokens: of its
    prompt, those found in the cache."""

    number: int
    sampler: Sampler
    length: int
    last_length: int
    ending_tokens: frozenset[int]
    times: Times = field(default_factory=Times)
    reused_tokens: int = 0


class Event(NamedTuple):
    """What a step brought for one request.

    tokens: the new tokens of its answer; empty where it ended without one, by a token that is no part of it or an error. logprobs: one for
    each of them where the request asked for them, else empty.
    finish_reason: "stop" (the model's own end, or a stop token), "length" (max_tokens or the context), "error" (the
    logits were not numbers), or None while it goes on. times: the request's, so far. reused_tokens: of its prompt, those that were
    found in the cache.
    """

    request: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...]
    finish_reason: FinishReason | None
    times: Times
    reused_tokens: int
