"""A sequence's logits are its own: alone or in a batch, in one step or in chunks, on whatever pages and threads."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from minicpm4.executors import Executor
from minicpm4.model import PAGE_TOKENS, pages_for
from minicpm4.model.parameters import HEAD
from minicpm4.quant import dequantize, quantize
from tests.toy import CUDA, EXECUTORS, MINDSPORE, POISON, plan_step, poisoned_weights, toy_config, toy_executor, toy_weights

# The native executor computes a row in the same order whatever surrounds it. numpy, torch and MindSpore choose another order of
# summation for another shape: sums of some 200 terms of size one, a rounding of 6e-8 each, through three layers.
TOLERANCE = {"native": 0.0, "reference": 5e-6, "torch": 5e-6, "mindspore": 5e-6}
NUM_PAGES = 16


def prompt(length: int, *, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, POISON, length).tolist()


@pytest.fixture(params=["native", "native-int8", "native-int16", "reference", "torch", CUDA, MINDSPORE])
def runner(request: pytest.FixtureRequest) -> Executor:
    """A toy of q8_0 weights; with coded activations a row's codes are its own too."""
    config = toy_config()
    return toy_executor(request.param, config, toy_weights(config, format_name="q8_0"))


def check_same(runner: Executor, got: np.ndarray, wanted: np.ndarray) -> None:
    assert np.isfinite(wanted).all()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE[runner.name])


def alone(runner: Executor, tokens: Sequence[int], pages: Sequence[int] | None = None) -> np.ndarray:
    """Logits of every token of a sequence run in one step, by default on pages 0, 1, 2 ..."""
    return runner.run(plan_step([(tokens, 0, pages or range(pages_for(len(tokens))))])).logits.copy()


def test_a_ragged_batch_is_each_sequence_alone(runner: Executor) -> None:
    prompts = [prompt(length, seed=length) for length in (1, 130, 17, 64, 65)]
    pages = [[0], [1, 2, 3], [4], [5], [6, 7]]
    together = runner.run(plan_step([(tokens, 0, own) for tokens, own in zip(prompts, pages, strict=True)])).logits.copy()
    ends = np.cumsum([len(tokens) for tokens in prompts])[:-1]
    for tokens, logits in zip(prompts, np.split(together, ends), strict=True):
        check_same(runner, logits, alone(runner, tokens))


@pytest.mark.parametrize("sizes", [(1, 149), (64, 64, 22), (63, 2, 85), (50, 50, 50), (149, 1), (7,) * 21 + (3,)], ids=str)
def test_a_prompt_in_chunks_is_the_prompt_at_once(runner: Executor, sizes: tuple[int, ...]) -> None:
    tokens, pages, start, parts = prompt(150), (3, 9, 5), 0, []
    for size in sizes:
        parts.append(runner.run(plan_step([(tokens[start : start + size], start, pages)])).logits.copy())
        start += size
    check_same(runner, np.concatenate(parts), alone(runner, tokens))


def test_decoding_token_by_token_is_the_prompt_at_once(runner: Executor) -> None:
    """Two sequences in turn in one batch, across the border of a page."""
    first, second, steps = prompt(70, seed=1), prompt(20, seed=2), 12
    runner.run(plan_step([(first[:-steps], 0, [0, 1]), (second[:-steps], 0, [2])]))
    for i in range(-steps, 0):
        step = plan_step([([first[i]], len(first) + i, [0, 1]), ([second[i]], len(second) + i, [2])])
        got = runner.run(step).logits.copy()
        check_same(runner, got[0], alone(runner, first[: len(first) + i + 1], [3, 4])[-1])
        check_same(runner, got[1], alone(runner, second[: len(second) + i + 1], [5])[-1])


def test_a_chunk_of_one_sequence_beside_a_token_of_another(runner: Executor) -> None:
    first, second = prompt(90, seed=1), prompt(140, seed=2)
    runner.run(plan_step([(first[:-1], 0, [8, 1]), (second[:60], 0, [4, 0, 12])]))
    got = runner.run(plan_step([(first[-1:], 89, [8, 1]), (second[60:], 60, [4, 0, 12])])).logits.copy()
    check_same(runner, got[0], alone(runner, first, [13, 14])[-1])
    check_same(runner, got[1:], alone(runner, second, [13, 14, 15])[60:])


def test_scattered_pages_are_as_good_as_neighbours(runner: Executor) -> None:
    tokens = prompt(200)
    check_same(runner, alone(runner, tokens, [11, 2, 15, 7]), alone(runner, tokens, [0, 1, 2, 3]))


