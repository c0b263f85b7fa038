"""Hugging Face's config.json as a ModelConfig: which family it is, what its keys mean there, and what is refused.

The keys mean what the `transformers` library makes of them, MiniCPM's what its own published code does. Custom code that a config points
to (`auto_map`) is never imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from minicpm4.errors import ConfigError
from minicpm4.model.config import SIZE_LIMIT, KeyReader, ModelConfig, SparseConfig, require
from minicpm4.model.families import DEFAULTS, SUPPORTED, family_of
from minicpm4.model.hf_rope import rope_from_hf

# Keys that do not change inference, or that restate what the weights say; they are read by being known.
SILENT_KEYS = frozenset((
    "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash", "_name_or_path",
    "architectures", "attention_dropout", "attn_implementation", "bad_words_ids", "bos_token_id", "chunk_size_feed_forward", "dtype",
    "eos_token_id", "finetuning_task", "gradient_checkpointing", "id2label", "initializer_range", "is_decoder", "is_encoder_decoder",
    "is_llama_config", "label2id", "language", "license", "max_sequence_length", "max_window_layers", "model_max_length", "model_type",
    "mup_denominator", "output_attentions", "output_hidden_states", "pad_token_id", "prefix", "pretraining_tp", "problem_type",
    "return_dict", "rope_interleaved", "sep_token_id", "task_specific_params", "tie_encoder_decoder", "tokenizer_class", "torch_dtype",
    "torchscript", "transformers.js_config", "transformers_version", "unk_token_id", "unsloth_fixed", "unsloth_version", "use_bfloat16",
    "use_cache", "use_return_dict",
))  # fmt: skip
ATTENTION_BIASES, MLP_BIASES = ("q", "k", "v", "o"), ("gate", "up", "down")
ACTIVATIONS = ("silu", "swish")  # two names of one function


def config_from_hf(values: Mapping[str, Any]) -> tuple[ModelConfig, list[str]]:
    """A config.json's model and the warnings to show: keys that were not understood, code that was not run.

    Raises ConfigError where a key is missing, has the wrong type, or asks for an architecture that this is not.
    """
    family = family_of(values)
    keys = KeyReader({**DEFAULTS[family], **values}, "config.json")
    hidden, layers, heads = keys.need("hidden_size", int), keys.need("num_hidden_layers", int), keys.need("num_attention_heads", int)
    require(0 < layers <= 1024 and 0 < heads < SIZE_LIMIT, "layers, heads", (layers, heads), "positive whole numbers")
    head_dim = keys.get("head_dim", int, hidden // heads)
    require(0 < head_dim < SIZE_LIMIT, "head_dim", head_dim, "a positive whole number")
    check_unchanged(keys)
    warnings = ["auto_map names custom code; it is ignored, this package has its own"] if keys.get("auto_map", dict) else []
    is_minicpm, published = family == "minicpm", keys.need("max_position_embeddings", int)
    context = windowed_context(keys, family, warnings, context=published, layers=layers)
    config = ModelConfig(
        vocab_size=keys.need("vocab_size", int),
        hidden_size=hidden,
        intermediate_size=keys.need("intermediate_size", int),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=keys.get("num_key_value_heads", int, heads),
        head_dim=head_dim,
        context_length=context,
        norm_eps=keys.need("rms_norm_eps", float),
        rope=rope_from_hf(keys, warnings, head_dim=head_dim, context=published, is_minicpm=is_minicpm),
        **(minicpm_scales(keys, hidden=hidden, layers=layers) if is_minicpm else {}),
        has_tied_head=keys.get("tie_word_embeddings", bool, is_minicpm),
        biases=biases_of(keys, family),
        has_head_norms=family == "qwen3",
        sparse=sparse_from_hf(keys, warnings) or (SparseConfig() if is_minicpm else None),  # published MiniCPM4 files have no block
        bos_id=next(iter(token_ids(keys, "bos_token_id")), None),
        eos_ids=token_ids(keys, "eos_token_id"),
    )
    unread = [key for key in keys.unread() if key not in SILENT_KEYS]
    if unread:
        warnings.append(f"config.json: ignored keys {', '.join(unread)}")
    return config, warnings


def check_unchanged(keys: KeyReader) -> None:
    """ConfigError for a key that asks for other arithmetic than the one forward pass has."""
    activation = keys.get("hidden_act", str, ACTIVATIONS[0])
    if activation not in ACTIVATIONS:
        raise ConfigError(
            f"config.json: hidden_act is {activation!r:.80}, only 'silu' is supported", hint="this is no model of the Llama family"
        )
    if keys.get("rope_interleaved", bool, False):
        raise ConfigError("config.json: rope_interleaved is not supported", hint="get the model in the published layout")


def token_ids(keys: KeyReader, name: str) -> tuple[int, ...]:
    """An id, or a list of them."""
    keys.seen.add(name)
    value = keys.values.get(name)
    ids = tuple(value) if isinstance(value, list) else () if value is None else (value,)
    require(all(type(i) is int for i in ids), name, value, "whole numbers")
    return ids


def biases_of(keys: KeyReader, family: str) -> frozenset[str]:
    """The matrices with biases: Qwen2 has three always, Mistral none, the others say so."""
    attention, mlp = keys.get("attention_bias", bool, False), keys.get("mlp_bias", bool, False)
    if family == "qwen2":
        return frozenset(ATTENTION_BIASES[:3])
    has_attention = attention and family != "mistral"
    has_mlp = mlp and family == "llama"
    return frozenset((*(ATTENTION_BIASES if has_attention else ()), *(MLP_BIASES if has_mlp else ())))


def windowed_context(keys: KeyReader, family: str, warnings: list[str], *, context: int, layers: int) -> int:
    """The context in which a window of attention changes nothing: all of the model's, or the window."""
    window, is_used = keys.get("sliding_window", int), keys.get("use_sliding_window", bool, False)
    first, kinds = keys.get("max_window_layers", int, 28), keys.get("layer_types", list)
    known = ("full_attention",) if family in ("llama", "minicpm") else ("full_attention", "sliding_attention")
    strange = [kind for kind in kinds or () if kind not in known]
    if strange:
        raise ConfigError(f"config.json: layer_types holds {strange[0]!r:.80}, which is not supported", hint=SUPPORTED)
    if family in ("qwen2", "qwen3"):
        has_window = "sliding_attention" in kinds if kinds else first < layers
        window = window if is_used and has_window else None
    elif family != "mistral":
        window = window if is_used else None
    if window is None or window >= context:
        return context
    require(window > 0, "sliding_window", window, "a positive whole number")
    warnings.append(f"config.json: attention has a window of {window} tokens, which is the longest context that is supported")
    return window


def minicpm_scales(keys: KeyReader, *, hidden: int, layers: int) -> dict[str, float]:
    """The three scales; a Llama has none, whatever keys it was left with."""
    base = keys.get("dim_model_base", int, 1)
    require(0 < base < SIZE_LIMIT, "dim_model_base", base, "a positive whole number")
    return {
        "embedding_scale": keys.get("scale_emb", float, 1.0),
        "residual_scale": keys.get("scale_depth", float, 1.0) / math.sqrt(layers),
        "logit_divisor": hidden / base,
    }


def sparse_from_hf(keys: KeyReader, warnings: list[str]) -> SparseConfig | None:
    block = keys.get("sparse_config", dict)
    if block is None:
        return None
    inner = KeyReader(block, "config.json sparse_config")
    if inner.get("use_nope", bool, False):
        raise ConfigError("config.json: sparse_config.use_nope is not supported", hint="no published model sets it")
    names = (field.name for field in fields(SparseConfig) if field.name != "has_coarse_lse")  # which is ours
    values = {name: inner.get(name, int, getattr(SparseConfig, name)) for name in names}
    if inner.unread():
        warnings.append(f"config.json: ignored sparse_config keys {', '.join(inner.unread())}")
    return SparseConfig(**values)
