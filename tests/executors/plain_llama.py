"""The public judge: `transformers`' Llama, given a MiniCPM4 whose scales were folded into its weights (spec: 1.6 of the report's code)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from minicpm4.model import ModelConfig, PackedTensor
from minicpm4.model.parameters import EMBEDDING, HEAD
from minicpm4.quant import dequantize

MINICPM_ONLY = ("scale_emb", "scale_depth", "dim_model_base", "architectures")


def toy_json(**changes: Any) -> dict[str, Any]:
    """A small MiniCPM4's config.json: heads of 24 in a group of 8, sizes that are no powers of two, every scale in use."""
    return {
        "architectures": ["MiniCPMForCausalLM"], "vocab_size": 97, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 24, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "scale_emb": 3, "scale_depth": 0.7, "dim_model_base": 64, "tie_word_embeddings": False, **changes,
    }  # fmt: skip


def folded(config: ModelConfig, weights: Mapping[str, PackedTensor]) -> dict[str, np.ndarray]:
    """Weights of a plain, untied Llama that computes the same."""
    values = {name: dequantize(tensor) for name, tensor in weights.items()}
    values[HEAD] = values.get(HEAD, values[EMBEDDING]) / np.float32(config.logit_divisor)
    values[EMBEDDING] = values[EMBEDDING] * np.float32(config.embedding_scale)
    for name in values:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            values[name] = values[name] * np.float32(config.residual_scale)
    return values


def llama_logits(values: Mapping[str, Any], config: ModelConfig, weights: Mapping[str, PackedTensor], tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of the folded model at every token. values: the MiniCPM4's config.json."""
    plain = {key: value for key, value in values.items() if key not in MINICPM_ONLY} | {"tie_word_embeddings": False}
    model = LlamaForCausalLM(LlamaConfig(**plain)).eval()
    model.load_state_dict({name: torch.from_numpy(value) for name, value in folded(config, weights).items()})
    with torch.inference_mode():
        return model(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0].numpy()
