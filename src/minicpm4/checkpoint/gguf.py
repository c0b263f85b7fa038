"""Reads one GGUF file, version 2 or 3, little-endian: metadata, a table of tensors, then their bytes.

Source: the format's specification. Nothing is believed: counts, lengths and offsets are compared with the file before
they are used, and the header may take at most MAX_HEADER_BYTES. Knows no model; `gguf_model` gives the names a meaning.
"""

from __future__ import annotations

import math
import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import overload

import numpy as np

from minicpm4.checkpoint.foreign import refuse_foreign
from minicpm4.checkpoint.gguf_types import Q2_0_GROUPS, Q2_0_TYPE, format_of_type
from minicpm4.checkpoint.mapped import DIMENSION_LIMIT, MappedFile, TensorFile, TensorInfo
from minicpm4.errors import CheckpointError
from minicpm4.model.tensors import STORAGE_FORMATS

MAX_HEADER_BYTES = 64 << 20  # a vocabulary of 262 thousand with its merges takes 18 MB
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 16
MAX_NAME_BYTES = 1 << 16
MAX_STRING_BYTES = 4 << 20  # the longest chat templates take some ten thousand
MAX_ALIGNMENT = 1 << 16

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # codes of struct and of numpy
TYPE_UINT32, TYPE_BOOL, TYPE_STRING, TYPE_ARRAY = 4, 7, 8, 9
DAMAGED = "the file is damaged or not made by a GGUF writer; download it again"


class StringArray(Sequence[str]):
    """An array of strings that are decoded when asked for; `list(array)` decodes all of them (98 thousand in 13 ms)."""

    def __init__(self, file: MappedFile, key: str, starts: Sequence[int]) -> None:
        """starts: where each string begins, and where one after the last would: 8 bytes of length lie between two."""
        self._file, self._key, self._starts = file, key, starts

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        positions = range(len(self))[index]
        if isinstance(positions, int):
            return next(self._decode(range(positions, positions + 1)))
        return list(self._decode(positions))

    def __iter__(self) -> Iterator[str]:
        data = self._file.map
        try:
            return iter([data[start : stop - 8].decode() for start, stop in pairwise(self._starts)])
        except UnicodeDecodeError:
            return self._decode(range(len(self)))  # which says where

    def _decode(self, positions: range) -> Iterator[str]:
        data, starts = self._file.map, self._starts
        for index in positions:
            try:
                yield data[starts[index] : starts[index + 1] - 8].decode()
            except UnicodeDecodeError as error:
                raise damaged(self._file, f"{self._key}[{index}] is not UTF-8") from error


def damaged(file: MappedFile, problem: str) -> CheckpointError:
    return CheckpointError(f"{file.path.name}: {problem}", hint=DAMAGED)


