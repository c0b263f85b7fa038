"""How fast an executor runs a model: prefill and decode, with the bytes that it reads and the share of the memory's speed.

Measures the executor alone, with steps made here: no sampling, no text. `benchmarks/` compares with other engines.
"""

from __future__ import annotations

import importlib
import json
import platform
import shlex
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import median

import numpy as np

from minicpm4.deploy.subject import Subject
from minicpm4.engine import LoadOptions
from minicpm4.engine.load import preferences_of, size_cache
from minicpm4.errors import CapacityError, ConfigError
from minicpm4.executors import CacheSize, Executor, compressed_bytes_per_page, create_executor, kv_bytes_per_token, resolve_options
from minicpm4.executors.base import BackendOptions
from minicpm4.hardware import peak_memory
from minicpm4.model import PAGE_TOKENS, ModelConfig, pages_for
from minicpm4.model.config import SparseConfig
from minicpm4.model.long_context import with_context
from minicpm4.model.sparse import count_attended
from minicpm4.model.step import single_step
from minicpm4.records import software_facts

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BenchOptions:
    """prefill: tokens of the prompt, from an empty cache. decode: tokens generated one by one. context: tokens in the
    cache before decoding, random ones. repeats: how often each is measured; medians are reported. seed: of the tokens and
    of what the cache is filled with."""

    prefill: int = 512
    decode: int = 128
    context: int = 0
    repeats: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prefill", "decode", "context"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 or more", hint=f"correct --{name}")
        if self.repeats < 1 or self.prefill + self.decode < 1:
            raise ConfigError("there is nothing to measure", hint="give --prefill or --decode, and --repeats of at least 1")

    @property
    def num_tokens(self) -> int:
        """The most tokens that the cache holds at any time."""
        return max(self.prefill, self.context + self.decode)


@dataclass(frozen=True)
class BenchResult:
    """Rates are tokens a second, None where not measured; bytes are those that decoding one token reads.

    blocks_selected, blocks_total, attended_share: of the tokens that are decoded, or the prompt's where none are: means of the blocks of
    64 tokens that they attend to and of those that there are, and the share of tokens.

    device: what computes. cards: how many of it, beside the CPU: 0 where the CPU computes, 1 elsewhere, since executors use one device.

    memory_gb_per_second, bandwidth_share: of this machine's memory, None where the executor runs on another device.
    raw: the samples behind the medians. recipe: what is needed to run it again.
    """

    model: str
    executor: str
    isa: str
    device: str
    cards: int
    threads: int
    format: str
    activations: str
    prompt_activations: str
    kv_format: str
    context: int
    prompt_tokens: int
    new_tokens: int
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    weight_bytes_per_token: int
    kv_bytes_per_token: int
    blocks_selected: float
    blocks_total: float
    attended_share: float
    read_gb_per_second: float | None
    memory_gb_per_second: float | None
    bandwidth_share: float | None
    peak_memory_mb: float
    load_seconds: float
    raw: dict[str, list[float]]
    recipe: dict[str, object]

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


@dataclass(frozen=True)
class Samples:
    """What was measured: seconds of each prompt, seconds a token of each run of decoding, and facts of the loaded executor."""

    prefill: list[float]
    decode: list[float]
    load_seconds: float
    peak_bytes: int
    weight_bytes: int
    isa: str


