"""Configs of each family as `transformers` writes them: a random model that it saves has its logits here, or is refused by name.

Tolerance 2e-5 of logits of size one, sums at most 200 long, in float32 on both sides.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4.checkpoint import open_checkpoint
from minicpm4.errors import ConfigError
from minicpm4.model.parameters import parameter_shapes
from minicpm4.model.step import single_step
from tests.toy import EXECUTORS, toy_executor

SIZES = {
    "vocab_size": 97, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
OF_FAMILY = {"mistral": {"sliding_window": None}, "qwen3": {"head_dim": 24}}
SHORT, LONG = [1 + 0.05 * i for i in range(6)], [1 + 0.7 * i for i in range(6)]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 64}
NULL = None  # a key that is there without a value
SAME_FOR_ALL: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "head-dim": {"head_dim": 24},
    "every-head-its-own": {"num_key_value_heads": 8},
    "one-kv-head": {"num_key_value_heads": 1},
    "kv-heads-null": {"num_key_value_heads": NULL},
    "kv-heads-absent": {"num_key_value_heads": ...},
    "eps": {"rms_norm_eps": 1e-3},
    "eps-absent": {"rms_norm_eps": ...},
    "swish": {"hidden_act": "swish"},
    "theta": {"rope_theta": 500.0},
    "theta-whole-number": {"rope_theta": 500},
    "theta-in-parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "theta-in-both": {"rope_theta": 700.0, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "scaling-null": {"rope_scaling": NULL},
    "scaling-default": {"rope_scaling": {"type": "default"}},
    "scaling-before-parameters": {
        "rope_scaling": {"rope_type": "linear", "factor": 3.0},
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 50.0},
    },
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "llama3": {"rope_theta": 5e5, "rope_scaling": LLAMA3},
    "yarn": {"rope_scaling": YARN},
    "yarn-outer-original": {"rope_scaling": YARN, "original_max_position_embeddings": 16},
    "yarn-attention-factor": {"rope_scaling": YARN | {"attention_factor": 1.5}},
    "yarn-mscale": {"rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 0.9}},
    "yarn-one-mscale": {"rope_scaling": YARN | {"mscale": 0.7}},
    "yarn-betas": {"rope_scaling": YARN | {"beta_fast": 8.0, "beta_slow": 2.0}},
    "yarn-not-truncated": {"rope_scaling": YARN | {"truncate": False}},
    "longrope": {"rope_scaling": LONGROPE},
    "longrope-factor": {"rope_scaling": LONGROPE | {"factor": 8.0}},
    "longrope-attention-factor": {"rope_scaling": LONGROPE | {"attention_factor": 1.25}},
    "longrope-outer-original": {"rope_scaling": LONGROPE, "original_max_position_embeddings": 100},
    "window-not-used": {"use_sliding_window": False},
    "training-only": {"attention_dropout": 0.5, "use_cache": False, "pretraining_tp": 4},
    "ids": {"eos_token_id": [2, 3], "bos_token_id": 1, "pad_token_id": 0},
    "no-architectures": {"architectures": ...},
    "architecture-of-the-base": {"architectures": ["LlamaModel"]},
    "attention-bias": {"attention_bias": True},
    "mlp-bias": {"mlp_bias": True},
}  # fmt: skip
CASES = {(family, case): OF_FAMILY.get(family, {}) | changes for family in FAMILIES for case, changes in SAME_FOR_ALL.items()}
for other in ("qwen3", "mistral"):  # whose head_dim is not hidden_size / heads, or null
    CASES.pop((other, "kv-heads-absent"))  # a default that does not divide these heads
HEAD_DIMS = {("qwen3", case) for case in SAME_FOR_ALL if case.startswith("longrope")}
CASES |= {key: CASES[key] | {"head_dim": 12} for key in HEAD_DIMS}
CASES.pop(("qwen2", "kv-heads-absent"))
CASES.pop(("mistral", "kv-heads-null"))  # which transformers refuses
CASES |= {("mistral", "head-dim-null"): {"sliding_window": None, "head_dim": NULL}, ("mistral", "window"): {"sliding_window": 64}}
CASES |= {("qwen2", "window"): {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}}
CASES |= {("qwen2", "window-past-all-layers"): {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}}
FEW = {(family, case) for family in FAMILIES for case in ("plain", "attention-bias", "mlp-bias", "yarn")} | {("llama", "longrope")}
IDS = ["-".join(key) for key in CASES]


def save_model(folder: Path, family: str, changes: dict[str, Any]) -> Any:
    """A random model of `transformers`, saved by it; its config.json is then the one that was asked for."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {"model_type": family, "architectures": [f"{family.capitalize()}ForCausalLM"], **SIZES, **changes}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.5)
            elif "norm" in name:
                parameter.normal_(1, 0.2)
    text = (folder / "config.json").read_text()
    model.save_pretrained(folder)
    (folder / "config.json").write_text(text)
    return model


