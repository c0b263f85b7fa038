"""What `generate` and `chat` share: loading a model with a bar, answering on standard output, the line after an answer."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import typer

from minicpm4.cli.terminal import EXIT_INTERRUPTED, say, summary, transfer_bar, warn, write
from minicpm4.engine import LLM, Completion, LoadOptions, SamplingParams, Stream

MAX_TOKENS = 1024  # of an answer, where neither the user nor the model's own defaults say


@contextmanager
def loaded_llm(options: LoadOptions) -> Iterator[LLM]:
    """The model, loaded with a bar; what should be known of it was said."""
    with transfer_bar() as bar:
        llm = LLM.from_options(options, progress=bar)
    with llm:
        for warning in llm.loaded.warnings:
            warn(warning)
        say(f"{llm.loaded.name}: {llm.loaded.memory}")
        say("; ".join(str(choice) for choice in llm.loaded.choices))
        yield llm


def changed_params(default: SamplingParams, changes: Mapping[str, Any]) -> SamplingParams:
    """The model's own defaults with some fields changed, and an end where neither says one."""
    return default.replace(**{"max_tokens": default.max_tokens or MAX_TOKENS, **changes})


def answer(llm: LLM, stream: Stream, *, as_json: bool) -> Completion:
    """Writes an answer as it comes, then its line; or the whole of it as one JSON object.

    Ctrl-C ends the answer, and what was said of it stands; a second one ends the program.
    """
    with stream, stopped_by_interrupt(stream):
        for piece in stream:
            if not as_json:
                write(piece)
    completion = stream.completion
    if as_json:
        choices = {choice.what: {"value": choice.value, "reason": choice.reason} for choice in llm.loaded.choices}
        write(json.dumps({"model": llm.loaded.name, **asdict(completion), "choices": choices}, ensure_ascii=False) + "\n")
    else:
        write("\n")
        say(summary(completion, llm.loaded.choices))
    return completion


def exit_if_interrupted(completion: Completion) -> None:
    """Where the answer is all that was asked for, cutting it short ends the program as Ctrl-C does."""
    if completion.finish_reason == "cancelled":
        raise typer.Exit(EXIT_INTERRUPTED)


@contextmanager
def stopped_by_interrupt(stream: Stream) -> Iterator[None]:
    """While this lasts, the first Ctrl-C stops the stream."""

    def stop(number: int, frame: object) -> None:
        stream.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
