"""Microbenchmarks of the native executor: memory bandwidth, and the product of each format: python -m benchmarks.kernels

A product is run as a model runs it: by a recorded program, on the thread team, with activations coded as they are there. One
row reads weights as decoding does, many rows compute as prefill does. So many copies of the matrix are multiplied in turn
that none is in a cache when its turn comes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.recipe import machine_facts, result_stem, say, with_suffix
from minicpm4 import _native
from minicpm4.deploy.bench import memory_bandwidth
from minicpm4.deploy.random_weights import random_weights, shape_config
from minicpm4.errors import MiniCPMError
from minicpm4.hardware import num_cores
from minicpm4.model import PackedTensor
from minicpm4.model.parameters import LAYER_ROLES, layer_parameter

FORMATS = ("q4_0", "q4_1", "q5_0", "q8_0", "q4_k", "q6_k", "f16", "bf16", "tq1_0", "tq2_0", "ternary_g32", "ternary_g64", "ternary_g128")
ROWS = (1, 2, 4, 8, 16, 512)
MATRICES = tuple(role for role in LAYER_ROLES if "norm" not in role)
CODE_TYPES = {"int8": np.int8, "int16": np.int16}
CONTEXT_TOKENS = 4096
UNUSED: dict[str, Any] = {"out": -1, "a": -1, "b": -1, "weight": -1, "vector": -1, "layer": -1, "factor": 0.0}


@dataclass(frozen=True)
class Product:
    """A matrix [rows_of_matrix, columns] times `batch` rows of activations. bytes: of the matrix as stored; seconds: of one
    product, the median of the repeats, all of which are in samples. Shares are None where the limit is unknown."""

    format: str
    batch: int
    threads: int
    shape: tuple[int, int]
    bytes: int
    seconds: float
    gigabytes_per_second: float
    bandwidth_share: float
    gigaops_per_second: float
    int8_peak_share: float | None
    samples: list[float]


@dataclass(frozen=True)
class Setup:
    """isa, activations: of the products. megabytes: how much all copies of a matrix take. int8_peak: Gop/s of one core."""

    isa: str
    activations: str
    megabytes: int
    repeats: int
    int8_peak: float | None


def measure_product(weight: PackedTensor, setup: Setup, *, batch: int, threads: int, bandwidth: float) -> Product:
    """bandwidth: bytes a second that so many threads read."""
    copies = max(2, setup.megabytes * 1_000_000 // weight.nbytes) if batch < 64 else 2
    run = product_program(weight, setup, batch=batch, threads=threads, copies=copies)
    run()
    samples = []
    for _ in range(setup.repeats):
        start = time.perf_counter()
        run()
        samples.append((time.perf_counter() - start) / copies)
    seconds = median(samples)
    byte_rate, operations = weight.nbytes / seconds, 2 * batch * weight.shape[0] * weight.shape[1]
    peak = setup.int8_peak and setup.int8_peak * threads
    return Product(
        format=weight.format.name,
        batch=batch,
        threads=threads,
        shape=(weight.shape[0], weight.shape[1]),
        bytes=weight.nbytes,
        seconds=seconds,
        gigabytes_per_second=byte_rate / 1e9,
        bandwidth_share=byte_rate / bandwidth,
        gigaops_per_second=operations / seconds / 1e9,
        int8_peak_share=operations / seconds / 1e9 / peak if peak else None,
        samples=samples,
    )


def product_program(weight: PackedTensor, setup: Setup, *, batch: int, threads: int, copies: int) -> Callable[[], None]:
    """Looks `batch` rows up, codes them, and multiplies them with each copy in a phase of its own."""
    num_rows, columns = weight.shape
    team, arena = _native.Team(threads), _native.Arena()
    program = _native.Program(
        setup.isa,
        team,
        max_rows=batch,
        code_bytes=np.dtype(CODE_TYPES[setup.activations]).itemsize,
        num_pages=1,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        kv_format="f32",
    )
    activations = np.random.default_rng(0).standard_normal((batch, columns), dtype=np.float32)
    table = program.add_weight(_native.pack("f32", batch, columns, activations.view(np.uint8).reshape(batch, -1), team, arena))
    factors = [program.add_weight(_native.pack(weight.format.name, num_rows, columns, weight.data, team, arena)) for _ in range(copies)]
    x, out = program.add_buffer(columns), program.add_buffer(num_rows)
    program.begin_phase(_native.PhaseKind.rows, False)
    program.add(_native.Op.embed, **UNUSED | {"out": x, "weight": table, "factor": 1.0})
    program.add(_native.Op.quantize, **UNUSED | {"a": x})
    for factor in factors:
        program.begin_phase(_native.PhaseKind.products, False)
        program.begin_job()
        program.add(_native.Op.multiply, **UNUSED | {"out": out, "a": x, "weight": factor})
    each, zeros, ends = np.arange(batch, dtype=np.int32), np.zeros(batch, np.int32), np.array([0, batch], np.int32)
    lengths, pages, wanted = np.ones(1, np.int32), np.zeros((1, 1), np.int32), np.zeros(1, np.int32)

    def run() -> None:
        program.run(each, zeros, zeros, ends, lengths, pages, wanted, max(batch, num_rows))

    return run


def matrix_of(shape: str, role: str, format_name: str) -> PackedTensor:
    """That matrix of a layer of the shape, with random weights."""
    return random_weights(shape_config(shape, context_length=CONTEXT_TOKENS), format_name, seed=0)[0](layer_parameter(0, role))


def table_of(products: Sequence[Product]) -> str:
    header = ["format", "threads", "rows", "us", "GB/s", "of bandwidth", "Gop/s", "of int8 peak"]
    lines = [header, ["---"] * len(header)]
    for p in products:
        peak = "-" if p.int8_peak_share is None else f"{100 * p.int8_peak_share:.0f} %"
        numbers = [f"{1e6 * p.seconds:.0f}", f"{p.gigabytes_per_second:.1f}", f"{100 * p.bandwidth_share:.0f} %"]
        lines.append([p.format, str(p.threads), str(p.batch), *numbers, f"{p.gigaops_per_second:.0f}", peak])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.5B", help="0.5B, 8B, or a config.json")
    parser.add_argument("--matrix", default="gate", choices=MATRICES)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), metavar="FORMAT")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), metavar="N", help="rows of activations")
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, num_cores()}), metavar="N")
    parser.add_argument("--isa", default=_native.usable_isas()[0], choices=_native.usable_isas())
    parser.add_argument("--activations", default="int8", choices=tuple(CODE_TYPES))
    parser.add_argument("--megabytes", type=int, default=256, help="that all copies of a matrix take; more than the caches")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--int8-peak", type=float, metavar="GOPS", help="int8 Gop/s of one core; no share without it")
    parser.add_argument("--output", type=Path, metavar="STEM", help="results/<date>-kernels unless given")
    return parser.parse_args(arguments)


def measure_all(given: argparse.Namespace, setup: Setup) -> tuple[dict[int, float], list[Product]]:
    """Bytes a second that each number of threads reads, and the products."""
    bandwidths, products = dict[int, float](), list[Product]()
    for threads in given.threads:
        bandwidths[threads] = memory_bandwidth(threads)
        for format_name in given.formats:
            say(f"{format_name}, {threads} thread(s), which read {bandwidths[threads] / 1e9:.1f} GB/s")
            weight = matrix_of(given.shape, given.matrix, format_name)
            for batch in given.rows:
                products.append(measure_product(weight, setup, batch=batch, threads=threads, bandwidth=bandwidths[threads]))
    return bandwidths, products


def main() -> None:
    given = parse()
    setup = Setup(given.isa, given.activations, given.megabytes, given.repeats, given.int8_peak)
    try:
        bandwidths, products = measure_all(given, setup)
    except MiniCPMError as error:
        sys.exit(f"error: {error}")
    stem = given.output or result_stem("kernels")
    facts = machine_facts() | {"shape": given.shape, "matrix": given.matrix, "bytes_per_second": bandwidths, **asdict(setup)}
    result = {"recipe": facts, "products": [asdict(product) for product in products]}
    with_suffix(stem, ".json").write_text(json.dumps(result, indent=1) + "\n")
    read = ", ".join(f"{threads} threads read {rate / 1e9:.1f} GB/s" for threads, rate in bandwidths.items())
    where = f"{facts['date']}, {facts['machine']}, commit {facts['commit']}"
    heading = f"{given.shape} {given.matrix}, {given.isa}, {given.activations}; {where}; {read}"
    with_suffix(stem, ".md").write_text(f"{heading}\n\n{table_of(products)}")
    print(table_of(products))


if __name__ == "__main__":
    main()
