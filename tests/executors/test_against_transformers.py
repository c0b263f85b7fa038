"""Every executor against `transformers`' Llama, in float32: random small MiniCPM4 models, folded; all rope scalings.

Tolerance 1e-5: logits are of size one and sums at most 200 long, so a rounding of 6e-8 each leaves some 1e-6 a layer.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minicpm4.model.hf_config import config_from_hf
from minicpm4.model.step import single_step
from tests.executors.plain_llama import llama_logits, toy_json
from tests.toy import EXECUTORS, scales_of, toy_executor, toy_weights

SHORT = [1 + 0.05 * i for i in range(12)]
LONG = [1 + 0.7 * i for i in range(12)]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def longrope(original: int) -> dict[str, Any]:
    return {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": original}


MODELS = {
    "groups-of-8": toy_json(),
    "groups-of-16": toy_json(num_attention_heads=16, head_dim=10),
    "two-kv-heads": toy_json(num_attention_heads=6, num_key_value_heads=2, head_dim=16),
    "every-head-its-own": toy_json(num_attention_heads=3, num_key_value_heads=3, head_dim=32),
    "tied": toy_json(tie_word_embeddings=True),
    "one-layer": toy_json(num_hidden_layers=1),
    "theta": toy_json(rope_theta=500.0),
    "linear-rope": toy_json(rope_scaling={"rope_type": "linear", "factor": 4.0}),
    "llama3-rope": toy_json(rope_theta=5e5, rope_scaling=LLAMA3),
    "longrope-short": toy_json(max_position_embeddings=128, rope_scaling=longrope(128)),
    "longrope-long": toy_json(max_position_embeddings=128, rope_scaling=longrope(64)),
}
TOKENS = np.random.default_rng(5).integers(0, 97, 75).astype(np.int32)  # more than a page, and than longrope-long's first context


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("model", MODELS)
def test_a_folded_model_has_the_logits_of_the_public_llama(model: str, executor: str) -> None:
    config, warnings = config_from_hf(MODELS[model])
    assert not warnings
    weights = toy_weights(config)
    runner = toy_executor(executor, config, weights)
    got = runner.run(single_step(TOKENS, num_logits=len(TOKENS))).logits
    wanted = llama_logits(MODELS[model], config, weights, TOKENS)
    assert 0.3 < wanted.std() < 3
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_scales_of_one_are_exactly_a_plain_llama(executor: str) -> None:
    neutral = toy_json(scale_emb=1, dim_model_base=96, scale_depth=3**0.5)
    plain = {key: value for key, value in neutral.items() if key not in ("scale_emb", "dim_model_base", "scale_depth")}
    plain["architectures"] = ["LlamaForCausalLM"]
    configs = [config_from_hf(values)[0] for values in (neutral, plain)]
    assert replace(configs[0], sparse=None) == configs[1]  # past 8192 tokens a MiniCPM4 is made for sparse attention
    assert scales_of(configs[0]) == (1, 1, 1)
    weights = toy_weights(configs[0])
    got = toy_executor(executor, configs[0], weights).run(single_step(TOKENS, num_logits=len(TOKENS))).logits
    np.testing.assert_allclose(got, llama_logits(neutral, configs[0], weights, TOKENS), rtol=0, atol=1e-5)


def logits(executor: str, values: dict[str, Any], *, context_length: int) -> np.ndarray:
    config, _ = config_from_hf(values)
    runner = toy_executor(executor, config, toy_weights(config), context_length=context_length)
    return runner.run(single_step(TOKENS, num_logits=len(TOKENS))).logits.copy()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_equal_long_and_short_factors_do_not_care_for_the_length(executor: str) -> None:
    scaling = longrope(128) | {"long_factor": SHORT}
    values = toy_json(max_position_embeddings=128, rope_scaling=scaling)
    np.testing.assert_array_equal(logits(executor, values, context_length=128), logits(executor, values, context_length=1000))
    other = toy_json(max_position_embeddings=128, rope_scaling=longrope(128))
    assert not np.array_equal(logits(executor, other, context_length=128), logits(executor, other, context_length=1000))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_factors_of_one_are_plain_rope(executor: str) -> None:
    ones = {"short_factor": [1] * 12, "long_factor": [1] * 12}
    scaled = toy_json(rope_scaling=longrope(512) | ones)
    np.testing.assert_array_equal(logits(executor, scaled, context_length=600), logits(executor, toy_json(), context_length=600))
