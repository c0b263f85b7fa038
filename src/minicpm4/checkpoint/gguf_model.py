"""What a GGUF file's metadata and tensors mean: a ModelConfig, parameter names, and the order of query and key rows.

Knows the keys and names of the architectures `llama`, `minicpm`, `qwen2` and `qwen3`; the rope rules for them are llama.cpp's. Reads no
bytes but the few of the rope factors.
"""

# D head dim

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm4.checkpoint.gguf_parts import GGUFParts
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.model.config import SIZE_LIMIT, KeyReader, ModelConfig, RopeConfig, SparseConfig, require
from minicpm4.model.families import difference
from minicpm4.model.hf_rope import yarn_factors
from minicpm4.model.parameters import EMBEDDING, HEAD, NORM, bias_parameter, head_norm_parameter, layer_parameter

ARCHITECTURES = ("llama", "minicpm", "qwen2", "qwen3")
INTERLEAVED = ("llama", "minicpm")  # whose writers change the order of query and key rows (`unpermuted_rows`)
LAYER_TENSORS = {
    "attn_norm": "attention_norm", "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o",
    "ffn_norm": "mlp_norm", "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
}  # fmt: skip
HEAD_NORM_TENSORS = {"q": "attn_q_norm", "k": "attn_k_norm"}
HARMLESS_NAMESPACES = ("general.", "tokenizer.", "quantize.", "split.")
NOT_SUPPORTED = "this package runs MiniCPM, Llama, Mistral, Qwen2 and Qwen3 decoders"
FREQUENCIES, LONG_FACTORS, SHORT_FACTORS = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"


class ArchitectureKeys:
    """Reads keys of the file's own architecture, such as `llama.block_count`."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.reader, self.architecture = KeyReader(metadata, "GGUF metadata"), architecture

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        return self.reader.get(f"{self.architecture}.{key}", kind, default)

    def need(self, key: str, kind: type) -> Any:
        return self.reader.need(f"{self.architecture}.{key}", kind)

    def size(self, key: str, default: int | None = None) -> int:
        self.use_one_of_layers(key)
        value = self.need(key, int) if default is None else self.get(key, int, default)
        require(0 < value < SIZE_LIMIT, f"{self.architecture}.{key}", value, "a positive whole number")
        return int(value)

    def use_one_of_layers(self, key: str) -> None:
        """Where the file holds a number for each layer: the one that all have. ConfigError where they differ."""
        name = f"{self.architecture}.{key}"
        values = self.reader.values.get(name)
        if isinstance(values, np.ndarray) and values.size:
            if (values != values[0]).any():
                raise ConfigError(f"GGUF metadata: {name} differs between layers, which is not supported", hint=NOT_SUPPORTED)
            self.reader.values = {**self.reader.values, name: values[0].item()}

    def only(self, key: str, kind: type, value: object) -> None:
        """ConfigError if the key is there with another value: it restates something, or asks for what is not supported."""
        found = self.get(key, kind, value)
        if found != value:
            raise ConfigError(f"GGUF metadata: {self.architecture}.{key} is {found!r:.80}, only {value!r} is supported", hint=NOT_SUPPORTED)


@dataclass(frozen=True)
class GGUFModel:
    """names: where each parameter lies in the file, by its canonical name. heads: how many heads the rows of a parameter must be put in
    order for, by its name. warnings: what the user should know."""

    config: ModelConfig
    names: Mapping[str, str]
    heads: Mapping[str, int]
    warnings: tuple[str, ...]


def read_gguf_model(file: GGUFParts) -> GGUFModel:
    """The model that the file holds. ConfigError, CheckpointError where it is none that we can run or contradicts itself."""
    keys = ArchitectureKeys(file.metadata, architecture_of(file))
    warnings: list[str] = []
    config, rope_tensors = config_from_gguf(file, keys, warnings)
    names = parameter_tensors(config)
    leftover = file.tensors.keys() - names.values() - rope_tensors
    if leftover:
        shown = ", ".join(repr(name)[:80] for name in sorted(leftover)[:3])
        raise CheckpointError(f"{file.name} has {len(leftover)} unknown tensors, such as {shown}", hint=NOT_SUPPORTED)
    unread = [key for key in keys.reader.unread() if not key.startswith(HARMLESS_NAMESPACES)]
    if unread:
        warnings.append(f"GGUF metadata: ignored keys {', '.join(f'{key:.80}' for key in unread[:20])}")
    present = {canonical: name for canonical, name in names.items() if name in file.tensors}
    heads = heads_to_reorder(config) if keys.architecture in INTERLEAVED else {}
    return GGUFModel(config, present, heads, tuple(warnings))


def heads_to_reorder(config: ModelConfig) -> dict[str, int]:
    heads = {}
    for index in range(config.num_layers):
        for role, count in (("q", config.num_heads), ("k", config.num_kv_heads)):
            heads[layer_parameter(index, role)] = count
            heads[bias_parameter(index, role)] = count
    return heads


def architecture_of(file: GGUFParts) -> str:
    """The file's architecture, once it is sure that it is a whole model of one we know."""
    general = KeyReader(file.metadata, "GGUF metadata")
    kind = general.get("general.type", str, "model")
    if kind != "model" or not file.tensors:
        raise CheckpointError(
            f"{file.name} holds a {kind!r:.40} with {len(file.tensors)} tensors, not a model", hint="name the model's own file"
        )
    architecture = general.need("general.architecture", str)
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"GGUF architecture {architecture!r:.80} is not supported{difference(architecture)}",
            hint=f"supported: {', '.join(ARCHITECTURES)}",
        )
    return str(architecture)


