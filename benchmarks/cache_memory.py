"""Measures the memory that a full KV cache takes beside its formula, and what a step at its end adds: python -m benchmarks.cache_memory

Random weights of a shape, a cache for so many tokens, every page written with random keys and values. Resident sizes are those that
Linux tells of this process; each case begins after the one before has given its memory back. The native executor alone: the others
touch their whole cache when they are made.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.recipe import machine_facts, result_stem, say, with_suffix
from minicpm4.deploy.random_weights import random_weights, shape_config
from minicpm4.errors import MiniCPMError
from minicpm4.executors import CacheSize, compressed_bytes_per_page, create_executor, kv_bytes_per_token
from minicpm4.executors.native import NativeOptions
from minicpm4.hardware import num_cores
from minicpm4.model import ModelConfig, pages_for
from minicpm4.model.config import SparseConfig
from minicpm4.model.step import single_step
from minicpm4.quant import KV_FORMATS


@dataclass(frozen=True)
class CacheCase:
    """rows: of a step at the end of the cache, whose memory is measured too; fewer than a kernel's tokens, so that the same number at
    the start, which brings in what steps work in, touches no compressed keys."""

    kv_format: str
    tokens: int
    sparse: SparseConfig | None
    rows: int
    threads: int


@dataclass(frozen=True)
class CacheMemory:
    """Bytes. planned: the formula's, keys and values and the compressed keys beside them; allocated: the executor's; touched: by which
    the resident size grew when every page was written; of_step: by which it grew when a step at the end of the cache ran after that."""

    kv_format: str
    tokens: int
    is_sparse: bool
    planned: int
    allocated: int
    touched: int
    of_step: int

    @property
    def excess(self) -> float:
        """Of what was touched over the plan, as a share of the plan."""
        return self.touched / self.planned - 1


def resident() -> int:
    """Bytes of this process that are in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure_cache(config: ModelConfig, case: CacheCase, *, format_name: str) -> CacheMemory:
    """Loads, fills, runs one short step before and one at the end; closes."""
    weights, formats = random_weights(config, format_name, seed=0)
    num_pages = pages_for(case.tokens)
    options = NativeOptions(kv_format=case.kv_format, threads=case.threads)
    cache = CacheSize(config.context_length, num_pages, case.rows, case.sparse)
    runner = create_executor("native", config, weights, options=options, cache=cache, formats=formats)
    try:
        tokens = np.zeros(case.rows, np.int32)
        runner.run(single_step(tokens))
        before = resident()
        runner.randomize_pages(np.arange(num_pages, dtype=np.int32), seed=0)
        full = resident()
        runner.run(single_step(tokens, start=case.tokens - case.rows))
        page_bytes = compressed_bytes_per_page(config, case.sparse, executor="native", kv_format=case.kv_format)
        return CacheMemory(
            kv_format=case.kv_format,
            tokens=case.tokens,
            is_sparse=case.sparse is not None,
            planned=kv_bytes_per_token(config, case.kv_format) * case.tokens + page_bytes * num_pages,
            allocated=runner.kv_bytes,
            touched=full - before,
            of_step=resident() - full,
        )
    finally:
        runner.close()


def line_of(memory: CacheMemory) -> str:
    what = f"{memory.kv_format}, {'sparse' if memory.is_sparse else 'dense'}, {memory.tokens} tokens"
    numbers = ", ".join(f"{name} {getattr(memory, name) / 1e6:.1f} MB" for name in ("planned", "allocated", "touched"))
    return f"{what}: {numbers} ({100 * memory.excess:+.2f} %), a step at the end adds {memory.of_step / 1e6:.1f} MB"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.5B", help="0.5B, 8B, or a config.json")
    parser.add_argument("--format", default="q4_0", help="of the weights")
    parser.add_argument("--kv-formats", nargs="+", default=["f16", "int8"], choices=KV_FORMATS)
    parser.add_argument("--tokens", nargs="+", type=int, default=[1 << 15, 1 << 17], metavar="N", help="whole pages of 64")
    parser.add_argument("--rows", type=int, default=16, help="of a step, fewer than 32")
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--output", type=Path, metavar="STEM", help="results/<date>-cache-memory unless given")
    return parser.parse_args(arguments)


def main() -> None:
    given, found = parse(), list[CacheMemory]()
    try:
        for tokens in given.tokens:
            config = shape_config(given.shape, context_length=tokens)
            for kv_format in given.kv_formats:
                for sparse in (None, SparseConfig()):
                    case = CacheCase(kv_format, tokens, sparse, given.rows, given.threads)
                    found.append(measure_cache(config, case, format_name=given.format))
                    say(line_of(found[-1]))
    except MiniCPMError as error:
        sys.exit(f"error: {error}")
    flags = {name: value for name, value in vars(given).items() if name != "output"}
    results = {"recipe": machine_facts() | flags, "cache_memory": [asdict(each) | {"excess": each.excess} for each in found]}
    with_suffix(given.output or result_stem("cache-memory"), ".json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
