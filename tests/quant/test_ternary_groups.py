"""Our ternary formats: every code and every byte, BitCPM's rule, the exact encoder, and the trap between the two."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4 import _native
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.model import PackedTensor
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import dequantize, pack_ternary, quantize
from minicpm4.quant.formats import CODECS
from minicpm4.quant.ternary import SMALLEST_SCALE

GROUPS = (32, 64, 128, 256)


@pytest.mark.parametrize(("group", "bits"), [(32, 2.5), (64, 2.25), (128, 2.125), (256, 2.0625)], ids=str)
def test_bits_a_weight(group: int, bits: float) -> None:
    storage = STORAGE_FORMATS[f"ternary_g{group}"]
    assert (storage.block_elements, storage.bits_per_weight) == (group, bits)
    assert CODECS[storage.name].fields.itemsize == storage.block_bytes


@pytest.mark.parametrize("group", GROUPS)
def test_every_byte_of_codes_at_every_place_in_every_decoder(group: int) -> None:
    """Row b holds byte (b + i) mod 256 at place i, by the specification read aloud; numpy and the native packing agree with it."""
    name, columns = f"ternary_g{group}", 1024
    codes_NB = ((np.arange(256)[:, None] + np.arange(columns // 4)) % 256).astype(np.uint8)
    scales_NG = np.linspace(-2, 2, 256 * (columns // group)).astype(np.float16).reshape(256, -1)
    wanted = np.array([[(codes_NB[n, k // 4] >> 2 * (k % 4) & 3) - 1.0 for k in range(columns)] for n in range(256)], np.float32)
    wanted *= np.repeat(scales_NG.astype(np.float32), group, axis=1)
    blocks = np.concatenate((codes_NB.reshape(256, -1, group // 4), scales_NG[..., None].view(np.uint8)), axis=2)
    tensor = PackedTensor("w", STORAGE_FORMATS[name], (256, columns), blocks.reshape(256, -1))
    np.testing.assert_array_equal(dequantize(tensor), wanted)
    packed = _native.pack(name, 256, columns, tensor.data, _native.ThreadPool(2), _native.Arena())
    np.testing.assert_array_equal(packed.unpack(0, 256), wanted)
    assert packed.nbytes == tensor.nbytes  # what is read for a token is what the file holds


@pytest.mark.parametrize("group", GROUPS)
def test_bitcpm_takes_the_mean_magnitude(group: int) -> None:
    values = np.zeros((2, group), np.float32)
    values[0, :4] = (group, -group, group / 8, -group / 2)  # mean magnitude: 2.625
    got = dequantize(quantize(values, f"ternary_g{group}", name="w"))
    assert got[0, :4].tolist() == [2.625, -2.625, 2.625 if group / 8 > 1.3125 else 0, -2.625]
    assert not got[0, 4:].any()
    assert not got[1].any()
    blocks = CODECS[f"ternary_g{group}"].encode(values)
    assert blocks["scale"][1] == np.float16(SMALLEST_SCALE)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(GROUPS))
def test_codes_are_the_nearest_and_scales_the_mean(seed: int, group: int) -> None:
    values = np.random.default_rng(seed).standard_normal((3, 2 * group)).astype(np.float32)
    got = dequantize(quantize(values, f"ternary_g{group}", name="w")).reshape(-1, group)
    groups = values.reshape(-1, group)
    scales = np.abs(groups).mean(axis=1, keepdims=True).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(got, np.clip(np.rint(groups * (1 / scales)), -1, 1) * scales)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(GROUPS))
def test_trained_weights_are_packed_exactly_and_never_quantized_again(seed: int, group: int) -> None:
    """The trap: by BitCPM's rule, groups with zeros get a smaller scale the second time."""
    random = np.random.default_rng(seed)
    scales = np.float16(random.uniform(1e-3, 3, (3, 2, 1)) * random.integers(0, 5, (3, 2, 1)).clip(max=1)).astype(np.float32)
    values = (scales * random.integers(-1, 2, (3, 2, group))).reshape(3, -1).astype(np.float32)
    packed = pack_ternary(values, group, name="w")
    np.testing.assert_array_equal(dequantize(packed), values)
    if 0 < np.count_nonzero(values[0]) < values[0].size:
        assert not np.array_equal(dequantize(quantize(values, packed.format.name, name="w")), values)


def test_what_is_not_pseudo_quantized_is_refused() -> None:
    values = np.ones((1, 64), np.float32)
    values[0, 40] = 0.5
    for wrong in (values, np.full((1, 64), 0.1, np.float32)):  # two magnitudes; a magnitude that is no float16
        with pytest.raises(CheckpointError, match=r"w cannot be stored as ternary_g32: values are not a float16 times -1, 0 or 1"):
            pack_ternary(wrong, 32, name="w")
    with pytest.raises(ConfigError, match="there are no ternary groups of 48; choose one of 32, 64, 128, 256"):
        pack_ternary(values, 48, name="w")
    with pytest.raises(ConfigError, match="ternary_g128 stores blocks of 128, rows have 64 elements"):
        pack_ternary(values, 128, name="w")
