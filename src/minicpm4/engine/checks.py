"""Whether a request could ever run: from its prompt, its parameters and the engine's limits alone, so in any thread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from minicpm4.engine.params import SamplingParams
from minicpm4.errors import CapacityError, RequestError

if TYPE_CHECKING:
    from minicpm4.engine.engine import Limits


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
