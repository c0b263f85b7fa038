"""No row sees a later token, nor what others left in its pages: what it must not see is NaN, and its logits are the same.

Dense and sparse, a prompt in chunks and token by token, in every format of the cache.
"""

import numpy as np
import pytest

from minicpm4.executors import Executor
from minicpm4.model import PAGE_TOKENS, pages_for
from minicpm4.model.config import SparseConfig
from tests.toy import CUDA, POISON, plan_step, poisoned_weights, toy_config, toy_executor

RULES = {
    "dense": None,
    "tiny": SparseConfig(window_size=64, topk=2, dense_len=0),
    "mixed": SparseConfig(window_size=64, topk=2, dense_len=135),
    "coarse": SparseConfig(window_size=64, topk=2, dense_len=0, has_coarse_lse=True),
    "odd": SparseConfig(kernel_size=16, kernel_stride=8, window_size=64, topk=3, init_blocks=2, dense_len=-1, has_coarse_lse=True),
}
CACHES = [
    *(("reference", kv_format, "f32") for kv_format in ("f32", "f16", "bf16", "int8")),
    *(("torch", kv_format, "f32") for kv_format in ("f32", "f16", "bf16")),
    *(pytest.param((*CUDA.values, kv_format, "f32"), marks=CUDA.marks) for kv_format in ("f32", "f16", "bf16")),
    *(("native", kv_format, "f32") for kv_format in ("f32", "f16", "bf16", "int8")),
    *(("native", "int8", activations) for activations in ("int8", "int16")),
]
# The native executor computes a row in the same order whatever surrounds it. numpy and torch choose another order of summation for
# another shape, some 1e-6; a key that is then rounded to the other neighbour moves a logit by some 1e-3 in 16 bits, 1e-2 in 8.
TOLERANCES = {"f32": 1e-5, "f16": 5e-3, "bf16": 3e-2, "int8": 5e-2}
LENGTH, NUM_PAGES = 200, 6


@pytest.fixture(params=CACHES, ids="-".join)
def cache(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    return request.param  # type: ignore[no-any-return]


def runner_of(cache: tuple[str, str, str], rule: str) -> Executor:
    """Three heads a kv head, so that rows of several positions share a page's values, in groups that end anywhere."""
    config, (name, kv_format, activations) = toy_config(num_heads=6, num_kv_heads=2), cache
    options = {"kv_format": kv_format, "activations": activations, "sparse": RULES[rule]}
    return toy_executor(name, config, poisoned_weights(config), context_length=1024, num_pages=NUM_PAGES, threads=1, **options)


def check(cache: tuple[str, str, str], got: np.ndarray, wanted: np.ndarray) -> None:
    assert np.isfinite(wanted).all()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=0.0 if cache[0] == "native" else TOLERANCES[cache[1]])


def prompt() -> list[int]:
    return np.random.default_rng(0).integers(0, POISON, LENGTH).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", RULES)
def test_no_row_sees_the_future(cache: tuple[str, str, str], rule: str) -> None:
    """Of a chunk, the tokens from a border on are NaN; then the sequence goes on from there over what they left."""
    runner, tokens, pages = runner_of(cache, rule), prompt(), [4, 1, 5, 2]
    wanted = runner.run(plan_step([(tokens, 0, range(pages_for(LENGTH)))])).logits.copy()
    for border in (65, 143, LENGTH - 3):
        runner.run(plan_step([(tokens[:41], 0, pages)]))
        got = runner.run(plan_step([(tokens[41:border] + [POISON] * (LENGTH - border), 41, pages)])).logits.copy()
        check(cache, got[: border - 41], wanted[41:border])
        assert np.isnan(got[border - 41 :]).all()
        for position in range(border, border + 3):
            got = runner.run(plan_step([([tokens[position]], position, pages)])).logits.copy()
            check(cache, got, wanted[position : position + 1])


@pytest.mark.parametrize("rule", RULES)
def test_what_others_left_in_pages_is_not_seen(cache: tuple[str, str, str], rule: str) -> None:
    """Every key, value and kernel of every page is NaN before; also beside a sequence that still is, in the same step."""
    runner, tokens, pages = runner_of(cache, rule), prompt(), [4, 1, 5, 2]
    wanted = runner.run(plan_step([(tokens, 0, range(pages_for(LENGTH)))])).logits.copy()
    everything = ([POISON] * NUM_PAGES * PAGE_TOKENS, 0, range(NUM_PAGES))
    assert np.isnan(runner.run(plan_step([everything], wants_all=False)).logits).all()
    got = runner.run(plan_step([(tokens[:131], 0, pages), ([POISON] * 70, 0, [3, 0])])).logits.copy()
    check(cache, got[:131], wanted[:131])
    assert np.isnan(got[131:]).all()
    got = runner.run(plan_step([([POISON], 70, [3, 0]), (tokens[131:-1], 131, pages)])).logits.copy()
    check(cache, got[1:], wanted[131:-1])
    got = runner.run(plan_step([([POISON], 71, [3, 0]), (tokens[-1:], LENGTH - 1, pages)])).logits.copy()
    check(cache, got[1:], wanted[-1:])
