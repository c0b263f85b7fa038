"""One model as a Hugging Face folder and as a GGUF file that the public `gguf` package wrote: the logits are the same bits."""

from pathlib import Path

import numpy as np
import pytest

from minicpm4.checkpoint import open_checkpoint
from minicpm4.checkpoint.gguf_model import unpermuted_rows
from minicpm4.model import ModelConfig
from minicpm4.model.hf_config import config_from_hf
from minicpm4.model.parameters import parameter_shapes
from minicpm4.model.step import single_step
from tests.checkpoint.checkpoint_files import permute, tiny_weights, write_folder, write_gguf_model
from tests.executors.plain_llama import toy_json
from tests.toy import EXECUTORS, toy_executor

TOKENS = np.random.default_rng(5).integers(0, 97, 70).astype(np.int32)
FACTORS = np.float32([1 + 0.3 * i for i in range(12)])
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0] * 12, "long_factor": FACTORS.tolist(), "original_max_position_embeddings": 64
}  # fmt: skip
ROPE_KEYS = {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 64}


def logits_of(path: Path, executor: str) -> np.ndarray:
    with open_checkpoint(path) as checkpoint:
        weights = {name: checkpoint.load(name) for name in parameter_shapes(checkpoint.config)}
        runner = toy_executor(executor, checkpoint.config, weights, num_pages=2)
    return runner.run(single_step(TOKENS, num_logits=len(TOKENS))).logits


def config_of(values: dict[str, object]) -> ModelConfig:
    return config_from_hf(values)[0]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_llama(tmp_path: Path, executor: str, is_tied: bool) -> None:
    values = toy_json(architectures=["LlamaForCausalLM"], rope_theta=5e5, rope_scaling=LLAMA3, tie_word_embeddings=is_tied)
    config = config_of(values)
    factors = np.float32(config.rope.short_factors)
    keys = {"llama.rope.freq_base": 5e5, "llama.attention.key_length": 24, "llama.attention.value_length": 24}
    write_gguf_model(tmp_path / "model.gguf", config=config, keys=keys, extra={"rope_freqs.weight": factors})
    folder = write_folder(tmp_path / "folder", config=values, weights=tiny_weights(config))
    got, wanted = logits_of(tmp_path / "model.gguf", executor), logits_of(folder, executor)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_minicpm_with_longrope(tmp_path: Path, executor: str) -> None:
    values = toy_json(num_hidden_layers=4, scale_depth=0.5, max_position_embeddings=128, rope_scaling=LONGROPE)
    config = config_of(values)
    keys = {
        "embedding_scale": 3.0, "residual_scale": 0.25, "logit_scale": 1.5, "attention.key_length": 24, "attention.value_length": 24,
        **ROPE_KEYS,
    }  # fmt: skip
    write_gguf_model(
        tmp_path / "model.gguf",
        architecture="minicpm",
        config=config,
        keys={f"minicpm.{key}": value for key, value in keys.items()},
        extra={"rope_factors_long.weight": FACTORS, "rope_factors_short.weight": np.ones(12, np.float32)},
    )
    folder = write_folder(tmp_path / "folder", config=values, weights=tiny_weights(config))
    got, wanted = logits_of(tmp_path / "model.gguf", executor), logits_of(folder, executor)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got, wanted)


def test_neighbours_turned_on_permuted_rows_are_halves_turned_on_published_ones() -> None:
    """The file's layout rotates dimensions 2i and 2i + 1, ours i and i + D/2; the permutation is what lies between."""
    random = np.random.default_rng(0)
    heads, dim, hidden = 3, 10, 7
    weight, x, angles = random.standard_normal((heads * dim, hidden)), random.standard_normal(hidden), random.standard_normal(dim // 2)
    stored = permute(weight, heads)
    pairs = (stored @ x).reshape(heads, dim // 2, 2)
    turned = np.stack(
        (
            pairs[..., 0] * np.cos(angles) - pairs[..., 1] * np.sin(angles),
            pairs[..., 1] * np.cos(angles) + pairs[..., 0] * np.sin(angles),
        ),
        axis=-1,
    )
    first, second = np.split((weight @ x).reshape(heads, dim), 2, axis=1)
    wanted = np.concatenate((first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)), axis=1)
    np.testing.assert_allclose(turned.reshape(-1)[unpermuted_rows(heads, dim)].reshape(heads, dim), wanted, atol=1e-14)
