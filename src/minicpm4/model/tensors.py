"""How a stored tensor travels from a file to an executor: its format's name and block geometry, and its bytes.

Knows how large a block is, so that readers can check bounds; what the bits of a block mean is `quant.formats`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class StorageFormat:
    """A tensor format: `block_elements` consecutive elements of a row are stored in `block_bytes` bytes."""

    name: str
    block_elements: int
    block_bytes: int

    @property
    def is_dense(self) -> bool:
        """Whether an element is its own block: a plain number, without codes and scales."""
        return self.block_elements == 1

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_elements

    def row_bytes(self, num_elements: int) -> int:
        """Bytes of one row; ValueError unless the row is a whole number of blocks."""
        if num_elements % self.block_elements:
            raise ValueError(f"{self.name} stores blocks of {self.block_elements}, a row of {num_elements} is not a multiple")
        return num_elements // self.block_elements * self.block_bytes


STORAGE_FORMATS = {
    name: StorageFormat(name, elements, size)
    for name, elements, size in [
        ("f32", 1, 4), ("f16", 1, 2), ("bf16", 1, 2),
        ("q8_0", 32, 34), ("q4_0", 32, 18), ("q4_1", 32, 20), ("q5_0", 32, 22), ("q5_1", 32, 24),
        ("q4_k", 256, 144), ("q5_k", 256, 176), ("q6_k", 256, 210),
        ("tq1_0", 256, 54), ("tq2_0", 256, 66), ("q2_0", 64, 18), ("q2_0_g128", 128, 34),
        ("ternary_g32", 32, 10), ("ternary_g64", 64, 18), ("ternary_g128", 128, 34), ("ternary_g256", 256, 66),
    ]
}  # fmt: skip


@dataclass(frozen=True)
class PackedTensor:
    """A tensor as stored.

    shape: (rows, columns) of a matrix, (columns,) of a vector; blocks run along the columns.
    data: uint8 [rows, row bytes], usually a view of a memory-mapped file: read it, never write it.
    """

    name: str
    format: StorageFormat
    shape: tuple[int, ...]
    data: np.ndarray

    def __post_init__(self) -> None:
        expected = (self.num_rows, self.format.row_bytes(self.shape[-1]))
        if self.data.dtype != np.uint8 or self.data.shape != expected:
            raise ValueError(
                f"{self.name}: {self.shape} {self.format.name} needs uint8 bytes {expected}, got {self.data.dtype} {self.data.shape}"
            )

    @property
    def num_rows(self) -> int:
        return self.shape[0] if len(self.shape) == 2 else 1

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    def take_rows(self, rows: np.ndarray) -> PackedTensor:
        """The same tensor with its rows in the given order (a copy)."""
        return replace(self, data=self.data[rows], shape=(len(rows), *self.shape[1:]))

    def take_elements(self, elements: np.ndarray) -> PackedTensor:
        """The same vector of a dense format with its elements in the given order (a copy)."""
        size = self.format.block_bytes
        return replace(self, data=self.data.reshape(-1, size)[elements].reshape(1, -1))