def run_bench(subject: Subject, load: LoadOptions, options: BenchOptions, *, progress: Progress = lambda stage: None) -> BenchResult:
    """Loads the executor, measures, closes it.

    load: its executor, threads, isa, activations, prompt_activations, kv_format, device and context_length count; None is as much context
    as the run needs. Raises CapacityError where the run needs more context than load or the model has.
    """
    subject = replace(subject, config=with_context(subject.config, max(options.num_tokens, load.context_length or 0)))
    context_length = options.num_tokens if load.context_length is None else load.context_length
    if options.num_tokens > min(context_length, subject.config.context_length):
        raise CapacityError(
            f"the run needs {options.num_tokens} tokens of context, there are {min(context_length, subject.config.context_length)}",
            hint="raise -c, or lower --context, --prefill or --decode",
        )
    if load.tile_cache and subject.tile_cache is None:
        raise ConfigError("packed weights are kept of models, not of random weights", hint="leave out --tile-cache")
    preferences = preferences_of(load, tile_cache=subject.tile_cache)
    resolved, _ = resolve_options(load.executor, preferences, subject.config, formats=subject.formats)
    cache, _ = size_cache(load, subject.config, context_length=context_length, num_pages=pages_for(context_length))
    samples = measure(subject, load.executor, resolved, cache=cache, options=options, progress=progress)
    threads = getattr(resolved, "threads", 1)
    progress("measuring the memory")
    memory_rate = memory_bandwidth(threads) if resolved.device == "cpu" else None
    first, count = (options.context, options.decode) if options.decode else (0, options.prefill)
    attended = count_attended(cache.sparse, np.arange(first, first + count))
    blocks_selected, blocks_total = attended.mean_blocks
    kv_bytes = cache_bytes_read(
        subject.config, load.executor, resolved, sparse=cache.sparse, num_tokens=options.context + options.decode // 2
    )
    decode_rate = 1 / median(samples.decode) if samples.decode else None
    read_rate = decode_rate * (samples.weight_bytes + kv_bytes) / 1e9 if decode_rate else None
    return BenchResult(
        model=subject.name,
        executor=load.executor,
        isa=samples.isa,
        device=resolved.device,
        cards=int(resolved.device != "cpu"),
        threads=threads,
        format="+".join(sorted(subject.formats - {"f32"}) or ["f32"]),
        activations=getattr(resolved, "activations", "f32"),
        prompt_activations=getattr(resolved, "prompt_activations", "same"),
        kv_format=resolved.kv_format,
        context=options.context,
        prompt_tokens=options.prefill,
        new_tokens=options.decode,
        prefill_tokens_per_second=options.prefill / median(samples.prefill) if samples.prefill else None,
        decode_tokens_per_second=decode_rate,
        weight_bytes_per_token=samples.weight_bytes,
        kv_bytes_per_token=kv_bytes,
        blocks_selected=blocks_selected,
        blocks_total=blocks_total,
        attended_share=attended.share,
        read_gb_per_second=read_rate,
        memory_gb_per_second=memory_rate / 1e9 if memory_rate else None,
        bandwidth_share=1e9 * read_rate / memory_rate if read_rate and memory_rate else None,
        peak_memory_mb=samples.peak_bytes / 1e6,
        load_seconds=samples.load_seconds,
        raw={"prefill_seconds": samples.prefill, "decode_seconds_per_token": samples.decode},
        recipe=recipe(subject, load.executor, samples.isa, options=options, resolved=resolved, cache=cache),
    )


