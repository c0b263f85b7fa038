"""Decoding one sequence with the torch executor beside `transformers` on the same torch: MiniCPM4-0.5B's shape, random weights.

    python -m benchmarks.torch_decode --dtype bf16 --threads 2

Pairs of bursts of tokens, one of each engine, in turn first and second; a pair gives a ratio of seconds. The bound is of the median, by
ranks, which needs no shape of the noise. Both read the same weights, and their logits are compared before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaForCausalLM, StaticCache

from benchmarks.mindspore import llama_of
from benchmarks.recipe import machine_facts, result_stem, say, with_suffix
from minicpm4.deploy.random_weights import random_weights, shape_config
from minicpm4.executors import CacheSize, Executor, create_executor
from minicpm4.executors.torch import TorchOptions
from minicpm4.model import ModelConfig, pages_for
from minicpm4.model.step import single_step
from minicpm4.records.recipe import version_of

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
# Of random weights. A logit in bfloat16 is off by 2^-9 of itself, and errors of 24 layers add up at random.
TOLERANCES = {"f32": 1e-3, "bf16": 0.15}


class Ours:
    def __init__(self, config: ModelConfig, prompt: np.ndarray, chosen: argparse.Namespace) -> None:
        weights, formats = random_weights(config, chosen.dtype, seed=0)
        options = TorchOptions(kv_format=chosen.dtype, threads=chosen.threads, dtype=chosen.dtype)
        cache = CacheSize(config.context_length, pages_for(config.context_length))
        began = time.perf_counter()
        self.runner: Executor = create_executor("torch", config, weights, options=options, cache=cache, formats=formats)
        self.load_seconds, self.depth = time.perf_counter() - began, len(prompt)
        for first in range(0, len(prompt), 512):
            self.logits = self.runner.run(single_step(prompt[first : first + 512], start=first)).logits[-1].copy()

    def decode(self, tokens: Sequence[int]) -> np.ndarray:
        for index, token in enumerate(tokens):
            logits = self.runner.run(single_step([token], start=self.depth + index)).logits
        return logits[-1]


class Transformers:
    def __init__(self, config: ModelConfig, prompt: np.ndarray, chosen: argparse.Namespace) -> None:
        self.model: LlamaForCausalLM = llama_of(config, chosen.dtype).to(DTYPES[chosen.dtype])
        self.model.set_attn_implementation("sdpa")
        self.depth, is_static = len(prompt), chosen.cache == "static"
        self.cache: Any = StaticCache(self.model.config, max_cache_len=config.context_length) if is_static else DynamicCache()
        self.logits = self.run(prompt.astype(np.int64).tolist(), start=0)

    @torch.inference_mode()
    def run(self, tokens: Sequence[int], *, start: int) -> np.ndarray:
        places = torch.arange(start, start + len(tokens))
        out = self.model(
            torch.tensor([tokens]), past_key_values=self.cache, use_cache=True, cache_position=places, position_ids=places[None],
            logits_to_keep=1,
        )  # fmt: skip
        return out.logits[0, -1].float().numpy()  # type: ignore[no-any-return]

    def decode(self, tokens: Sequence[int]) -> np.ndarray:
        added = self.cache.get_seq_length() - self.depth
        if isinstance(self.cache, DynamicCache) and added:
            self.cache.crop(-added)
        for index, token in enumerate(tokens):
            logits = self.run([token], start=self.depth + index)
        return logits


def bounds_of_median(values: Sequence[float]) -> tuple[float, float]:
    """At 95 %: the closest ranks that the median lies between with that probability."""
    ordered, count, below = sorted(values), len(values), 0.0
    for rank in range(count // 2):
        below += math.comb(count, rank) / 2**count
        if below > 0.025:
            return ordered[max(0, rank - 1)], ordered[min(count - 1, count - rank)]
    return ordered[0], ordered[-1]


def seconds_of(run: Callable[[Sequence[int]], np.ndarray], tokens: Sequence[int], *, clock: Callable[[], float]) -> float:
    start = clock()
    run(tokens)
    return (clock() - start) / len(tokens)


def measure(config: ModelConfig, depth: int, chosen: argparse.Namespace) -> dict[str, object]:
    random = np.random.default_rng(depth)
    prompt, tokens = (random.integers(0, config.vocab_size, count).astype(np.int32) for count in (depth, chosen.tokens))
    ours, theirs = (kind(config, prompt, chosen) for kind in (Ours, Transformers))
    difference = max(float(np.abs(a - b).max()) for a, b in ((ours.logits, theirs.logits), (ours.decode([1]), theirs.decode([1]))))
    if not difference < TOLERANCES[chosen.dtype]:
        raise SystemExit(f"logits differ by {difference}: the engines do not compute the same")
    pairs = []
    for index in range(chosen.pairs + 1):
        order = [("ours", ours), ("transformers", theirs)][:: 1 if index % 2 else -1]
        pair = {name: seconds_of(engine.decode, tokens.tolist(), clock=CLOCKS[chosen.clock]) for name, engine in order}
        if index:  # the first one warms up
            pairs.append(pair)
    ratios = [pair["transformers"] / pair["ours"] for pair in pairs]
    low, high = bounds_of_median(ratios)
    middle = {name: 1000 * statistics.median(pair[name] for pair in pairs) for name in ("ours", "transformers")}
    say(f"depth {depth}: {middle['ours']:.1f} ms a token, transformers {middle['transformers']:.1f}; {statistics.median(ratios):.3f} times as fast ({low:.3f} to {high:.3f})")  # fmt: skip  # noqa: E501
    return {
        "depth": depth, "load_seconds": ours.load_seconds, "milliseconds": middle, "times_as_fast": statistics.median(ratios),
        "bounds": [low, high], "largest_difference_of_logits": difference, "pairs": pairs,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", choices=("dynamic", "static"), default="dynamic", help="of transformers")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: for one thread on a machine that others use too")
    parser.add_argument("--depths", type=int, nargs="+", default=[64, 1024], help="tokens that are cached")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=8, help="of a burst")
    parser.add_argument("--output", type=Path, default=result_stem("torch-decode"))
    chosen = parser.parse_args()
    facts = machine_facts()
    torch.set_num_threads(chosen.threads)
    shape = shape_config("0.5B", context_length=max(chosen.depths) + chosen.tokens + 64)
    config = replace(shape, embedding_scale=1.0, residual_scale=1.0, logit_divisor=1.0, sparse=None)  # as transformers' Llama has it
    rows = [measure(config, depth, chosen) for depth in chosen.depths]
    versions = {name: version_of(name) for name in ("torch", "transformers", "numpy")}
    recipe = {key: value for key, value in vars(chosen).items() if key != "output"}
    result = {**facts, "versions": versions, "recipe": recipe, "config": asdict(config), "rows": rows}
    with_suffix(chosen.output, ".json").write_text(json.dumps(result, indent=1, default=list) + "\n")


if __name__ == "__main__":
    main()
