"""Writes a model folder that `open_checkpoint` reads: config.json and one safetensors file, ternary matrices in our container.

Tensors go to the disk one by one, each made once; the file appears under its name when it is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from minicpm4.checkpoint.hf_folder import INDEX, SINGLE
from minicpm4.checkpoint.ternary_container import METADATA, METHOD, split_ternary
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.model import PackedTensor
from minicpm4.records import atomic_file, write_atomic

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
ENTRY_BYTES = 200  # of a tensor in the header, beside its name; twice, as a ternary one has two


def write_folder(folder: Path, *, config: Mapping[str, Any], names: Iterable[str], load: Callable[[str], PackedTensor]) -> None:
    """The model with these values of config.json and these parameters, each loaded once.

    Formats: f32, f16, bf16, and ternary ones; ConfigError for others. CheckpointError where the folder holds shards already,
    or cannot be written. Files of the same names are replaced; tokenizer files are the caller's to copy.
    """
    if (folder / INDEX).exists():
        raise CheckpointError(f"{folder.name} holds a model in shards", hint="name another folder")
    names = list(names)
    try:
        with atomic_file(folder / SINGLE) as file:
            is_ternary = write_tensors(file, names, load)
            values = {**config, "quantization_config": {"quant_method": METHOD}} if is_ternary else config
            write_atomic(folder / "config.json", json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise CheckpointError(
            f"cannot write {str(folder)!r:.300}: {error.strerror}", hint="check the disk's room and the folder's permissions"
        ) from error


def write_tensors(file: BinaryIO, names: list[str], load: Callable[[str], PackedTensor]) -> bool:
    """A safetensors file; whether a tensor was ternary. The header's room is kept free until all offsets are known."""
    room = sum(2 * (len(json.dumps(name)) + ENTRY_BYTES) for name in names) + ENTRY_BYTES
    room += -(8 + room) % 64
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **METADATA}}
    file.seek(8 + room)
    offset, is_ternary = 0, False
    for name in names:
        tensor = load(name)
        is_ternary |= tensor.format.name.startswith("ternary_")
        for part, (dtype, shape, data) in stored_parts(name, tensor).items():
            header[part] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + data.nbytes]}
            file.write(data.data)
            offset += data.nbytes
    if not is_ternary:
        header["__metadata__"] = {"format": "pt"}
    file.seek(0)
    file.write(room.to_bytes(8, "little") + json.dumps(header).encode().ljust(room))
    return is_ternary


def stored_parts(name: str, tensor: PackedTensor) -> dict[str, tuple[str, tuple[int, ...], np.ndarray]]:
    """What a parameter becomes in the file: dtype, shape and bytes by name."""
    if tensor.format.name.startswith("ternary_"):
        parts = split_ternary(tensor)
        return {part: ("U8" if data.dtype == np.uint8 else "F16", data.shape, data) for part, data in parts.items()}
    if tensor.format.name not in DTYPES:
        raise ConfigError(f"{name} is {tensor.format.name}, which safetensors has no dtype for", hint="choose f32, f16, bf16 or ternary")
    return {name: (DTYPES[tensor.format.name], tensor.shape, np.ascontiguousarray(tensor.data))}
