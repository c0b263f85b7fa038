"""How many bits a model spends on a byte of text, in windows that overlap: independent of the tokenizer, and of where windows begin.

Each token is scored once, given the window up to it: at least length - stride tokens, but for those of the first window. A model
whose tokenizer begins texts with a BOS token gets one at the beginning of every window, which counts as a token of it. All tokens are
computed as a prompt's are (`prompt_activations`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from minicpm4.engine import LLM, LoadOptions
from minicpm4.errors import CapacityError, CheckpointError, ConfigError, RequestError
from minicpm4.evaluate.prose import Text
from minicpm4.evaluate.recipe import digest, recipe_of, settings_of
from minicpm4.model.sparse import count_attended
from minicpm4.records import Journal

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class PerplexityOptions:
    """length: tokens of a window; None for the whole context. stride: tokens from one window to the next; None for half of the length.
    max_tokens: only so many first ones of each text; None for all."""

    length: int | None = None
    stride: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("length", "stride", "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < (1 if name == "stride" else 2):
                raise ConfigError(f"{name} is {value}, expected a positive number of tokens, two for a text", hint=f"raise {name}")


@dataclass(frozen=True)
class Window:
    """tokens[start:end] of a text, of which those from `first` on are scored."""

    start: int
    first: int
    end: int


@dataclass(frozen=True)
class TextScore:
    """num_tokens, num_bytes: those that were scored. bits: spent on them. attended_share: of the tokens that their rows could see."""

    name: str
    sha256: str
    num_tokens: int
    num_bytes: int
    bits: float
    bits_per_byte: float
    perplexity: float
    attended_share: float


@dataclass(frozen=True)
class PerplexityResult:
    """texts: one after the other; total: of all of them together. windows: each with its bits."""

    recipe: dict[str, Any]
    texts: tuple[TextScore, ...]
    total: TextScore
    windows: tuple[dict[str, Any], ...]

    def as_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, indent=1)


def run_perplexity(
    llm: LLM, texts: Sequence[Text], options: PerplexityOptions, *, load: LoadOptions, journal: Callable[..., Journal], progress: Progress
) -> PerplexityResult:
    """load: what the LLM was made with. journal: given the settings, the journal to go on with. progress: told (what, done, of all)."""
    length, stride = resolve_window(llm, options)
    tokens = [tokens_of(llm, text, limit=options.max_tokens) for text in texts]
    settings = settings_of(llm, length=length, stride=stride, max_tokens=options.max_tokens)
    done = journal(settings)
    bos = bos_of(llm)
    plan = [
        (f"{digest(text.text)}/{window.start}", ids, window)
        for text, ids in zip(texts, tokens, strict=True)
        for window in windows_of(len(ids), length=length - len(bos), stride=stride, first=0 if bos else 1)
    ]
    for count, (key, ids, window) in enumerate(plan):
        progress("windows", count, len(plan))
        if key not in done.records:
            done.add({"key": key, **score_window(llm, ids, window)})
    progress("windows", len(plan), len(plan))
    found = {key: done.records[key] for key, _, _ in plan}
    scores = [score_of(text, [record for key, record in found.items() if key.startswith(f"{digest(text.text)}/")]) for text in texts]
    words = ["perplexity", *(text.name for text in texts if not text.is_own), "--length", str(length), "--stride", str(stride)]
    words += [] if options.max_tokens is None else ["--text-tokens", str(options.max_tokens)]
    whole = Text("all", "\n".join(text.text for text in texts))
    return PerplexityResult(
        recipe=recipe_of(llm, load, words=words, settings=settings),
        texts=tuple(scores),
        total=score_of(whole, list(found.values())),
        windows=tuple(found.values()),
    )


def resolve_window(llm: LLM, options: PerplexityOptions) -> tuple[int, int]:
    """Length and stride. CapacityError, ConfigError where they cannot be."""
    context = llm.loaded.limits.sequence_tokens
    length = context if options.length is None else options.length
    stride = max(1, length // 2) if options.stride is None else options.stride
    if length > context:
        raise CapacityError(f"a window of {length} tokens is more than the context of {context}", hint="lower --length, or raise -c")
    if stride >= length:
        raise ConfigError(f"the stride is {stride}, the window {length}", hint="a stride is shorter, so that every token has context")
    return length, stride


def bos_of(llm: LLM) -> list[int]:
    tokenizer = llm.loaded.tokenizer
    return list(tokenizer.before)


def tokens_of(llm: LLM, text: Text, *, limit: int | None) -> list[int]:
    """Without a BOS; the texts of control tokens are text."""
    tokens = llm.loaded.tokenizer.encode(text.text, add_bos=False)[:limit]
    if len(tokens) < 2:
        raise RequestError(f"{text.name} has {len(tokens)} tokens, expected at least 2", hint="give a longer text")
    return tokens


def windows_of(num_tokens: int, *, length: int, stride: int, first: int) -> Iterator[Window]:
    """Windows of at most `length` tokens that score tokens[first:], each of them once."""
    start, end = 0, min(length, num_tokens)
    while first < num_tokens:
        yield Window(start, first, end)
        start, first, end = start + stride, end, min(end + stride, num_tokens)


def score_window(llm: LLM, tokens: Sequence[int], window: Window) -> dict[str, Any]:
    """CheckpointError where the model's arithmetic breaks."""
    bos, tokenizer = bos_of(llm), llm.loaded.tokenizer
    first = len(bos) + window.first - window.start
    logprobs_N = llm.score([*bos, *tokens[window.start : window.end]], first=first).logprobs_N
    if not np.isfinite(logprobs_N).all():
        raise CheckpointError("the model computed logits that are not numbers", hint="check its files with: minicpm4 doctor -m MODEL")
    scored = tokens[window.first : window.end]
    attended = count_attended(llm.loaded.sparse, np.arange(first - 1, first - 1 + len(scored)))
    return {
        "first": window.first,
        "num_tokens": len(scored),
        "num_bytes": sum(len(tokenizer.token_bytes(token)) for token in scored),
        "bits": float(-logprobs_N.sum() / math.log(2)),
        "tokens_attended": attended.tokens_attended,
        "tokens_visible": attended.tokens_visible,
    }


def score_of(text: Text, windows: Sequence[dict[str, Any]]) -> TextScore:
    names = ("num_tokens", "num_bytes", "bits", "tokens_attended", "tokens_visible")
    tokens, num_bytes, bits, attended, visible = (sum(window[name] for window in windows) for name in names)
    return TextScore(
        name=text.name,
        sha256=digest(text.text),
        num_tokens=tokens,
        num_bytes=num_bytes,
        bits=bits,
        bits_per_byte=bits / max(1, num_bytes),
        perplexity=2 ** (bits / tokens),
        attended_share=attended / visible,
    )
