"""The symbols that graphs of other frameworks call, called as such a graph calls them, but by ctypes: no framework is needed."""

import ctypes
import platform
import sys

import numpy as np
import pytest

from minicpm4 import _native
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import dequantize, quantize

WRONG_INPUTS, WRONG_TOKEN, WRONG_LAYER = 1, 2, 3
LIBRARY = ctypes.CDLL(_native.__file__)
POOL, ARENA, PACKERS = _native.SharedThreadPool(2), _native.Arena(), _native.ThreadPool(1)
FLUSH_TO_ZERO = 0x8040  # of the control register: what is denormal counts as zero


def call(symbol: str, *arrays: np.ndarray) -> int:
    """Inputs, then the output, as MindSpore gives them."""
    count = len(arrays)
    pointers = (ctypes.c_void_p * count)(*(array.ctypes.data for array in arrays))
    ranks = (ctypes.c_int * count)(*(array.ndim for array in arrays))
    kept = [(ctypes.c_int64 * array.ndim)(*array.shape) for array in arrays]
    shapes = (ctypes.POINTER(ctypes.c_int64) * count)(*(ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64)) for shape in kept))
    types = (ctypes.c_char_p * count)(*(str(array.dtype).encode() for array in arrays))
    return int(getattr(LIBRARY, f"minicpm4_{symbol}")(count, pointers, ranks, shapes, types, None, None))


def weight_of(
    name: str, rows: int, columns: int, *, isa: str = _native.usable_isas()[0], spread: float = 1.0
) -> tuple[_native.WeightHandle, np.ndarray]:
    """A random weight's handle, and its values."""
    stored = quantize(np.random.default_rng(0).standard_normal((rows, columns), dtype=np.float32) * spread, name, name="weight")
    packed = _native.pack(name, rows, columns, stored.data, PACKERS, ARENA)
    return _native.WeightHandle(isa, POOL, packed), dequantize(stored)


def address(handle: object) -> np.ndarray:
    return np.array([handle.address], np.int64)  # type: ignore[attr-defined]


@pytest.mark.parametrize("isa", _native.usable_isas())
@pytest.mark.parametrize("name", STORAGE_FORMATS)
def test_products_and_lookups_of_every_format(name: str, isa: str) -> None:
    """Some rows are padding, and 53 columns are no multiple of a tile's 16."""
    handle, values = weight_of(name, 53, 256, isa=isa)
    for rows, count in ((1, 1), (9, 7), (200, 150), (8, 0)):
        x, out = np.random.default_rng(rows).standard_normal((rows, 256), dtype=np.float32), np.full((rows, 53), np.nan, np.float32)
        assert call("multiply", x, np.array([count], np.int32), address(handle), out) == 0
        np.testing.assert_allclose(out[:count], x[:count] @ values.T, rtol=0, atol=1e-4)  # 256 products of size one: 6e-8 * 16 each
        assert not out[count:].any()
    tokens, out = np.array([52, 0, 7], np.int32), np.full((3, 256), np.nan, np.float32)
    assert call("look_up", tokens, address(handle), out) == 0
    np.testing.assert_array_equal(out, values[tokens])


@pytest.mark.parametrize("columns", [1, 30, 35])
def test_columns_that_are_no_multiple_of_a_vector(columns: int) -> None:
    handle, values = weight_of("f32", 3, columns)
    x, out = np.ones((2, columns), np.float32), np.empty((2, 3), np.float32)
    assert call("multiply", x, np.array([2], np.int32), address(handle), out) == 0
    np.testing.assert_allclose(out, x @ values.T, rtol=0, atol=1e-5)


def test_inputs_that_do_not_fit_are_refused() -> None:
    handle, _ = weight_of("f32", 3, 16)
    x, count, out = np.ones((2, 16), np.float32), np.array([2], np.int32), np.empty((2, 3), np.float32)
    place = address(handle)
    wrong = [
        (x[:, :15].copy(), count, place, out), (x.astype(np.float64), count, place, out), (x, count, place, out[:, :2].copy()),
        (x, np.array([3], np.int32), place, out), (x, np.array([-1], np.int32), place, out), (x, count.astype(np.int64), place, out),
        (x, count, out), (x, count, np.array([handle.address, 0], np.int64), out),
    ]  # fmt: skip
    for arrays in wrong:
        assert call("multiply", *arrays) == WRONG_INPUTS
    rows = np.empty((1, 16), np.float32)
    for token in (-1, 3):
        assert call("look_up", np.array([token], np.int32), place, rows) == WRONG_TOKEN
    assert call("look_up", np.array([0, 1], np.int32), place, rows) == WRONG_INPUTS


def attention() -> _native.AttentionHandle:
    shape = {"max_rows": 4, "num_pages": 2, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "head_dim": 4}
    return _native.AttentionHandle(_native.usable_isas()[0], POOL, kv_format="f32", sparse=None, **shape)


def attend(handle: _native.AttentionHandle, layer: int, **changes: np.ndarray) -> tuple[int, np.ndarray]:
    """Two rows of one sequence and a row of padding; queries of zeros, so that a row gets the mean of the values that it sees."""
    ints = {"positions": [0, 1, 0], "slots": [64, 65, 0], "starts": [0, 2, 2, 2], "lengths": [2, 0, 0]}
    arrays = {name: np.array(values, np.int32) for name, values in ints.items()} | {"pages": np.array([[1, 0]] * 3, np.int32)}
    values = np.array([[1, 2, 3, 4], [3, 4, 5, 6], [9, 9, 9, 9]], np.float32)
    queries, out = np.zeros((3, 8), np.float32), np.full((3, 8), np.nan, np.float32)
    inputs = {"queries": queries, "keys": values, "values": values, **arrays} | changes
    return call("attend", *inputs.values(), np.array([handle.address, layer], np.int64), out), out


def test_attention_writes_reads_and_leaves_padding_alone() -> None:
    handle = attention()
    for layer in (0, 1):
        code, out = attend(handle, layer)
        assert code == 0
        np.testing.assert_allclose(out, [[1, 2, 3, 4] * 2, [2, 3, 4, 5] * 2, [0] * 8], atol=1e-6)


def test_attention_that_does_not_fit_is_refused() -> None:
    handle = attention()
    for layer in (-1, 2):
        assert attend(handle, layer)[0] == WRONG_LAYER
    for name, array in {"keys": np.zeros((3, 5), np.float32), "starts": np.zeros(3, np.int32), "pages": np.zeros((2, 2), np.int32)}.items():
        assert attend(handle, 0, **{name: array})[0] == WRONG_INPUTS


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="sets the mode as Linux on x86-64 keeps it")
def test_a_thread_that_flushes_small_numbers_gets_the_same() -> None:
    """As MindSpore's threads do; a q6_k block's scale is a half, and here smaller than a normal one."""
    libm = ctypes.CDLL("libm.so.6")
    handle, values = weight_of("q6_k", 16, 256, spread=2**-8)
    ordinary, mode = (ctypes.create_string_buffer(32) for _ in range(2))
    libm.fegetenv(ordinary)
    libm.fegetenv(mode)
    control = int.from_bytes(mode.raw[28:32], "little") | FLUSH_TO_ZERO
    mode[28:32] = control.to_bytes(4, "little")
    out = np.zeros((1, 256), np.float32)
    libm.fesetenv(mode)
    try:
        code = call("look_up", np.array([3], np.int32), address(handle), out)
    finally:
        libm.fesetenv(ordinary)
    assert code == 0
    np.testing.assert_array_equal(out[0], values[3])
