"""What a config may say, what is refused and in which words, and that a config.json's keys are each read or named."""

from itertools import pairwise
from typing import Any

import pytest

from minicpm4.errors import ConfigError
from minicpm4.model.config import ModelConfig, RopeConfig, SparseConfig
from minicpm4.model.hf_config import config_from_hf
from tests.toy import scales_of, toy_config

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 97, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
MINICPM = LLAMA | {"architectures": ["MiniCPMForCausalLM"], "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 32}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"rope_type": "longrope", "short_factor": [1] * 6, "long_factor": [2] * 6}


def read(values: dict[str, Any], **changes: Any) -> ModelConfig:
    return config_from_hf(values | changes)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0, expected a positive whole number; correct the model's config"),
        ({"hidden_size": 1 << 24}, "hidden_size is 16777216, expected a positive whole number"),
        ({"num_layers": 1.5}, "num_layers is 1.5, expected a positive whole number"),
        ({"num_layers": 1025}, "num_layers is 1025, expected at most 1024"),
        ({"context_length": 0}, "context_length is 0, expected a positive whole number"),
        ({"num_heads": 8, "num_kv_heads": 3}, "num_heads is 8, expected a multiple of num_kv_heads, 3"),
        ({"head_dim": 25}, "head_dim is 25, expected even"),
        ({"norm_eps": 0.0}, "norm_eps is 0.0, expected a positive number"),
        ({"residual_scale": float("nan")}, "residual_scale is nan, expected a positive number"),
        ({"logit_divisor": float("inf")}, "logit_divisor is inf, expected a positive number"),
        ({"rope": RopeConfig(short_factors=(1.0,) * 11)}, "rope factors is .*, expected 12 numbers, one a frequency"),
    ],
)
def test_sizes_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        toy_config(**changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RopeConfig(theta=0.0), "rope theta is 0.0, expected a positive number"),
        (lambda: RopeConfig(magnitude=float("nan")), "rope magnitude is nan, expected a positive number"),
        (lambda: RopeConfig(long_factors=(1.0, -1.0)), r"rope factors is \(1.0, -1.0\), expected positive numbers"),
        (lambda: SparseConfig(topk=0), "sparse topk is 0, expected a positive whole number"),
        (lambda: SparseConfig(dense_len=-2), r"sparse dense_len is -2, expected -1 \(never dense\) or a number of tokens"),
        (lambda: SparseConfig(window_size=100), "sparse window_size is 100, expected a multiple of the block, 64"),
        (lambda: SparseConfig(block_size=128), "sparse block_size is 128, expected 64, a page of the cache"),
        (lambda: SparseConfig(init_blocks=65), "sparse topk is 64, expected at least init_blocks, 65"),
        (lambda: SparseConfig(kernel_stride=24), "sparse kernel_stride is 24, expected a divisor of the block, 64"),
        (lambda: SparseConfig(kernel_size=40), "sparse kernel_size is 40, expected a multiple of kernel_stride, 16"),
        (lambda: SparseConfig(kernel_size=128), "sparse kernel_size is 128, expected .* at most a block, 64"),
    ],
    ids=["theta", "magnitude", "factors", "topk", "dense_len", "window", "block", "init", "stride", "size", "long-size"],
)
def test_parts_that_cannot_be(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_llama_is_plain() -> None:
    config = read(LLAMA)
    assert scales_of(config) == (1, 1, 1)
    assert (config.head_dim, config.norm_eps, config.rope, config.has_tied_head) == (12, 1e-6, RopeConfig(10000.0), False)


def test_a_minicpm_has_three_scales_and_ties_its_head_unless_told() -> None:
    config = read(MINICPM)
    assert scales_of(config) == (12, 0.7, 3)
    assert config.has_tied_head
    assert not read(MINICPM, tie_word_embeddings=False).has_tied_head
    bare = read({key: value for key, value in MINICPM.items() if not key.startswith(("scale", "dim_"))})
    assert scales_of(bare) == (1, 0.5, 96)  # the defaults of the published code


def test_scales_left_in_a_folded_llama_are_not_applied_but_named() -> None:
    config, warnings = config_from_hf(MINICPM | {"architectures": ["LlamaForCausalLM"]})
    assert scales_of(config) == (1, 1, 1)
    assert warnings == ["config.json: ignored keys dim_model_base, scale_depth, scale_emb"]


def test_keys_that_are_not_read_are_named() -> None:
    scaling = {"rope_type": "linear", "factor": 2.0, "beta_fast": 32}
    sparse = {"topk": 32, "use_nope": False, "kernel": "fast"}
    values = MINICPM | {"rope_scaling": scaling, "sparse_config": sparse, "auto_map": {"AutoModel": "x.Y"}, "num_experts": 4}
    config, warnings = config_from_hf(values)
    assert warnings == [
        "auto_map names custom code; it is ignored, this package has its own",
        "config.json: ignored rope_scaling keys beta_fast",
        "config.json: ignored sparse_config keys kernel",
        "config.json: ignored keys num_experts",
    ]
    assert config.sparse == SparseConfig(topk=32)


@pytest.mark.parametrize(("eos", "ids"), [(None, ()), (2, (2,)), ([2, 73440], (2, 73440))])
def test_end_tokens(eos: Any, ids: tuple[int, ...]) -> None:
    assert read(LLAMA, eos_token_id=eos).eos_ids == ids


def test_rope_in_either_block() -> None:
    linear = read(LLAMA, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 4})
    assert linear.rope == RopeConfig(5e5, (4.0,) * 6, (4.0,) * 6)
    assert read(LLAMA, rope_parameters={"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}).rope == linear.rope
    assert read(LLAMA, rope_scaling={"rope_type": "default"}).rope == RopeConfig()


def test_longrope_finds_its_first_context_and_magnitude() -> None:
    """sqrt(1 + ln(128 / 32) / ln 32) = sqrt(1 + 2 / 5)."""
    for values in (
        LLAMA | {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 32}},
        LLAMA | {"rope_scaling": LONGROPE, "original_max_position_embeddings": 32},
        LLAMA | {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 64}, "original_max_position_embeddings": 32},
        MINICPM | {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 32}, "original_max_position_embeddings": 64},
    ):
        config, warnings = config_from_hf(values)
        assert not warnings
        assert config.rope.original_context == 32
        assert config.usual_context == (32 if config.rope.follows_context else config.context_length)
        assert config.rope.magnitude == pytest.approx(1.4**0.5)
    assert read(LLAMA, rope_scaling=LONGROPE).rope.magnitude == 1
    assert read(LLAMA, rope_scaling=LONGROPE | {"attention_factor": 1.25}).rope.magnitude == 1.25


