"""Small model files for tests: written by the public libraries where they are right, by hand where they are wrong."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.numpy

from minicpm4.model import ModelConfig
from minicpm4.model.parameters import parameter_shapes

TINY = ModelConfig(
    vocab_size=48, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8,
    context_length=256, has_tied_head=True,
)  # fmt: skip
TINY_JSON = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 48, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True, "eos_token_id": [2, 3],
}  # fmt: skip
GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
}  # fmt: skip
INTERLEAVED = ("llama", "minicpm")  # architectures whose writers permute queries and keys


def tiny_weights(config: ModelConfig = TINY) -> dict[str, np.ndarray]:
    """Unit-normal float32 parameters by canonical name."""
    random = np.random.default_rng(4)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in parameter_shapes(config).items()}


def gguf_name(canonical: str) -> str:
    if canonical in GGUF_NAMES:
        return GGUF_NAMES[canonical]
    module, _, kind = canonical.rpartition(".")
    _, _, index, role = module.split(".", 3)
    return f"blk.{index}.{GGUF_NAMES[role]}.{kind}"


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as GGUF writers of Llama order them: the two halves of each head interleaved."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def stored_weight(name: str, weight: np.ndarray, config: ModelConfig, architecture: str) -> np.ndarray:
    heads = config.num_heads if "q_proj" in name else config.num_kv_heads if "k_proj" in name else 0
    return permute(weight, heads) if heads and architecture in INTERLEAVED else weight


def write_gguf_model(
    path: Path,
    *,
    architecture: str = "llama",
    config: ModelConfig = TINY,
    keys: Mapping[str, Any] | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
    without: Iterable[str] = (),
    weights: Mapping[str, np.ndarray] | None = None,
    max_tensors: int = 0,
) -> dict[str, np.ndarray]:
    """A whole model through the gguf package; returns its weights, unpermuted. keys: metadata to add or replace, None to leave out.

    max_tensors: of a part, where the file is split; its name is then without its ending.
    """
    weights = dict(tiny_weights(config) if weights is None else weights)
    metadata: dict[str, Any] = {
        f"{architecture}.{key}": value
        for key, value in {
            "block_count": config.num_layers, "context_length": config.context_length, "embedding_length": config.hidden_size,
            "feed_forward_length": config.intermediate_size, "attention.head_count": config.num_heads,
            "attention.head_count_kv": config.num_kv_heads, "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.dimension_count": config.head_dim,
        }.items()
    }  # fmt: skip
    metadata |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "ä", "詞"], "tokenizer.ggml.eos_token_id": 2} | dict(
        keys or {}
    )
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=max_tensors)
    for key, value in metadata.items():
        add_key(writer, key, value)
    for name, weight in weights.items():
        if name not in without:
            writer.add_tensor(gguf_name(name), stored_weight(name, weight, config, architecture))
    for name, weight in (extra or {}).items():
        writer.add_tensor(name, weight)
    close_writer(writer)
    return weights


def add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    if value is not None:
        adders[type(value)](key, value)


def close_writer(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_safetensors(path: Path, weights: Mapping[str, np.ndarray]) -> None:
    safetensors.numpy.save_file(dict(weights), path)


def write_folder(
    folder: Path, *, config: Mapping[str, Any] = TINY_JSON, weights: Mapping[str, np.ndarray] | None = None, shards: int = 1
) -> Path:
    """A Hugging Face folder of a tiny model, its tensors dealt out to so many shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    weights = tiny_weights() if weights is None else weights
    if shards == 1:
        write_safetensors(folder / "model.safetensors", weights)
        return folder
    weight_map = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(weights)}
    for shard in set(weight_map.values()):
        write_safetensors(folder / shard, {name: weight for name, weight in weights.items() if weight_map[name] == shard})
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def raw_safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file with this header (JSON, or bytes as they are), right or wrong. length: what it claims to be, if not its true length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def gguf_string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf_key(key: str | bytes, type_id: int, value: bytes) -> bytes:
    return gguf_string(key) + struct.pack("<I", type_id) + value


def gguf_array(type_id: int, count: int, values: bytes) -> bytes:
    return struct.pack("<IQ", type_id, count) + values


def gguf_tensor(name: str, dimensions: Iterable[int], type_id: int = 0, offset: int = 0) -> bytes:
    sizes = list(dimensions)
    return gguf_string(name) + struct.pack(f"<I{len(sizes)}qIQ", len(sizes), *sizes, type_id, offset)


def raw_gguf(
    keys: Iterable[bytes] = (), tensors: Iterable[bytes] = (), data: bytes = b"", *, version: int = 3, counts: tuple[int, int] | None = None
) -> bytes:
    """A file of these parts, right or wrong. counts: the numbers of tensors and keys that it claims, if not the true ones."""
    keys, tensors = list(keys), list(tensors)
    header = b"GGUF" + struct.pack("<Iqq", version, *(counts or (len(tensors), len(keys)))) + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + data if data else header
