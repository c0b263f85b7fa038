"""The bench measures what it says: which steps it runs, what it reports, and that every option counts."""

import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4 import _native
from minicpm4.deploy import BenchOptions, BenchResult, Subject, random_subject, run_bench
from minicpm4.deploy import bench as bench_module
from minicpm4.engine import LoadOptions
from minicpm4.errors import CapacityError, ConfigError, UnsupportedError
from minicpm4.executors import StepResult
from minicpm4.hardware import Choice
from minicpm4.model import Step
from minicpm4.model.config import SparseConfig
from tests.checkpoint.checkpoint_files import TINY_JSON

PROMISED_FIELDS = {
    "model", "executor", "isa", "threads", "format", "context", "prompt_tokens", "new_tokens", "prefill_tokens_per_second",
    "decode_tokens_per_second", "weight_bytes_per_token", "read_gb_per_second", "bandwidth_share", "peak_memory_mb", "load_seconds",
}  # fmt: skip
QUICK = BenchOptions(prefill=20, decode=3, repeats=2)


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY_JSON))
    return random_subject(str(path), "q4_0", context_length=256, seed=0)


@pytest.fixture(autouse=True)
def quick_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """One test measures the memory; the others need not wait for it."""
    monkeypatch.setattr(bench_module, "memory_bandwidth", lambda threads: 1e9 * threads)


class Watched:
    """Stands for an executor and remembers what it was asked to do."""

    choices = (Choice("isa", "abacus", "it was at hand"),)
    weight_bytes = 1000
    prompt_numerics = 0

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.filled: list[tuple[list[int], int]] = []
        self.is_closed = False
        self.fails = False

    def run(self, step: Step) -> StepResult:
        if self.fails:
            raise RuntimeError("out of beads")
        self.steps.append(step)
        return StepResult(np.zeros((len(step.logit_rows_R), 1), np.float32))

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        self.filled.append((pages.tolist(), seed))

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    executor = Watched()
    monkeypatch.setattr(bench_module, "create_executor", lambda *_, **__: executor)
    return executor


@pytest.mark.parametrize("executor", ["native", "torch"])
def test_a_report_has_every_field_and_the_numbers_belong_together(subject: Subject, executor: str) -> None:
    result = run_bench(subject, LoadOptions(executor=executor, threads=2), QUICK)
    values = json.loads(result.as_json())
    assert values.keys() >= PROMISED_FIELDS
    assert values["executor"] == executor
    assert values["model"].endswith("config.json q4_0")
    assert values["format"] == "q4_0+q8_0"  # the head of a row of 32 has no q6_k
    assert (values["threads"], values["context"], values["prompt_tokens"], values["new_tokens"]) == (2, 0, 20, 3)
    raw = values["raw"]
    assert len(raw["prefill_seconds"]) == len(raw["decode_seconds_per_token"]) == 2
    assert values["prefill_tokens_per_second"] == pytest.approx(20 / np.mean(raw["prefill_seconds"]))
    assert values["decode_tokens_per_second"] == pytest.approx(1 / np.mean(raw["decode_seconds_per_token"]))
    read = values["decode_tokens_per_second"] * (values["weight_bytes_per_token"] + values["kv_bytes_per_token"]) / 1e9
    assert values["read_gb_per_second"] == pytest.approx(read)
    assert values["bandwidth_share"] == pytest.approx(read / values["memory_gb_per_second"])
    assert values["peak_memory_mb"] > 10
    assert values["load_seconds"] > 0