def cache_bytes_read(config: ModelConfig, executor: str, options: BackendOptions, *, sparse: SparseConfig | None, num_tokens: int) -> int:
    """Bytes of the cache that computing the last of so many tokens reads: what it attends to and compressed keys."""
    attended = count_attended(sparse, np.arange(max(0, num_tokens - 1), num_tokens))
    compressed_bytes = 0
    if sparse is not None and num_tokens > sparse.dense_len:
        page_bytes = compressed_bytes_per_page(config, sparse, executor=executor, kv_format=options.kv_format)
        compressed_bytes = page_bytes * (num_tokens // PAGE_TOKENS)
    return kv_bytes_per_token(config, options.kv_format) * attended.tokens_attended + compressed_bytes


def measure(
    subject: Subject, executor: str, resolved: BackendOptions, *, cache: CacheSize, options: BenchOptions, progress: Progress
) -> Samples:
    """Loads the executor, measures after one short step that brings the weights near, closes it."""
    progress("loading")
    start = time.perf_counter()
    runner = create_executor(executor, subject.config, subject.weights, options=resolved, cache=cache, formats=subject.formats)
    load_seconds = time.perf_counter() - start
    try:
        runner.run(single_step(np.zeros(1, np.int32)))
        return Samples(
            prefill=measure_prefill(runner, subject.config, max_rows=cache.max_step_tokens, options=options, progress=progress),
            decode=measure_decode(runner, subject.config, options=options, progress=progress),
            load_seconds=load_seconds,
            peak_bytes=peak_memory(),
            weight_bytes=runner.weight_bytes,
            isa=next((choice.value for choice in runner.choices if choice.what == "isa"), platform.machine()),
        )
    finally:
        runner.close()


def measure_prefill(runner: Executor, config: ModelConfig, *, max_rows: int, options: BenchOptions, progress: Progress) -> list[float]:
    """Seconds of each prompt, run in chunks of the largest step."""
    tokens = np.random.default_rng(options.seed).integers(0, config.vocab_size, options.prefill).astype(np.int32)
    seconds = []
    for repeat in range(options.repeats if options.prefill else 0):
        start = time.perf_counter()
        for first in range(0, len(tokens), max_rows):
            progress(f"prefill {repeat + 1}/{options.repeats}: {first} of {len(tokens)} tokens")
            runner.run(single_step(tokens[first : first + max_rows], start=first, numerics=runner.prompt_numerics))
        seconds.append(time.perf_counter() - start)
    return seconds


def measure_decode(runner: Executor, config: ModelConfig, *, options: BenchOptions, progress: Progress) -> list[float]:
    """Seconds a token of each run; every run starts at the same depth."""
    if options.decode and options.context:
        progress("filling the cache")
        runner.randomize_pages(np.arange(pages_for(options.context + options.decode), dtype=np.int32), seed=options.seed)
    tokens = np.random.default_rng(options.seed + 1).integers(0, config.vocab_size, options.decode).astype(np.int32)
    seconds = []
    for repeat in range(options.repeats if options.decode else 0):
        progress(f"decode {repeat + 1}/{options.repeats}")
        start = time.perf_counter()
        for index in range(options.decode):
            runner.run(single_step(tokens[index : index + 1], start=options.context + index))
        seconds.append((time.perf_counter() - start) / options.decode)
    return seconds


def memory_bandwidth(threads: int) -> float | None:
    """Bytes a second that so many threads read from memory; None where the native executor, which measures it, cannot be loaded."""
    try:
        return float(importlib.import_module("minicpm4.executors.native").read_bandwidth(threads))
    except ImportError:
        return None


def recipe(
    subject: Subject, executor: str, isa: str, *, options: BenchOptions, resolved: BackendOptions, cache: CacheSize
) -> dict[str, object]:
    """What is needed to run it again; command: the shell's words, with everything that was chosen spelled out."""
    chosen = asdict(options) | asdict(resolved) | asdict(cache) | ({"isa": isa} if executor == "native" else {})
    chosen.pop("tile_cache", None)  # a place of this machine; `subject.flags` ask for it
    sparse_words = sparse_flags(cache.sparse, subject.config.sparse)
    flags = {"context_length": "ctx-size"}  # those that are not named as their fields
    unsaid = ("num_pages", "max_step_tokens", "sparse")  # they follow from the others, or are said in flags of their own
    said = {flags.get(name, name.replace("_", "-")): value for name, value in chosen.items() if name not in unsaid and value is not None}
    words = [word for flag, value in said.items() for word in (f"--{flag}", str(value))]
    return {
        "command": shlex.join(["minicpm4", "bench", *subject.flags, "--executor", executor, *words, *sparse_words]),
        "executor": executor,
        "isa": isa,
        **software_facts(executor),
        "flags": chosen,
    }


def sparse_flags(sparse: SparseConfig | None, of_model: SparseConfig | None) -> tuple[str, ...]:
    """The words that ask for this rule again; kernels and blocks are the model's own."""
    if sparse is None:
        return () if of_model is None else ("--no-sparse",)
    numbers = {"--sparse-topk": sparse.topk, "--sparse-window": sparse.window_size, "--dense-len": sparse.dense_len}
    lse = "--coarse-lse" if sparse.has_coarse_lse else "--exact-lse"
    return ("--sparse", *(word for flag, value in numbers.items() for word in (flag, str(value))), lse)
