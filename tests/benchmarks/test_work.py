"""What engines are asked to do, in which order; and that our own does it on several streams as on one."""

import json
from pathlib import Path

import pytest

from benchmarks.engines import work as work_module
from benchmarks.engines.minicpm4 import MiniCPM4, stream_step
from benchmarks.engines.work import CannotDo, Measured, Work, arguments_of, convert_once, measure_steps, run_program, work_from_arguments
from benchmarks.write_model import write_model
from minicpm4.model.step import single_step
from tests.checkpoint.checkpoint_files import TINY_JSON


class Watched:
    """An engine that remembers what it was asked to do."""

    version, vocab_size = "1", 10

    def __init__(self, work: Work) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.details: dict[str, object] = {"calls": self.calls}

    def rewind(self, depth: int) -> None:
        self.calls.append(("rewind", depth))

    def prefill(self, tokens: list[int], position: int) -> None:
        self.calls.append(("prefill", len(tokens), position))

    def fill(self, depth: int) -> None:
        self.calls.append(("fill", depth))

    def decode(self, tokens: list[int], position: int) -> None:
        self.calls.append(("decode", len(tokens), position))


def make_folder(source: str, target: str) -> None:
    """Stands for a conversion; runs in another process."""
    Path(target).mkdir()
    (Path(target) / Path(source).read_text()).touch()


def test_a_model_is_converted_once(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("converted")
    work = Work(model=str(tmp_path / "model.gguf"), states=str(tmp_path))
    folder = convert_once(work, make_folder, suffix="toy")
    assert folder == tmp_path / "model-9.toy"
    assert [path.name for path in folder.iterdir()] == ["converted"]
    assert convert_once(work, make_folder, suffix="toy") == folder
    (tmp_path / "model.gguf").write_text("a/b")
    with pytest.raises(RuntimeError, match=r"model\.gguf could not be converted; what went wrong is above"):
        convert_once(work, make_folder, suffix="toy")


def test_the_order_of_work() -> None:
    measured = measure_steps(Watched, Work(model="m", prefill=50, decode=2, context=7, streams=3, repeats=2))
    warm = [("decode", 3, 0), ("rewind", 0), ("prefill", 32, 0)]
    prompts = [("rewind", 0), ("prefill", 50, 0)] * 2
    runs = [("rewind", 7), ("decode", 3, 7), ("decode", 3, 8)] * 2
    assert measured.details["calls"] == [*warm, *prompts, ("rewind", 0), ("fill", 7), *runs]
    assert len(measured.prefill_seconds) == len(measured.decode_seconds_per_token) == 2


@pytest.mark.parametrize("left_out", ["prefill", "decode"])
def test_parts_may_be_left_out(left_out: str) -> None:
    measured = measure_steps(Watched, Work(**{"model": "m", "prefill": 5, "decode": 2, left_out: 0}))
    samples = {"prefill": measured.prefill_seconds, "decode": measured.decode_seconds_per_token}
    assert [name for name, values in samples.items() if not values] == [left_out]


def test_time_a_token_counts_all_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(work_module.time, "perf_counter", lambda: float(next(clock)))
    assert work_module.time_decode(Watched(Work(model="m")), Work(model="m", decode=5, streams=2)) == pytest.approx(1 / 10)


def test_tokens_come_from_the_seed() -> None:
    first, again, other = (Work(model="m", seed=seed).tokens(20, vocab_size=50) for seed in (1, 1, 2))
    assert first == again != other
    assert set(first) <= set(range(50))
    assert Work(model="m", seed=1).tokens(5, vocab_size=50) == first[:5]


def test_flags_carry_the_work() -> None:
    work = Work(model="a b.gguf", prefill=3, context=9, streams=2, activations="int16", states="s")
    assert work_from_arguments(arguments_of(work), description=None) == work


def test_the_last_line_is_the_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["engine", "--model", "m"])
    run_program(lambda work: Measured([1.0], [], 2.0, 3.0, "4", {}), description=None)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["prefill_seconds"] == [1.0]

    def refuse(work: Work) -> Measured:
        raise CannotDo("no streams")

    run_program(refuse, description=None)
    assert json.loads(capsys.readouterr().out) == {"refused": "no streams"}


def test_a_single_stream_is_a_single_step() -> None:
    got, want = stream_step([[5, 6, 7]], start=70, stream_pages=4), single_step([5, 6, 7], start=70)
    assert (got.slots_T.tolist(), got.logit_rows_R.tolist()) == (want.slots_T.tolist(), want.logit_rows_R.tolist())


def test_a_prompt_after_what_is_in_the_cache() -> None:
    work = Work(model="m", prefill=50, before=128, decode=0, repeats=2)
    assert work.sequence_tokens == 178
    warm = [("decode", 1, 0), ("rewind", 0), ("prefill", 32, 0)]
    prompts = [("rewind", 128), ("prefill", 50, 128)] * 2
    assert measure_steps(Watched, work).details["calls"] == [*warm, ("rewind", 0), ("fill", 128), *prompts]


def test_streams_keep_to_their_pages() -> None:
    step = stream_step([[1], [2], [3]], start=65, stream_pages=2)
    assert step.slots_T.tolist() == [65, 2 * 64 + 65, 4 * 64 + 65]
    assert step.pages_SP.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert step.logit_rows_R.tolist() == [0, 1, 2]
    assert step.lengths_S.tolist() == [66, 66, 66]


def test_our_engine_does_the_work(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY_JSON))
    write_model(str(tmp_path / "config.json"), "q4_0", tmp_path / "model.gguf")
    work = Work(model=str(tmp_path / "model.gguf"), prefill=70, decode=2, context=65, streams=2)
    measured = measure_steps(MiniCPM4, work)
    assert len(measured.prefill_seconds) == len(measured.decode_seconds_per_token) == 1
    assert measured.details["activations"] == "int8"
    assert measured.peak_memory_mb > 10


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_our_engine_attends_as_it_is_asked_to(tmp_path: Path, attention: str) -> None:
    minicpm = TINY_JSON | {"architectures": ["MiniCPMForCausalLM"], "max_position_embeddings": 16384}
    (tmp_path / "config.json").write_text(json.dumps(minicpm))
    write_model(str(tmp_path / "config.json"), "q4_0", tmp_path / "model.gguf")
    work = Work(model=str(tmp_path / "model.gguf"), prefill=70, before=8300, decode=1, context=8300, attention=attention)
    assert measure_steps(MiniCPM4, work).details["attention"] == attention
