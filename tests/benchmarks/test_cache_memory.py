"""A full cache takes the memory that was planned for it: every page written, all formats, with compressed keys and without."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import cache_memory
from benchmarks.cache_memory import CacheCase, CacheMemory, line_of, measure_cache
from minicpm4.model.config import SparseConfig
from tests.toy import toy_config

MEGABYTE = 1 << 20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="resident sizes are asked of Linux")


@pytest.mark.parametrize("sparse", [None, SparseConfig(dense_len=0)], ids=["dense", "sparse"])
@pytest.mark.parametrize("kv_format", ["f16", "int8"])
def test_what_is_touched_is_what_was_planned(kv_format: str, sparse: SparseConfig | None) -> None:
    config = toy_config(num_layers=4, num_heads=4, num_kv_heads=4, head_dim=64, context_length=32768)
    memory = measure_cache(config, CacheCase(kv_format, 32768, sparse, rows=16, threads=1), format_name="f32")
    assert memory.planned == memory.allocated > 60 * MEGABYTE
    assert memory.touched == pytest.approx(memory.planned, rel=0.03, abs=2 * MEGABYTE)  # two ends on huge pages
    assert memory.of_step < 4 * MEGABYTE


def test_a_run_writes_its_recipe_and_every_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(context_length=256)
    monkeypatch.setattr(cache_memory, "shape_config", lambda shape, context_length: config)
    monkeypatch.setattr(
        "sys.argv",
        ["cache_memory", "--tokens", "256", "--kv-formats", "f16", "--rows", "4", "--format", "f32", "--output", str(tmp_path / "run")],
    )
    cache_memory.main()
    result = json.loads((tmp_path / "run.json").read_text())
    assert [(case["kv_format"], case["tokens"], case["is_sparse"]) for case in result["cache_memory"]] == [
        ("f16", 256, False),
        ("f16", 256, True),
    ]
    assert result["recipe"]["rows"] == 4
    assert "f16, sparse, 256 tokens: planned" in capsys.readouterr().err


def test_the_line_of_a_case() -> None:
    line = line_of(CacheMemory("int8", 64, False, planned=100_000_000, allocated=100_000_000, touched=101_000_000, of_step=200_000))
    assert line == "int8, dense, 64 tokens: planned 100.0 MB, allocated 100.0 MB, touched 101.0 MB (+1.00 %), a step at the end adds 0.2 MB"
