"""GGUF files as models: config from metadata, canonical names, the row order of queries and keys, rope factors."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import TINY, permute, write_gguf_model

from minicpm4.checkpoint import open_checkpoint
from minicpm4.checkpoint.gguf_model import unpermuted_rows
from minicpm4.errors import CheckpointError, ConfigError, MiniCPMError
from tests.toy import scales_of

SCALES = {"minicpm.embedding_scale": 12.0, "minicpm.residual_scale": 0.25, "minicpm.logit_scale": 4.0}
FACTORS = np.array([1.0, 1.5, 2.0, 4.0], np.float32)
LONGROPE = {"minicpm.rope.scaling.type": "longrope", "minicpm.rope.scaling.original_context_length": 64}
ROPE_TENSORS = {"rope_factors_long.weight": FACTORS * 2, "rope_factors_short.weight": FACTORS}


def test_the_default_model(default_gguf: Path) -> None:
    start = time.perf_counter()
    checkpoint = open_checkpoint(default_gguf)
    seconds = time.perf_counter() - start
    c = checkpoint.config
    assert (c.num_layers, c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim, c.intermediate_size) == (30, 576, 9, 3, 64, 1536)
    assert (c.vocab_size, c.has_tied_head, c.rope.theta, c.context_length, c.bos_id, c.eos_ids) == (49152, True, 100000.0, 8192, 1, (2,))
    assert c.norm_eps == pytest.approx(1e-5)
    assert scales_of(c) == (1, 1, 1)
    assert checkpoint.warnings == ()
    assert checkpoint.formats == {"q4_1", "q8_0", "f32"}
    assert (checkpoint.name, checkpoint.folder, len(checkpoint.tensors), checkpoint.file_bytes) == (
        default_gguf.stem,
        None,
        272,
        98_362_432,
    )
    assert checkpoint.metadata is not None
    assert len(checkpoint.metadata["tokenizer.ggml.merges"]) == 48900  # type: ignore[arg-type]
    assert seconds < 1  # 0.05 s on a quiet machine; a slow reader of strings takes 3


def test_every_parameter_comes_back_unpermuted(tmp_path: Path) -> None:
    weights = write_gguf_model(tmp_path / "x.gguf")
    with open_checkpoint(tmp_path / "x.gguf") as checkpoint:
        expected = replace(TINY, eos_ids=(2,), norm_eps=checkpoint.config.norm_eps)
        assert checkpoint.config == expected
        assert list(checkpoint.tensors) == list(weights)
        for name, weight in weights.items():
            tensor = checkpoint.load(name)
            assert (tensor.name, tensor.shape) == (name, weight.shape)
            assert tensor.data.tobytes() == weight.tobytes(), name


def test_rows_are_put_back_as_the_writers_permuted_them() -> None:
    weight = np.arange(3 * 10).reshape(30, 1)
    assert np.array_equal(permute(weight, 3)[unpermuted_rows(3, 10)], weight)
    assert unpermuted_rows(2, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]  # by hand: (head, half, i) from (head, i, half)


def test_an_untied_head(tmp_path: Path) -> None:
    weights = write_gguf_model(tmp_path / "x.gguf", config=replace(TINY, has_tied_head=False))
    checkpoint = open_checkpoint(tmp_path / "x.gguf")
    assert not checkpoint.config.has_tied_head
    assert checkpoint.load("lm_head.weight").data.tobytes() == weights["lm_head.weight"].tobytes()


def test_minicpm_with_its_scales_and_longrope(tmp_path: Path) -> None:
    write_gguf_model(tmp_path / "x.gguf", architecture="minicpm", keys=SCALES | LONGROPE, extra=ROPE_TENSORS)
    config = open_checkpoint(tmp_path / "x.gguf").config
    assert (config.embedding_scale, config.residual_scale, config.logit_divisor) == (12.0, 0.25, 4.0)
    assert (config.rope.short_factors, config.rope.long_factors) == ((1.0, 1.5, 2.0, 4.0), (2.0, 3.0, 4.0, 8.0))
    assert (config.rope.original_context, config.rope.theta) == (64, 10000.0)
    assert config.rope.magnitude == pytest.approx(math.sqrt(1 + math.log(256 / 64) / math.log(64)))


def test_longrope_magnitude_of_the_file_goes_first(tmp_path: Path) -> None:
    write_gguf_model(
        tmp_path / "x.gguf", architecture="minicpm", keys=SCALES | LONGROPE | {"minicpm.rope.scaling.attn_factor": 1.0}, extra=ROPE_TENSORS
    )
    assert open_checkpoint(tmp_path / "x.gguf").config.rope.magnitude == 1.0


def test_llama3_frequency_tensor(tmp_path: Path) -> None:
    write_gguf_model(tmp_path / "x.gguf", extra={"rope_freqs.weight": FACTORS})
    rope = open_checkpoint(tmp_path / "x.gguf").config.rope
    assert rope.short_factors == rope.long_factors == (1.0, 1.5, 2.0, 4.0)
    assert rope.original_context is None


@pytest.mark.parametrize(
    "keys", [{"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}, {"llama.rope.scale_linear": 2.0}], ids=str
)
def test_linear_rope_scaling(tmp_path: Path, keys: dict[str, Any]) -> None:
    write_gguf_model(tmp_path / "x.gguf", keys=keys)
    assert open_checkpoint(tmp_path / "x.gguf").config.rope.short_factors == (2.0,) * 4


@pytest.mark.parametrize(
    "keys", [{"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 2.0}, {"llama.rope.scaling.type": "linear"}], ids=str
)
def test_no_rope_scaling(tmp_path: Path, keys: dict[str, Any]) -> None:
    write_gguf_model(tmp_path / "x.gguf", keys=keys)
    assert open_checkpoint(tmp_path / "x.gguf").config.rope.short_factors is None


def test_unknown_keys_are_named_and_known_ones_are_not(tmp_path: Path) -> None:
    write_gguf_model(
        tmp_path / "x.gguf",
        keys={
            "llama.mystery": 1, "other.thing": 2, "general.name": "x", "quantize.imatrix.file": "y", "llama.vocab_size": 48,
            "llama.attention.key_length": 8, "llama.attention.value_length": 8, "llama.expert_count": 0, "llama.attention.causal": True,
            "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eot_token_id": 3,
        },
    )  # fmt: skip
    checkpoint = open_checkpoint(tmp_path / "x.gguf")
    assert checkpoint.warnings == ("GGUF metadata: ignored keys llama.mystery, other.thing",)
    assert (checkpoint.config.bos_id, checkpoint.config.eos_ids) == (1, (2, 3))


def test_a_token_id_that_no_token_has_is_warned_of(tmp_path: Path) -> None:
    write_gguf_model(tmp_path / "x.gguf", keys={"tokenizer.ggml.bos_token_id": 48})
    checkpoint = open_checkpoint(tmp_path / "x.gguf")
    assert checkpoint.config.bos_id is None
    assert checkpoint.warnings == ("GGUF metadata: tokenizer.ggml.bos_token_id is 48, which is no token; ignored",)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "type-adapter": ({"general.type": "adapter"}, "holds a 'adapter'"),
    "one-of-two-parts": ({"split.count": 2}, "one of 2 parts"),
    "no-layers": ({"llama.block_count": None}, "block_count is missing"),
    "zero-heads": ({"llama.attention.head_count": 0}, "head_count"),
    "heads-per-layer": ({"llama.attention.head_count_kv": [2, 1]}, "head_count_kv differs between layers"),
    "head-count-text": ({"llama.attention.head_count": "4"}, "expected int"),
    "size-huge": ({"llama.embedding_length": 4_000_000_000}, "embedding_length"),
    "layers-huge": ({"llama.block_count": 4_000_000_000}, "block_count"),
    "layers-many": ({"llama.block_count": 5000}, "num_layers"),
    "heads-odd": ({"llama.attention.head_count_kv": 3}, "multiple of num_kv_heads"),
    "part-rotary": ({"llama.rope.dimension_count": 4}, "rope.dimension_count"),
    "value-length": ({"llama.attention.value_length": 16}, "attention.value_length"),
    "key-length": ({"llama.attention.key_length": 16, "llama.rope.dimension_count": 16}, "has shape"),
    "experts": ({"llama.expert_count": 8}, "expert_count"),
    "not-causal": ({"llama.attention.causal": False}, "attention.causal"),
    "eps-nan": ({"llama.attention.layer_norm_rms_epsilon": math.nan}, "layer_norm_rms_epsilon"),
    "theta-zero": ({"llama.rope.freq_base": 0.0}, "rope theta"),
    "other-rope": ({"llama.rope.scaling.type": "other"}, "'other'"),
    "linear-with-magnitude": ({"llama.rope.scaling.attn_factor": 2.0}, "attn_factor"),
    "linear-negative": ({"llama.rope.scaling.factor": -2.0}, "rope factors"),
    "longrope-without-factors": ({"llama.rope.scaling.type": "longrope"}, "is absent"),
    "longrope-from-nothing": ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.original_context_length": 1}, "more than 1"),
}


@pytest.mark.parametrize("case", WRONG)
def test_metadata_that_cannot_be_right_is_refused(tmp_path: Path, case: str) -> None:
    keys, word = WRONG[case]
    write_gguf_model(tmp_path / "x.gguf", keys=keys)
    with pytest.raises(MiniCPMError) as refusal:
        open_checkpoint(tmp_path / "x.gguf")
    assert word in str(refusal.value)
    assert refusal.value.hint


def test_minicpm_without_its_scales_has_the_published_ones(tmp_path: Path) -> None:
    write_gguf_model(tmp_path / "x.gguf", architecture="minicpm")
    config = open_checkpoint(tmp_path / "x.gguf").config
    assert (config.embedding_scale, config.residual_scale, config.logit_divisor) == (12, 1.4 / math.sqrt(2), 32 / 256)


def test_numbers_that_are_the_same_for_all_layers(tmp_path: Path) -> None:
    keys = {"llama.attention.head_count_kv": [2, 2], "llama.feed_forward_length": [64, 64], "llama.vocab_size": 49}
    write_gguf_model(tmp_path / "x.gguf", keys=keys)
    config = open_checkpoint(tmp_path / "x.gguf").config
    assert (config.num_kv_heads, config.intermediate_size, config.vocab_size) == (2, 64, 48)  # the rows that there are


def test_a_window_bounds_the_context(tmp_path: Path) -> None:
    write_gguf_model(tmp_path / "x.gguf", keys={"llama.attention.sliding_window": 128})
    checkpoint = open_checkpoint(tmp_path / "x.gguf")
    assert checkpoint.config.context_length == 128
    assert checkpoint.warnings[0].startswith("GGUF metadata: attention has a window of 128 tokens")


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    write_gguf_model(tmp_path / "x.gguf", architecture="gemma")
    with pytest.raises(ConfigError, match=r"'gemma' is not supported: it differs by norms that add one.*; supported: llama, minicpm, qwen"):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("extra", "without", "word"),
    [
        ({"blk.0.attn_q.bias": FACTORS}, (), "lacks tensors: model.layers.1.self_attn.q_proj.bias"),
        ({"blk.00.attn_q.weight": FACTORS}, (), "unknown tensors"),
        ({"blk.2.attn_norm.weight": FACTORS}, (), "unknown tensors"),
        ({"model.norm.weight": FACTORS}, (), "unknown tensors"),
        ({"rope_factors_long.weight": FACTORS}, (), "unknown tensors"),
        ({"rope_freqs.weight": FACTORS[:2]}, (), r"expected f32 \(4,\)"),
        ({"rope_freqs.weight": -FACTORS}, (), "rope factors"),
        ({"rope_freqs.weight": FACTORS.astype(np.float16)}, (), r"is f16 \(4,\)"),
        ({}, ("model.layers.1.mlp.up_proj.weight",), "lacks tensors: model.layers.1.mlp.up_proj.weight"),
        ({}, ("model.embed_tokens.weight",), "lacks token_embd.weight"),
    ],
    ids=lambda value: "+".join(value) if not isinstance(value, str) else "",
)  # fmt: skip
def test_leftover_and_missing_tensors_are_refused(tmp_path: Path, extra: dict[str, Any], without: tuple[str, ...], word: str) -> None:
    write_gguf_model(tmp_path / "x.gguf", extra=extra, without=without)
    with pytest.raises(MiniCPMError, match=word):
        open_checkpoint(tmp_path / "x.gguf")


def test_a_file_of_a_vocabulary_only_is_refused(tmp_path: Path) -> None:
    from checkpoint_files import gguf_key, gguf_string, raw_gguf

    (tmp_path / "x.gguf").write_bytes(raw_gguf([gguf_key("general.architecture", 8, gguf_string("llama"))]))
    with pytest.raises(CheckpointError, match=r"x.gguf holds a 'model' with 0 tensors, not a model; name the model's own file"):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"general.type": "adapter"}, r"x.gguf holds a 'adapter' with \d+ tensors, not a model; name the model's own file"),
        ({"split.count": 3}, "x.gguf is one of 3 parts, but its name does not say so; name the parts as NAME-00001-of-00003.gguf"),
    ],
    ids=["adapter", "part"],
)
def test_a_file_that_is_no_whole_model_is_refused(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    write_gguf_model(tmp_path / "x.gguf", keys=keys)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "x.gguf")
