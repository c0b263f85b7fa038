"""Converts a GGUF file of the Llama family to an int4 model of onnxruntime-genai, by the builder that its package has.

The builder reads a folder as Hugging Face has them, so one is written first: half-precision weights, a config, and a vocabulary
of numbers. Runs in an interpreter with onnxruntime_genai, onnx_ir, transformers, torch and gguf.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import save_file

NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Blocks of 32 and activations in int8, as others here have them; a prompt's logits are those of its last token.
OPTIONS = ("block_size=32", "accuracy_level=4", "prune_lm_head=true")


def convert(source: str, target: str) -> None:
    """target: a folder, which appears when the model is whole."""
    unfinished = Path(f"{target}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    is_tied = write_folder(gguf.GGUFReader(source), unfinished / "source")
    options = [*OPTIONS, f"shared_embeddings={'true' if is_tied else 'false'}"]
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(unfinished / "source"), "-o", str(unfinished / "model")]
    command += ["-p", "int4", "-e", "cpu", "-c", str(unfinished / "cache"), "--extra_options", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the builder failed: {done.stdout[-2000:]}")
    (unfinished / "model").replace(target)
    shutil.rmtree(unfinished)


def write_folder(reader: gguf.GGUFReader, folder: Path) -> bool:
    """The folder that the builder reads. Returns whether the head is the embedding's matrix."""
    architecture = reader.fields["general.architecture"].contents()
    if architecture != "llama":
        raise ValueError(f"the file is of architecture {architecture}, only llama is converted")
    folder.mkdir(parents=True)

    def key(name: str) -> float:
        return float(reader.fields[f"{architecture}.{name}"].contents())

    heads, kv_heads = int(key("attention.head_count")), int(key("attention.head_count_kv"))
    weights = {name_of(tensor.name): values_of(tensor, heads=heads, kv_heads=kv_heads) for tensor in reader.tensors}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    is_tied = "lm_head.weight" not in weights
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(weights["model.embed_tokens.weight"]),
        "hidden_size": int(key("embedding_length")),
        "intermediate_size": int(key("feed_forward_length")),
        "num_hidden_layers": int(key("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": int(key("rope.dimension_count")),
        "max_position_embeddings": int(key("context_length")),
        "rope_theta": key("rope.freq_base"),
        "rms_norm_eps": key("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "tie_word_embeddings": is_tied,
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_vocabulary(folder, len(weights["model.embed_tokens.weight"]))
    return is_tied


def name_of(tensor: str) -> str:
    """The name of a GGUF tensor's values in such a folder."""
    stem = tensor.removesuffix(".weight")
    if not stem.startswith("blk."):
        return f"{NAMES[stem]}.weight"
    _, layer, role = stem.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[role]}.weight"


def values_of(tensor: gguf.ReaderTensor, *, heads: int, kv_heads: int) -> np.ndarray:
    """In half precision; rows of queries and keys in halves again, which GGUF files interleave."""
    values: np.ndarray = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float16)
    count = heads if "attn_q." in tensor.name else kv_heads if "attn_k." in tensor.name else 0
    if not count:
        return values
    rows, columns = values.shape
    return np.ascontiguousarray(values.reshape(count, rows // count // 2, 2, columns).swapaxes(1, 2)).reshape(rows, columns)


def write_vocabulary(folder: Path, size: int) -> None:
    """Numbers as words: no text is ever read."""
    model = {"type": "WordLevel", "vocab": {str(token): token for token in range(size)}, "unk_token": "0"}
    tokenizer = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None, "decoder": None, "model": model}))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "0", "bos_token": "1", "eos_token": "2"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
