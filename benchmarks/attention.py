"""Microbenchmark of the native executor's attention: one layer of a shape, over pages of random keys and values.

One row reads the cache as decoding does; many rows at the end of a context compute as a chunk of a prompt does. So many layers are
attended to in turn that none is in a cache when its turn comes. Run by `benchmarks.kernels`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from benchmarks.peaks import Peaks
from benchmarks.timing import UNUSED, samples_of
from minicpm4 import _native
from minicpm4.executors import kv_bytes_per_token
from minicpm4.model import ModelConfig, pages_for
from minicpm4.model.step import single_step

MANY_ROWS = 64  # from here on a single layer has work enough


@dataclass(frozen=True)
class AttentionCase:
    """rows: the last of `context` tokens. megabytes: how much the keys and values of all layers take."""

    kv_format: str
    context: int
    rows: int
    threads: int
    megabytes: int


@dataclass(frozen=True)
class Attention:
    """bytes: keys and values of one layer up to the context; seconds: of one layer, the median of the samples. Operations are two
    products of every query with what it sees. The peak is float32's."""

    kv_format: str
    context: int
    rows: int
    threads: int
    bytes: int
    seconds: float
    gigabytes_per_second: float
    bandwidth_share: float
    gigaops_per_second: float
    f32_peak_share: float
    samples: list[float]


def measure_attention(config: ModelConfig, case: AttentionCase, *, isa: str, repeats: int, peaks: Peaks) -> Attention:
    layer_bytes = kv_bytes_per_token(config, case.kv_format) // config.num_layers * case.context
    layers = max(2, case.megabytes * 1_000_000 // layer_bytes) if case.rows < MANY_ROWS else 2
    samples = samples_of(attention_program(config, case, isa=isa, layers=layers), copies=layers, repeats=repeats)
    seconds = median(samples)
    seen = case.rows * case.context - case.rows * (case.rows - 1) // 2
    operations = 4 * seen * config.num_heads * config.head_dim
    return Attention(
        kv_format=case.kv_format,
        context=case.context,
        rows=case.rows,
        threads=case.threads,
        bytes=layer_bytes,
        seconds=seconds,
        gigabytes_per_second=layer_bytes / seconds / 1e9,
        bandwidth_share=layer_bytes / seconds / peaks.bytes_per_second,
        gigaops_per_second=operations / seconds / 1e9,
        f32_peak_share=operations / seconds / 1e9 / peaks.f32,
        samples=samples,
    )


def attention_program(config: ModelConfig, case: AttentionCase, *, isa: str, layers: int) -> Callable[[], None]:
    """Looks the queries up, and attends with them to each layer in phases of its own."""
    pool, arena, width = _native.ThreadPool(case.threads), _native.Arena(), config.num_heads * config.head_dim
    num_pages = pages_for(case.context)
    program = _native.Program(
        isa,
        pool,
        max_rows=case.rows,
        code_bytes=1,
        has_bf16_prompts=False,
        num_pages=num_pages,
        num_layers=layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        kv_format=case.kv_format,
        sparse=None,
    )
    queries = np.random.default_rng(0).standard_normal((case.rows, width), dtype=np.float32)
    table = program.add_weight(_native.pack("f32", case.rows, width, queries.view(np.uint8).reshape(case.rows, -1), pool, arena))
    x, out = program.add_buffer(width), program.add_buffer(width)
    program.begin_phase(_native.PhaseKind.rows, False)
    program.add(_native.Op.embed, **UNUSED | {"out": x, "weight": table, "factor": 1.0})
    for layer in range(layers):
        program.begin_phase(_native.PhaseKind.tasks, False)
        program.add(_native.Op.attend, **UNUSED | {"out": out, "a": x, "layer": layer})
        program.begin_phase(_native.PhaseKind.rows, False)
        program.add(_native.Op.merge, **UNUSED | {"out": out, "a": out, "layer": layer})
    program.randomize(np.arange(num_pages, dtype=np.int32), 0)
    s = single_step(np.arange(case.rows, dtype=np.int32), start=case.context - case.rows)
    return lambda: program.run(s.tokens_T, s.starts_S1, s.lengths_S, s.pages_SP, s.logit_rows_R, s.numerics_S, s.adapters_S)
