"""What a GGUF file's metadata and tensors mean: a ModelConfig, parameter names, and the order of query and key rows.

Knows the keys and names of the architectures `llama` and `minicpm`; the rope rules for them are llama.cpp's. Reads no bytes
but the few of the rope factors.
"""

# D head dim

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minicpm4.checkpoint.mapped import TensorFile
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.model.config import LIMIT, KeyReader, ModelConfig, RopeConfig, SparseConfig, require
from minicpm4.model.parameters import EMBEDDING, HEAD, NORM, layer_parameter

ARCHITECTURES = ("llama", "minicpm")
LAYER_TENSORS = {
    "attn_norm": "attention_norm", "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o",
    "ffn_norm": "mlp_norm", "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
}  # fmt: skip
HARMLESS_NAMESPACES = ("general.", "tokenizer.", "quantize.", "split.")
NOT_SUPPORTED = "this package runs plain Llama and MiniCPM4 decoders"
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
        value = self.need(key, int) if default is None else self.get(key, int, default)
        require(0 < value < LIMIT, f"{self.architecture}.{key}", value, "a positive whole number")
        return int(value)

    def only(self, key: str, kind: type, value: object) -> None:
        """ConfigError if the key is there with another value: it restates something, or asks for what is not supported."""
        found = self.get(key, kind, value)
        if found != value:
            raise ConfigError(f"GGUF metadata: {self.architecture}.{key} is {found!r:.80}, only {value!r} is supported", hint=NOT_SUPPORTED)


@dataclass(frozen=True)
class GGUFModel:
    """names: where each parameter lies in the file, by its canonical name. warnings: what the user should know."""

    config: ModelConfig
    names: Mapping[str, str]
    warnings: tuple[str, ...]


def read_gguf_model(file: TensorFile) -> GGUFModel:
    """The model that the file holds. ConfigError, CheckpointError where it is none that we can run or contradicts itself."""
    keys = ArchitectureKeys(file.metadata, architecture_of(file))
    warnings: list[str] = []
    config, rope_tensors = config_from_gguf(file, keys, warnings)
    names = parameter_tensors(config)
    leftover = file.tensors.keys() - names.values() - rope_tensors
    if leftover:
        shown = ", ".join(repr(name)[:80] for name in sorted(leftover)[:3])
        raise CheckpointError(f"{file.file.path.name} has {len(leftover)} unknown tensors, such as {shown}", hint=NOT_SUPPORTED)
    unread = [key for key in keys.reader.unread() if not key.startswith(HARMLESS_NAMESPACES)]
    if unread:
        warnings.append(f"GGUF metadata: ignored keys {', '.join(f'{key:.80}' for key in unread[:20])}")
    return GGUFModel(config, {canonical: name for canonical, name in names.items() if name in file.tensors}, tuple(warnings))


def architecture_of(file: TensorFile) -> str:
    """The file's architecture, once it is sure that it is a whole model of one we know."""
    general = KeyReader(file.metadata, "GGUF metadata")
    kind, num_parts = general.get("general.type", str, "model"), general.get("split.count", int, 0)
    if kind != "model" or not file.tensors:
        raise CheckpointError(
            f"{file.file.path.name} holds a {kind!r:.40} with {len(file.tensors)} tensors, not a model", hint="name the model's own file"
        )
    if num_parts > 1:
        raise CheckpointError(f"{file.file.path.name} is one of {num_parts} parts", hint="join them with: llama-gguf-split --merge")
    architecture = general.need("general.architecture", str)
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"GGUF architecture {architecture!r:.80} is not supported", hint=f"supported: {', '.join(ARCHITECTURES)}")
    return str(architecture)