def published_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    import torch

    with torch.inference_mode():
        return model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()


def own_logits(folder: Path, tokens: np.ndarray, *, executor: str, context_length: int | None = None) -> np.ndarray:
    with open_checkpoint(folder) as checkpoint:
        weights = {name: checkpoint.load(name) for name in parameter_shapes(checkpoint.config)}
        context = context_length or checkpoint.config.usual_context
        runner = toy_executor(executor, checkpoint.config, weights, num_pages=2, context_length=context)
        return runner.run(single_step(tokens, num_logits=len(tokens))).logits.copy()


def tokens_of(count: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 97, count).astype(np.int32)


@pytest.mark.parametrize("key", [pytest.param(key, marks=[] if key in FEW else pytest.mark.whole) for key in CASES], ids=IDS)
def test_logits_are_those_of_transformers(tmp_path: Path, key: tuple[str, str]) -> None:
    """Also where LongRoPE goes to its long factors, when so long a context is asked for."""
    model = save_model(tmp_path / "m", key[0], CASES[key])
    with open_checkpoint(tmp_path / "m") as checkpoint:
        usual, longest = checkpoint.config.usual_context, checkpoint.config.context_length
    for count, context in ((min(60, usual), usual), (longest, longest)):
        tokens = tokens_of(count)
        wanted = published_logits(model, tokens)
        assert 0.3 < wanted.std() < 30
        got = own_logits(tmp_path / "m", tokens, executor="reference", context_length=context)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * max(1, np.abs(wanted).max()))


@pytest.mark.parametrize("executor", [name for name in EXECUTORS if name != "reference"])
@pytest.mark.parametrize(
    "key",
    [("qwen2", "plain"), ("qwen3", "plain"), ("qwen3", "attention-bias"), ("llama", "attention-bias"), ("llama", "mlp-bias")],
    ids="-".join,
)
@pytest.mark.parametrize("head_dim", [24, 32])
def test_biases_and_norms_of_heads_in_every_executor(tmp_path: Path, executor: str, key: tuple[str, str], head_dim: int) -> None:
    """head_dim: with and without heads that are whole vectors of the kernels."""
    model = save_model(tmp_path / "m", key[0], CASES[key] | {"head_dim": head_dim})
    wanted = published_logits(model, tokens_of(75))
    got = own_logits(tmp_path / "m", tokens_of(75), executor=executor)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gelu": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "part-of-heads": ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    "layers-of-kinds": ({"model_type": "qwen3", "layer_types": ["linear_attention"] * 2}, "layer_types holds 'linear_attention'"),
    "layers-of-a-llama": ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types holds 'sliding_attention'"),
    **{kind: ({"model_type": kind}, f"model_type '{kind}' is not supported: it differs by") for kind in (
        "gemma", "gemma2", "gemma3_text", "granite", "granitemoe", "phi", "phi3", "cohere", "cohere2", "stablelm", "olmo", "olmo2", "olmoe",
        "falcon", "mixtral", "deepseek_v2", "deepseek_v3", "qwen2_moe", "qwen3_moe", "qwen3_next", "qwen2_vl",
        "smollm3", "exaone4", "glm",
        "glm4", "starcoder2", "minicpm3", "mllama", "llama4", "gpt2", "gpt_neox", "gpt_oss", "bloom", "mpt", "opt", "mamba", "jamba",
        "rwkv", "internlm2", "baichuan", "chatglm", "nemotron", "minimax", "minicpmv", "minicpmo",
    )},
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_another_model_is_refused_by_name(tmp_path: Path, case: str) -> None:
    changes, reason = REFUSED[case]
    values = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SIZES, **changes}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=reason):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("shard", ["1GB", "60KB"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.whole
def test_what_save_pretrained_and_save_model_write(tmp_path: Path, dtype: str, shard: str, tied: bool) -> None:
    import torch
    from safetensors.torch import save_model as save_safetensors
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "m"
    model = save_model(folder, "llama", {"tie_word_embeddings": tied}).to(getattr(torch, dtype))
    for write in (
        lambda: model.save_pretrained(folder, max_shard_size=shard),
        lambda: save_safetensors(model, str(folder / "model.safetensors")),
    ):
        for file in folder.glob("model*"):
            file.unlink()
        write()
        wanted = published_logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokens_of(40))
        got = own_logits(folder, tokens_of(40), executor="reference")
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
