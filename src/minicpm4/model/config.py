"""What a model is: sizes, scales, rotary embedding, sparse attention. Parsed once, frozen, every field concrete.

Knows the keys of Hugging Face's config.json; a GGUF file's keys are `checkpoint.gguf_model`'s. Custom code that a
config points to (`auto_map`) is never imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from minicpm4.errors import ConfigError
from minicpm4.model.step import PAGE_TOKENS

LIMIT = 1 << 24  # no size of a real model reaches it; a hostile one must not make us allocate


def require(is_valid: bool, name: str, value: object, expected: str) -> None:
    if not is_valid:
        raise ConfigError(f"{name} is {value!r:.200}, expected {expected}", hint="correct the model's config")


@dataclass(frozen=True)
class RopeConfig:
    """theta: base of the frequencies.

    short_factors, long_factors: divisor of each of the head_dim / 2 frequencies; None means ones. The long ones apply
    to contexts longer than original_context (tokens); None means that the short ones always apply.
    magnitude: factor on cosines and sines.
    """

    theta: float = 10000.0
    short_factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None
    original_context: int | None = None
    magnitude: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("rope theta", self.theta), ("rope magnitude", self.magnitude)):
            require(math.isfinite(value) and value > 0, name, value, "a positive number")
        for factors in (self.short_factors, self.long_factors):
            require(factors is None or all(math.isfinite(f) and f > 0 for f in factors), "rope factors", factors, "positive numbers")


@dataclass(frozen=True)
class SparseConfig:
    """InfLLM v2 (arXiv 2509.24663). The first seven names and defaults are those of the checkpoints' `sparse_config`; `model.sparse`
    is the rule that they are numbers of.

    kernel_size, kernel_stride: a compressed key is the mean of kernel_size keys in a row; one begins every kernel_stride tokens.
    block_size: tokens of a block, the unit of selection; a page of the cache, and nothing else.
    init_blocks: first blocks of a sequence, which every row sees.
    window_size: tokens of the local window, in whole blocks of which the last is the row's own.
    topk: blocks beside the window: the init_blocks, which count here, and the best topk - init_blocks of those between.
    dense_len: a row that sees at most so many tokens, its own among them, attends to all of them; 0 and -1: no row does.
    has_coarse_lse: whether scores are normalized by a logarithm of summed exponentials over coarser kernels (four times the size and
    stride) instead of their own: a quarter of the work where that is a pass of its own, another order where it is close. False is exact.
    """

    kernel_size: int = 32
    kernel_stride: int = 16
    block_size: int = PAGE_TOKENS
    init_blocks: int = 1
    window_size: int = 2048
    topk: int = 64
    dense_len: int = 8192
    has_coarse_lse: bool = False

    def __post_init__(self) -> None:
        for name in ("kernel_size", "kernel_stride", "block_size", "init_blocks", "window_size", "topk"):
            require(0 < getattr(self, name) < LIMIT, f"sparse {name}", getattr(self, name), "a positive whole number")
        block, stride = self.block_size, self.kernel_stride
        require(block == PAGE_TOKENS, "sparse block_size", block, f"{PAGE_TOKENS}, a page of the cache")
        require(self.dense_len >= -1, "sparse dense_len", self.dense_len, "-1 (never dense) or a number of tokens")
        require(self.window_size % block == 0, "sparse window_size", self.window_size, f"a multiple of the block, {block}")
        require(self.topk >= self.init_blocks, "sparse topk", self.topk, f"at least init_blocks, {self.init_blocks}, which it counts")
        require(block % stride == 0, "sparse kernel_stride", stride, f"a divisor of the block, {block}")
        is_whole = self.kernel_size % stride == 0 and self.kernel_size <= block
        require(is_whole, "sparse kernel_size", self.kernel_size, f"a multiple of kernel_stride, {stride}, at most a block, {block}")

    @property
    def num_local_blocks(self) -> int:
        return self.window_size // self.block_size

    @property
    def num_best_blocks(self) -> int:
        """Blocks that are chosen by their scores."""
        return self.topk - self.init_blocks

    @property
    def max_blocks(self) -> int:
        """The most blocks that a sparse row attends to; 96 by default."""
        return self.num_local_blocks + self.topk

    @property
    def kernels_per_block(self) -> int:
        return self.block_size // self.kernel_stride


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of the Llama family with MiniCPM's scales.

    embedding_scale multiplies embeddings, residual_scale every branch that is added to the residual stream,
    1 / logit_divisor the last hidden state before the head; all are 1 for a plain Llama.
    context_length: the tokens that the published model is made for. bos_id and eos_ids come from the config; the tokenizer may know better.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    context_length: int
    norm_eps: float = 1e-5
    rope: RopeConfig = RopeConfig()
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_divisor: float = 1.0
    has_tied_head: bool = False
    sparse: SparseConfig | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads", "head_dim"):
            value = getattr(self, name)
            require(isinstance(value, int) and 0 < value < LIMIT, name, value, "a positive whole number")
        require(0 < self.context_length < 1 << 31, "context_length", self.context_length, "a positive whole number")
        require(self.num_layers <= 1024, "num_layers", self.num_layers, "at most 1024")
        require(self.num_heads % self.num_kv_heads == 0, "num_heads", self.num_heads, f"a multiple of num_kv_heads, {self.num_kv_heads}")
        require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "even")
        for name in ("norm_eps", "embedding_scale", "residual_scale", "logit_divisor"):
            require(math.isfinite(getattr(self, name)) and getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        for factors in (self.rope.short_factors, self.rope.long_factors):
            require(
                factors is None or len(factors) == self.head_dim // 2,
                "rope factors",
                factors,
                f"{self.head_dim // 2} numbers, one a frequency",
            )


# Keys that do not change inference, or that restate what the weights say; they are read by being known.
HF_SILENT_KEYS = frozenset((
    "_name_or_path", "architectures", "attention_bias", "attention_dropout", "bos_token_id", "dtype", "eos_token_id", "hidden_act",
    "initializer_range", "is_llama_config", "mlp_bias", "model_type", "mup_denominator", "pad_token_id", "pretraining_tp",
    "rope_interleaved", "tie_word_embeddings", "torch_dtype", "transformers.js_config", "transformers_version", "unsloth_version",
    "use_cache",
))  # fmt: skip
HF_ARCHITECTURES = frozenset(("MiniCPMForCausalLM", "MiniCPM4ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"))
HF_ONLY_VALUES = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "rope_interleaved": False}


def is_in_range(number: Any) -> bool:
    """Whether a file's number is one that arithmetic cannot choke on: finite, and a whole one of at most 63 bits."""
    return abs(number) < 1 << 63 if isinstance(number, int) else math.isfinite(number)


