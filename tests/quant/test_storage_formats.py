"""Every storage format: all codes through encoder and decoder, the public package as the judge, error bounds, and refusals."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.model import PackedTensor
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import dequantize, quantize
from minicpm4.quant.formats import CODECS, ELEMENTS_AT_ONCE
from tests.quant.storage import BLOCK_FORMATS, GGUF_FORMATS, SCALE_FIELDS, public_values, random_blocks, random_tensor

# Sixteenths of a power of two: exact in float16, and so are all multiples that occur below.
SCALE, OFFSET = np.float32(2**-4), np.float32(-3.25)
NUM_CODES = {"q8_0": 255, "q4_0": 16, "q4_1": 16, "q5_0": 32, "q5_1": 32}


def test_formats_are_those_of_the_public_package() -> None:
    for name in GGUF_FORMATS:
        storage = STORAGE_FORMATS[name]
        elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
        assert (storage.block_elements, storage.block_bytes) == (elements, size)
        assert CODECS[name].fields.itemsize == size


@pytest.mark.parametrize("name", GGUF_FORMATS)
def test_any_bits_decode_as_the_public_package_decodes_them(name: str) -> None:
    blocks = random_blocks(name, 600)
    np.testing.assert_array_equal(CODECS[name].decode(blocks), public_values(blocks, name))


def check_exact(name: str, values: np.ndarray) -> None:
    """Values [blocks, elements] that the format holds exactly come back, through our decoder and the public one."""
    blocks = CODECS[name].encode(values)
    np.testing.assert_array_equal(CODECS[name].decode(blocks), values)
    np.testing.assert_array_equal(public_values(blocks, name), values)


@pytest.mark.parametrize("name", NUM_CODES)
def test_every_code_at_every_element_of_a_small_block(name: str) -> None:
    num_codes = NUM_CODES[name]
    codes = (np.arange(32) * 8 + np.arange(num_codes)[:, None]) % num_codes  # [blocks, elements]
    if name == "q8_0":  # the largest code must be there, or another scale would do
        codes = np.concatenate((codes, codes))
        codes[np.arange(510), np.where(np.arange(510) < 255, np.arange(510) % 32, (np.arange(510) + 1) % 32)] = 0
    elif num_codes == 16:
        codes = (np.arange(32) + np.arange(16)[:, None]) % 16
    else:
        codes = (np.arange(32) + np.arange(32)[:, None]) % 32
    has_offset = name.endswith("_1")
    zero = 0 if has_offset else 127 if name == "q8_0" else num_codes // 2
    check_exact(name, (codes - zero) * SCALE + (OFFSET if has_offset else np.float32(0)))


@pytest.mark.parametrize(("name", "num_codes"), [("q4_k", 16), ("q5_k", 32)])
def test_every_code_step_and_minimum_of_a_k_block(name: str, num_codes: int) -> None:
    """64 blocks of 8 sub-blocks; the largest step and the largest minimum are in each block, as its scales are measured by them."""
    steps, minima = (np.arange(8) * 8 + np.arange(64)[:, None]) % 64, (np.arange(8) * 24 + np.arange(64)[:, None] + 9) % 64
    steps[np.arange(64), np.arange(64) % 8] = 63
    minima[np.arange(64), (np.arange(64) + 3) % 8] = 63
    codes = (np.arange(32) + np.arange(64)[:, None]) % num_codes  # both ends are in each sub-block
    values = steps[..., None] * codes[:, None] * np.float32(2**-8) - minima[..., None] * np.float32(2**-5)
    check_exact(name, values.reshape(64, 256).astype(np.float32))


def test_every_code_and_step_of_a_q6_k_block() -> None:
    """255 blocks of 16 sub-blocks of 16 elements; code 0 is in each sub-block, as the largest magnitude gets it."""
    steps = (np.arange(16) * 16 + np.arange(255)[:, None]) % 255 - 127
    steps[np.arange(255), np.arange(255) % 16] = 127
    codes = (np.arange(256) + np.arange(255)[:, None]) % 64
    codes[:, ::16] = 0
    codes = np.roll(codes.reshape(255, 16, 16), 3, axis=2)
    check_exact("q6_k", (steps[..., None] * (codes - 32) * np.float32(2**-10)).reshape(255, 256).astype(np.float32))


@pytest.mark.parametrize("name", ["tq1_0", "tq2_0"])
def test_every_group_of_five_ternary_digits_is_lossless(name: str) -> None:
    """Block b holds the digits of (b + byte) mod 3^5 wherever tq1_0 has a byte, so every byte takes every number."""
    values = np.empty((243, 256), np.float32)
    for first, size, count in ((0, 32, 5), (160, 16, 5), (240, 4, 4)):
        numbers = (np.arange(size) + np.arange(243)[:, None]) % 243
        digits = numbers[:, None, :] // 3 ** np.arange(5)[::-1][:count, None] % 3
        values[:, first : first + size * count] = digits.reshape(243, -1)
    check_exact(name, (values - 1) * np.float32(0.375))


@pytest.mark.parametrize("group", [64, 128])
def test_every_byte_of_q2_0_decodes(group: int) -> None:
    """Element j is bits 2 (j % 4) of byte j / 4; the four codes mean -1, 0, 1 and 2."""
    codec = CODECS["q2_0" if group == 64 else "q2_0_g128"]
    blocks = np.zeros(256, codec.fields)
    blocks["scale"], blocks["codes"] = 0.5, np.arange(256)[:, None]
    wanted = [[(byte >> 2 * (j % 4) & 3) - 1 for j in range(group)] for byte in range(256)]
    np.testing.assert_array_equal(codec.decode(blocks), np.float32(0.5) * np.array(wanted, np.float32))
    assert blocks.itemsize == 2 + group // 4


def test_every_byte_of_ternary_digits_decodes() -> None:
    blocks = np.zeros(256, CODECS["tq1_0"].fields)
    blocks["scale"], blocks["codes"] = 1, np.arange(256)[:, None]
    values = CODECS["tq1_0"].decode(blocks)
    np.testing.assert_array_equal(values, public_values(blocks, "tq1_0"))
    assert np.isin(values, (-1, 0, 1)).all()


def test_ternary_weights_of_one_magnitude_a_row_are_lossless() -> None:
    random = np.random.default_rng(0)
    values = random.integers(-1, 2, (5, 512)) * np.float16(random.uniform(0.01, 2, (5, 1))).astype(np.float32)
    for name in ("tq1_0", "tq2_0", "q2_0", "q2_0_g128"):
        np.testing.assert_array_equal(dequantize(quantize(values, name, name="w")), values)


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_every_half(name: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = CODECS[name].decode(bits.view(CODECS[name].fields))[:, 0]
    wanted = torch.from_numpy(bits.view(np.int16)).view(torch.float16 if name == "f16" else torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(values, wanted)
    finite = np.isfinite(wanted)
    again = CODECS[name].encode(values[finite, None])
    np.testing.assert_array_equal(again.view(np.uint16), bits[finite])


def test_bf16_rounds_as_torch_does() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    bits[:3] = (0x3F808000, 0x3F818000, 0x7F7FFFFF)  # two ties, and the largest number, which becomes infinite
    values = bits.view(np.float32)
    got = dequantize(quantize(values, "bf16", name="w"))
    np.testing.assert_array_equal(got, torch.from_numpy(values).bfloat16().float().numpy())


def ends_and_step(blocks: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What each element's smallest and largest code stand for, and what one code more adds."""
    low, high = blocks.copy(), blocks.copy()
    fills = {"q8_0": (0x81, 0x7F), "tq2_0": (0x00, 0xAA), "q2_0": (0x00, 0xAA), "q2_0_g128": (0x00, 0xAA)}
    for field in set(blocks.dtype.names or ()) - {*SCALE_FIELDS, "scales", "steps"}:
        for end, fill in zip((low, high), fills.get(name, (0x00, 0xFF)), strict=True):
            part = end[field]
            end[field] = np.full(part.nbytes, fill, np.uint8).view(part.dtype).reshape(part.shape)
    last_code = {"q8_0": 254, "q6_k": 63, "tq1_0": 2, "tq2_0": 2, "q2_0": 2, "q2_0_g128": 2}.get(name, 31 if name.startswith("q5") else 15)
    first, last = CODECS[name].decode(low), CODECS[name].decode(high)
    return np.minimum(first, last), np.maximum(first, last), np.abs(last - first) / last_code


