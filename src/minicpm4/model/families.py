"""Which family of models a config.json is of: those that the one forward pass computes, and in what others differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minicpm4.errors import ConfigError

SUPPORTED = "supported are MiniCPM, Llama, Mistral, Qwen2 and Qwen3 decoders"
# What a key that is missing means in each family, as in `transformers` and in MiniCPM's own code.
LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
}  # fmt: skip
QWEN = {
    **LLAMA, "vocab_size": 151936, "intermediate_size": 22016, "max_position_embeddings": 32768, "num_key_value_heads": 32,
}  # fmt: skip
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "minicpm": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6},
    "llama": LLAMA,
    "mistral": {
        **LLAMA, "intermediate_size": 14336, "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096,
    },
    "qwen2": QWEN,
    "qwen3": {**QWEN, "head_dim": 128},
}  # fmt: skip
NAMES_OF_FAMILIES = {  # as architectures begin
    "MiniCPM4": "minicpm",
    "MiniCPM": "minicpm",
    "LLaMA": "llama",
    "Llama": "llama",
    "Mistral": "mistral",
    "Qwen2": "qwen2",
    "Qwen3": "qwen3",
}
ENDINGS = ("ForCausalLM", "Model", "LMHeadModel")
DIFFERENCES = {  # by the beginning of model_type, the longest first
    "baichuan": "queries, keys and values in one matrix, and a normalized head",
    "bloom": "positions by ALiBi, and layer norms",
    "chatglm": "another layout of layers, and half of each head turned",
    "cohere": "layer norms, parallel branches and scaled logits",
    "deepseek": "latent attention, experts",
    "exaone": "other names, and norms after branches from version 4 on",
    "falcon": "queries, keys and values in one matrix, and parallel branches",
    "gemma": "norms that add one, scaled embeddings and capped logits",
    "glm": "half of each head turned, and norms after branches",
    "gpt": "layer norms and learned positions, or experts with sinks",
    "granite": "multipliers of embeddings, attention, residuals and logits",
    "internlm": "queries, keys and values in one matrix",
    "jamba": "state-space layers",
    "llama4": "experts, and layers without positions",
    "mamba": "state-space layers",
    "minicpm3": "latent attention",
    "minicpmo": "images, sound, and a decoder within",
    "minicpmv": "images, and a decoder within",
    "minimax": "linear attention, experts",
    "mixtral": "experts",
    "mllama": "images",
    "mpt": "positions by ALiBi, and layer norms",
    "nemotron": "norms that add one, and another activation",
    "olmo": "norms without weights, or of whole queries and keys",
    "opt": "layer norms and learned positions",
    "phi": "matrices in one, a part of each head turned, or layer norms",
    "qwen2_moe": "experts",
    "qwen2_vl": "images",
    "qwen2_5": "images or sound",
    "qwen2_audio": "sound",
    "qwen3_5": "linear attention",
    "qwen3_moe": "experts",
    "qwen3_next": "linear attention, experts",
    "qwen3_vl": "images",
    "qwen": "queries, keys and values in one matrix",
    "rwkv": "recurrent layers",
    "smollm3": "layers without positions",
    "stablelm": "layer norms, and a part of each head turned",
    "starcoder2": "layer norms, and another activation",
    "yi": "none that is known: an old name of llama; set model_type to llama",
}


def family_of(values: Mapping[str, Any]) -> str:
    """The family: by model_type, or where there is none by architectures. ConfigError for another one, with what differs."""
    kind, architectures = values.get("model_type"), values.get("architectures") or []
    if (kind is not None and not isinstance(kind, str)) or not isinstance(architectures, list):
        raise ConfigError(
            f"config.json: model_type is {kind!r:.80}, architectures {architectures!r:.80}; expected text, and a list of texts",
            hint="correct the model's config",
        )
    named = [family for name in architectures if isinstance(name, str) and (family := family_of_architecture(name))]
    if architectures and not named:
        raise ConfigError(f"architecture {architectures!r:.200} is not supported{difference(kind)}", hint=SUPPORTED)
    family = named[0] if kind is None and named else "minicpm" if kind == "minicpm4" else kind
    if family is None:
        raise ConfigError("config.json says neither model_type nor architectures", hint=f"add one of them; {SUPPORTED}")
    if family not in DEFAULTS:
        raise ConfigError(f"model_type {family!r:.80} is not supported{difference(family)}", hint=SUPPORTED)
    return family


def family_of_architecture(name: str) -> str | None:
    ending = next((ending for ending in ENDINGS if name.endswith(ending)), None)
    return NAMES_OF_FAMILIES.get(name.removesuffix(ending)) if ending else None


def difference(kind: str | None) -> str:
    """In what a family differs, as a part of a sentence; nothing for one that nobody here knows."""
    known = sorted((name for name in DIFFERENCES if kind and kind.startswith(name)), key=len)
    return f": it differs by {DIFFERENCES[known[-1]]}" if known else ""