def test_llama3_divides_slow_frequencies_only() -> None:
    factors = read(LLAMA, head_dim=64, rope_theta=5e5, rope_scaling=LLAMA3 | {"original_max_position_embeddings": 8192}).rope.short_factors
    assert factors is not None
    assert factors[0] == 1
    assert factors[-1] == 8
    assert all(first <= second for first, second in pairwise(factors))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPT2LMHeadModel"]},
            r"architecture \['GPT2LMHeadModel'\] is not supported; supported are MiniCPM",
        ),
        ({"architectures": None, "model_type": None}, "says neither model_type nor architectures; add one of them"),
        ({"model_type": "gemma2"}, "model_type 'gemma2' is not supported: it differs by norms that add one"),
        ({"model_type": "phi3"}, "model_type 'phi3' is not supported: it differs by matrices in one"),
        ({"model_type": "qwen2_moe"}, "it differs by experts"),
        ({"model_type": "nobody_knows"}, "model_type 'nobody_knows' is not supported; supported are"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', only 'silu' is supported; this is no model of the Llama family"),
        ({"rope_interleaved": True}, "rope_interleaved is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, expected 1"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope parameters of their own for kinds of layers"),
        ({"model_type": "qwen2", "layer_types": ["chunked_attention"]}, "layer_types holds 'chunked_attention'"),
        ({"hidden_size": None}, "config.json: hidden_size is missing; check that this is a causal language model's config"),
        ({"vocab_size": "97"}, "config.json: vocab_size is '97', expected int"),
        ({"vocab_size": True}, "config.json: vocab_size is True, expected int"),
        ({"vocab_size": 1 << 63}, "config.json: vocab_size is out of range"),
        ({"rope_theta": float("inf")}, "config.json: rope_theta is out of range"),
        ({"num_hidden_layers": 0}, r"layers, heads is \(0, 8\), expected positive whole numbers"),
        ({"head_dim": -2}, "head_dim is -2, expected a positive whole number"),
        ({"eos_token_id": ["</s>"]}, r"eos_token_id is \['</s>'\], expected whole numbers"),
        ({"sparse_config": {"use_nope": True}}, "sparse_config.use_nope is not supported; no published model sets it"),
        ({"rope_theta": -1.0}, r"rope theta, head_dim is \(-1.0, 12\), expected positive, and at most 65536"),
        ({"rope_scaling": {"rope_type": "mrope"}}, "rope type 'mrope' is not supported; supported: default, linear, dynamic, yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "config.json rope_scaling: factor is missing"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1.0}}, "llama3 rope scaling is .*, expected factor > 0 and high_freq_factor >"),
        (
            {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 1}},
            "original_max_position_embeddings is 1, expected more than 1",
        ),
        ({"rope_scaling": LONGROPE | {"long_factor": ["2"] * 6}}, "rope factors is .*, expected numbers"),
        ({"rope_scaling": LONGROPE | {"long_factor": [2] * 5}}, "rope factors is .*, expected 6 numbers, one a frequency"),
    ],
)
def test_a_config_json_that_cannot_be_run_is_refused_with_its_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_hf(LLAMA | changes)


