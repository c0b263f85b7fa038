"""How tokens are chosen and when an answer ends: one frozen value a request, checked when it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from minicpm4.errors import RequestError
from minicpm4.fields import check_number, check_options, option

MAX_STOPS = 64
MAX_STOP_CHARACTERS = 4096
MAX_LOGPROBS = 64
MAX_SAMPLES = 128


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Defaults are greedy: the likeliest token, until the model ends its answer or the context is full.

    max_tokens: the most tokens of the answer; None for as many as the context holds.
    temperature: divides the logits; 0 always takes the likeliest token, and the next three do nothing.
    top_k: only so many likeliest tokens; 0 for all. top_p: only the likeliest tokens that together have so much probability.
    min_p: only tokens at least this share as likely as the likeliest. They apply in this order, after the temperature.
    seed: the same seed gives the same text; None for another each time.
    repetition_penalty: logits of tokens in prompt or answer are divided by it if positive, multiplied if negative
    (arXiv 1909.05858, section 4.1). presence_penalty: subtracted once, and frequency_penalty: once for each time, from the
    logits of tokens in the answer. logit_bias: added to the logits of token ids.
    stop: the answer ends before the first of these texts. stop_token_ids: tokens that end it beside the model's own;
    none of them is part of the answer. ignore_eos: go on past the model's own.
    logprobs: None, or how many likeliest alternatives to report with each token's log probability (0: the token's alone).
    They are the model's own, before penalties, bias and temperature.
    skip_special_tokens: leave control tokens out of the text. Some models write tool calls with them (MiniCPM5's `<function`): who parses
    these wants False, and gets every token's text but that of the one that ended the answer.
    n: how many answers to sample for one prompt, which is computed once. Sample i of them is what seed + i gives alone.
    """

    max_tokens: int | None = option(None, "The most tokens to answer with.", within=(1, 1 << 31), flags=("-n", "--max-tokens"))
    temperature: float = option(0.0, "0 always takes the likeliest token.", within=(0, 100), flags=("--temp",))
    top_k: int = option(0, "Sample among so many likeliest tokens; 0 for all.", within=(0, 1 << 31))
    top_p: float = option(1.0, "Sample among the likeliest tokens of so much probability.", within=(0, 1), excludes_low=True)
    min_p: float = option(0.0, "Drop tokens less likely than this share of the likeliest.", within=(0, 1))
    seed: int | None = option(None, "The same seed gives the same text.", within=(0, (1 << 64) - 1))
    repetition_penalty: float = option(
        1.0, "More than 1 makes tokens seen before less likely.", within=(0, 100), excludes_low=True, flags=("--repeat-penalty",)
    )
    presence_penalty: float = option(0.0, "Subtracted from tokens that the answer holds.", within=(-100, 100))
    frequency_penalty: float = option(0.0, "Subtracted for each time that the answer holds a token.", within=(-100, 100))
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = option(False, "Go on past the model's own end.")
    logprobs: int | None = option(None, "How many likeliest alternatives to report with each token.", within=(0, MAX_LOGPROBS))
    skip_special_tokens: bool = option(True, "Leave control tokens out of the text.")
    n: int = option(1, "How many answers to sample.", within=(1, MAX_SAMPLES))

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", as_tuple("stop", (self.stop,) if isinstance(self.stop, str) else self.stop))
        object.__setattr__(self, "stop_token_ids", as_tuple("stop_token_ids", self.stop_token_ids))
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(
                f"logit_bias is {self.logit_bias!r:.80}, expected an object", hint="give a bias for each token id: {42: -1.5}"
            )
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        check_options(self, error=RequestError)
        for token, bias in self.logit_bias.items():
            check_number("a token of logit_bias", token, (0, 1 << 31), is_whole=True, error=RequestError)
            check_number("a value of logit_bias", bias, (-1e4, 1e4), error=RequestError)
        for token in self.stop_token_ids:
            check_number("a stop token", token, (0, 1 << 31), is_whole=True, error=RequestError)
        are_texts = all(isinstance(text, str) and 0 < len(text) <= MAX_STOP_CHARACTERS for text in self.stop)
        if len(self.stop) > MAX_STOPS or not are_texts:
            raise RequestError(
                f"stop holds {len(self.stop)} texts", hint=f"give at most {MAX_STOPS}, none empty or longer than {MAX_STOP_CHARACTERS}"
            )

    def replace(self, **changes: Any) -> SamplingParams:
        """The same with some fields changed; TypeError for a name that is no field."""
        return replace(self, **changes)

    @property
    def samples(self) -> list[SamplingParams]:
        """The parameters that ask for each of the n samples alone."""
        seeds = [None if self.seed is None else (int(self.seed) + i) % (1 << 64) for i in range(self.n)]
        return [self.replace(n=1, seed=seed) for seed in seeds]


def as_tuple(name: str, values: object) -> tuple[Any, ...]:
    """RequestError unless there are values to take one by one."""
    if not isinstance(values, Iterable):
        raise RequestError(f"{name} is {values!r:.80}, expected a list", hint=f"correct {name}")
    return tuple(values)
