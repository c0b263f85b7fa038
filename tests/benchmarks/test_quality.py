"""Quality: bits are counted right, padding changes nothing, the reference is computed once."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import quality
from benchmarks.padding import padded_model
from benchmarks.quality import Quality, Score, Subject, cell, quality_table, requantized, score_text
from benchmarks.write_model import write_model
from minicpm4.checkpoint import open_checkpoint
from minicpm4.errors import ConfigError
from minicpm4.executors.reference import ReferenceOptions
from minicpm4.quant import dequantize, quantize
from tests.checkpoint.checkpoint_files import TINY_JSON
from tests.toy import toy_config, toy_weights

TOKENS = [1, 5, 9, 2, 30, 7, 7, 11]
FLOATS = ReferenceOptions(kv_format="f32")
ROW = Quality("q4_k", True, "int8", "same", "f16", bits_per_byte=1.001, reference_bits_per_byte=1.0, difference=0.001, agreement=0.99)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Rows of 96, which are blocks of 32 but not of 256."""
    shape = TINY_JSON | {"vocab_size": 600, "hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 6, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"head_dim": 16}))
    write_model(str(tmp_path / "config.json"), "q8_0", tmp_path / "model.gguf")
    return tmp_path / "model.gguf"


def test_an_indifferent_model_spends_the_logarithm_of_its_vocabulary() -> None:
    config = toy_config()
    weights = {name: quantize(0 * dequantize(tensor), "f32", name=name) for name, tensor in toy_weights(config).items()}
    subject = Subject("f32", config, weights, is_padded=False, key="toy")
    score = score_text("reference", subject, TOKENS, options=FLOATS)
    assert score.bits == pytest.approx([math.log2(config.vocab_size)] * (len(TOKENS) - 1))


@pytest.mark.parametrize("step_tokens", [3, 256])
def test_steps_do_not_matter(step_tokens: int) -> None:
    subject = Subject("f32", toy_config(), toy_weights(toy_config()), is_padded=False, key="toy")
    whole = score_text("reference", subject, TOKENS, options=FLOATS, step_tokens=7)
    parts = score_text("reference", subject, TOKENS, options=FLOATS, step_tokens=step_tokens)
    assert parts.bits == pytest.approx(whole.bits, rel=1e-5)
    assert parts.best == whole.best


def test_padding_changes_nothing() -> None:
    config = toy_config()
    weights = toy_weights(config)
    padded, load = padded_model(config, lambda name: dequantize(weights[name]), multiple=256)
    assert padded.hidden_size % 256 == padded.intermediate_size % 256 == padded.num_heads * padded.head_dim % 256 == 0
    assert padded.num_heads // padded.num_kv_heads == config.num_heads // config.num_kv_heads
    wide = {name: quantize(load(name), "f32", name=name) for name in weights}
    scores = [
        score_text("reference", Subject("f32", shape, tensors, is_padded=False, key="toy"), TOKENS, options=FLOATS)
        for shape, tensors in ((config, weights), (padded, wide))
    ]
    assert scores[1].bits == pytest.approx(scores[0].bits, rel=1e-5)  # sums of float32 in another order
    assert scores[1].best == scores[0].best


@pytest.mark.parametrize(("format_name", "is_padded"), [("q4_0", False), ("q4_k", True)])
def test_only_projections_are_requantized(model: Path, format_name: str, is_padded: bool) -> None:
    subject = requantized(model, format_name, text=b"text")
    with open_checkpoint(model) as checkpoint:
        stored = {name: info.format for name, info in checkpoint.tensors.items()}
    assert subject.is_padded is is_padded
    for name, tensor in subject.weights.items():
        assert tensor.format.name == (format_name if "proj" in name else stored[name])
    assert subject.key != requantized(model, format_name, text=b"other").key


def test_from_end_to_end_and_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: Path) -> None:
    monkeypatch.setattr(quality, "cache_folder", lambda: tmp_path)
    arguments = [
        "--model",
        str(model),
        "--formats",
        "q4_0",
        "tq2_0",
        "--tokens",
        "20",
        "--threads",
        "1",
        "--output",
        str(tmp_path / "out.1"),
    ]
    monkeypatch.setattr("sys.argv", ["quality", *arguments])
    quality.main()
    first = json.loads((tmp_path / "out.1.json").read_text())
    assert len(first["rows"]) == 2 * len(quality.kinds())
    assert all(abs(row["difference"]) < 0.01 for row in first["rows"])
    assert "| tq2_0 (padded) |" in (tmp_path / "out.1.md").read_text()
    score = quality.score_text

    def only_native(executor: str, *args: object, **options: object) -> Score:
        assert executor == "native", "the reference was computed before"
        return score(executor, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(quality, "score_text", only_native)
    quality.main()
    assert json.loads((tmp_path / "out.1.json").read_text())["rows"] == first["rows"]


def test_a_table_says_what_is_not_met() -> None:
    assert ROW.is_met
    assert cell(ROW) == "+0.100 % (99.0 %)"
    assert cell(replace(ROW, difference=-0.003)) == "-0.300 % (99.0 %) **not met**"
    header, _, of_one = quality_table([ROW, replace(ROW, format="q8_0", is_padded=False, prompt_activations="bf16")]).splitlines()[:3]
    assert header == "| format | reference, bits/byte | activations int8, cache f16 | activations int8, of prompts bf16, cache f16 |"
    assert of_one == "| q4_k (padded) | 1.0000 | +0.100 % (99.0 %) | - |"


def test_a_text_is_more_than_a_token(model: Path) -> None:
    with pytest.raises(ConfigError, match="the text has 1 tokens, expected at least 2; give a longer text"):
        quality.read_tokens(model, "a", limit=0)


def test_bytes_are_those_of_judged_tokens(model: Path) -> None:
    tokens, num_bytes = quality.read_tokens(model, "naïve words", limit=0)
    assert len(tokens) > 2
    assert num_bytes == len("naïve words".encode()) - 1  # the first token is judged by nothing; here it is a letter
