"""Draft trees: each row sees what its path alone would, dense and sparse; an accepted path stays in the cache as if run alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from minicpm4.executors import Executor
from minicpm4.model import Segment, make_step, pages_for
from minicpm4.model.config import SparseConfig
from tests.toy import NAMES, logits_of, plan_step, toy_config, toy_executor, toy_weights

CONFIG = toy_config(context_length=1024)
SPARSE = SparseConfig(topk=1, init_blocks=1, window_size=64, dense_len=128)
TREE_PAGES, PATH_PAGES = [7, 2, 9, 4, 11, 0, 14], [8, 1, 10, 3, 12, 5, 13]
EXACT = {"native"}  # the others sum in an order that depends on the rows beside


def random_tree(random: np.random.Generator, rows: int, *, chance_of_chain: float = 0.5) -> list[int]:
    """Each row follows the one before it, or any other, or the last cached token."""
    return [-1, *(row - 1 if random.random() < chance_of_chain else int(random.integers(-1, row)) for row in range(1, rows))]


def path_to(parents: Sequence[int], row: int) -> list[int]:
    path = [row]
    while parents[path[0]] >= 0:
        path.insert(0, parents[path[0]])
    return path


def check_close(executor: Executor, got: np.ndarray, wanted: np.ndarray) -> None:
    if executor.name in EXACT:
        np.testing.assert_array_equal(got, wanted)
    else:
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-5)


def check_tree(executor: Executor, start: int, parents: list[int], *, seed: int) -> None:
    """The tree's logits beside those of every path, run on pages of its own; then the tree's longest path is kept, and followed."""
    random = np.random.default_rng(seed)
    prompt, tokens = random.integers(0, 96, start).tolist(), random.integers(0, 96, len(parents)).tolist()
    for pages in (TREE_PAGES, PATH_PAGES):
        executor.run(plan_step([(prompt, 0, pages)], wants_all=False))
    tree = Segment(tokens=tokens, start=start, pages=TREE_PAGES, num_logits=len(tokens), parents=parents)
    other = Segment(tokens=prompt[:5], start=0, pages=[15])  # another sequence beside it changes nothing
    together = logits_of(executor, make_step([tree, other]))
    alone = {}
    for row in range(len(parents)):
        path = path_to(parents, row)
        alone[row] = logits_of(executor, plan_step([([tokens[i] for i in path], start, PATH_PAGES)]))[-1]
    check_close(executor, together[:-1], np.stack([alone[row] for row in range(len(parents))]))
    longest = max((path_to(parents, row) for row in range(len(parents))), key=len)
    executor.run(plan_step([([tokens[i] for i in longest], start, PATH_PAGES)]))
    executor.run(make_step([tree]))
    executor.copy_slots(np.array(TREE_PAGES, np.int32), start=start, rows=np.array(longest, np.int32))
    for after in range(3):
        at = start + len(longest) + after
        got, wanted = (logits_of(executor, plan_step([([after], at, pages)])) for pages in (TREE_PAGES, PATH_PAGES))
        check_close(executor, got, wanted)


@pytest.mark.parametrize("executor", NAMES)
@pytest.mark.parametrize("sparse", [None, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize(("start", "rows"), [(5, 7), (64, 64), (190, 33), (319, 64)])
def test_each_row_sees_its_path_alone(executor: str, sparse: SparseConfig | None, start: int, rows: int) -> None:
    runner = toy_executor(executor, CONFIG, toy_weights(CONFIG), sparse=sparse)
    for seed in range(2):
        check_tree(runner, start, random_tree(np.random.default_rng(seed), rows), seed=seed)
    runner.close()


@pytest.mark.parametrize("kv_format", ["f16", "int8"])
@pytest.mark.parametrize("has_coarse_lse", [False, True])
def test_native_trees_in_every_arithmetic(kv_format: str, has_coarse_lse: bool) -> None:
    sparse = SparseConfig(topk=1, init_blocks=1, window_size=64, dense_len=0, has_coarse_lse=has_coarse_lse)
    runner = toy_executor("native", CONFIG, toy_weights(CONFIG), sparse=sparse, kv_format=kv_format)
    check_tree(runner, 301, random_tree(np.random.default_rng(3), 64, chance_of_chain=0.8), seed=3)


@pytest.mark.parametrize("executor", NAMES)
def test_hidden_states_where_they_are_asked_for(executor: str) -> None:
    runner = toy_executor(executor, CONFIG, toy_weights(CONFIG))
    segment = Segment(tokens=[1, 2, 3], start=0, pages=[0], num_logits=2)
    assert runner.run(make_step([segment])).hidden is None
    result = runner.run(make_step([segment], wants_hidden=True))
    assert result.hidden is not None
    assert result.hidden.shape == (2, CONFIG.hidden_size)
    head = toy_weights(CONFIG)["lm_head.weight" if not CONFIG.has_tied_head else "model.embed_tokens.weight"]
    values = head.data.view(np.float32).reshape(head.shape)
    np.testing.assert_allclose(result.hidden / CONFIG.logit_divisor @ values.T, result.logits, atol=2e-5)


def test_a_tree_takes_pages_for_its_rows_not_for_its_depth() -> None:
    step = make_step([Segment(tokens=[1, 2, 3], start=63, pages=[0, 1], num_logits=3, parents=[-1, -1, 1])])
    assert step.positions_T.tolist() == [63, 63, 64]
    assert step.slots_T.tolist() == [63, 64, 65]
    assert step.lengths_S.tolist() == [66]
    assert pages_for(66) == 2
