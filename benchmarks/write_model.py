"""Writes the GGUF files that engines are compared on: python -m benchmarks.write_model SOURCE FORMAT OUT.gguf

SOURCE is a shape for random weights (0.5B, 8B, or a config.json), or a model whose projections are requantized ("default",
or a .gguf file). Files are whole models with a tokenizer, so that every engine loads them; they go to the disk tensor by
tensor and appear under their name when they are whole. Rope factors of a config.json are left out: they cost no time.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import gguf
import numpy as np

from minicpm4.checkpoint import read_gguf, resolve
from minicpm4.checkpoint.gguf_model import parameter_tensors
from minicpm4.checkpoint.gguf_types import FORMAT_OF_TYPE
from minicpm4.deploy.random_weights import random_weights, shape_config
from minicpm4.errors import ConfigError, MiniCPMError
from minicpm4.model import ModelConfig, PackedTensor
from minicpm4.model.parameters import layer_parameter
from minicpm4.quant import dequantize, quantize

CONTEXT_TOKENS = 32768
ARCHITECTURES = ("minicpm", "llama")
MIXED = "q4_k_m"  # q4_k, with q6_k where llama.cpp's files of that name have it
FORMATS = (*FORMAT_OF_TYPE.values(), MIXED)
FILE_TYPES = {"f32": "ALL_F32", "q4_k": "MOSTLY_Q4_K_S", "q5_k": "MOSTLY_Q5_K_S"}  # the others are MOSTLY_<FORMAT>
CONTROL_TOKENS = ("<unk>", "<s>", "</s>")
KEPT_TENSORS = ("token_embd.weight", "output.weight")  # published files keep them finer than the projections

TensorLoader = Callable[[str], PackedTensor]


def model_file(source: str, format_name: str | None, folder: Path, *, architecture: str = "minicpm", seed: int = 0) -> Path:
    """The file of a model in that format, written into the folder unless it is there. architecture: of random weights.

    Raises ConfigError, CheckpointError for a source or a format that there is not.
    """
    is_file = is_model(source)
    if is_file and format_name is None:
        return resolve(source)
    if format_name is None:
        raise ConfigError(f"random weights of shape {source} need a format", hint=f"choose one of {', '.join(FORMATS)}")
    stem = resolve(source).stem if is_file else f"{Path(source).name.removesuffix('.json')}-{architecture}-{seed}"
    path = folder / f"{re.sub(r'[^A-Za-z0-9._-]', '_', stem)}-{format_name}.gguf"
    if not path.exists():
        write_model(source, format_name, path, architecture=architecture, seed=seed)
    return path


def is_model(source: str) -> bool:
    """Whether a source is a model with weights of its own, not a shape."""
    return source == "default" or source.endswith(".gguf")


def write_model(source: str, format_name: str, path: Path, *, architecture: str = "minicpm", seed: int = 0) -> None:
    if is_model(source):
        requantize(resolve(source), format_name, path)
    else:
        write_random_model(shape_config(source, context_length=CONTEXT_TOKENS), format_name, path, architecture=architecture, seed=seed)


def write_random_model(config: ModelConfig, format_name: str, path: Path, *, architecture: str, seed: int) -> None:
    """Random weights of the config. architecture: "minicpm" keeps the config's scales; "llama", which more engines read, has none."""
    if architecture not in ARCHITECTURES:
        raise ConfigError(f"there is no architecture {architecture!r:.80}", hint=f"choose {' or '.join(ARCHITECTURES)}")
    load_parameter = mixed_weights(config, format_name, seed=seed)
    canonical = {stored: name for name, stored in parameter_tensors(config).items()}
    writer = gguf.GGUFWriter(None, architecture)
    add_config(writer, config, has_scales=architecture == "minicpm")
    add_tokenizer(writer, config.vocab_size)
    add_format(writer, format_name)
    write_tensors(writer, path, names=canonical, load=lambda stored: load_parameter(canonical[stored]))