class Cursor:
    """Reads one value after the other and never past the header's limit; `what` names them in errors."""

    def __init__(self, file: MappedFile) -> None:
        self.file, self.position, self.end = file, 0, min(file.size, MAX_HEADER_BYTES)

    def skip(self, size: int, what: str) -> int:
        """Steps over `size` bytes and returns where they begin."""
        start = self.position
        if not 0 <= size <= self.end - start:
            problem = "truncated: the file ends" if self.end == self.file.size else "the header is larger than its limit of 64 MiB"
            raise damaged(self.file, f"{problem} in {what}, which takes {size} bytes from byte {start}")
        self.position += size
        return start

    def number(self, code: str, what: str) -> int | float:
        layout = struct.Struct("<" + code)
        (value,) = layout.unpack_from(self.file.map, self.skip(layout.size, what))
        return value

    def count(self, code: str, what: str, *, limit: int) -> int:
        value = int(self.number(code, what))
        if not 0 <= value <= limit:
            raise damaged(self.file, f"{what} is {value}, expected 0 to {limit}")
        return value

    def string(self, what: str, *, limit: int) -> str:
        size = self.count("Q", f"the length of {what}", limit=limit)
        try:
            return self.file.read(self.skip(size, what), size).decode()
        except UnicodeDecodeError as error:
            raise damaged(self.file, f"{what} is not UTF-8") from error

    def value(self, type_id: int, what: str) -> object:
        """A metadata value: int, float, bool, str, a numpy view of an array of numbers, or a StringArray."""
        if type_id == TYPE_STRING:
            return self.string(what, limit=MAX_STRING_BYTES)
        if type_id == TYPE_ARRAY:
            return self.array(what)
        if type_id == TYPE_BOOL:
            return bool(self.count("B", what, limit=1))
        if type_id in NUMBERS:
            return self.number(NUMBERS[type_id], what)
        raise damaged(self.file, f"{what} has value type {type_id}, which GGUF does not have")

    def array(self, what: str) -> object:
        type_id = self.count("I", f"the element type of {what}", limit=0xFFFFFFFF)
        count = self.count("Q", f"the number of elements of {what}", limit=MAX_HEADER_BYTES)
        if type_id == TYPE_STRING:
            return self.string_array(what, count)
        if type_id not in NUMBERS:
            raise damaged(self.file, f"{what} is an array of type {type_id}; arrays hold numbers or strings")
        dtype = np.dtype(NUMBERS[type_id]).newbyteorder("<")
        values = self.file.array(self.skip(count * dtype.itemsize, what), count=count, dtype=dtype)
        if type_id == TYPE_BOOL and count and values.view(np.uint8).max() > 1:
            raise damaged(self.file, f"{what} holds booleans other than 0 and 1")
        return values

    def string_array(self, what: str, count: int) -> StringArray:
        if count * 8 > self.end - self.position:
            self.skip(count * 8, what)  # says that this is too much
        data, position, limit, unpack = self.file.map, self.position, self.end - 8, struct.Struct("<Q").unpack_from
        starts = array("q")
        for _ in range(count):  # 98 thousand in 20 ms
            if position > limit:
                break
            (length,) = unpack(data, position)
            starts.append(position + 8)
            position += 8 + length
        if len(starts) < count or position > self.end:
            raise damaged(self.file, f"truncated: a string of {what} ends past the header")
        self.position = position
        starts.append(position + 8)
        return StringArray(self.file, what, starts)


def read_gguf(path: Path) -> TensorFile:
    """The file's tensors and metadata. CheckpointError for another version or byte order, and for anything inconsistent.

    Shapes are given outermost dimension first (the file stores them the other way round).
    """
    file = MappedFile(path)
    cursor = Cursor(file)
    check_start(cursor)
    num_tensors = cursor.count("q", "the number of tensors", limit=MAX_TENSORS)
    num_keys = cursor.count("q", "the number of metadata keys", limit=MAX_KEYS)
    metadata: dict[str, object] = {}
    for _ in range(num_keys):
        key = cursor.string("a metadata key", limit=MAX_NAME_BYTES)
        if key in metadata or not key:
            raise damaged(file, f"metadata key {key!r:.100} is empty or there twice")
        type_id = cursor.count("I", f"the type of {key!r:.100}", limit=0xFFFFFFFF)
        if key == "general.alignment" and type_id != TYPE_UINT32:
            raise damaged(file, f"general.alignment has value type {type_id}, expected {TYPE_UINT32}")
        metadata[key] = cursor.value(type_id, f"{key!r:.100}")
    return TensorFile(file, read_tensor_table(cursor, num_tensors, alignment_of(file, metadata)), metadata)


def check_start(cursor: Cursor) -> None:
    """Magic and version, or what the file is instead."""
    file = cursor.file
    if file.read(0, 4) != b"GGUF":
        refuse_foreign(file.path, file.read(0, 512))
        raise damaged(file, f"not a GGUF file: it begins with {file.read(0, 4)!r}")
    cursor.skip(4, "the magic")
    version = cursor.count("I", "the version", limit=0xFFFFFFFF)
    if version == 1:
        raise CheckpointError(f"{file.path.name} is GGUF version 1, 2 and 3 are read", hint="convert it again with a current llama.cpp")
    if int.from_bytes(version.to_bytes(4, "little"), "big") in (1, 2, 3):
        raise CheckpointError(f"{file.path.name} is a big-endian GGUF file", hint="get the little-endian one, or use gguf-convert-endian")
    if version not in (2, 3):
        raise damaged(file, f"GGUF version {version}, 2 and 3 are read")


