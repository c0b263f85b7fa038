"""Which frequencies a model turns with: LongRoPE's choice of factors, its magnitude, and angles in float32 in the published order."""

from pathlib import Path

import numpy as np
import pytest

from minicpm4.checkpoint.hf_folder import read_config
from minicpm4.model.config import ModelConfig, RopeConfig
from minicpm4.model.rope import rope_angles, rope_table
from tests.toy import toy_config

SHORT, LONG = tuple(1.0 + i for i in range(12)), tuple(2.0 + i for i in range(12))


def longrope(*, context: int, original: int | None) -> ModelConfig:
    return toy_config(context_length=context, rope=RopeConfig(10000.0, SHORT, LONG, original, 1.5))


@pytest.mark.parametrize(
    ("context", "original", "asked", "factors"),
    [
        (64, 64, 64, SHORT),  # as every published MiniCPM4: both are one
        (64, 64, 65, LONG),  # more than was trained first
        (128, 64, 10, LONG),  # the published code makes its table for max_position_embeddings at the least
        (64, 128, 100, SHORT),
        (64, 128, 129, LONG),
        (64, None, 1000, SHORT),  # factors that do not depend on the length
    ],
)
def test_long_factors_apply_to_contexts_longer_than_the_first(
    context: int, original: int | None, asked: int, factors: tuple[float, ...]
) -> None:
    table = rope_table(longrope(context=context, original=original), asked)
    np.testing.assert_array_equal(table.inverse_factors_F, 1 / np.float32(factors))
    assert table.magnitude == 1.5


def test_without_factors_they_are_one() -> None:
    np.testing.assert_array_equal(rope_table(toy_config(), 1 << 20).inverse_factors_F, np.ones(12, np.float32))


def test_angles_by_hand() -> None:
    """A head of 4 turns twice: theta ** 0 and theta ** (-2 / 4) = 1 / 10 for theta = 100; the second is slowed by 2."""
    config = toy_config(head_dim=4, rope=RopeConfig(100.0, (1.0, 2.0), (1.0, 2.0), None, 3.0))
    cosines, sines = rope_angles(rope_table(config, 64), np.array([0, 5], np.int32))
    np.testing.assert_allclose(cosines, 3 * np.cos([[0, 0], [5, 0.25]]), rtol=1e-6)
    np.testing.assert_allclose(sines, 3 * np.sin([[0, 0], [5, 0.25]]), rtol=1e-6)
    assert cosines.dtype == sines.dtype == np.float32


def test_angles_far_out_are_rounded_as_the_published_code_rounds_them() -> None:
    """(t * (1 / factor)) * frequency in float32: at 100,000 tokens another order is off by a hundredth of a turn."""
    table = rope_table(longrope(context=1 << 18, original=64), 1 << 18)
    position = np.float32(100_003)
    frequencies = np.float32(1) / np.float32(10000.0) ** (np.arange(0, 24, 2, dtype=np.float32) / np.float32(24))
    wanted = np.cos((position * (np.float32(1) / np.float32(LONG))) * frequencies) * np.float32(1.5)
    np.testing.assert_allclose(rope_angles(table, np.array([100_003], np.int32))[0][0], wanted, atol=1e-6)


def test_published_models_turn_the_same_at_any_length(official: Path) -> None:
    """Every published MiniCPM4 has long factors equal to its short ones, so one table serves all contexts."""
    for size in ("0.5B", "8B"):
        config, _ = read_config(official / size)
        near, far = rope_table(config, 100), rope_table(config, 1 << 17)
        np.testing.assert_array_equal(near.inverse_factors_F, far.inverse_factors_F)
        assert near.magnitude == 1
