"""How fast an executor runs a model: prefill and decode, with the bytes that it reads and the share of the memory's speed.

Measures the executor alone, with steps made here: no sampling, no text. `benchmarks/` compares with other engines.
"""

from __future__ import annotations

import json
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

from minicpm4.errors import CapacityError, ConfigError
from minicpm4.executors import Executor, ExecutorOptions, WeightLoader, create_executor
from minicpm4.hardware import cpu_name, peak_memory
from minicpm4.model import ModelConfig, pages_for, single_step

Progress = Callable[[str], None]


@dataclass(frozen=True)
class BenchOptions:
    """prefill: tokens of the prompt, from an empty cache. decode: tokens generated one by one. context: tokens in the
    cache before decoding, random ones. repeats: how often each is measured; medians are reported."""

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
    """Rates are tokens a second, None where not measured; bytes are those that decoding one token reads."""

    model: str
    executor: str
    isa: str
    threads: int
    format: str
    activations: str
    kv_format: str
    context: int
    prompt_tokens: int
    new_tokens: int
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    weight_bytes_per_token: int
    kv_bytes_per_token: int
    read_gb_per_second: float | None
    memory_gb_per_second: float
    bandwidth_share: float | None
    peak_memory_mb: float
    load_seconds: float
    raw: dict[str, list[float]]
    recipe: dict[str, object]

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def run_bench(
    name: str,
    config: ModelConfig,
    weights: WeightLoader,
    *,
    formats: Iterable[str],
    executor: str,
    executor_options: ExecutorOptions,
    options: BenchOptions,
    progress: Progress = lambda stage: None,
) -> BenchResult:
    """Loads the executor, measures, closes it.

    name and formats say what is measured. Raises CapacityError where options need more context than executor_options has.
    """
    if options.num_tokens > executor_options.context_length:
        raise CapacityError(f"the run needs {options.num_tokens} tokens of context, there are {executor_options.context_length}", hint="raise -c or lower --context")
    formats = frozenset(formats)
    progress("loading")
    start = time.perf_counter()
    runner = create_executor(executor, config, weights, options=executor_options, formats=formats)
    load_seconds = time.perf_counter() - start
    try:
        prefill = [measure_prefill(runner, config, executor_options, options, progress) for _ in range(options.repeats)] if options.prefill else []
        decode = measure_decode(runner, config, options, progress) if options.decode else []
        peak = peak_memory()
        isa = next((choice.value for choice in runner.choices if choice.what == "isa"), platform.machine())
        weight_bytes = runner.weight_bytes
    finally:
        runner.close()
    kv_token_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * {"f32": 4}.get(executor_options.kv_format, 2)
    kv_bytes = kv_token_bytes * (options.context + options.decode // 2)
    decode_rate = 1 / median(decode) if decode else None
    read_rate = decode_rate * (weight_bytes + kv_bytes) / 1e9 if decode_rate else None
    progress("measuring the memory")
    memory_rate = memory_bandwidth(executor_options.threads) / 1e9
    return BenchResult(
        model=name,
        executor=executor,
        isa=isa,
        threads=executor_options.threads,
        format="+".join(sorted(formats - {"f32"}) or ["f32"]),
        activations=executor_options.activations,
        kv_format=executor_options.kv_format,
        context=options.context,
        prompt_tokens=options.prefill,
        new_tokens=options.decode,
        prefill_tokens_per_second=options.prefill / median(prefill) if prefill else None,
        decode_tokens_per_second=decode_rate,
        weight_bytes_per_token=weight_bytes,
        kv_bytes_per_token=kv_bytes,
        read_gb_per_second=read_rate,
        memory_gb_per_second=memory_rate,
        bandwidth_share=read_rate / memory_rate if read_rate else None,
        peak_memory_mb=peak / 1e6,
        load_seconds=load_seconds,
        raw={"prefill_seconds": prefill, "decode_seconds_per_token": decode},
        recipe=recipe(options, executor_options),
    )


def measure_prefill(runner: Executor, config: ModelConfig, executor_options: ExecutorOptions, options: BenchOptions, progress: Progress) -> float:
    """Seconds of one prompt, in chunks of the largest step."""
    tokens = np.random.default_rng(options.seed).integers(0, config.vocab_size, options.prefill).astype(np.int32)
    start = time.perf_counter()
    for first in range(0, len(tokens), executor_options.max_step_tokens):
        progress(f"prefill {first}/{len(tokens)}")
        runner.run(single_step(tokens[first : first + executor_options.max_step_tokens], start=first))
    return time.perf_counter() - start


def measure_decode(runner: Executor, config: ModelConfig, options: BenchOptions, progress: Progress) -> list[float]:
    """Seconds a token of each repeat; every repeat starts at the same depth."""
    if options.context:
        progress("filling the cache")
        runner.randomize_pages(np.arange(pages_for(options.context + options.decode), dtype=np.int32), seed=options.seed)
    tokens = np.random.default_rng(options.seed + 1).integers(0, config.vocab_size, options.decode).astype(np.int32)
    seconds = []
    for repeat in range(options.repeats):
        progress(f"decode {repeat + 1}/{options.repeats}")
        start = time.perf_counter()
        for index in range(options.decode):
            runner.run(single_step(tokens[index : index + 1], start=options.context + index))
        seconds.append((time.perf_counter() - start) / options.decode)
    return seconds


def memory_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read from memory: the best of several passes over 256 MB."""
    from minicpm4 import _native

    return float(_native.read_bandwidth(_native.usable_isas()[0], _native.Team(threads), 256 << 20, 5))


def recipe(options: BenchOptions, executor_options: ExecutorOptions) -> dict[str, object]:
    """What is needed to run it again."""
    return {
        "machine": cpu_name(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "minicpm4": version("minicpm4"),
        "commit": source_commit(),
        "flags": asdict(options) | asdict(executor_options),
    }


def source_commit() -> str | None:
    """The commit of the checkout that this package runs from; None for an installed copy."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    done = subprocess.run(["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
