"""An engine's limits, and whether a request could ever run within them: from its prompt and parameters alone, so in any thread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from minicpm4.engine.params import SamplingParams
from minicpm4.errors import CapacityError, RequestError
from minicpm4.model import PAGE_TOKENS


@dataclass(frozen=True)
class Limits:
    """vocab_size, eos_ids: the model's. context_length: the most tokens of one sequence, prompt and answer.

    num_pages, max_step_tokens: those that the executor was made for. prefix_cache: whether full pages of what was computed are kept
    for requests that begin alike, as long as nobody needs the pages. shares_pages: whether the executor can share and copy pages
    (`Capabilities.cache`); without, nothing is kept, and each sample computes its prompt.
    """

    vocab_size: int
    eos_ids: frozenset[int]
    context_length: int
    num_pages: int
    max_step_tokens: int
    prefix_cache: bool = True
    shares_pages: bool = True

    @property
    def sequence_tokens(self) -> int:
        """The most tokens that one sequence can have: a context, if the cache holds one."""
        return min(self.context_length, self.num_pages * PAGE_TOKENS)


def check_request(prompt: Sequence[int], params: SamplingParams, limits: Limits) -> None:
    """RequestError, CapacityError for what `Engine.add` refuses."""
    if not prompt:
        raise RequestError("the prompt is empty", hint="give at least one token; with a BOS token, empty text is one")
    check_vocabulary((*prompt, *params.logit_bias, *params.stop_token_ids), limits.vocab_size)
    if len(prompt) >= limits.sequence_tokens:
        raise CapacityError(
            f"the prompt has {len(prompt)} tokens, the context holds {limits.sequence_tokens} with the answer",
            hint="shorten the prompt, or raise the context (-c, context_length) or the cache (cache_tokens)",
        )


def check_vocabulary(tokens: Iterable[int], size: int) -> None:
    for token in tokens:
        if not 0 <= token < size:
            raise RequestError(f"token {token} is not in the vocabulary of {size}", hint="use this model's tokenizer")
