"""Comparisons: which cases there are, how samples become ratios, what an interrupted run remembers, what is shown."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare, report
from benchmarks.against import commit_of
from benchmarks.cases import SETS, Case, case_from, case_values, read_cases
from benchmarks.journal import Record, open_journal
from benchmarks.peaks import Peaks
from benchmarks.quiet import CpuSample, cores_of_others
from benchmarks.runner import find_engines
from benchmarks.summary import Yardstick, rows_of
from benchmarks.traffic import Traffic, traffic_of
from benchmarks.write_model import FORMATS, write_model
from minicpm4.errors import ConfigError, MiniCPMError
from tests.checkpoint.checkpoint_files import TINY_JSON

CASE = Case(name="toy", source="0.5B", format="q4_0", prefill=100, decode=4, streams=2)
TRAFFIC = Traffic(file_bytes=3_000_000, bytes_per_token=1e8, operations_per_token=5e8)
YARDSTICK = Yardstick(TRAFFIC, "llama.cpp")


def record(engine: str, round: int, *, prefill: list[float], decode: list[float], case: Case = CASE) -> Record:
    result = {"prefill_seconds": prefill, "decode_seconds_per_token": decode, "load_seconds": 1.0 + round, "peak_memory_mb": 50.0 - round}
    details = {"kv_bytes": 4_000_000} if engine == "minicpm4" else {}
    return Record(case_values(case), engine, round, 20e9, 800e9, 0.0, {**result, "version": "7", "details": details})


RECORDS = [
    record("minicpm4", 0, prefill=[1.0], decode=[0.01, 0.02]),
    record("llama.cpp", 0, prefill=[2.0], decode=[0.04, 0.04]),
    record("minicpm4", 1, prefill=[1.0], decode=[0.01, 0.01]),
    record("llama.cpp", 1, prefill=[4.0], decode=[0.02, 0.04]),
]


@pytest.mark.parametrize("name", SETS)
def test_sets_hold_distinct_cases_of_formats_that_there_are(name: str) -> None:
    cases = SETS[name]
    assert len({json.dumps(case_values(case)) for case in cases}) == len(cases) == len({case.label for case in cases})
    assert {case.format for case in cases} <= {None, *FORMATS}


def test_the_set_of_the_goals_has_every_row_with_each_number_of_threads() -> None:
    one, two = ([replace(case, threads=1) for case in SETS["issue"] if case.threads == threads] for threads in (1, 2))
    assert one == two
    assert all(case.target for case in one)


def test_cases_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "cases.json"
    path.write_text(json.dumps([asdict(CASE)]))
    assert read_cases(path) == (CASE,)
    for text in ("{", "[]", "[1]"):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"cases\.json.*give a JSON list"):
            read_cases(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefill": 0, "decode": 0}, "case toy measures nothing; give it prefill or decode"),
        ({"context": -1}, "case toy: context is -1, expected 0 or more"),
        ({"attention": "none"}, "case toy: attention is 'none', expected dense or sparse; correct the case"),
        ({"prefill": 0, "before": 64}, "case toy has tokens before a prompt and no prompt"),
        ({"rounds": 0}, "case toy: rounds is 0, expected 1 or more"),
        ({"target": 2.0}, "case toy has a target for both prefill and decode; make two cases of it"),
        ({"width": 2}, r"a case has unknown fields \['width'\] and lacks \[\]; the fields are attention"),
    ],
)
def test_cases_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        case_from(asdict(CASE) | changes)


def test_rows_are_medians_and_ratios_of_medians() -> None:
    prefill, decode = rows_of(CASE, RECORDS, yardstick=YARDSTICK)
    assert (prefill.measure, decode.measure) == ("prefill", "decode")
    assert prefill.rates["llama.cpp"].median == pytest.approx((50 + 25) / 2)
    assert prefill.ratios == {"minicpm4": pytest.approx(100 / 37.5)}
    assert prefill.round_ratios == {"minicpm4": (pytest.approx(2), pytest.approx(4))}
    assert prefill.giga_per_second == pytest.approx(100 * 0.5)
    assert prefill.share == pytest.approx(50 / 800)
    ours = decode.rates["minicpm4"]
    assert (ours.median, ours.lowest, ours.highest, ours.samples) == (pytest.approx(100), pytest.approx(50), pytest.approx(100), 4)
    assert decode.ratios["minicpm4"] == pytest.approx(100 / 25)
    assert decode.giga_per_second == pytest.approx(10)
    assert decode.share == pytest.approx(0.5)
    assert (decode.costs["minicpm4"].peak_memory_mb, decode.costs["minicpm4"].load_seconds) == (50.0, 1.5)


def test_an_engine_that_did_nothing_is_a_note() -> None:
    refused = Record(case_values(CASE), "openvino", 0, 20e9, 800e9, None, {"refused": "no streams"})
    elsewhere = record("ctranslate2", 0, prefill=[1.0], decode=[1.0], case=replace(CASE, threads=1))
    row = rows_of(CASE, [*RECORDS, refused, elsewhere], yardstick=YARDSTICK)[0]
    assert row.notes == {"openvino": "refused: no streams"}
    assert row.rates.keys() == {"minicpm4", "llama.cpp"}


def test_a_table_shows_rates_ratios_and_notes() -> None:
    refused = Record(case_values(CASE), "openvino", 0, 20e9, 800e9, None, {"refused": "no streams"})
    rows = rows_of(CASE, [*RECORDS, refused], yardstick=YARDSTICK)
    text = report.markdown_of(rows, engines=["minicpm4", "llama.cpp", "openvino"], baseline="llama.cpp", heading="A heading.")
    lines = text.splitlines()
    tables = [line.count("|") for line in lines if line.startswith("|")]
    assert len(set(tables[:4])) == len(set(tables[4:])) == 1
    assert "| 100.0 (50.0 to 100.0) | 25.0 (25.0 to 50.0) | - | 4.00 (2.67 to 3.00)" in text
    assert "10.0 GB/s | 50 % of 20.0 |" in text
    assert lines[-1] == "- toy, 2 threads, openvino refused: no streams"


@pytest.mark.parametrize(("peak", "verdict"), [(87.0, "<= 87: met"), (90.0, "<= 87: not met, 3 MB more")])
def test_memory_is_judged_by_the_file_and_the_cache(peak: float, verdict: str) -> None:
    (row, _) = rows_of(CASE, RECORDS, yardstick=YARDSTICK)
    assert row.memory_goal_mb == pytest.approx(3 + 4 + 80)
    cost = replace(row.costs["minicpm4"], peak_memory_mb=peak)
    assert report.memory_verdict(replace(row, costs={"minicpm4": cost})) == verdict
    assert report.memory_verdict(replace(row, costs={"llama.cpp": row.costs["llama.cpp"]})) == "-"


def test_a_picture_is_drawn_where_it_can_be(tmp_path: Path) -> None:
    rows = rows_of(CASE, RECORDS, yardstick=YARDSTICK)
    path = tmp_path / "picture.png"
    is_drawn = report.draw(rows, path, baseline="llama.cpp", title="toy")
    assert is_drawn == path.exists()


def test_a_journal_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    path, settings = tmp_path / "results" / "toy.jsonl", {"seed": 0}
    journal = open_journal(path, settings)
    for entry in RECORDS[:2]:
        journal.add(entry)
    with open(path, "a") as file:
        file.write('{"case": {"na')
    again = open_journal(path, settings)
    assert again.records == RECORDS[:2]
    assert again.find(case_values(CASE), "llama.cpp", 0) == RECORDS[1]
    assert again.find(case_values(CASE), "llama.cpp", 1) is None
    again.add(RECORDS[2])
    assert open_journal(path, settings).records == RECORDS[:3]
    with pytest.raises(ConfigError, match=r"toy\.jsonl was begun with other settings: .*; give --fresh"):
        open_journal(path, {"seed": 1})
    assert open_journal(path, {"seed": 1}, is_fresh=True).records == []


def test_traffic_is_counted_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY_JSON))
    write_model(str(tmp_path / "config.json"), "q8_0", tmp_path / "model.gguf")
    traffic = traffic_of(tmp_path / "model.gguf", replace(CASE, context=10, decode=4, streams=2))
    layer = 2 * (32 * 32 + 32 * 16 + 3 * 32 * 32)  # q, o, k, v and the three of the MLP
    assert traffic.operations_per_token == 2 * 2 * layer
    weights = (2 * layer + 48 * 32) * 34 / 32
    cache_of_a_token = 2 * 2 * 2 * 8 * 2  # keys and values, layers, heads, dimensions, bytes
    assert traffic.bytes_per_token == weights / 2 + cache_of_a_token * 12


def test_engines_are_found_or_their_remedy_is_said() -> None:
    engines, missing = find_engines({})
    assert "minicpm4" in {engine.name for engine in engines}
    assert {engine.name for engine in engines}.isdisjoint(missing)
    assert all("pip install" in why for why in missing.values())
    with pytest.raises(ConfigError, match=r"there is no engine vllm; choose of llama\.cpp"):
        find_engines({"vllm": "python"})
    with pytest.raises(ConfigError, match=r"nowhere cannot import llama_cpp; CMAKE_ARGS=.* pip install llama-cpp-python"):
        find_engines({"llama.cpp": "nowhere"})


def test_a_comparison_from_end_to_end_and_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The engines are real, their clocks do not matter; the second time nothing is measured."""
    monkeypatch.setattr(compare, "measure_peaks", lambda threads: Peaks(threads, 1e9, int8=1.0, bf16=None, f32=1.0))
    monkeypatch.setattr(compare, "settings_of", lambda plan: {"seed": plan.seed})  # sources may be edited while tests run
    (tmp_path / "config.json").write_text(json.dumps(TINY_JSON))
    case = {"name": "toy", "source": str(tmp_path / "config.json"), "format": "q4_0", "decode": 2, "rounds": 1, "threads": 1}
    (tmp_path / "cases.json").write_text(json.dumps([case]))
    others = [option for name in ("llama.cpp", "openvino", "ctranslate2", "onnxruntime-genai") for option in ("--without", name)]
    arguments = ["--cases", str(tmp_path / "cases.json"), "--models-dir", str(tmp_path), "--output", str(tmp_path / "out.1"), *others]
    monkeypatch.setattr("sys.argv", ["compare", *arguments])
    compare.main()
    result = json.loads((tmp_path / "out.1.json").read_text())
    assert result["rows"][0]["rates"]["minicpm4"]["samples"] == 2
    assert result["recipe"].keys() >= {"machine", "system", "commit", "build", "date", "seed", "engines", "cases", "cores"}
    assert "toy, 1 thread | decode" in (tmp_path / "out.1.md").read_text()
    monkeypatch.setattr(compare, "run_engine", lambda *_: pytest.fail("it was measured before"))
    compare.main()
    assert json.loads((tmp_path / "out.1.json").read_text())["records"] == result["records"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nothing of this name"], "no case has 'nothing of this name' in its name; leave --only out"),
        (["--engine", "llama.cpp"], r"--engine is \['llama\.cpp'\], expected NAME=PYTHON"),
        (["--baseline", "vllm"], "the baseline vllm is not measured; choose of .*minicpm4"),
    ],
)
def test_plans_that_cannot_be(arguments: list[str], message: str) -> None:
    with pytest.raises(MiniCPMError, match=message):
        compare.make_plan(compare.parse(arguments))


def test_what_others_used() -> None:
    before, after = CpuSample(10.0, 100.0, 30.0), CpuSample(14.0, 110.0, 36.0)
    assert cores_of_others(before, after) == pytest.approx((10 - 6) / 4)
    assert cores_of_others(before, replace(after, busy=105.0)) == 0.0  # clocks of different fineness
    assert cores_of_others(None, after) is cores_of_others(after, after) is None


def test_commits_that_there_are_not() -> None:
    with pytest.raises(ConfigError, match="there is no commit 'never-was' in this checkout; name a branch"):
        commit_of("never-was")
