"""How tokens are chosen and when an answer ends: one frozen value a request, checked when it is made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

from minicpm4.errors import MiniCPMError, RequestError

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

    max_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    skip_special_tokens: bool = True
    n: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", as_tuple("stop", (self.stop,) if isinstance(self.stop, str) else self.stop))
        object.__setattr__(self, "stop_token_ids", as_tuple("stop_token_ids", self.stop_token_ids))
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(
                f"logit_bias is {self.logit_bias!r:.80}, expected an object", hint="give a bias for each token id: {42: -1.5}"
            )
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        check_number("max_tokens", self.max_tokens, (1, 1 << 31), is_whole=True, is_optional=True)
        check_number("temperature", self.temperature, (0, 100))
        check_number("top_k", self.top_k, (0, 1 << 31), is_whole=True)
        check_number("top_p", self.top_p, (0, 1), excludes_low=True)
        check_number("min_p", self.min_p, (0, 1))
        check_number("seed", self.seed, (0, (1 << 64) - 1), is_whole=True, is_optional=True)
        check_number("repetition_penalty", self.repetition_penalty, (0, 100), excludes_low=True)
        for name in ("presence_penalty", "frequency_penalty"):
            check_number(name, getattr(self, name), (-100, 100))
        check_number("logprobs", self.logprobs, (0, MAX_LOGPROBS), is_whole=True, is_optional=True)
        check_number("n", self.n, (1, MAX_SAMPLES), is_whole=True)
        for name in ("ignore_eos", "skip_special_tokens"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} is {getattr(self, name)!r:.80}, expected True or False", hint=f"correct {name}")
        for token, bias in self.logit_bias.items():
            check_number("a token of logit_bias", token, (0, 1 << 31), is_whole=True)
            check_number("a value of logit_bias", bias, (-1e4, 1e4))
        for token in self.stop_token_ids:
            check_number("a stop token", token, (0, 1 << 31), is_whole=True)
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

    @property
    def changes_logits(self) -> bool:
        """Whether logits are edited before a token is chosen."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty or self.logit_bias)


def as_tuple(name: str, values: object) -> tuple[Any, ...]:
    """RequestError unless there are values to take one by one."""
    if not isinstance(values, Iterable):
        raise RequestError(f"{name} is {values!r:.80}, expected a list", hint=f"correct {name}")
    return tuple(values)


def check_number(
    name: str,
    value: object,
    within: tuple[float, float],
    *,
    is_whole: bool = False,
    is_optional: bool = False,
    excludes_low: bool = False,
    error: type[MiniCPMError] = RequestError,
) -> None:
    """The error unless the value is a number from the first to the second of `within`, above the first where that is excluded.

    numpy's numbers count as such.
    """
    low, high = within
    if value is None and is_optional:
        return
    if isinstance(value, Integral if is_whole else Real) and not isinstance(value, bool):
        number = int(value) if isinstance(value, Integral) else float(value)
        if low <= number <= high and not (excludes_low and number == low):  # false for NaN
            return
    kind = "a whole number" if is_whole else "a number"
    low_text, high_text = (f"{bound:g}" if isinstance(bound, float) else str(bound) for bound in within)
    span = f"above {low_text} and at most {high_text}" if excludes_low else f"from {low_text} to {high_text}"
    raise error(f"{name} is {value!r:.80}, expected {kind} {span}", hint=f"correct {name}")