def test_a_base_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="dim_model_base is 0, expected a positive whole number"):
        config_from_hf(MINICPM | {"dim_model_base": 0})


def test_windows_as_long_as_the_context_are_no_windows() -> None:
    assert read(LLAMA, sliding_window=128).context_length == 128


def test_what_a_key_that_is_missing_means_in_each_family() -> None:
    sizes = {key: LLAMA[key] for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    mistral = read(sizes | {"model_type": "mistral", "num_attention_heads": 8})
    assert (mistral.num_kv_heads, mistral.context_length, mistral.norm_eps) == (8, 4096, 1e-6)  # a window of 4096, which bounds it
    qwen = read(sizes | {"model_type": "qwen3", "num_attention_heads": 32, "use_sliding_window": False})
    assert (qwen.num_kv_heads, qwen.head_dim, qwen.context_length, qwen.has_head_norms) == (32, 128, 32768, True)
    assert read(sizes | {"model_type": "llama", "num_attention_heads": 8}).context_length == 2048


@pytest.mark.parametrize(
    ("changes", "biases"),
    [
        ({}, ""),
        ({"attention_bias": True}, "q k v o"),
        ({"mlp_bias": True}, "gate up down"),
        ({"model_type": "mistral", "attention_bias": True, "mlp_bias": True, "sliding_window": None}, ""),
        ({"model_type": "qwen2"}, "q k v"),
        ({"model_type": "qwen3", "attention_bias": True}, "q k v o"),
    ],
)
def test_which_products_have_biases(changes: dict[str, Any], biases: str) -> None:
    assert read(LLAMA, **changes).biases == frozenset(biases.split())


def test_a_window_bounds_the_context() -> None:
    for changes in ({"model_type": "mistral"}, {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1}):
        config, warnings = config_from_hf(LLAMA | changes | {"sliding_window": 64})
        assert config.context_length == 64
        assert warnings == ["config.json: attention has a window of 64 tokens, which is the longest context that is supported"]
    assert read(LLAMA, model_type="qwen2", sliding_window=64, use_sliding_window=False).context_length == 128
    assert read(LLAMA, model_type="qwen2", sliding_window=64, use_sliding_window=True, max_window_layers=99).context_length == 128
