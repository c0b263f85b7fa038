"""The executors against each other, operation by operation the same: every weight format, both kinds of activations, every
instruction set, both cache formats. `test_against_transformers` says that what they agree on is right.
"""

from functools import cache

import numpy as np
import pytest

from minicpm4 import _native
from minicpm4.executors import Executor
from minicpm4.model import ModelConfig, PackedTensor
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant.activations import LARGEST_CODES
from tests.toy import CUDA, EXECUTORS, MINDSPORE, plan_step, toy_config, toy_executor, toy_weights

LOW_BIT = [name for name, storage in STORAGE_FORMATS.items() if not storage.is_dense]
WIDE = toy_config(hidden_size=256, intermediate_size=512, num_heads=16, head_dim=16)  # rows of whole blocks in every format
PROMPTS = [(np.random.default_rng(seed).integers(0, 97, 40 + 30 * seed).tolist(), 0, [2 * seed, 2 * seed + 1]) for seed in range(3)]

# Float32: sums of up to 512 products of size one in another order, three layers; some 6e-8 * sqrt(512) each.
FLOAT_TOLERANCE = 1e-5


def logits(executor: str, config: ModelConfig, weights: dict[str, PackedTensor], **options: object) -> np.ndarray:
    runner: Executor = toy_executor(executor, config, weights, **options)
    return runner.run(plan_step(PROMPTS)).logits.copy()


@cache
def wide_weights(name: str) -> dict[str, PackedTensor]:
    return toy_weights(WIDE, format_name=name)


@cache
def reference(name: str, activations: str = "f32") -> np.ndarray:
    return logits("reference", WIDE, wide_weights(name), activations=activations)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


@pytest.mark.parametrize("executor", ["native", "torch", CUDA, MINDSPORE])
@pytest.mark.parametrize("name", STORAGE_FORMATS)
def test_float_activations(name: str, executor: str) -> None:
    assert 0.3 < reference(name).std() < 3
    np.testing.assert_allclose(logits(executor, WIDE, wide_weights(name)), reference(name), rtol=0, atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize("isa", _native.usable_isas())
@pytest.mark.parametrize("name", LOW_BIT)
@pytest.mark.parametrize("activations", LARGEST_CODES)
def test_coded_activations_round_as_the_reference_rounds(activations: str, name: str, isa: str) -> None:
    """Sums in another order put a value near a tie on its other side, and that moves all that follows by some of the rounding's
    own noise: two executors differ at most as two roundings that know nothing of each other, by sqrt(2) of it. Products alone are
    compared to the last bits in tests/quant.
    """
    native = logits("native", WIDE, wide_weights(name), activations=activations, isa=isa)
    noise = rms(reference(name, activations) - reference(name))
    assert rms(native - reference(name, activations)) < 1.5 * noise


@pytest.mark.parametrize("executor", ["native", "reference"])
@pytest.mark.parametrize("activations", LARGEST_CODES)
def test_coded_activations_cost_what_their_step_is_and_only_where_weights_are_low_bit(activations: str, executor: str) -> None:
    """The largest of 32 values is some two deviations, its code 127 or 32384, the rounding 1 / sqrt(12) of a step: half a percent of
    a product for 127, in seven products a layer."""
    weights = wide_weights("q8_0")
    noise = rms(logits(executor, WIDE, weights, activations=activations) - logits(executor, WIDE, weights))
    assert 0.4 < noise * LARGEST_CODES[activations] < 4
    dense = wide_weights("f16")
    np.testing.assert_array_equal(logits(executor, WIDE, dense, activations=activations), logits(executor, WIDE, dense))


@pytest.mark.parametrize("isa", _native.usable_isas())
@pytest.mark.parametrize("name", STORAGE_FORMATS)
def test_every_instruction_set_of_this_machine(name: str, isa: str) -> None:
    best = logits("native", WIDE, wide_weights(name))
    np.testing.assert_allclose(logits("native", WIDE, wide_weights(name), isa=isa), best, rtol=0, atol=FLOAT_TOLERANCE)


# Keys and values are rounded to 11 bits (f16), to 8 (bf16), or to 1/254 of their head's largest (int8): a third of that on average,
# averaged over many tokens. `far`: what it costs; `near`: executors round the same floats, but for an element on the edge.
@pytest.mark.parametrize(("kv_format", "far", "near"), [("f16", 3e-3, 1e-3), ("bf16", 3e-2, 8e-3), ("int8", 3e-2, 8e-3)])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_cache_of_fewer_bits(executor: str, kv_format: str, far: float, near: float) -> None:
    if executor.startswith("torch") and kv_format == "int8":
        pytest.skip("torch offers no int8 cache, see test_capabilities")
    config = toy_config()
    weights = toy_weights(config)
    rounded, exact = (logits(executor, config, weights, kv_format=name) for name in (kv_format, "f32"))
    assert not np.array_equal(rounded, exact)
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=far)
    np.testing.assert_allclose(rounded, logits("reference", config, weights, kv_format=kv_format), rtol=0, atol=near)
