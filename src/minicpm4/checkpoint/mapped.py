"""A file mapped into memory, read-only, and the tensors that a reader found in it.

Bytes are read when somebody touches them and belong to the system's page cache. Knows neither file formats nor models.
A file that shrinks while it is mapped makes the system stop the process: never write into a model that is in use.
"""

from __future__ import annotations

import mmap
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minicpm4.errors import CheckpointError
from minicpm4.model import PackedTensor
from minicpm4.model.tensors import STORAGE_FORMATS

DIMENSION_LIMIT = 1 << 48  # no file is this large; keeps products of sizes small


class MappedFile:
    """The bytes of one regular, non-empty file; CheckpointError where it cannot be had.

    Closing it frees the mapping as soon as the last array made of it is gone, so no array ever dangles.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe or a device could wait for ever
                raise CheckpointError(f"{str(path)!r:.300} is not a regular file", hint="name a model's file or folder")
            with open(path, "rb") as file:
                self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise CheckpointError(f"cannot read {str(path)!r:.300}: {error.strerror}", hint="check the path and its permissions") from error
        except ValueError as error:  # what mmap says of an empty file, and open of a NUL in its name
            raise CheckpointError(f"cannot read {str(path)!r:.300}: {error}", hint="download the file again") from error
        self.size = len(self._map)

    @property
    def map(self) -> mmap.mmap:
        if self._map is None:
            raise CheckpointError(f"{self.path.name} was closed", hint="open the checkpoint again, and close it after the last use")
        return self._map

    def read(self, offset: int, size: int) -> bytes:
        """A copy of at most `size` bytes."""
        return self.map[offset : offset + size]

    def array(self, offset: int, *, count: int, dtype: np.dtype[np.generic]) -> np.ndarray:
        """A read-only view; the caller has checked that it lies in the file. It may be unaligned."""
        return np.frombuffer(self.map, dtype, count, offset)

    def release(self) -> None:
        """Gives back the memory of pages already read; arrays stay valid and are read again when touched."""
        if hasattr(mmap, "MADV_DONTNEED") and self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        self._map = None


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in its file.

    format: a name of model.STORAGE_FORMATS, or the file's own word for one that is not supported.
    shape: outermost dimension first. offset, nbytes: bytes, checked against the file.
    """

    format: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class TensorFile:
    """A file whose header was read and found right. metadata: the header's other entries."""

    file: MappedFile
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, object]

    def load(self, name: str) -> PackedTensor:
        """A vector or matrix as a view of the file. CheckpointError where its format is not one that we can compute with."""
        info = self.tensors[name]
        storage = STORAGE_FORMATS.get(info.format)
        if storage is None or len(info.shape) not in (1, 2):
            raise CheckpointError(
                f"{self.file.path.name}: tensor {name!r:.100} is {info.format} {info.shape}",
                hint=f"supported are vectors and matrices of {', '.join(STORAGE_FORMATS)}",
            )
        rows = info.shape[0] if len(info.shape) == 2 else 1
        data = self.file.array(info.offset, count=info.nbytes, dtype=np.dtype(np.uint8))
        return PackedTensor(name, storage, info.shape, data.reshape(rows, storage.row_bytes(info.shape[-1])))
