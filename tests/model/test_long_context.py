"""128K tokens for the models whose lists were published; for others what their config says, and no more."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minicpm4.model import ModelConfig
from minicpm4.model.hf_config import config_from_hf
from minicpm4.model.long_context import LONG_CONTEXT, LONG_FACTORS, with_context
from minicpm4.model.rope import rope_table
from tests.toy import TOY


@pytest.fixture
def eight(official: Path) -> ModelConfig:
    return config_from_hf(json.loads((official / "8B" / "config.json").read_text()))[0]


def test_the_8b_turns_by_its_long_list_once_more_than_32k_is_asked_for(eight: ModelConfig) -> None:
    for asked in (None, 1000, 32768):
        assert with_context(eight, asked) is eight
    long = with_context(eight, 32769)
    assert (long.context_length, long.rope.long_factors, long.rope.magnitude) == (LONG_CONTEXT, LONG_FACTORS[32768], 1.0)
    assert long == replace(eight, context_length=LONG_CONTEXT, rope=long.rope)
    np.testing.assert_allclose(1 / rope_table(long, 40000).inverse_factors_F, LONG_FACTORS[32768], rtol=1e-6)
    native = 1 / rope_table(eight, 32768).inverse_factors_F
    np.testing.assert_allclose(native, eight.rope.short_factors, rtol=1e-6)
    np.testing.assert_allclose(native[:21], LONG_FACTORS[32768][:21], rtol=1e-6)  # the lists part after 21 frequencies
    assert (native[21:40] < np.array(LONG_FACTORS[32768][21:40])).all()


def test_the_4_1_has_a_list_of_its_own(eight: ModelConfig) -> None:
    """Its published config is not to be had: the 8B's, with 65536 tokens trained first."""
    four_one = replace(eight, context_length=65536, rope=replace(eight.rope, original_context=65536))
    assert with_context(four_one, 65536) is four_one
    assert with_context(four_one, 70000).rope.long_factors == LONG_FACTORS[65536]


def test_lists_are_as_long_as_frequencies_and_grow() -> None:
    for factors in LONG_FACTORS.values():
        assert len(factors) == 64
        assert (np.diff(factors) > 0).all()
    assert (LONG_FACTORS[32768][0], LONG_FACTORS[32768][-1]) == (0.9977997200264581, 124.09569231686116)
    assert (LONG_FACTORS[65536][0], LONG_FACTORS[65536][-1]) == (0.9982316082870437, 126.01712561287873)


def test_no_other_model_is_stretched(eight: ModelConfig, official: Path) -> None:
    small = config_from_hf(json.loads((official / "0.5B" / "config.json").read_text()))[0]
    plain = replace(eight, rope=replace(eight.rope, short_factors=None, long_factors=None, original_context=None))
    others = (small, TOY, plain, replace(eight, sparse=None), replace(eight, context_length=65536), replace(eight, num_layers=31))
    for config in others:
        assert with_context(config, 131072) is config