class KeyReader:
    """Reads values out of somebody else's mapping, checks their types, and remembers which keys nobody asked for."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values, self.source, self.seen = values, source, set[str]()

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        self.seen.add(key)
        value = self.values.get(key)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63:
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{self.source}: {key} is {value!r:.80}, expected {kind.__name__}", hint="correct the model's config")
        if kind in (int, float) and not is_in_range(value):
            raise ConfigError(f"{self.source}: {key} is out of range", hint="correct the model's config")
        return value

    def need(self, key: str, kind: type) -> Any:
        value = self.get(key, kind)
        if value is None:
            raise ConfigError(f"{self.source}: {key} is missing", hint="check that this is a causal language model's config")
        return value

    def unread(self) -> list[str]:
        return sorted(str(key) for key in self.values.keys() - self.seen)


def config_from_hf(values: Mapping[str, Any]) -> tuple[ModelConfig, list[str]]:
    """A config.json's model and the warnings to show: keys that were not understood, code that was not run.

    Raises ConfigError where a key is missing, has the wrong type, or asks for an architecture that this is not.
    """
    keys = KeyReader(values, "config.json")
    is_minicpm = is_minicpm_architecture(keys)
    hidden, layers, heads = keys.need("hidden_size", int), keys.need("num_hidden_layers", int), keys.need("num_attention_heads", int)
    require(0 < layers <= 1024 and 0 < heads < LIMIT, "layers, heads", (layers, heads), "positive whole numbers")
    context, head_dim = keys.get("max_position_embeddings", int, 2048), keys.get("head_dim", int, hidden // heads)
    require(0 < head_dim < LIMIT, "head_dim", head_dim, "a positive whole number")
    eos = values.get("eos_token_id")
    eos_ids = tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,)
    require(all(type(i) is int for i in eos_ids), "eos_token_id", eos, "whole numbers")
    warnings = ["auto_map names custom code; it is ignored, this package has its own"] if keys.get("auto_map", dict) else []
    config = ModelConfig(
        vocab_size=keys.need("vocab_size", int),
        hidden_size=hidden,
        intermediate_size=keys.need("intermediate_size", int),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=keys.get("num_key_value_heads", int, heads),
        head_dim=head_dim,
        context_length=context,
        norm_eps=keys.get("rms_norm_eps", float, 1e-6),
        rope=rope_from_hf(keys, warnings, head_dim=head_dim, context=context),
        **(minicpm_scales(keys, hidden=hidden, layers=layers) if is_minicpm else {}),
        has_tied_head=keys.get("tie_word_embeddings", bool, is_minicpm),
        sparse=sparse_from_hf(keys, warnings) or (SparseConfig() if is_minicpm else None),  # published MiniCPM4 files have no block
        bos_id=keys.get("bos_token_id", int),
        eos_ids=eos_ids,
    )
    window = keys.get("sliding_window", int)
    if window is not None and window < context:
        raise ConfigError(f"config.json: sliding_window {window} is not supported", hint="only full attention and InfLLM v2 are")
    unread = [key for key in keys.unread() if key not in HF_SILENT_KEYS]
    if unread:
        warnings.append(f"config.json: ignored keys {', '.join(unread)}")
    return config, warnings


def is_minicpm_architecture(keys: KeyReader) -> bool:
    """Whether it is MiniCPM's rather than Llama's; ConfigError if it is neither, or has parts that ours has not."""
    architectures = keys.get("architectures", list, [])
    names = {name for name in architectures if isinstance(name, str)}
    if architectures and not HF_ARCHITECTURES & names:
        raise ConfigError(f"architecture {architectures!r:.200} is not supported", hint=f"supported: {', '.join(sorted(HF_ARCHITECTURES))}")
    for key, only in HF_ONLY_VALUES.items():
        value = keys.values.get(key, only)
        if value not in (only, None):
            raise ConfigError(
                f"config.json: {key} is {value!r:.80}, only {only!r} is supported", hint="this is not a plain MiniCPM4 or Llama model"
            )
    return any(name.startswith("MiniCPM") for name in names) or keys.get("model_type", str) == "minicpm"


def minicpm_scales(keys: KeyReader, *, hidden: int, layers: int) -> dict[str, float]:
    """The three scales; a Llama has none, whatever keys it was left with."""
    base = keys.get("dim_model_base", int, 1)
    require(0 < base < LIMIT, "dim_model_base", base, "a positive whole number")
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


def rope_from_hf(keys: KeyReader, warnings: list[str], *, head_dim: int, context: int) -> RopeConfig:
    """`rope_theta` with `rope_scaling`, or the newer `rope_parameters` that holds both."""
    parameters = keys.get("rope_parameters", dict)
    theta, block = keys.get("rope_theta", float, 10000.0), keys.get("rope_scaling", dict) or parameters or {}
    scaling = KeyReader(block, "config.json rope_scaling")
    theta = scaling.get("rope_theta", float, theta)
    require(theta > 0 and head_dim <= 1 << 16, "rope theta, head_dim", (theta, head_dim), "positive, and at most 65536")
    original = keys.get("original_max_position_embeddings", int, context)
    rope = scaled_rope(scaling, theta, head_dim=head_dim, context=context, original=original)
    if scaling.unread():
        warnings.append(f"config.json: ignored rope_scaling keys {', '.join(scaling.unread())}")
    return rope


def scaled_rope(scaling: KeyReader, theta: float, *, head_dim: int, context: int, original: int) -> RopeConfig:
    """original: the context trained first, unless the block itself says."""
    kind = scaling.get("rope_type", str, scaling.get("type", str, "default"))
    if kind == "default":
        return RopeConfig(theta)
    if kind == "linear":
        factors = (scaling.need("factor", float),) * (head_dim // 2)
        return RopeConfig(theta, factors, factors)
    if kind == "llama3":
        factors = llama3_factors(scaling, theta, head_dim)
        return RopeConfig(theta, factors, factors)
    if kind == "longrope":
        original = scaling.get("original_max_position_embeddings", int, original)
        require(original > 1, "original_max_position_embeddings", original, "more than 1")
        stretch = max(1.0, context / original)
        magnitude = scaling.get("attention_factor", float, math.sqrt(1 + math.log(stretch) / math.log(original)))
        short, long = (factor_list(scaling.need(name, list)) for name in ("short_factor", "long_factor"))
        return RopeConfig(theta, short, long, original, magnitude)
    raise ConfigError(f"config.json: rope type {kind!r:.80} is not supported", hint="supported: default, linear, llama3, longrope")


def factor_list(values: list[Any]) -> tuple[float, ...]:
    require(all(isinstance(v, int | float) and not isinstance(v, bool) for v in values), "rope factors", values, "numbers")
    return tuple(float(v) for v in values)


def llama3_factors(scaling: KeyReader, theta: float, head_dim: int) -> tuple[float, ...]:
    """Divisors of Llama 3.1's scaling: long wavelengths by `factor`, short ones by 1, a ramp between (Meta's published rule)."""
    factor, low, high = scaling.need("factor", float), scaling.need("low_freq_factor", float), scaling.need("high_freq_factor", float)
    original = scaling.need("original_max_position_embeddings", int)
    require(
        factor > 0 and high > low > 0, "llama3 rope scaling", (factor, low, high), "factor > 0 and high_freq_factor > low_freq_factor > 0"
    )
    factors = []
    for i in range(head_dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * i / head_dim)
        blend = min(1.0, max(0.0, (original / wavelength - low) / (high - low)))  # 1 keeps the frequency, 0 divides it
        factors.append(1 / ((1 - blend) / factor + blend))
    return tuple(factors)