def test_only_wanted_rows_are_returned(runner: Executor) -> None:
    prompts = [(prompt(9, seed=1), 0, [0]), (prompt(5, seed=2), 0, [1])]
    everything = runner.run(plan_step(prompts)).logits.copy()
    check_same(runner, runner.run(plan_step(prompts, wants_all=False)).logits, everything[[8, 13]])


def test_a_step_that_wants_nothing_still_writes_the_cache(runner: Executor) -> None:
    tokens = prompt(10)
    step = plan_step([(tokens[:9], 0, [0])])
    nothing = replace(step, logit_rows_R=np.zeros(0, np.int32))
    assert runner.run(nothing).logits.shape == (0, 97)
    check_same(runner, runner.run(plan_step([(tokens[9:], 9, [0])])).logits.copy(), alone(runner, tokens, [1])[9:])


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("kv_format", ["f32", "f16"])
def test_what_was_not_written_is_never_read(executor: str, kv_format: str) -> None:
    """Every slot of every layer holds NaN, as left by a sequence of tokens whose embedding is NaN; then others take the pages."""
    config = toy_config()
    weights = poisoned_weights(config)
    clean, poisoned = (toy_executor(executor, config, weights, kv_format=kv_format, context_length=1024) for _ in range(2))
    for page in range(0, NUM_PAGES, 4):
        logits = poisoned.run(plan_step([([POISON] * PAGE_TOKENS, 0, [p]) for p in range(page, page + 4)])).logits
        assert np.isnan(logits).all()
    parts = [(prompt(length, seed=length), 0, pages) for length, pages in ((1, [7]), (66, [3, 12]), (63, [0]), (129, [5, 4, 15]))]
    wanted = clean.run(plan_step(parts)).logits
    assert np.isfinite(wanted).all()
    np.testing.assert_array_equal(poisoned.run(plan_step(parts)).logits, wanted)


def test_the_reference_cache_starts_as_nan() -> None:
    config = toy_config()
    runner = toy_executor("reference", config, toy_weights(config))
    step = plan_step([(prompt(3), 5, [0])])  # positions 0 to 4 were never written
    assert np.isnan(runner.run(step).logits).all()


@pytest.mark.parametrize("activations", ["f32", "int8", "int16"])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_the_number_of_threads_does_not_show(activations: str, threads: int) -> None:
    config = toy_config()
    weights = toy_weights(config, format_name="q4_0")
    parts = [(prompt(length, seed=length), 0, pages) for length, pages in ((100, [0, 1]), (7, [2]), (1, [3]))]
    one, many = (toy_executor("native", config, weights, activations=activations, threads=count) for count in (1, threads))
    np.testing.assert_array_equal(many.run(plan_step(parts)).logits, one.run(plan_step(parts)).logits)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_random_pages_are_finite_differ_by_seed_and_are_told_apart(executor: str) -> None:
    config = toy_config()
    runner = toy_executor(executor, config, toy_weights(config), kv_format="f16")
    outputs = []
    for seed in (1, 1, 2):
        runner.randomize_pages(np.array([2, 3], np.int32), seed=seed)
        outputs.append(runner.run(plan_step([([5], 100, [2, 3])])).logits.copy())
    assert np.isfinite(outputs).all()
    np.testing.assert_array_equal(outputs[0], outputs[1])
    assert not np.array_equal(outputs[0], outputs[2])


def test_block_maxima_are_the_largest_logits_of_each_task():
    """A vocabulary of several tasks, the last one short; of every wanted row, and of each step anew."""
    config = toy_config(vocab_size=301)
    runner = toy_executor("native", config, toy_weights(config))
    for tokens in ([5, 6, 7], [1]):
        result = runner.run(plan_step([(tokens, 0, [0])]))
        logits, maxima = result.logits, result.block_maxima
        width = maxima.width
        assert maxima.values.shape == (len(tokens), -(-301 // width))
        assert maxima.values.shape[1] > 1
        for index in range(maxima.values.shape[1]):
            np.testing.assert_array_equal(maxima.values[:, index], logits[:, index * width : (index + 1) * width].max(axis=1))


def test_block_maxima_of_broken_arithmetic():
    config = toy_config(vocab_size=301)
    weights = toy_weights(config)
    values = dequantize(weights[HEAD])
    values[[3, 300], 0] = np.nan, -np.inf
    runner = toy_executor("native", config, {**weights, HEAD: quantize(values, "f32", name=HEAD)})
    result = runner.run(plan_step([([5, 6, 7], 0, [0])]))
    maxima, width = result.block_maxima.values, result.block_maxima.width
    assert np.isnan(maxima[:, 0]).all()
    np.testing.assert_array_equal(maxima[:, -1], result.logits[:, 301 // width * width :].max(axis=1))
