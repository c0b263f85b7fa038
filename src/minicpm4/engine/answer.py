"""An answer in the making: tokens in, text out, cut before stop texts. Knows the tokenizer; does not know how tokens come about."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Literal

import numpy as np

from minicpm4.engine.params import SamplingParams
from minicpm4.engine.request import Event, FinishReason, Times
from minicpm4.engine.sampler import TokenLogprobs
from minicpm4.errors import CheckpointError
from minicpm4.model.config import SparseConfig
from minicpm4.model.sparse import count_attended
from minicpm4.text import StopMatcher, TextStream, Tokenizer


@dataclass(frozen=True)
class Completion:
    """A finished answer.

    token_ids: all tokens that were chosen for it, without the one that ended it; text: theirs, up to a stop text.
    logprobs: one for each token, None unless asked for. finish_reason: "stop", "length", "cancelled" for a stream that was
    closed, or "error" for one of several answers in which the model computed what is not a number.
    reused_tokens: of the prompt, those that were found in the cache instead of being computed.
    time_to_first_token: seconds from asking; prefill_seconds: from the start of its own computing to the first token;
    decode_seconds: from the first to the last. blocks_selected, blocks_total, attended_share: of the rows that chose the tokens: means of
    the blocks of 64 tokens that they attended to and of those that there were, and the share of tokens.
    other_choices: the other answers, where n of the parameters asked for several; `choices` is all of them.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    finish_reason: FinishReason | Literal["cancelled"]
    prompt_tokens: int
    reused_tokens: int
    time_to_first_token: float
    prefill_seconds: float
    decode_seconds: float
    blocks_selected: float
    blocks_total: float
    attended_share: float
    other_choices: tuple[Completion, ...] = ()

    @property
    def choices(self) -> tuple[Completion, ...]:
        """This answer and the others, in the order of their seeds."""
        return (replace(self, other_choices=()), *self.other_choices)


class Answer:
    """Collects a request's events; `take_text` gives what became certain since the last call."""

    def __init__(
        self, tokenizer: Tokenizer, params: SamplingParams, *, prompt_tokens: int, is_continuation: bool, sparse: SparseConfig | None
    ) -> None:
        """is_continuation: the answer goes on in the middle of a text, so a space that begins it counts. sparse: the attention's rule."""
        self.finish_reason: FinishReason | None = None
        self._stream, self._stops = (
            TextStream(tokenizer, skips_special=params.skip_special_tokens, is_continuation=is_continuation),
            StopMatcher(params.stop),
        )
        self._prompt_tokens, self._wants_logprobs = prompt_tokens, params.logprobs is not None
        self._sparse = sparse
        self._token_ids: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._pieces: list[str] = []
        self._num_taken = 0
        self._times, self._reused_tokens = Times(), 0

    def push(self, event: Event) -> None:
        self._times, self._reused_tokens, self.finish_reason = event.times, event.reused_tokens, event.finish_reason
        for token, logprobs in zip_longest(event.tokens, event.logprobs):
            self._token_ids.append(token)
            if logprobs is not None:
                self._logprobs.append(logprobs)
            self._add(self._stops.push(self._stream.push(token)))
            if self._stops.is_stopped:
                break
        if self.finish_reason is not None:
            self._add(self._stops.push(self._stream.finish()))
            self._add(self._stops.finish())
        if self._stops.is_stopped:
            self.finish_reason = "stop"

    def _add(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)

    @property
    def has_text(self) -> bool:
        """Whether `take_text` would give some."""
        return len(self._pieces) > self._num_taken

    def take_text(self) -> str:
        pieces = self._pieces[self._num_taken :]  # another thread may add to them meanwhile
        self._num_taken += len(pieces)
        return "".join(pieces)

    def completion(self) -> Completion:
        """The answer so far, which is the whole one once there is a finish_reason."""
        t = self._times
        attended = count_attended(self._sparse, self._prompt_tokens - 1 + np.arange(max(1, len(self._token_ids))))
        blocks_selected, blocks_total = attended.mean_blocks
        first, newest = t.first_token or t.added, t.newest_token or t.added
        return Completion(
            text="".join(self._pieces),
            token_ids=tuple(self._token_ids),
            logprobs=tuple(self._logprobs) if self._wants_logprobs else None,
            finish_reason=self.finish_reason or "cancelled",
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused_tokens,
            time_to_first_token=first - t.added,
            prefill_seconds=first - (t.started or t.added),
            decode_seconds=newest - first,
            blocks_selected=blocks_selected,
            blocks_total=blocks_total,
            attended_share=attended.share,
        )


def check_numbers(completion: Completion) -> None:
    """CheckpointError where the model's arithmetic broke, in any of the samples."""
    if any(choice.finish_reason == "error" for choice in completion.choices):
        raise CheckpointError("the model computed logits that are not numbers", hint="check its files with: minicpm4 doctor -m MODEL")