# The root mean square of the error over that of the values, for normal values. A step of r / n, r the range of a block and n the
# codes, gives r / (n sqrt(12)); r of 32 normal values is some 4.1 deviations. Measured, with a margin of a tenth.
RELATIVE_ERROR = {
    "q8_0": 0.006, "q4_0": 0.095, "q4_1": 0.087, "q5_0": 0.048, "q5_1": 0.042, "q4_k": 0.086, "q5_k": 0.042, "q6_k": 0.021,
    "tq1_0": 0.89, "tq2_0": 0.89, "q2_0": 0.8, "q2_0_g128": 0.86,
}  # fmt: skip


@pytest.mark.parametrize("name", sorted({*BLOCK_FORMATS} & {*GGUF_FORMATS, "q2_0", "q2_0_g128"}))
def test_encoders_are_at_most_half_a_step_off(name: str) -> None:
    values = np.random.default_rng(1).standard_normal((400, STORAGE_FORMATS[name].block_elements)).astype(np.float32)
    blocks = CODECS[name].encode(values)
    low, high, step = ends_and_step(blocks, name)
    error = np.abs(CODECS[name].decode(blocks) - np.clip(values, low, high))
    assert (error <= step / 2 + 1e-6).all()  # 1e-6: the rounding of values of size one in float32
    assert np.sqrt(np.mean((CODECS[name].decode(blocks) - values) ** 2)) < RELATIVE_ERROR[name]