def test_a_report_says_how_to_run_it_again(subject: Subject) -> None:
    load = LoadOptions(executor="torch", threads=1, kv_format="f32", context_length=100)
    recipe = json.loads(run_bench(subject, load, BenchOptions(prefill=4, decode=2, context=7, repeats=1, seed=9)).as_json())["recipe"]
    assert recipe.keys() >= {"machine", "system", "python", "numpy", "minicpm4", "torch", "commit"}
    flags = {"prefill": 4, "decode": 2, "context": 7, "repeats": 1, "seed": 9, "threads": 1, "kv_format": "f32", "context_length": 100}
    assert recipe["flags"].items() >= flags.items()
    assert (recipe["executor"], recipe["isa"]) == ("torch", platform.machine())
    assert recipe["command"].startswith("minicpm4 bench --random ")
    for words in ("--format q4_0", "--executor torch", "--ctx-size 100", "--threads 1", "--kv-format f32", "--prefill 4", "--seed 9"):
        assert words in recipe["command"]
    assert "--isa generic" in str(run_bench(subject, LoadOptions(isa="generic"), QUICK).recipe["command"])


def test_on_another_device_the_memory_here_says_nothing(subject: Subject, watched: Watched) -> None:
    result = run_bench(subject, LoadOptions(executor="torch", device="cuda"), QUICK)
    assert result.memory_gb_per_second is result.bandwidth_share is None
    assert result.read_gb_per_second
    assert (result.device, result.cards) == ("cuda", 1)


def test_a_cpu_is_no_card(subject: Subject, watched: Watched) -> None:
    result = run_bench(subject, LoadOptions(), QUICK)
    assert (result.device, result.cards) == ("cpu", 0)


def test_the_steps_of_a_run(subject: Subject, watched: Watched) -> None:
    """A short step first; then each prompt from an empty cache, in chunks; then each run of decoding at the same depth."""
    seen: list[str] = []
    result = run_bench(subject, LoadOptions(), BenchOptions(prefill=130, decode=3, context=100, repeats=2, seed=4), progress=seen.append)
    chunk = max(len(step.tokens_T) for step in watched.steps)
    starts = [(int(step.positions_T[0]), len(step.tokens_T)) for step in watched.steps]
    prompt = [(first, min(chunk, 130 - first)) for first in range(0, 130, chunk)]
    assert starts == [(0, 1), *prompt * 2, *[(100, 1), (101, 1), (102, 1)] * 2]
    assert watched.filled == [([0, 1], 4)]
    assert watched.is_closed
    assert result.isa == "abacus"
    assert result.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2 * (100 + 1)  # keys and values, layers, heads, dimensions, bytes, tokens
    assert "prefill 2/2: 0 of 130 tokens" in seen
    assert seen[-2:] == ["decode 2/2", "measuring the memory"]


@pytest.mark.parametrize(("changes", "is_seen"), [
    ({"prefill": 0}, lambda result: result.prefill_tokens_per_second is None and not result.raw["prefill_seconds"]),
    ({"decode": 0}, lambda result: result.decode_tokens_per_second is result.read_gb_per_second is result.bandwidth_share is None),
    ({"repeats": 5}, lambda result: len(result.raw["prefill_seconds"]) == 5),
])  # fmt: skip
def test_parts_may_be_left_out_or_repeated(
    subject: Subject, watched: Watched, changes: dict[str, int], is_seen: Callable[[BenchResult], bool]
) -> None:
    assert is_seen(run_bench(subject, LoadOptions(), BenchOptions(**{"prefill": 20, "decode": 3, "repeats": 2} | changes)))


def test_the_seed_makes_the_tokens(subject: Subject, watched: Watched) -> None:
    for seed in (0, 0, 1):
        run_bench(subject, LoadOptions(), BenchOptions(prefill=20, decode=0, repeats=1, seed=seed))
    tokens = [step.tokens_T.tolist() for step in watched.steps if len(step.tokens_T) == 20]
    assert tokens[0] == tokens[1] != tokens[2]


def test_options_of_the_executor_reach_it(subject: Subject) -> None:
    load = LoadOptions(threads=1, isa="generic", activations="f32", kv_format="f32")
    result = run_bench(subject, load, QUICK)
    assert (result.isa, result.activations, result.kv_format, result.threads) == ("generic", "f32", "f32", 1)
    default = run_bench(subject, LoadOptions(threads=1), QUICK)
    assert (default.isa, default.activations, default.kv_format) == (_native.usable_isas()[0], "int16", "f16")
    assert result.kv_bytes_per_token == 2 * default.kv_bytes_per_token
    with pytest.raises(UnsupportedError, match="executor torch has no activations to set to int8"):
        run_bench(subject, LoadOptions(executor="torch", activations="int8"), QUICK)


