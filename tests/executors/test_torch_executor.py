"""The torch executor's own options: bfloat16 beside float32, and the process's settings, which it leaves as they are; batches of decoding
sequences, which go together by length.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from minicpm4.executors.torch.plan import Batch, Chunk, SparseRows, plan_step
from minicpm4.model import Segment, make_step
from minicpm4.model.config import SparseConfig
from tests.toy import POISON, logits_of, poisoned_weights, toy_config, toy_executor, toy_weights
from tests.toy import plan_step as toy_step

CONFIG = toy_config(context_length=1024)
RULES = {
    "dense": None,
    "sparse": SparseConfig(window_size=64, topk=2, dense_len=100),
    "coarse": SparseConfig(window_size=64, topk=2, dense_len=-1, has_coarse_lse=True),
}
# Each of 3 layers rounds its branches some ten times to 8 bits, 2^-9 of themselves; errors add up at random, and logits are of size one.
BF16_TOLERANCE = 5 * (3 * 10) ** 0.5 * 2**-9


def prompt(length: int, *, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 96, length).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("kv_format", ["bf16", "f32"])
def test_bfloat16_rounds_and_no_more(kv_format: str) -> None:
    weights = toy_weights(CONFIG, format_name="bf16")
    steps = [toy_step([(prompt(70), 0, [3, 1])]), toy_step([([5], 70, [3, 1])])]
    exact, short = (toy_executor("torch", CONFIG, weights, kv_format=kv_format, dtype=dtype, num_pages=4) for dtype in ("f32", "bf16"))
    for step in steps:
        wanted, got = logits_of(exact, step), logits_of(short, step)
        assert got.dtype == np.float32
        assert 1e-3 < np.abs(got - wanted).max() < BF16_TOLERANCE
    assert short.weight_bytes < 0.6 * exact.weight_bytes


@pytest.mark.parametrize("rule", RULES)
def test_no_row_sees_the_future_in_bfloat16(rule: str) -> None:
    """Rows that see a NaN are NaN, those of a chunk before it are as they are without it; the same in a draft tree."""
    options = {"sparse": RULES[rule], "dtype": "bf16", "kv_format": "bf16", "num_pages": 4}
    runner = toy_executor("torch", CONFIG, poisoned_weights(CONFIG), **options)
    tokens, pages = prompt(200), [2, 0, 3, 1]
    runner.run(toy_step([(tokens[:41], 0, pages)]))
    wanted = logits_of(runner, toy_step([(tokens[41:], 41, pages)]))
    got = logits_of(runner, toy_step([([*tokens[41:150], *[POISON] * 50], 41, pages)]))
    np.testing.assert_array_equal(got[:109], wanted[:109])
    assert np.isnan(got[109:]).all()
    parents = [-1, 0, 0, 1, 2]
    trees = [Segment(tokens=[1, 2, third, 4, 5], start=130, pages=pages, num_logits=5, parents=parents) for third in (3, POISON)]
    runner.run(toy_step([(tokens, 0, pages)]))
    plain, poisoned = (logits_of(runner, make_step([tree])) for tree in trees)
    np.testing.assert_array_equal(poisoned[[0, 1, 3]], plain[[0, 1, 3]])
    assert np.isnan(poisoned[[2, 4]]).all()


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_settings_of_the_process_stay(dtype: str) -> None:
    threads, precision = torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.set_num_threads(3)
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # float32 products would be bfloat16's

        def state() -> tuple[object, ...]:
            return (
                torch.get_num_threads(), torch.backends.mkldnn.matmul.fp32_precision, torch.get_default_dtype(),
                torch.is_grad_enabled(), torch.random.get_rng_state().sum().item(),
            )  # fmt: skip

        before = state()
        runner = toy_executor("torch", CONFIG, toy_weights(CONFIG), dtype=dtype, threads=1, kv_format="f32")
        assert state() == before
        got = logits_of(runner, toy_step([(prompt(20), 0, [0])]))
        with pytest.raises(ValueError, match="vocabulary"):
            runner.run(toy_step([([97], 0, [0])]))
        runner.randomize_pages(np.array([1], np.int32), seed=0)
        runner.close()
        assert state() == before
    finally:
        torch.set_num_threads(threads)
        torch.backends.mkldnn.matmul.fp32_precision = precision
    if dtype == "f32":
        wanted = logits_of(toy_executor("reference", CONFIG, toy_weights(CONFIG)), toy_step([(prompt(20), 0, [0])]))
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


LENGTHS = (330, 40, 41, 300, 129, 1, 230, 231)
PAGES = [[*range(first, first + 6)] for first in range(0, 48, 6)]
PAGES[2] = [*reversed(PAGES[2])]


@pytest.mark.parametrize("rule", RULES)
def test_sequences_that_decode_together_are_each_as_alone(rule: str) -> None:
    """Of many lengths in one step, beside a prompt and a tree; against the reference, which takes them one by one."""
    runners = [toy_executor(name, CONFIG, toy_weights(CONFIG), sparse=RULES[rule], num_pages=56) for name in ("torch", "reference")]
    segments = [
        Segment(tokens=[index], start=length, pages=pages) for index, (length, pages) in enumerate(zip(LENGTHS, PAGES, strict=True))
    ]
    segments.insert(3, Segment(tokens=prompt(150, seed=9), start=0, pages=[50, 48, 49], num_logits=150))
    segments.insert(1, Segment(tokens=prompt(20, seed=5), start=0, pages=[55], num_logits=20, parents=[-1, *range(-1, 18)]))
    both = []
    for runner in runners:
        for length, pages in zip(LENGTHS, PAGES, strict=True):
            runner.run(toy_step([(prompt(length, seed=length), 0, pages)], wants_all=False))
        both.append(logits_of(runner, make_step(segments)))
    np.testing.assert_allclose(*both, rtol=0, atol=2e-5)


def test_rows_go_together_by_length_and_lie_where_they_are() -> None:
    device = torch.device("cpu")
    one = plan_step(make_step([Segment(tokens=[1], start=100, pages=[4, 5])]), None, device=device)
    assert one.groups == (Batch(slice(0, 1), slice(256, 357), None),)
    assert one.slots == slice(356, 357)
    segments = [Segment(tokens=[1], start=length, pages=pages) for length, pages in zip(LENGTHS, PAGES, strict=True)]
    many = plan_step(make_step(segments), None, device=device)
    assert len(many.groups) == 5  # 300 and 330; 230 and 231; 129; 40 and 41; 1
    tree = Segment(tokens=[1, 2, 3], start=127, pages=[0, 1, 2], parents=[-1, 0, -1])
    mixed = plan_step(make_step([tree]), SparseConfig(window_size=64, topk=2, dense_len=128), device=device)
    chunk, sparse = mixed.groups
    assert isinstance(chunk, Chunk)
    assert isinstance(sparse, SparseRows)
    assert chunk.sees_QL.tolist() == [[True, False, False], [False, False, True]]  # type: ignore[union-attr]
    assert sparse.rows == slice(1, 2)
    assert sparse.tokens.path_RL.tolist() == [[127, 128]]  # type: ignore[union-attr]