def alignment_of(file: MappedFile, metadata: dict[str, object]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise damaged(file, f"general.alignment is {alignment!r}, expected a power of two up to {MAX_ALIGNMENT}")
    return alignment


@dataclass(frozen=True)
class TensorRow:
    """One row of the table. shape: outermost dimension first. offset: from where the tensors' bytes begin."""

    name: str
    type_id: int
    shape: tuple[int, ...]
    offset: int

    @property
    def what(self) -> str:
        return f"tensor {self.name!r:.100}"


def read_tensor_table(cursor: Cursor, num_tensors: int, alignment: int) -> dict[str, TensorInfo]:
    """The tensors by name, in the file's order, each within the file, aligned, and clear of the others."""
    file, rows = cursor.file, dict[str, TensorRow]()
    for _ in range(num_tensors):
        name = cursor.string("a tensor name", limit=MAX_NAME_BYTES)
        if name in rows:
            raise damaged(file, f"tensor {name!r:.100} is there twice")
        rows[name] = read_tensor_row(cursor, name)
    start = -(-cursor.position // alignment) * alignment
    group = q2_0_group(file, list(rows.values()), alignment=alignment, num_bytes=max(0, file.size - start))
    tensors = {name: tensor_info(file, row, start=start, group=group) for name, row in rows.items()}
    position = start
    for name, info in sorted(tensors.items(), key=lambda item: item[1].offset):
        if info.offset % alignment or info.offset < position:
            raise damaged(file, f"tensor {name!r:.100} at byte {info.offset} overlaps another or is not aligned to {alignment}")
        position = info.offset + info.nbytes
        if position > file.size:
            raise damaged(file, f"truncated: tensor {name!r:.100} ends at byte {position}, the file at {file.size}")
    return tensors


def read_tensor_row(cursor: Cursor, name: str) -> TensorRow:
    what = f"tensor {name!r:.100}"
    num_dimensions = cursor.count("I", f"the number of dimensions of {what}", limit=4)
    stored = [cursor.count("q", f"a dimension of {what}", limit=DIMENSION_LIMIT) for _ in range(num_dimensions)]
    type_id = cursor.count("I", f"the type of {what}", limit=0xFFFFFFFF)
    offset = cursor.count("Q", f"the offset of {what}", limit=1 << 62)
    if not stored or 0 in stored:
        raise damaged(cursor.file, f"{what} has dimensions {stored}")
    return TensorRow(name, type_id, tuple(reversed(stored)), offset)


def tensor_info(file: MappedFile, row: TensorRow, *, start: int, group: int) -> TensorInfo:
    """start: where the tensors' bytes begin. group: of q2_0 tensors."""
    storage = STORAGE_FORMATS[format_of_type(row.type_id, group=group, where=f"{file.path.name}: {row.what}")]
    try:
        nbytes = math.prod(row.shape[:-1]) * storage.row_bytes(row.shape[-1])
    except ValueError as error:
        raise damaged(file, f"{row.what}: {error}") from error
    return TensorInfo(storage.name, row.shape, start + row.offset, nbytes)


def q2_0_group(file: MappedFile, rows: list[TensorRow], *, alignment: int, num_bytes: int) -> int:
    """Weights that share a scale in the file's Q2_0 tensors: 64, or 128 in older files of the same type number.

    Only the room that each tensor has tells: to the next one, or to the end of the file. CheckpointError where neither fits all of them.
    num_bytes: of all tensors.
    """
    if not any(row.type_id == Q2_0_TYPE for row in rows):
        return next(iter(Q2_0_GROUPS))
    offsets = sorted({row.offset for row in rows} | {num_bytes})
    ends = dict(pairwise(offsets))
    for group in Q2_0_GROUPS:
        bytes_of_group = STORAGE_FORMATS[Q2_0_GROUPS[group]].block_bytes
        sizes = [(math.prod(row.shape) * bytes_of_group, ends.get(row.offset, 0) - row.offset) for row in rows if row.type_id == Q2_0_TYPE]
        is_whole = all(row.shape[-1] % group == 0 for row in rows if row.type_id == Q2_0_TYPE)
        if is_whole and all(size % group == 0 and size // group <= room < size // group + alignment for size, room in sizes):
            return group
    raise CheckpointError(
        f"{file.path.name}: its Q2_0 tensors have neither the bytes of groups of 64 (0.28125 a weight) nor of 128 (0.265625)",
        hint="the file is damaged, or its type 42 is another one; get it as TQ2_0",
    )