def config_from_gguf(file: TensorFile, keys: ArchitectureKeys, warnings: list[str]) -> tuple[ModelConfig, frozenset[str]]:
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
    if 0 < keys.get("attention.sliding_window", int, 0) < context:
        raise ConfigError(f"GGUF metadata: {keys.architecture}.attention.sliding_window is not supported", hint=NOT_SUPPORTED)
    rope, rope_tensors = rope_from_gguf(file, keys, head_dim=head_dim, context=context)
    vocab_size = keys.size("vocab_size", embedding_rows(file))
    is_minicpm = keys.architecture == "minicpm"
    config = ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=keys.size("feed_forward_length"),
        num_layers=keys.size("block_count"),
        num_heads=heads,
        num_kv_heads=keys.size("attention.head_count_kv", heads),
        head_dim=head_dim,
        context_length=context,
        norm_eps=keys.need("attention.layer_norm_rms_epsilon", float),
        rope=rope,
        embedding_scale=keys.need("embedding_scale", float) if is_minicpm else 1.0,
        residual_scale=keys.need("residual_scale", float) if is_minicpm else 1.0,
        logit_divisor=keys.need("logit_scale", float) if is_minicpm else 1.0,
        has_tied_head="output.weight" not in file.tensors,
        sparse=SparseConfig() if is_minicpm else None,
        bos_id=next(iter(token_ids(keys.reader, ("bos",), vocab_size=vocab_size, warnings=warnings)), None),
        eos_ids=token_ids(keys.reader, ("eos", "eot"), vocab_size=vocab_size, warnings=warnings),
    )
    return config, rope_tensors


def embedding_rows(file: TensorFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise CheckpointError(f"{file.file.path.name} lacks token_embd.weight", hint="it is not a whole model; download it again")
    return embedding.shape[0]


def token_ids(reader: KeyReader, kinds: tuple[str, ...], *, vocab_size: int, warnings: list[str]) -> tuple[int, ...]:
    """The ids that `tokenizer.ggml.<kind>_token_id` give, without those that no token has; these are warned of."""
    keys = [f"tokenizer.ggml.{kind}_token_id" for kind in kinds]
    found = {key: reader.get(key, int) for key in keys if reader.get(key, int) is not None}
    warnings.extend(
        f"GGUF metadata: {key} is {value}, which is no token; ignored" for key, value in found.items() if not 0 <= value < vocab_size
    )
    return tuple(dict.fromkeys(value for value in found.values() if 0 <= value < vocab_size))


def rope_from_gguf(file: TensorFile, keys: ArchitectureKeys, *, head_dim: int, context: int) -> tuple[RopeConfig, frozenset[str]]:
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
        return RopeConfig(theta, short, long, original, magnitude), frozenset((SHORT_FACTORS, LONG_FACTORS))
    if kind not in ("none", "linear") or magnitude not in (None, 1.0):
        raise ConfigError(
            f"GGUF metadata: rope scaling {kind!r:.40} with attn_factor {magnitude} is not supported",
            hint="supported: none, linear, longrope",
        )
    if FREQUENCIES in file.tensors:
        factors: tuple[float, ...] | None = rope_factors(file, FREQUENCIES, head_dim=head_dim)
        require(factor in (0.0, 1.0), f"{keys.architecture}.rope.scaling.factor", factor, f"1 beside {FREQUENCIES}")
    else:
        is_scaled = kind == "linear" and factor not in (0.0, 1.0)
        factors = (factor,) * (head_dim // 2) if is_scaled else None
    return RopeConfig(theta, factors, factors), frozenset((FREQUENCIES,))


def rope_factors(file: TensorFile, name: str, *, head_dim: int) -> tuple[float, ...]:
    """The head_dim / 2 divisors that a float32 tensor holds."""
    info = file.tensors.get(name)
    if info is None or info.format != "f32" or info.shape != (head_dim // 2,):
        found = "absent" if info is None else f"{info.format} {info.shape}"
        raise CheckpointError(
            f"{file.file.path.name}: tensor {name} is {found}, expected f32 ({head_dim // 2},)", hint="convert the model again"
        )
    return tuple(file.load(name).data[0].view("<f4").tolist())


def parameter_tensors(config: ModelConfig) -> dict[str, str]:
    """Canonical name -> GGUF name of every parameter."""
    names = {EMBEDDING: "token_embd.weight", NORM: "output_norm.weight"}
    if not config.has_tied_head:
        names[HEAD] = "output.weight"
    for index in range(config.num_layers):
        names |= {layer_parameter(index, role): f"blk.{index}.{name}.weight" for name, role in LAYER_TENSORS.items()}
    return names


def unpermuted_rows(num_heads: int, head_dim: int) -> np.ndarray:
    """Which row of the file's query (or key) matrix stands at each row of ours.

    GGUF writers of these architectures interleave the halves of each head, so that rotated dimensions are neighbours: file
    row (head, i, half) is row (head, half, i) of the published weights, whose dimension i turns with i + D/2.
    """
    return np.arange(num_heads * head_dim).reshape(num_heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