FINITE = st.floats(-65504, 65504, width=32)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from([*STORAGE_FORMATS]), values=arrays(np.float32, 256, elements=FINITE))
def test_any_finite_values_are_held_and_decode_to_finite_ones(name: str, values: np.ndarray) -> None:
    got = dequantize(quantize(values, name, name="w"))
    assert np.isfinite(got).all()
    assert np.abs(got).max() <= np.abs(values).max() * 1.001 + 1e-6 or name not in ("f32", "q8_0", "tq1_0", "tq2_0")


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from([name for name in STORAGE_FORMATS if name not in ("f32", "bf16")]),
    wrong=st.sampled_from([np.nan, np.inf, -np.inf, 3e38, -3e38]),
    place=st.integers(0, 255),
)
def test_values_that_a_format_cannot_hold_are_refused(name: str, wrong: float, place: int) -> None:
    values = np.ones(256, np.float32)
    values[place] = wrong
    with pytest.raises(CheckpointError, match=f"^norm cannot be stored as {name}: values are not finite, or too large"):
        quantize(values, name, name="norm")


@pytest.mark.parametrize("name", ["f32", "bf16"])
def test_wide_formats_hold_anything(name: str) -> None:
    values = np.array([np.nan, np.inf, -np.inf, 0], np.float32)
    np.testing.assert_array_equal(dequantize(quantize(values, name, name="w")), values)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"there is no tensor format 'q3_k'; choose one of f32, f16, bf16, q8_0"):
        quantize(np.ones(256, np.float32), "q3_k", name="w")
    with pytest.raises(ConfigError, match=r"w: q4_k stores blocks of 256, rows have 128 elements; choose a format of smaller blocks"):
        quantize(np.ones((2, 128), np.float32), "q4_k", name="w")
    with pytest.raises(ValueError, match="q8_0 stores blocks of 32, a row of 33 is not a multiple"):
        STORAGE_FORMATS["q8_0"].row_bytes(33)
    with pytest.raises(ValueError, match=r"w: \(2, 32\) q8_0 needs uint8 bytes \(2, 34\), got uint8 \(2, 33\)"):
        PackedTensor("w", STORAGE_FORMATS["q8_0"], (2, 32), np.zeros((2, 33), np.uint8))


def test_scales_that_are_not_finite_give_what_arithmetic_gives() -> None:
    tensor = random_tensor("q4_0", 1, 64)
    tensor.data.view(CODECS["q4_0"].fields)["scale"][0, 0] = np.nan
    values = dequantize(tensor)
    assert np.isnan(values[0, :32]).all()
    assert np.isfinite(values[0, 32:]).all()


def test_rows_of_a_matrix_and_views_that_are_not_aligned() -> None:
    tensor = random_tensor("q6_k", 7, 512)
    shifted = np.empty(tensor.data.size + 1, np.uint8)[1:].reshape(tensor.data.shape)
    shifted[:] = tensor.data
    everything = dequantize(tensor)
    np.testing.assert_array_equal(dequantize(PackedTensor("w", tensor.format, tensor.shape, shifted)), everything)
    np.testing.assert_array_equal(dequantize(tensor, rows=np.array([5, 0])), everything[[5, 0]])
    np.testing.assert_array_equal(dequantize(tensor, rows=slice(2, 4)), everything[2:4])


def test_a_large_matrix_is_decoded_in_pieces_and_a_vector_stays_one() -> None:
    rows = ELEMENTS_AT_ONCE // 256 + 3
    tensor = random_tensor("q8_0", rows, 256)
    np.testing.assert_array_equal(dequantize(tensor)[-1], dequantize(tensor, rows=slice(rows - 1, rows))[0])
    assert dequantize(quantize(np.ones(64, np.float32), "q8_0", name="v")).shape == (64,)
