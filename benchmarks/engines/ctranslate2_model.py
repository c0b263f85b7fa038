"""Converts a GGUF file of the Llama family to CTranslate2's own int8 model. Runs in an interpreter with ctranslate2 and gguf.

Its formats are fewer than GGUF's: every matrix becomes eight bits with a scale a row, whatever the file has.
"""

from __future__ import annotations

from pathlib import Path

import ctranslate2
import gguf
import numpy as np
from ctranslate2.specs import common_spec, transformer_spec

LAYER_ROLES = ("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")


def convert(source: str, target: str) -> None:
    """target: a folder, which appears when the model is whole."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    if architecture != "llama":
        raise ValueError(f"the file is of architecture {architecture}, only llama is converted")
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def key(name: str) -> float:
        return float(reader.fields[f"{architecture}.{name}"].contents())

    def load(name: str) -> np.ndarray:
        tensor = tensors[f"{name}.weight"]
        return gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)

    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        int(key("block_count")),
        int(key("attention.head_count")),
        activation=common_spec.Activation.SWISH,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=True,  # as rows of queries and keys are ordered in GGUF files
        rotary_base=key("rope.freq_base"),
        num_heads_kv=int(key("attention.head_count_kv")),
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = load("token_embd")
    decoder.layer_norm.gamma = load("output_norm")
    decoder.projection.weight = load("output") if "output.weight" in tensors else decoder.embeddings.weight
    for index, layer in enumerate(decoder.layer):
        fill_layer(layer, {role: load(f"blk.{index}.{role}") for role in LAYER_ROLES})
    spec.register_vocabulary([str(token) for token in range(len(decoder.embeddings.weight))])
    spec.config.layer_norm_epsilon = key("attention.layer_norm_rms_epsilon")
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "1", "2", "0"
    spec.validate()
    spec.optimize(quantization="int8")
    save(spec, Path(target))


def fill_layer(layer: transformer_spec.TransformerDecoderLayerSpec, weights: dict[str, np.ndarray]) -> None:
    attention = layer.self_attention
    attention.layer_norm.gamma, layer.ffn.layer_norm.gamma = weights["attn_norm"], weights["ffn_norm"]
    attention.linear[0].weight = np.concatenate([weights[role] for role in ("attn_q", "attn_k", "attn_v")])
    attention.linear[1].weight = weights["attn_output"]
    layer.ffn.linear_0.weight, layer.ffn.linear_0_noact.weight = weights["ffn_gate"], weights["ffn_up"]
    layer.ffn.linear_1.weight = weights["ffn_down"]


def save(spec: ctranslate2.specs.ModelSpec, target: Path) -> None:
    unfinished = target.with_name(f"{target.name}.partial")
    unfinished.mkdir(parents=True, exist_ok=True)
    spec.save(str(unfinished))
    unfinished.replace(target)