def config_from_gguf(file: GGUFParts, keys: ArchitectureKeys, warnings: list[str]) -> tuple[ModelConfig, frozenset[str]]:
    """The config, and the names of the tensors that went into its rope factors."""
    hidden, heads = keys.size("embedding_length"), keys.size("attention.head_count")
    head_dim, context = keys.size("attention.key_length", hidden // heads), keys.size("context_length")
    for restated in ("attention.value_length", "rope.dimension_count"):
        keys.only(restated, int, head_dim)
    for key, kind, value in (
        ("expert_count", int, 0),
        ("expert_used_count", int, 0),
        ("use_parallel_residual", bool, False),
        ("attention.causal", bool, True),
    ):
        keys.only(key, kind, value)
    window = keys.get("attention.sliding_window", int, 0)
    if 0 < window < context:
        warnings.append(f"GGUF metadata: attention has a window of {window} tokens, which is the longest context that is supported")
    published, context = context, min(context, window or context)
    rope, rope_tensors = rope_from_gguf(file, keys, head_dim=head_dim, context=published)
    vocab_size, num_layers = embedding_rows(file), keys.size("block_count")
    keys.get("vocab_size", int)  # the rows that there are count
    is_minicpm = keys.architecture == "minicpm"
    scales = minicpm_scales(keys, hidden=hidden, num_layers=num_layers) if is_minicpm else {}
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=keys.size("feed_forward_length"),
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=keys.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        context_length=context,
        norm_eps=keys.need("attention.layer_norm_rms_epsilon", float),
        rope=rope,
        **scales,
        has_tied_head="output.weight" not in file.tensors,
        biases=frozenset(role for name, role in LAYER_TENSORS.items() if f"blk.0.{name}.bias" in file.tensors),
        has_head_norms=keys.architecture == "qwen3",
        sparse=SparseConfig() if is_minicpm else None,
        bos_id=next(iter(token_ids(keys.reader, ("bos",), vocab_size=vocab_size, warnings=warnings)), None),
        eos_ids=token_ids(keys.reader, ("eos", "eot"), vocab_size=vocab_size, warnings=warnings),
    )
    return config, rope_tensors


def minicpm_scales(keys: ArchitectureKeys, *, hidden: int, num_layers: int) -> dict[str, float]:
    """The three scales; a file from before they were written has the published models'."""
    return {
        "embedding_scale": keys.get("embedding_scale", float, 12.0),
        "residual_scale": keys.get("residual_scale", float, 1.4 / math.sqrt(num_layers)),
        "logit_divisor": keys.get("logit_scale", float, hidden / 256),
    }


def embedding_rows(file: GGUFParts) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{file.name} lacks token_embd.weight", hint="it is not a whole model; download it again")
    return embedding.shape[0]


def token_ids(reader: KeyReader, kinds: tuple[str, ...], *, vocab_size: int, warnings: list[str]) -> tuple[int, ...]:
    """The ids that `tokenizer.ggml.<kind>_token_id` give, without those that no token has; these are warned of."""
    found = []
    for key in (f"tokenizer.ggml.{kind}_token_id" for kind in kinds):
        values = reader.values.get(key)
        many = values.tolist() if isinstance(values, np.ndarray) and values.dtype.kind in "iu" else [reader.get(key, int)]
        found += [(key, value) for value in many if value is not None]
    warnings.extend(f"GGUF metadata: {key} is {value}, which is no token; ignored" for key, value in found if not 0 <= value < vocab_size)
    return tuple(dict.fromkeys(value for _, value in found if 0 <= value < vocab_size))


