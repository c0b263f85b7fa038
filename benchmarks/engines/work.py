"""The work that engines are measured with, said once: what is timed, in which order, and how it is reported.

Runs in each engine's own interpreter, so it knows the standard library alone. A program hands `run_program` a function from
`Work` to `Measured`; one whose engine can be stepped hands over `measure_steps`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

WARM_TOKENS = 32  # of the prompt that goes before what is timed


@dataclass(frozen=True, kw_only=True)
class Work:
    """model: a GGUF file. prefill: tokens of the prompt; 0 for none. before: tokens in the cache before the prompt. decode: tokens
    generated one by one in each stream; 0 for none. context: tokens in each stream's cache before decoding. streams: sequences decoded
    together. repeats: how often each is measured. seed: of the random tokens. activations,
    prompt_activations: what minicpm4 multiplies quantized weights with; other engines have their own. attention: of minicpm4, "dense" or
    "sparse"; others are dense. states: a folder where an engine that must compute its context may keep it."""

    model: str
    prefill: int = 512
    before: int = 0
    decode: int = 32
    context: int = 0
    streams: int = 1
    threads: int = 1
    repeats: int = 1
    seed: int = 0
    activations: str = "int8"
    prompt_activations: str = "auto"
    attention: str = "dense"
    states: str = ""

    @property
    def sequence_tokens(self) -> int:
        """The most tokens that a sequence holds at any time."""
        return max(self.before + self.prefill, self.context + self.decode, 1)

    def tokens(self, count: int, *, vocab_size: int) -> list[int]:
        """The first so many random tokens; the same in every engine."""
        source = random.Random(self.seed)
        return [source.randrange(vocab_size) for _ in range(count)]


@dataclass(frozen=True)
class Measured:
    """prefill_seconds: of each whole prompt. decode_seconds_per_token: of each run of decoding, all streams' tokens counted.
    peak_memory_mb: the most that was resident, mapped files included. details: facts of the engine that explain its numbers."""

    prefill_seconds: list[float]
    decode_seconds_per_token: list[float]
    load_seconds: float
    peak_memory_mb: float
    version: str
    details: dict[str, object]


class CannotDo(Exception):
    """The engine is there but has no way to do this work; the message says why."""


class Engine(Protocol):
    """A loaded model that can be stepped. version, details: as in `Measured`."""

    version: str
    vocab_size: int
    details: dict[str, object]

    def rewind(self, depth: int) -> None:
        """Every stream's cache holds its first `depth` tokens again."""

    def prefill(self, tokens: list[int], position: int) -> None:
        """Runs a prompt in the first stream, whose cache holds so many tokens before it, up to the logits of its last token."""

    def fill(self, depth: int) -> None:
        """Every stream's empty cache gets `depth` tokens, by any means."""

    def decode(self, tokens: list[int], position: int) -> None:
        """One step of one token in each stream at that position, up to their logits."""


def measure_steps(open_engine: Callable[[Work], Engine], work: Work) -> Measured:
    """Loads; makes short steps that bring the weights near; then the prompts, then the runs of decoding."""
    start = time.perf_counter()
    engine = open_engine(work)
    load_seconds = time.perf_counter() - start
    engine.decode([0] * work.streams, 0)
    engine.rewind(0)
    engine.prefill(work.tokens(min(WARM_TOKENS, work.sequence_tokens), vocab_size=engine.vocab_size), 0)
    if work.prefill and work.before:
        engine.rewind(0)
        engine.fill(work.before)
    prefill = [time_prefill(engine, work) for _ in range(work.repeats if work.prefill else 0)]
    if work.decode:
        engine.rewind(0)
        start = time.perf_counter()
        engine.fill(work.context)
        engine.details["fill_seconds"] = time.perf_counter() - start
    decode = [time_decode(engine, work) for _ in range(work.repeats if work.decode else 0)]
    return Measured(prefill, decode, load_seconds, peak_memory_mb(), engine.version, engine.details)


def time_prefill(engine: Engine, work: Work) -> float:
    tokens = work.tokens(work.prefill, vocab_size=engine.vocab_size)
    engine.rewind(work.before)
    start = time.perf_counter()
    engine.prefill(tokens, work.before)
    return time.perf_counter() - start


def time_decode(engine: Engine, work: Work) -> float:
    """Seconds a token. The tokens were chosen before: sampling is no part of the work."""
    tokens = work.tokens(work.decode * work.streams, vocab_size=engine.vocab_size)
    engine.rewind(work.context)
    start = time.perf_counter()
    for index in range(work.decode):
        engine.decode(tokens[index * work.streams : (index + 1) * work.streams], work.context + index)
    return (time.perf_counter() - start) / len(tokens)


def peak_memory_mb() -> float:
    """The largest resident size of this program so far. Where Linux tells it, without what its parent had before it started."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def convert_once(work: Work, convert: Callable[[str, str], None], *, suffix: str) -> Path:
    """The folder with the model in an engine's own format, converted from its file unless it is there.

    convert: from a file to a folder, which appears when it is whole. It runs in a process of its own, so that its memory is not
    counted here.
    """
    source = Path(work.model)
    folder = Path(work.states or tempfile.gettempdir()) / f"{source.stem}-{source.stat().st_size}.{suffix}"
    if not folder.exists():
        process = multiprocessing.get_context("spawn").Process(target=convert, args=(work.model, str(folder)))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{source.name} could not be converted; what went wrong is above")
    return folder


def work_from_arguments(arguments: list[str], *, description: str | None) -> Work:
    """A flag for each field of `Work`."""
    parser = argparse.ArgumentParser(description=description)
    for field in fields(Work):
        kind = int if field.type == "int" else str
        parser.add_argument(f"--{field.name}", type=kind, default=field.default, required=field.name == "model")
    return Work(**vars(parser.parse_args(arguments)))


def arguments_of(work: Work) -> list[str]:
    """Inverse of `work_from_arguments`."""
    return [f"--{name}={value}" for name, value in asdict(work).items()]


def run_program(program: Callable[[Work], Measured], *, description: str | None) -> None:
    """Reads the flags, measures, and prints one JSON object as the last line: of `Measured`, or {"refused": why}."""
    work = work_from_arguments(sys.argv[1:], description=description)
    try:
        result = asdict(program(work))
    except CannotDo as reason:
        result = {"refused": str(reason)}
    print(json.dumps(result), flush=True)
