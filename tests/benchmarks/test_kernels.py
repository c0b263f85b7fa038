"""Microbenchmarks: what is computed, that the numbers belong together, and that peaks are of the right order."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.attention import AttentionCase, measure_attention
from benchmarks.kernels import Setup, attention_table, matrix_of, measure_product, parse, product_table
from benchmarks.peaks import Peaks, measure_peaks, peaks_text
from minicpm4 import _native
from minicpm4.deploy.random_weights import shape_config
from tests.checkpoint.checkpoint_files import TINY_JSON

SETUP = Setup(isa=_native.usable_isas()[0], activations="int8", megabytes=0, repeats=3)
PEAKS = Peaks(threads=2, bytes_per_second=1e9, int8=200.0, bf16=None, f32=50.0)


@pytest.fixture
def shape(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(TINY_JSON))
    return str(tmp_path / "config.json")


@pytest.mark.parametrize(("format_name", "peak"), [("q4_0", 200), ("q8_0", 200), ("f16", 50)])
def test_numbers_belong_together(shape: str, format_name: str, peak: float) -> None:
    weight = matrix_of(shape, "down", format_name)
    assert weight.shape == (32, 64)
    product = measure_product(weight, SETUP, batch=3, peaks=PEAKS)
    assert (product.format, product.batch, product.bytes, len(product.samples)) == (format_name, 3, weight.nbytes, 3)
    assert product.gigabytes_per_second * 1e9 * product.seconds == pytest.approx(weight.nbytes)
    assert product.bandwidth_share == pytest.approx(product.gigabytes_per_second)
    assert product.gigaops_per_second * 1e9 * product.seconds == pytest.approx(2 * 3 * 32 * 64)
    assert product.peak_share == pytest.approx(product.gigaops_per_second / peak)


def test_a_table_has_a_row_for_each(shape: str) -> None:
    weight = matrix_of(shape, "q", "q8_0")
    products = [measure_product(weight, SETUP, batch=batch, peaks=replace(PEAKS, threads=1)) for batch in (1, 64)]
    lines = product_table(products).splitlines()
    assert len(lines) == 4
    assert [line.split(" | ")[:3] for line in lines[2:]] == [["| q8_0", "1", "1"], ["| q8_0", "1", "64"]]


@pytest.mark.parametrize("kv_format", ["f16", "int8"])
@pytest.mark.parametrize(("context", "rows"), [(7, 7), (1100, 1)])
def test_attention_is_counted_by_what_it_sees(shape: str, kv_format: str, context: int, rows: int) -> None:
    config = shape_config(shape, context_length=context)
    case = AttentionCase(kv_format, context, rows, threads=2, megabytes=0)
    result = measure_attention(config, case, isa=SETUP.isa, repeats=3, peaks=PEAKS)
    element = {"f16": 2, "int8": 1 + 4 / config.head_dim}[kv_format]
    assert result.bytes == 2 * config.num_kv_heads * config.head_dim * element * context
    seen = sum(range(context - rows + 1, context + 1))
    assert result.gigaops_per_second * 1e9 * result.seconds == pytest.approx(4 * seen * config.num_heads * config.head_dim)
    assert result.f32_peak_share == pytest.approx(result.gigaops_per_second / 50)
    assert len(attention_table([result]).splitlines()) == 3


@pytest.mark.parametrize("isa", _native.usable_isas())
def test_peaks_are_measured(isa: str) -> None:
    peaks = measure_peaks(1, isa=isa)
    assert peaks.bytes_per_second > 1e8
    assert peaks.int8 > 0.1
    assert peaks.f32 > 0.1
    assert peaks.bf16 is None or peaks.bf16 > peaks.f32 / 8
    assert peaks_text(replace(peaks, bf16=None)).startswith("1 thread: ")
    assert "none bf16" in peaks_text(replace(peaks, bf16=None))


def test_a_peak_is_of_a_number_that_there_is() -> None:
    with pytest.raises(ValueError, match="a peak is of int8, f32 or bf16"):
        _native.peak_rate(_native.usable_isas()[0], "int3", _native.ThreadPool(1), 1)


def test_defaults_are_what_this_machine_has() -> None:
    given = parse([])
    assert given.isa == _native.usable_isas()[0]
    assert 1 in given.threads