def rope_from_gguf(file: GGUFParts, keys: ArchitectureKeys, *, head_dim: int, context: int) -> tuple[RopeConfig, frozenset[str]]:
    """The rotary embedding, and the names of the tensors that it was read from."""
    theta = keys.get("rope.freq_base", float, 10000.0)
    kind = keys.get("rope.scaling.type", str, "linear")  # the format's default, whose factor is 1
    factor = keys.get("rope.scaling.factor", float, keys.get("rope.scale_linear", float, 1.0))
    original = keys.get("rope.scaling.original_context_length", int, context)
    magnitude = keys.get("rope.scaling.attn_factor", float)
    keys.get("rope.scaling.finetuned", bool)
    if kind == "longrope":
        require(original > 1, f"{keys.architecture}.rope.scaling.original_context_length", original, "more than 1")
        if magnitude is None:  # the model's own rule (LongRoPE, arXiv 2402.13753), as for config.json
            magnitude = math.sqrt(1 + math.log(max(1.0, context / original)) / math.log(original))
        short, long = (rope_factors(file, name, head_dim=head_dim) for name in (SHORT_FACTORS, LONG_FACTORS))
        follows = keys.architecture != "minicpm"  # whose own code counts its own context
        return RopeConfig(theta, short, long, original, magnitude, follows), frozenset((SHORT_FACTORS, LONG_FACTORS))
    if kind == "yarn":
        return yarn_from_gguf(keys, theta, head_dim=head_dim, factor=factor, original=original), frozenset()
    if kind not in ("none", "linear") or magnitude not in (None, 1.0):
        raise ConfigError(
            f"GGUF metadata: rope scaling {kind!r:.40} with attn_factor {magnitude} is not supported",
            hint="supported: none, linear, yarn, longrope",
        )
    if FREQUENCIES in file.tensors:
        factors: tuple[float, ...] | None = rope_factors(file, FREQUENCIES, head_dim=head_dim)
        require(factor in (0.0, 1.0), f"{keys.architecture}.rope.scaling.factor", factor, f"1 beside {FREQUENCIES}")
    else:
        is_scaled = kind == "linear" and factor not in (0.0, 1.0)
        factors = (factor,) * (head_dim // 2) if is_scaled else None
    return RopeConfig(theta, factors, factors), frozenset((FREQUENCIES,))


def yarn_from_gguf(keys: ArchitectureKeys, theta: float, *, head_dim: int, factor: float, original: int) -> RopeConfig:
    """YaRN with the defaults of llama.cpp."""
    fast, slow = (keys.get(f"rope.scaling.yarn_beta_{name}", float, default) for name, default in (("fast", 32.0), ("slow", 1.0)))
    for name, neutral in (("yarn_ext_factor", 1.0), ("yarn_attn_factor", 1.0), ("yarn_log_multiplier", 0.0)):
        keys.only(f"rope.scaling.{name}", float, neutral)
    require(min(factor, fast, slow, original) > 0 and theta != 1, "yarn rope scaling", (factor, fast, slow, original), "positive numbers")
    factors = yarn_factors(theta, head_dim, factor=factor, turns=(fast, slow), original=original)
    magnitude = keys.get("rope.scaling.attn_factor", float, 1.0) * (1 + 0.1 * math.log(max(1.0, factor)))
    return RopeConfig(theta, factors, factors, magnitude=magnitude)


def rope_factors(file: GGUFParts, name: str, *, head_dim: int) -> tuple[float, ...]:
    """The head_dim / 2 divisors that a float32 tensor holds."""
    info = file.tensors.get(name)
    if info is None or info.format != "f32" or info.shape != (head_dim // 2,):
        found = "absent" if info is None else f"{info.format} {info.shape}"
        raise CheckpointError(f"{file.name}: tensor {name} is {found}, expected f32 ({head_dim // 2},)", hint="convert the model again")
    return tuple(file.load(name).data[0].view("<f4").tolist())


def parameter_tensors(config: ModelConfig) -> dict[str, str]:
    """Canonical name -> GGUF name of every parameter."""
    names = {EMBEDDING: "token_embd.weight", NORM: "output_norm.weight"}
    if not config.has_tied_head:
        names[HEAD] = "output.weight"
    for index in range(config.num_layers):
        names |= {layer_parameter(index, role): f"blk.{index}.{name}.weight" for name, role in LAYER_TENSORS.items()}
        names |= {bias_parameter(index, role): f"blk.{index}.{name}.bias" for name, role in LAYER_TENSORS.items() if role in config.biases}
        if config.has_head_norms:
            names |= {head_norm_parameter(index, role): f"blk.{index}.{name}.weight" for role, name in HEAD_NORM_TENSORS.items()}
    return names


def unpermuted_rows(num_heads: int, head_dim: int) -> np.ndarray:
    """Which row of the file's query (or key) matrix stands at each row of ours.

    GGUF writers of these architectures interleave the halves of each head, so that rotated dimensions are neighbours: file
    row (head, i, half) is row (head, half, i) of the published weights, whose dimension i turns with i + D/2.
    """
    return np.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
