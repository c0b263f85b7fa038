"""Microbenchmarks of products: what is multiplied, and that the numbers belong together."""

import json
from pathlib import Path

import pytest

from benchmarks.kernels import Setup, matrix_of, measure_product, parse, table_of
from minicpm4 import _native
from tests.checkpoint.checkpoint_files import TINY_JSON

SETUP = Setup(isa=_native.usable_isas()[0], activations="int8", megabytes=0, repeats=3, int8_peak=100.0)


@pytest.fixture
def shape(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(TINY_JSON))
    return str(tmp_path / "config.json")


@pytest.mark.parametrize("format_name", ["q4_0", "q8_0", "f16"])
def test_numbers_belong_together(shape: str, format_name: str) -> None:
    weight = matrix_of(shape, "down", format_name)
    assert weight.shape == (32, 64)
    product = measure_product(weight, SETUP, batch=3, threads=2, bandwidth=1e9)
    assert (product.format, product.batch, product.bytes, len(product.samples)) == (format_name, 3, weight.nbytes, 3)
    assert product.gigabytes_per_second * 1e9 * product.seconds == pytest.approx(weight.nbytes)
    assert product.bandwidth_share == pytest.approx(product.gigabytes_per_second)
    assert product.gigaops_per_second * 1e9 * product.seconds == pytest.approx(2 * 3 * 32 * 64)
    assert product.int8_peak_share == pytest.approx(product.gigaops_per_second / 200)


def test_a_table_has_a_row_for_each(shape: str) -> None:
    weight = matrix_of(shape, "q", "q8_0")
    products = [measure_product(weight, SETUP, batch=batch, threads=1, bandwidth=1e9) for batch in (1, 64)]
    lines = table_of(products).splitlines()
    assert len(lines) == 4
    assert [line.split(" | ")[:3] for line in lines[2:]] == [["| q8_0", "1", "1"], ["| q8_0", "1", "64"]]


def test_defaults_are_what_this_machine_has() -> None:
    given = parse([])
    assert given.isa == _native.usable_isas()[0]
    assert 1 in given.threads