def mixed_weights(config: ModelConfig, format_name: str, *, seed: int) -> TensorLoader:
    """A loader of random parameters in a format of `FORMATS`."""
    if format_name != MIXED:
        return random_weights(config, format_name, seed=seed)[0]
    coarse, fine = (random_weights(config, name, seed=seed)[0] for name in ("q4_k", "q6_k"))
    count = config.num_layers
    finer_layers = [i for i in range(count) if i < count // 8 or i >= 7 * count // 8 or (i - count // 8) % 3 == 2]
    finer = {layer_parameter(index, role) for index in finer_layers for role in ("v", "down")}
    return lambda name: (fine if name in finer else coarse)(name)


def requantize(source: Path, format_name: str, path: Path) -> None:
    """The same file with its projections in another format, made from their dequantized values; all else as it was."""
    if format_name not in FORMAT_OF_TYPE.values():
        known = ", ".join(FORMAT_OF_TYPE.values())
        raise ConfigError(f"a file cannot be requantized to {format_name!r:.40}", hint=f"choose one of {known}")
    tensors = read_gguf(source)

    def load(name: str) -> PackedTensor:
        tensor = tensors.load(name)
        is_projection = len(tensor.shape) == 2 and name not in KEPT_TENSORS
        return quantize(dequantize(tensor), format_name, name=name) if is_projection else tensor

    fields = gguf.GGUFReader(source).fields
    writer = gguf.GGUFWriter(None, fields["general.architecture"].contents())
    for name, field in fields.items():
        if not name.startswith("GGUF.") and name not in ("general.architecture", "general.file_type", "general.quantization_version"):
            is_array = field.types[0] == gguf.GGUFValueType.ARRAY
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if is_array else None)
    add_format(writer, format_name)
    write_tensors(writer, path, names=tensors.tensors, load=load)


def add_config(writer: gguf.GGUFWriter, config: ModelConfig, *, has_scales: bool) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    if has_scales:
        writer.add_embedding_scale(config.embedding_scale)
        writer.add_residual_scale(config.residual_scale)
        writer.add_logit_scale(config.logit_divisor)


def add_tokenizer(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    """A byte-pair vocabulary of that size, the kind that most engines read."""
    tokens, merges = byte_pair_vocabulary(vocab_size)
    kinds = [gguf.TokenType.CONTROL] * len(CONTROL_TOKENS) + [gguf.TokenType.NORMAL] * (vocab_size - len(CONTROL_TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds[:vocab_size])
    writer.add_token_merges([f"{left} {right}" for left, right in merges])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def byte_pair_vocabulary(vocab_size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens and merges: control tokens, bytes, then merges of what is there."""
    letters = byte_letters()
    pairs = itertools.product(letters, letters)
    triples = ((left + right, last) for left, right, last in itertools.product(letters, repeat=3))
    num_merges = max(0, vocab_size - len(CONTROL_TOKENS) - len(letters))
    merges = list(itertools.islice(itertools.chain(pairs, triples), num_merges))
    tokens = [*CONTROL_TOKENS, *letters, *(left + right for left, right in merges)]
    return tokens[:vocab_size], merges


def byte_letters() -> list[str]:
    """The printable character that stands for each byte in byte-pair vocabularies (GPT-2's rule)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def add_format(writer: gguf.GGUFWriter, format_name: str) -> None:
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[FILE_TYPES.get(format_name, f"MOSTLY_{format_name.upper()}")])


def write_tensors(writer: gguf.GGUFWriter, path: Path, *, names: Iterable[str], load: TensorLoader) -> None:
    """The file, one tensor in memory at a time: each is loaded for its row of the table, and again for its bytes."""
    names = list(names)
    for name in names:
        data, tensor = stored_bytes(load(name))
        writer.add_tensor_info(name, data.shape, data.dtype, data.nbytes, gguf.GGMLQuantizationType[tensor.format.name.upper()])
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        writer.write_header_to_file(unfinished)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name in names:
            writer.write_tensor_data(stored_bytes(load(name))[0])
        writer.close()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def stored_bytes(tensor: PackedTensor) -> tuple[np.ndarray, PackedTensor]:
    """The tensor's bytes in its own number of dimensions, with the tensor."""
    return tensor.data.reshape(*tensor.shape[:-1], -1), tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="0.5B, 8B, a config.json; or a model to requantize: default, a .gguf file")
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument("out", type=Path)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="minicpm", help="of random weights")
    parser.add_argument("--seed", type=int, default=0, help="of random weights")
    given = parser.parse_args()
    try:
        write_model(given.source, given.format, given.out, architecture=given.architecture, seed=given.seed)
    except MiniCPMError as error:
        sys.exit(f"error: {error}")
    print(f"{given.out}: {given.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
