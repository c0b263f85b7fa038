"""A model's packed matrices in a file, so that the next load need not pack them again.

The file: 8 bytes of magic, 8 of the header's length, 4 of its CRC-32, the header in JSON, then each matrix's bytes at a multiple of
64. The header names the packed form (`_native.PACKED_FORM`, which changes with the source that defines it) and for each matrix its
stored format, shape, place and checksum. It is written beside its place and renamed when whole; whatever is wrong with it is found
when it is read, and then it is written again. Which model a file belongs to is its name's business (`engine.load`).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from minicpm4 import _native
from minicpm4.records import atomic_file

MAGIC = b"mcpmpack"
ALIGNMENT = 64
MAX_HEADER_BYTES = 16 << 20


@dataclass(frozen=True)
class Packed:
    """A matrix as the kernels read it. format_name, shape: those that it was stored in."""

    format_name: str
    shape: tuple[int, int]
    weight: _native.PackedWeight


class TileCacheError(Exception):
    """The file is not what was written, or of another version; the text says which."""


def read_tiles(path: Path, shapes: Mapping[str, tuple[int, ...]], pool: _native.ThreadPool) -> dict[str, Packed] | None:
    """Every matrix of the model, in one arena; None where there is no file. shapes: of the model's matrices, by name.

    TileCacheError where anything of the file is wrong; MemoryError where memory runs out.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            entries = read_header(file)
            if {name: tuple(entry["shape"]) for name, entry in entries.items()} != dict(shapes):
                raise TileCacheError("it holds other matrices than the model")
            arena = _native.Arena()
            return {name: read_matrix(file, entry, pool=pool, arena=arena) for name, entry in entries.items()}
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TileCacheError(f"it cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # JSON of another form; what `_native.read_packed` raises
        raise TileCacheError(f"it is damaged: {error!s:.100}") from error


def read_header(file: Any) -> dict[str, Any]:
    start = file.read(20)
    length = int.from_bytes(start[8:16], "little")
    if start[:8] != MAGIC or length > MAX_HEADER_BYTES:
        raise TileCacheError("it does not begin as such a file does")
    text = file.read(length)
    if zlib.crc32(text) != int.from_bytes(start[16:20], "little"):
        raise TileCacheError("it is damaged: the header's checksum is wrong")
    header = json.loads(text)
    if header["form"] != _native.PACKED_FORM:
        raise TileCacheError("it was written by another version of this package")
    return dict(header["matrices"])


def read_matrix(file: Any, entry: Mapping[str, Any], *, pool: _native.ThreadPool, arena: _native.Arena) -> Packed:
    rows, columns = entry["shape"]
    weight = _native.read_packed(
        entry["format"], rows, columns, file=file.fileno(), offset=entry["offset"], checksum=entry["checksum"], pool=pool, arena=arena
    )
    return Packed(entry["format"], (rows, columns), weight)


def write_tiles(path: Path, matrices: Mapping[str, Packed], pool: _native.ThreadPool) -> None:
    """OSError where it cannot be written; then nothing is left."""
    with atomic_file(path) as file:
        write_matrices(file, matrices, pool)


def write_matrices(file: BinaryIO, matrices: Mapping[str, Packed], pool: _native.ThreadPool) -> None:
    entries = {
        name: {"format": m.format_name, "shape": m.shape, "offset": 0, "checksum": m.weight.checksum(pool)} for name, m in matrices.items()
    }
    room = len(json.dumps(entries)) + 20 * len(entries) + 200  # offsets take up to 20 digits
    offset = 20 + room + -(20 + room) % ALIGNMENT
    file.seek(offset)
    for name, matrix in matrices.items():
        entries[name]["offset"] = offset
        file.write(matrix.weight.bytes().data)  # whole multiples of the alignment
        offset += matrix.weight.nbytes
    header = json.dumps({"form": _native.PACKED_FORM, "matrices": entries}).encode()
    file.seek(0)
    file.write(MAGIC + len(header).to_bytes(8, "little") + zlib.crc32(header).to_bytes(4, "little") + header)
