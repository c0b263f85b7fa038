"""Reads one safetensors file: 8 bytes of header length, a JSON header, then the tensors' bytes without a hole.

Source: the format's specification and its published abuse cases. Nothing is believed: every size is multiplied in
whole numbers and compared with the file before a view of it is made. Knows no model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from minicpm4.checkpoint.foreign import refuse_foreign
from minicpm4.checkpoint.json_file import parse_json
from minicpm4.checkpoint.mapped import DIMENSION_LIMIT, MappedFile, TensorFile, TensorInfo
from minicpm4.errors import CheckpointError
from minicpm4.model.tensors import STORAGE_FORMATS

MAX_HEADER_BYTES = 100_000_000  # the format's own limit, trailing spaces included
MAX_TENSORS = 100_000
FORMAT_OF_DTYPE = {"F32": "f32", "F16": "f16", "BF16": "bf16", "U8": "u8"}  # the last is no format, but part of ternary ones
DAMAGED = "the file is damaged or not made by the safetensors library; download it again"


def read_safetensors(path: Path) -> TensorFile:
    """The file's tensors; its `__metadata__` strings as metadata. CheckpointError for anything that the format forbids.

    Dtypes other than F32, F16, BF16 and U8 become the format "dtype '…'"; loading such a tensor is an error.
    """
    file = MappedFile(path)
    header = parse_header(file)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise damaged(file, "__metadata__ is not an object of strings")
    start = 8 + int.from_bytes(file.read(0, 8), "little")
    tensors = {name: tensor_info(file, name, entry, start=start) for name, entry in header.items()}
    check_contiguous(file, tensors, start=start)
    return TensorFile(file, tensors, metadata)


def damaged(file: MappedFile, problem: str) -> CheckpointError:
    return CheckpointError(f"{file.path.name}: {problem}", hint=DAMAGED)


def parse_header(file: MappedFile) -> dict[str, Any]:
    length = int.from_bytes(file.read(0, 8), "little")
    if file.read(8, 1) != b"{" or not 2 <= length <= MAX_HEADER_BYTES:
        refuse_foreign(file.path, file.read(0, 512))
        raise damaged(file, f"not a safetensors file: a header of {length} bytes, expected JSON of 2 to {MAX_HEADER_BYTES}")
    if 8 + length > file.size:
        raise damaged(file, f"truncated: the header ends at byte {8 + length}, the file at {file.size}")
    text = file.read(8, length).rstrip(b" ")
    if text.count(b'"data_offsets"') > MAX_TENSORS:
        raise damaged(file, f"more than {MAX_TENSORS} tensors")
    return parse_json(text, f"{file.path.name}: the header")


def tensor_info(file: MappedFile, name: str, entry: object, *, start: int) -> TensorInfo:
    """One header entry, its bytes checked against the dtype, the shape and the file. start: where tensor bytes begin."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"} or not isinstance(entry["dtype"], str):
        raise damaged(file, f"tensor {name!r:.100} is described by {entry!r:.100}, expected dtype, shape and data_offsets")
    shape, offsets = whole_numbers(entry["shape"]), whole_numbers(entry["data_offsets"])
    if shape is None or len(shape) > 8 or offsets is None or len(offsets) != 2:
        raise damaged(file, f"tensor {name!r:.100} has shape {entry['shape']!r:.100} and data_offsets {entry['data_offsets']!r:.100}")
    begin, end = offsets
    if begin > end or start + end > file.size:
        raise damaged(file, f"truncated: tensor {name!r:.100} lies at bytes {start + begin} to {start + end}, the file ends at {file.size}")
    stored = FORMAT_OF_DTYPE.get(entry["dtype"], f"dtype {entry['dtype']!r:.20}")
    if stored in STORAGE_FORMATS and math.prod(shape) * STORAGE_FORMATS[stored].block_bytes != end - begin:
        raise damaged(file, f"tensor {name!r:.100} {entry['dtype']} {shape} does not fill its {end - begin} bytes")
    return TensorInfo(stored, shape, start + begin, end - begin)


def whole_numbers(values: object) -> tuple[int, ...] | None:
    """The list as a tuple if it holds nothing but sizes, else None."""
    if isinstance(values, list) and all(type(value) is int and 0 <= value < DIMENSION_LIMIT for value in values):
        return tuple(values)
    return None


def check_contiguous(file: MappedFile, tensors: dict[str, TensorInfo], *, start: int) -> None:
    """CheckpointError unless every byte behind the header belongs to exactly one tensor."""
    position = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != position:
            problem = "overlaps another" if info.offset < position else "follows a hole"
            raise damaged(file, f"tensor {name!r:.100} {problem} at byte {info.offset}")
        position += info.nbytes
    if position != file.size:
        raise damaged(file, f"{file.size - position} bytes follow the last tensor")