def test_an_executor_that_fails_is_closed(subject: Subject, watched: Watched) -> None:
    watched.fails = True
    with pytest.raises(RuntimeError, match="out of beads"):
        run_bench(subject, LoadOptions(), QUICK)
    assert watched.is_closed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill": -1}, "prefill is -1, expected 0 or more; correct --prefill"),
        ({"context": -5}, "context is -5, expected 0 or more; correct --context"),
        ({"prefill": 0, "decode": 0}, "there is nothing to measure; give --prefill or --decode, and --repeats of at least 1"),
        ({"repeats": 0}, "there is nothing to measure"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BenchOptions(**options)


def test_more_than_the_context_is_refused(subject: Subject) -> None:
    with pytest.raises(CapacityError, match="the run needs 257 tokens of context, there are 256; raise -c, or lower"):
        run_bench(subject, LoadOptions(), BenchOptions(prefill=257))
    with pytest.raises(CapacityError, match="the run needs 103 tokens of context, there are 100"):
        run_bench(subject, LoadOptions(context_length=100), BenchOptions(prefill=1, decode=3, context=100))


def test_the_memory_is_read_at_a_plausible_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 1e8 < (bench_module.memory_bandwidth(1) or 0) < 1e13


def test_packed_weights_are_kept_of_models_alone(subject: Subject) -> None:
    with pytest.raises(ConfigError, match="packed weights are kept of models, not of random weights; leave out --tile-cache"):
        run_bench(subject, LoadOptions(tile_cache=True), QUICK)


def test_a_report_with_packed_weights_that_are_kept(subject: Subject, tmp_path: Path) -> None:
    """It is JSON, without the file's place."""
    kept = replace(subject, tile_cache=tmp_path / "tiles.bin")
    values = json.loads(run_bench(kept, LoadOptions(tile_cache=True, threads=1), QUICK).as_json())
    assert "tiles.bin" not in json.dumps(values)
    assert (tmp_path / "tiles.bin").exists()


SPARSE = LoadOptions(executor="torch", threads=1, sparse=True, sparse_topk=2, sparse_window=64, dense_len=100)


def test_sparse_decoding_reads_what_it_attends_to_and_its_compressed_keys(subject: Subject) -> None:
    result = run_bench(subject, SPARSE, BenchOptions(prefill=0, decode=3, context=230, repeats=1))
    assert (result.blocks_selected, result.blocks_total) == (3, 4)  # the tokens at positions 230 to 232; bytes are the first one's
    assert result.attended_share == pytest.approx(3 * (64 + 64 + 40) / (231 + 232 + 233))
    assert result.kv_bytes_per_token == 2 * 2 * 2 * 8 * 2 * (64 + 64 + 39) + 2 * 2 * 8 * 4 * 4 * 3  # three pages of four kernels
    command = str(result.recipe["command"])
    assert command.endswith("--sparse --sparse-topk 2 --sparse-window 64 --dense-len 100 --exact-lse")
    prompt = run_bench(subject, SPARSE, BenchOptions(prefill=250, decode=0, repeats=1))
    assert prompt.blocks_selected == pytest.approx((64 * 1 + 64 * 2 + 122 * 3) / 250)
    assert prompt.blocks_total == pytest.approx((64 * 1 + 64 * 2 + 64 * 3 + 58 * 4) / 250)


def test_dense_runs_say_so(subject: Subject) -> None:
    result = run_bench(subject, LoadOptions(threads=1), BenchOptions(prefill=0, decode=3, context=230, repeats=1))
    assert (result.blocks_selected, result.blocks_total, result.attended_share) == (4, 4, 1.0)
    assert ("--no-sparse" in str(result.recipe["command"])) == (subject.config.sparse is not None)
    assert bench_module.sparse_flags(None, SparseConfig()) == ("--no-sparse",)
    assert bench_module.sparse_flags(None, None) == ()
