"""Microbenchmarks of the native executor: the machine's peaks, the product of each format, attention: python -m benchmarks.kernels

A product is run as a model runs it: by a recorded program, on the thread pool, with activations coded as they are there. One
row reads weights as decoding does, many rows compute as prefill does. So many copies of the matrix are multiplied in turn
that none is in a cache when its turn comes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.attention import Attention, AttentionCase, measure_attention
from benchmarks.peaks import Peaks, measure_peaks, peaks_text
from benchmarks.recipe import machine_facts, result_stem, say, with_suffix
from benchmarks.timing import UNUSED, samples_of, table_of
from minicpm4 import _native
from minicpm4.deploy.random_weights import random_weights, shape_config
from minicpm4.errors import MiniCPMError
from minicpm4.hardware import num_cores
from minicpm4.model import PackedTensor, pages_for
from minicpm4.model.parameters import LAYER_ROLES, layer_parameter
from minicpm4.model.step import single_step
from minicpm4.quant.activations import meets_bf16

FORMATS = (
    "q4_0",
    "q4_1",
    "q5_0",
    "q8_0",
    "q4_k",
    "q6_k",
    "f16",
    "bf16",
    "tq1_0",
    "tq2_0",
    "q2_0",
    "q2_0_g128",
    "ternary_g32",
    "ternary_g64",
    "ternary_g128",
)
ROWS = (1, 2, 4, 8, 16, 512)
MATRICES = tuple(role for role in LAYER_ROLES if "norm" not in role)
ACTIVATIONS = ("int8", "int16", "bf16")  # bf16: as prompts have it, where the instruction set has such products
CONTEXT_TOKENS = 4096
KV_FORMATS = ("f16", "bf16", "int8")
CONTEXTS = (512, 4096, 16384)
QUERY_ROWS = (1, 64)


@dataclass(frozen=True)
class Product:
    """A matrix [rows_of_matrix, columns] times `batch` rows of activations. bytes: of the matrix as stored; seconds: of one
    product, the median of the repeats, all of which are in samples. peak: of the numbers that are multiplied, int8, bf16 or f32."""

    format: str
    batch: int
    threads: int
    shape: tuple[int, int]
    bytes: int
    seconds: float
    gigabytes_per_second: float
    bandwidth_share: float
    gigaops_per_second: float
    peak: str
    peak_share: float
    samples: list[float]


@dataclass(frozen=True)
class Setup:
    """isa, activations: of the products. megabytes: how much all copies of what is read take."""

    isa: str
    activations: str
    megabytes: int
    repeats: int


def measure_product(weight: PackedTensor, setup: Setup, *, batch: int, peaks: Peaks) -> Product:
    """peaks: of as many threads as compute."""
    copies = max(2, setup.megabytes * 1_000_000 // weight.nbytes) if batch < 64 else 2
    run = product_program(weight, setup, batch=batch, threads=peaks.threads, copies=copies)
    samples = samples_of(run, copies=copies, repeats=setup.repeats)
    seconds = median(samples)
    byte_rate, operations = weight.nbytes / seconds, 2 * batch * weight.shape[0] * weight.shape[1]
    in_bf16 = setup.activations == "bf16" and meets_bf16(weight.format, weight.shape[1])
    peak = "bf16" if in_bf16 else "f32" if weight.format.is_dense else "int8"
    peak_rate = {"f32": peaks.f32, "bf16": peaks.bf16, "int8": peaks.int8}[peak]
    assert peak_rate, f"there is no unit for {peak}"
    return Product(
        format=weight.format.name,
        batch=batch,
        threads=peaks.threads,
        shape=(weight.shape[0], weight.shape[1]),
        bytes=weight.nbytes,
        seconds=seconds,
        gigabytes_per_second=byte_rate / 1e9,
        bandwidth_share=byte_rate / peaks.bytes_per_second,
        gigaops_per_second=operations / seconds / 1e9,
        peak=peak,
        peak_share=operations / seconds / 1e9 / peak_rate,
        samples=samples,
    )


def product_program(weight: PackedTensor, setup: Setup, *, batch: int, threads: int, copies: int) -> Callable[[], None]:
    """Looks `batch` rows up, codes them, and multiplies them with each copy in a phase of its own."""
    num_rows, columns = weight.shape
    pool, arena = _native.ThreadPool(threads), _native.Arena()
    program = _native.Program(
        setup.isa,
        pool,
        max_rows=batch,
        code_bytes={"int8": 1, "int16": 2, "bf16": 0}[setup.activations],
        has_bf16_prompts=setup.activations == "bf16",
        num_pages=pages_for(batch),
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=2,
        kv_format="f32",
        sparse=None,
    )
    activations = np.random.default_rng(0).standard_normal((batch, columns), dtype=np.float32)
    table = program.add_weight(_native.pack("f32", batch, columns, activations.view(np.uint8).reshape(batch, -1), pool, arena))
    factors = [program.add_weight(_native.pack(weight.format.name, num_rows, columns, weight.data, pool, arena)) for _ in range(copies)]
    x, out = program.add_buffer(columns), program.add_buffer(num_rows)
    program.begin_phase(_native.PhaseKind.rows, False)
    program.add(_native.Op.embed, **UNUSED | {"out": x, "weight": table, "factor": 1.0})
    program.add(_native.Op.quantize, **UNUSED | {"a": x})
    for factor in factors:
        program.begin_phase(_native.PhaseKind.products, False)
        program.begin_job()
        program.add(_native.Op.linear, **UNUSED | {"out": out, "a": x, "weight": factor})
    s = single_step(np.arange(batch, dtype=np.int32), numerics=int(setup.activations == "bf16"))

    def run() -> None:
        program.run(s.tokens_T, s.starts_S1, s.lengths_S, s.pages_SP, s.logit_rows_R, s.numerics_S, s.adapters_S)

    return run


def matrix_of(shape: str, role: str, format_name: str) -> PackedTensor:
    """That matrix of a layer of the shape, with random weights."""
    return random_weights(shape_config(shape, context_length=CONTEXT_TOKENS), format_name, seed=0)[0](layer_parameter(0, role))


def product_table(products: Sequence[Product]) -> str:
    header = ["format", "threads", "rows", "us", "MB", "GB/s", "of bandwidth", "Gop/s", "of peak"]
    return table_of(
        header, [[p.format, str(p.threads), str(p.batch), *number_cells(p), f"{100 * p.peak_share:.0f} % {p.peak}"] for p in products]
    )


def attention_table(results: Sequence[Attention]) -> str:
    header = ["cache", "context", "threads", "rows", "us", "MB", "GB/s", "of bandwidth", "Gop/s", "of peak"]
    cells = (
        [r.kv_format, str(r.context), str(r.threads), str(r.rows), *number_cells(r), f"{100 * r.f32_peak_share:.0f} % f32"] for r in results
    )
    return table_of(header, list(cells))


def number_cells(result: Product | Attention) -> list[str]:
    return [
        f"{1e6 * result.seconds:.0f}",
        f"{result.bytes / 1e6:.2f}",
        f"{result.gigabytes_per_second:.1f}",
        f"{100 * result.bandwidth_share:.0f} %",
        f"{result.gigaops_per_second:.0f}",
    ]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="0.5B", help="0.5B, 8B, or a config.json")
    parser.add_argument("--matrix", default="gate", choices=MATRICES)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), metavar="FORMAT")
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS), metavar="N", help="rows of activations")
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, num_cores()}), metavar="N")
    parser.add_argument("--isa", default=_native.usable_isas()[0], choices=_native.usable_isas())
    parser.add_argument("--activations", default="int8", choices=ACTIVATIONS)
    parser.add_argument("--kv-formats", nargs="*", default=list(KV_FORMATS), choices=(*KV_FORMATS, "f32"), help="of attention's cache")
    parser.add_argument("--contexts", nargs="*", type=int, default=list(CONTEXTS), metavar="N", help="tokens that attention sees")
    parser.add_argument("--megabytes", type=int, default=256, help="that all copies of a matrix or cache take; more than the caches")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, metavar="STEM", help="results/<date>-kernels unless given")
    return parser.parse_args(arguments)


def measure_products(given: argparse.Namespace, setup: Setup, peaks: Peaks) -> list[Product]:
    products = list[Product]()
    for format_name in given.formats:
        say(f"{format_name}, {peaks.threads} thread(s)")
        weight = matrix_of(given.shape, given.matrix, format_name)
        products += [measure_product(weight, setup, batch=batch, peaks=peaks) for batch in given.rows]
    return products


def measure_attentions(given: argparse.Namespace, setup: Setup, peaks: Peaks) -> list[Attention]:
    config = shape_config(given.shape, context_length=CONTEXT_TOKENS)
    results = list[Attention]()
    for kv_format in given.kv_formats:
        say(f"attention, {kv_format}, {peaks.threads} thread(s)")
        case = AttentionCase(kv_format, 0, 0, peaks.threads, setup.megabytes)
        for context in given.contexts:
            cases = (replace(case, context=context, rows=rows) for rows in QUERY_ROWS if rows <= context)
            results += [measure_attention(config, each, isa=setup.isa, repeats=setup.repeats, peaks=peaks) for each in cases]
    return results


def main() -> None:
    given = parse()
    if given.activations == "bf16" and not _native.has_bf16_matrices(given.isa):
        sys.exit(
            f"error: {given.isa} has no products in bfloat16; choose other --activations, or an --isa of {_native.usable_isas()} that has"
        )
    setup = Setup(given.isa, given.activations, given.megabytes, given.repeats)
    peaks, products, attentions = list[Peaks](), list[Product](), list[Attention]()
    try:
        for threads in given.threads:
            peaks.append(measure_peaks(threads, isa=given.isa))
            say(peaks_text(peaks[-1]))
            products += measure_products(given, setup, peaks[-1])
            attentions += measure_attentions(given, setup, peaks[-1])
    except MiniCPMError as error:
        sys.exit(f"error: {error}")
    facts = machine_facts() | {"shape": given.shape, "matrix": given.matrix, **asdict(setup)}
    results = {"peaks": peaks, "products": products, "attention": attentions}
    stem = given.output or result_stem("kernels")
    as_json = {name: [asdict(each) for each in found] for name, found in results.items()}  # type: ignore[attr-defined]
    with_suffix(stem, ".json").write_text(json.dumps({"recipe": facts, **as_json}, indent=1) + "\n")
    heading = (
        f"{given.shape} {given.matrix}, {given.isa}, {given.activations}; {facts['date']}, {facts['machine']}, commit {facts['commit']}"
    )
    limits = "".join(f"- {peaks_text(each)}\n" for each in peaks)
    text = f"{heading}\n\n{limits}\n{product_table(products)}\n{attention_table(attentions)}"
    with_suffix(stem, ".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
