"""Sequences that share pages: each sees its own tokens alone, dense and sparse, to the bit, whatever the others do after they part.

Every sequence runs the steps that it would run alone, so that all executors add up in the same order.
"""

from itertools import pairwise

import numpy as np
import pytest

from minicpm4.executors import Executor
from minicpm4.model import PAGE_TOKENS, pages_for
from minicpm4.model.config import SparseConfig
from minicpm4.model.parameters import EMBEDDING
from minicpm4.quant import quantize
from tests.toy import CUDA, plan_step, toy_config, toy_executor, toy_weights

RULES = {
    "dense": None,
    "tiny": SparseConfig(window_size=64, topk=2, dense_len=0),  # three blocks: the first, a row's own, and one chosen
    "coarse": SparseConfig(window_size=64, topk=2, dense_len=100, has_coarse_lse=True),
    "odd": SparseConfig(kernel_size=16, kernel_stride=8, window_size=64, topk=3, init_blocks=2, dense_len=-1),
}
FORMATS = {"native": ("f32", "f16", "bf16", "int8"), "torch": ("bf16",), "reference": ("int8",)}
CASES = [(executor, kv_format, rule) for executor, formats in FORMATS.items() for kv_format in formats for rule in RULES]
CASES = [
    pytest.param(*case, id="-".join(case)) for case in CASES if case[0] != "reference" or case[2] == "tiny"
]  # it keeps no compressed keys
CASES += [pytest.param(*CUDA.values, "bf16", rule, id=f"torch-cuda-bf16-{rule}", marks=CUDA.marks) for rule in RULES]
POISON = 96  # its embedding is NaN, and so are its keys and values
PAGES = [3, 9, 5, 12, 0, 7, 1, 11]


def prompt(length: int, *, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, POISON, length).tolist()


def toy(executor: str, rule: str, kv_format: str) -> Executor:
    sparse, config = RULES[rule], toy_config(num_layers=2, num_heads=6, num_kv_heads=2, head_dim=20)
    weights = toy_weights(config)
    table = np.array(weights[EMBEDDING].data.view(np.float32))
    table[POISON] = np.nan
    weights[EMBEDDING] = quantize(table, "f32", name=EMBEDDING)
    return toy_executor(executor, config, weights, kv_format=kv_format, sparse=sparse, max_step_tokens=400, threads=1)


def go_on(runner: Executor, tokens: list[int], start: int, pages: list[int]) -> np.ndarray:
    """Logits of a sequence's tokens from `start` on: most of them in one step, the last three one by one."""
    cuts = [start, len(tokens) - 3, len(tokens) - 2, len(tokens) - 1, len(tokens)]
    steps = [plan_step([(tokens[a:b], a, pages)]) for a, b in pairwise(cuts)]
    return np.concatenate([runner.run(step).logits.copy() for step in steps])


def alone(runner: Executor, tokens: list[int], start: int) -> np.ndarray:
    runner.run(plan_step([(tokens[:start], 0, PAGES)]))
    return go_on(runner, tokens, start, PAGES)


@pytest.mark.parametrize(("executor", "kv_format", "rule"), CASES)
@pytest.mark.parametrize("shared", [128, 143], ids=lambda n: f"of-{n}")
def test_sequences_that_part_are_each_as_alone(executor: str, kv_format: str, rule: str, shared: int) -> None:
    """The prefix ends with a page, before and after a compressed key is complete; compressed keys that cross its end differ for the two."""
    first, second = ([*prompt(shared, seed=0), *prompt(80, seed=seed)] for seed in (1, 2))
    wanted = [alone(toy(executor, rule, kv_format), tokens, shared) for tokens in (first, second)]
    runner, whole = toy(executor, rule, kv_format), shared // PAGE_TOKENS
    runner.run(plan_step([(first[:shared], 0, PAGES)]))
    theirs = [*PAGES[:whole], 14, 2, 8]
    if shared % PAGE_TOKENS:
        runner.copy_pages(np.array(PAGES[whole : whole + 1], np.int32), np.array([14], np.int32))
    got = [go_on(runner, first, shared, PAGES), go_on(runner, second, shared, theirs)]
    for logits, expected in zip(got, wanted, strict=True):
        assert np.isfinite(expected).all()
        np.testing.assert_array_equal(logits, expected)


@pytest.mark.parametrize(("executor", "kv_format", "rule"), CASES)
def test_what_is_written_after_parting_is_seen_by_nobody_else(executor: str, kv_format: str, rule: str) -> None:
    """One sequence goes on with NaN on the page that was copied from, or on the copy; the other does not notice."""
    tokens = [*prompt(143, seed=0), *prompt(80, seed=1)]
    poisoned = [*tokens[:143], *[POISON] * 80]
    wanted = alone(toy(executor, rule, kv_format), tokens, 143)
    for bad_page, good_page in ((5, 14), (14, 5)):
        runner = toy(executor, rule, kv_format)
        runner.run(plan_step([(tokens[:143], 0, PAGES)]))
        runner.copy_pages(np.array([5], np.int32), np.array([14], np.int32))
        assert np.isnan(go_on(runner, poisoned, 143, [3, 9, bad_page, 2, 8])).all()
        np.testing.assert_array_equal(go_on(runner, tokens, 143, [3, 9, good_page, 12]), wanted)


@pytest.mark.parametrize(("executor", "kv_format", "rule"), CASES)
def test_copies_stand_for_their_pages(executor: str, kv_format: str, rule: str) -> None:
    """All pages of a sequence copied at once, the old ones then filled with something else."""
    tokens = prompt(300, seed=3)
    wanted = alone(toy(executor, rule, kv_format), tokens, 250)
    runner = toy(executor, rule, kv_format)
    runner.run(plan_step([(tokens[:250], 0, PAGES)]))
    old, new = np.array(PAGES[: pages_for(250)], np.int32), np.array([2, 4, 6, 8], np.int32)
    runner.copy_pages(old, new)
    runner.randomize_pages(old, seed=1)
    np.testing.assert_array_equal(go_on(runner, tokens, 250, [*new, 10]), wanted)


def test_native_refuses_pages_that_there_are_not() -> None:
    runner = toy("native", "dense", "f32")
    for sources, targets, message in (
        ([0], [16], "page to copy to is not in"),
        ([-1], [0], "page to copy is not in"),
        ([0, 1], [2], "one target"),
    ):
        with pytest.raises(ValueError, match=message):
            runner.copy_pages(np.array(sources, np.int32), np.array(targets, np.int32))
