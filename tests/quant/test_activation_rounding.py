"""Activations as whole numbers: the rule itself, and that the kernels of every instruction set follow it to the bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicpm4 import _native
from minicpm4.model import PackedTensor
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import dequantize, quantize_activations, round_activations
from minicpm4.quant.activations import LARGEST_CODES
from minicpm4.quant.formats import CODECS
from tests.native_product import native_product
from tests.quant.storage import BLOCK_FORMATS, random_tensor

LARGEST = 1e37  # kernels also keep the sum of a group, which must be finite


def identity(size: int) -> PackedTensor:
    """A q4_1 matrix of exact zeros and ones, so that a product with it is the rounded activation itself."""
    blocks = np.zeros((size, size // 32), CODECS["q4_1"].fields)
    blocks["scale"] = 1
    for i in range(size):
        blocks[i, i // 32]["codes"][i % 16] = 1 << 4 * (i % 32 // 16)
    storage = STORAGE_FORMATS["q4_1"]
    return PackedTensor("identity", storage, (size, size), blocks.view(np.uint8).reshape(size, storage.row_bytes(size)))


def native_rounding(isa: str, x_TK: np.ndarray, kind: str) -> np.ndarray:
    return native_product(isa, x_TK, identity(x_TK.shape[1]), kind=kind)


def expected(x_TK: np.ndarray, kind: str) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        return round_activations(x_TK, kind) @ np.eye(x_TK.shape[1], dtype=np.float32)


def special_rows(kind: str) -> np.ndarray:
    """Rows of two groups: ties, zeros, one value, tiny ones, the largest ones, and then such as are not finite."""
    x = np.zeros((12, 64), np.float32)
    x[0, :32], x[0, 32:] = np.arange(-16, 16) + 0.5, np.arange(32) + 0.5
    x[0, 7] = x[0, 40] = LARGEST_CODES[kind]  # a scale of exactly 1, so that the halves are ties
    x[2, 3] = -5
    x[3] = np.linspace(-1e-37, 1e-37, 64)  # the scale is below the smallest normal float32
    x[4] = np.linspace(-1e-33, 1e-33, 64)  # and here above
    x[5] = np.linspace(-LARGEST, LARGEST, 64)
    x[6, :32] = 1e-45
    x[7, 3], x[8, 35], x[9, 0], x[10] = np.nan, np.inf, -np.inf, np.nan
    x[11] = np.linspace(-1, 2, 64)
    return x


@pytest.mark.parametrize("kind", LARGEST_CODES)
def test_ties_go_to_even_and_zeros_to_zero(kind: str) -> None:
    codes, scales = quantize_activations(special_rows(kind), kind)
    assert codes.dtype == kind
    assert scales[0, 0] == scales[0, 1] == 1
    assert codes[0, :7].tolist() == [-16, -14, -14, -12, -12, -10, -10]
    assert not codes[1].any()
    assert codes[2].tolist() == [0, 0, 0, -LARGEST_CODES[kind], *[0] * 60]
    assert not codes[3].any()


@pytest.mark.parametrize("kind", LARGEST_CODES)
def test_groups_that_are_not_finite_have_a_scale_of_nan(kind: str) -> None:
    _, scales = quantize_activations(special_rows(kind), kind)
    assert np.isnan(scales[7:11]).tolist() == [[True, False], [False, True], [True, False], [True, True]]
    assert np.isfinite(scales[[0, 1, 2, 3, 4, 5, 6, 11]]).all()


@pytest.mark.parametrize("kind", LARGEST_CODES)
def test_a_value_is_at_most_half_a_scale_off(kind: str) -> None:
    """And by the rounding of x / scale, a number as large as the largest code, to float32."""
    x = np.random.default_rng(0).standard_normal((50, 96)).astype(np.float32)
    _, scales = quantize_activations(x, kind)
    bound = np.repeat(scales, 32, axis=1) * (0.5 + LARGEST_CODES[kind] * 2**-23)
    assert (np.abs(round_activations(x, kind) - x) <= bound).all()


def test_floats_are_left_alone() -> None:
    x = special_rows("int8")
    assert round_activations(x, "f32") is x


@pytest.mark.parametrize("isa", _native.usable_isas())
@pytest.mark.parametrize("kind", LARGEST_CODES)
def test_kernels_round_to_the_same_codes(kind: str, isa: str) -> None:
    x = special_rows(kind)
    np.testing.assert_array_equal(native_rounding(isa, x, kind), expected(x, kind))


ANY_FLOAT = st.floats(-np.float32(LARGEST).item(), np.float32(LARGEST).item(), width=32) | st.sampled_from([np.nan, np.inf, -np.inf])


@settings(max_examples=100, deadline=None)
@given(
    isa=st.sampled_from(_native.usable_isas()),
    kind=st.sampled_from(list(LARGEST_CODES)),
    x=arrays(np.float32, (3, 32), elements=ANY_FLOAT),
)
def test_kernels_round_any_numbers_to_the_same_codes(isa: str, kind: str, x: np.ndarray) -> None:
    np.testing.assert_array_equal(native_rounding(isa, x, kind), expected(x, kind))


@pytest.mark.parametrize("isa", _native.usable_isas())
@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize("kind", LARGEST_CODES)
def test_products_are_those_of_the_rounded_values(kind: str, name: str, isa: str) -> None:
    """A group's codes are multiplied in whole numbers, then scaled: one rounding a group in each of several terms."""
    columns = 768
    for rows in (1, 17):
        weight = random_tensor(name, rows, columns, seed=rows)
        x = np.random.default_rng(rows).standard_normal((5, columns)).astype(np.float32)
        values, factors = round_activations(x, kind).astype(np.float64), dequantize(weight).astype(np.float64)
        size = np.abs(values) @ np.abs(factors).T
        assert (np.abs(native_product(isa, x, weight, kind=kind) - values @ factors.T) <= 2e-6 * size).all()
