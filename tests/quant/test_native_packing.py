"""What the native executor keeps of a stored weight: packing and reading back loses nothing, whatever the shape."""

import numpy as np
import pytest

from minicpm4 import _native
from minicpm4.model import PackedTensor
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import dequantize
from tests.quant.storage import random_tensor


@pytest.fixture(scope="module")
def pool() -> _native.ThreadPool:
    return _native.ThreadPool(2)


def pack(tensor: PackedTensor, pool: _native.ThreadPool) -> _native.PackedWeight:
    return _native.pack(tensor.format.name, *tensor.shape, tensor.data, pool, _native.Arena())


@pytest.mark.parametrize("rows", [1, 16, 17, 33])
@pytest.mark.parametrize("name", STORAGE_FORMATS)
def test_packing_keeps_every_value(pool: _native.ThreadPool, name: str, rows: int) -> None:
    """A value is (scale * code + offset) rounded once, in both; products of float16 and codes are exact in float32."""
    storage = STORAGE_FORMATS[name]
    for columns in (1, 7, 40) if storage.is_dense else (storage.block_elements, 3 * storage.block_elements):
        tensor = random_tensor(name, rows, columns, seed=rows)
        packed = pack(tensor, pool)
        np.testing.assert_array_equal(packed.unpack(0, rows), dequantize(tensor))
        np.testing.assert_array_equal(packed.unpack(rows - 1, rows), dequantize(tensor)[-1:])
        assert packed.nbytes <= -(-rows // 16) * 16 * storage.row_bytes(columns) * 1.4 + 64  # ternary: tq1_0 takes 2 bits a code


def test_packing_reads_a_file_in_place(pool: _native.ThreadPool) -> None:
    """Rows may lie apart and at odd addresses, as views of a memory-mapped file do."""
    tensor = random_tensor("q5_1", 3, 64)
    wide = np.zeros((3, 61), np.uint8)[:, 5:53]
    wide[:] = tensor.data
    np.testing.assert_array_equal(_native.pack("q5_1", 3, 64, wide, pool, _native.Arena()).unpack(0, 3), dequantize(tensor))


def test_wrong_shapes_are_refused(pool: _native.ThreadPool) -> None:
    data = random_tensor("q8_0", 2, 32).data
    for name, rows, columns, stored in (("q8_0", 3, 32, data), ("q8_0", 2, 64, data), ("q8_0", 2, 33, data), ("q8_0", 2, 32, data[:, ::2])):
        with pytest.raises(ValueError, match="stored bytes do not fit the shape"):
            _native.pack(name, rows, columns, stored, pool, _native.Arena())
    with pytest.raises(ValueError, match="no format q3_k"):
        _native.pack("q3_k", 2, 32, data, pool, _native.Arena())
    packed = _native.pack("q8_0", 2, 32, data, pool, _native.Arena())
    for first, last in ((-1, 1), (0, 3), (2, 1)):
        with pytest.raises(IndexError, match="rows out of range"):
            packed.unpack(first, last)
