"""Sparse attention in the executors: equal to dense while all is seen, the same however a sequence is run.

A selection that differs in one block moves logits by some 1e-2 here, so that equal logits say equal selections. The blocks themselves
are compared in test_selection, what rows must not see in test_future.
"""

from functools import cache

import numpy as np
import pytest
import torch

from minicpm4.executors import Executor
from minicpm4.executors.torch.compressed import CompressedKeys, RowKeys
from minicpm4.executors.torch.sparse import select_blocks as select_blocks_in_torch
from minicpm4.model import ModelConfig, pages_for
from minicpm4.model.config import SparseConfig
from minicpm4.model.sparse import COARSE, candidates, compress, num_compressed, pool_blocks, score_compressed, select_blocks
from minicpm4.model.sparse_step import compressed_slots, new_compressed_keys, plan_sparse
from tests.toy import CUDA, DEVICES, EXECUTORS, MINDSPORE, POISON, plan_step, toy_config, toy_executor, toy_weights

TINY = SparseConfig(window_size=64, topk=2, dense_len=0)  # three blocks of 64: the first, its own, and one chosen
MIXED = SparseConfig(window_size=128, topk=3, dense_len=300)
COARSE_TINY = SparseConfig(window_size=64, topk=2, dense_len=100, has_coarse_lse=True)
ODD = SparseConfig(kernel_size=16, kernel_stride=8, window_size=64, topk=3, init_blocks=2, dense_len=-1)
WIDE = SparseConfig(kernel_size=64, kernel_stride=32, window_size=64, topk=3, dense_len=0, has_coarse_lse=True)  # coarse: every other page
RULES = {"tiny": TINY, "mixed": MIXED, "coarse": COARSE_TINY, "odd": ODD, "wide": WIDE}
TOLERANCE = 1e-5  # float32, sums of up to some 500 terms of size one in another order, three layers


def prompt(length: int, *, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, POISON, length).tolist()


def toy(executor: str, sparse: SparseConfig | None, *, config: ModelConfig | None = None, **options: object) -> Executor:
    config = config or toy_config()
    return toy_executor(
        executor, config, toy_weights(config), sparse=sparse, context_length=1024, max_step_tokens=1024, threads=1, **options
    )


def alone(runner: Executor, tokens: list[int], pages: object = None) -> np.ndarray:
    return runner.run(plan_step([(tokens, 0, pages or range(pages_for(len(tokens))))])).logits.copy()


def check(got: np.ndarray, wanted: np.ndarray) -> None:
    assert np.isfinite(wanted).all()
    np.testing.assert_allclose(got, wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_sparse_is_dense_while_all_blocks_are_seen(executor: str) -> None:
    """And not a block longer: five blocks of 64 are seen, the row after them leaves one out."""
    tokens = prompt(401)
    five = SparseConfig(window_size=128, topk=3, dense_len=0)
    dense, sparse = (alone(toy(executor, rule), tokens) for rule in (None, five))
    check(sparse[:320], dense[:320])
    assert np.abs(sparse[320:] - dense[320:]).max(axis=1).min() > 1e-3
    check(alone(toy(executor, SparseConfig(dense_len=0)), tokens), dense)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_rows_up_to_dense_len_are_dense(executor: str) -> None:
    tokens = prompt(400)
    dense, sparse = (alone(toy(executor, rule), tokens) for rule in (None, SparseConfig(window_size=64, topk=1, dense_len=299)))
    check(sparse[:299], dense[:299])
    assert np.abs(sparse[299:] - dense[299:]).max(axis=1).min() > 1e-3


@pytest.mark.parametrize("executor", ["torch", CUDA, "native", MINDSPORE])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(8, 1, 24), (3, 3, 10), (6, 2, 16), (16, 1, 6)], ids=["of-8", "of-1", "of-3", "of-16"]
)
def test_others_choose_as_the_reference(rule: str, executor: str, heads: int, kv_heads: int, dim: int) -> None:
    config, sparse = toy_config(num_heads=heads, num_kv_heads=kv_heads, head_dim=dim), RULES[rule]
    reference, other = (alone(toy(name, sparse, config=config), prompt(517, seed=heads)) for name in ("reference", executor))
    check(other, reference)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("heads", [1, 3, 8, 16])
@pytest.mark.parametrize("device", DEVICES)
def test_torch_selects_the_rules_blocks_but_for_near_ties(device: str, heads: int, rule: str) -> None:
    """Scores are float32 sums in another order: a block may be another where the best one left is within 1e-5 of the last one taken."""
    sparse, random = RULES[rule], np.random.default_rng(heads)
    q = random.standard_normal((700, 2, heads, 6), np.float32)
    keys = random.standard_normal((700, 2, 6), np.float32)
    fine, coarse = compress(sparse, keys), compress(sparse, keys, times=COARSE) if sparse.has_coarse_lse else None
    positions = np.arange(650, 700)
    queries, rows = (torch.from_numpy(x).to(device) for x in (q[positions], positions))
    stored = [None if x is None else RowKeys(torch.from_numpy(x).to(device)) for x in (fine, coarse)]
    got = select_blocks_in_torch(sparse, queries, tuple(stored), positions_R=rows).cpu().numpy()
    between, num_others = candidates(sparse, 650), 0
    for row, position in enumerate(positions.tolist()):
        wanted = select_blocks(sparse, q[position], fine, position=position, coarse_NGD=coarse)
        seen = None if coarse is None else coarse[: num_compressed(sparse, position + 1, times=COARSE)]
        scores = pool_blocks(sparse, score_compressed(q[position], fine[: num_compressed(sparse, position + 1)], seen), between)
        ranked = -np.sort(-scores, axis=1)
        margins = ranked[:, sparse.num_best_blocks - 1] - ranked[:, sparse.num_best_blocks]
        for group in np.flatnonzero((got[row] != wanted).any(axis=1)):
            num_others += 1
            assert margins[group] < 1e-5
    assert num_others <= 2


@pytest.mark.parametrize("device", DEVICES)
def test_equal_scores_go_to_the_lower_block_in_torch_too(device: str) -> None:
    compressed, positions = torch.ones((62, 1, 4), device=device), torch.tensor([1023, 130], device=device)
    got = select_blocks_in_torch(MIXED, torch.ones((2, 1, 3, 4), device=device), (RowKeys(compressed), None), positions_R=positions)
    assert got.tolist() == [[[0, 1, 2, 14, 15]], [[0, 1, 2, 3, 3]]]  # what the second has not is a block after its own


@pytest.mark.parametrize("executor", ["torch", CUDA])
@pytest.mark.parametrize("kv_format", ["f16", "bf16"])
def test_compressed_keys_are_means_of_keys_as_they_are_stored(kv_format: str, executor: str) -> None:
    """Against float32 some rows choose otherwise; the two executors, which round alike, all choose the same."""
    tokens = prompt(400)
    reference, other, exact = (
        alone(toy(name, TINY, kv_format=form), tokens)
        for name, form in (("reference", kv_format), (executor, kv_format), (executor, "f32"))
    )
    np.testing.assert_allclose(other, reference, rtol=0, atol=8e-3)
    assert 0 < np.median(np.abs(other - exact)) < 3e-2


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("sizes", [(64, 64, 272), (299, 1, 1, 99), (57,) * 7 + (1,)], ids=str)
def test_a_prompt_in_chunks_selects_what_it_selects_at_once(sizes: tuple[int, ...], executor: str, rule: str) -> None:
    runner, tokens, pages, start, parts = toy(executor, RULES[rule]), prompt(400), (3, 9, 5, 1, 12, 0, 7), 0, []
    for size in sizes:
        parts.append(runner.run(plan_step([(tokens[start : start + size], start, pages)])).logits.copy())
        start += size
    check(np.concatenate(parts), at_once(executor, rule))


@cache
def at_once(executor: str, rule: str) -> np.ndarray:
    return alone(toy(executor, RULES[rule]), prompt(400))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_decoding_selects_what_the_prompt_selects(executor: str) -> None:
    runner, tokens = toy(executor, COARSE_TINY), prompt(330)
    wanted = alone(runner, tokens)
    runner.run(plan_step([(tokens[:250], 0, [8, 1, 9, 2, 10, 3])]))
    got = [runner.run(plan_step([([tokens[i]], i, [8, 1, 9, 2, 10, 3])])).logits.copy()[0] for i in range(250, 330)]
    check(np.array(got), wanted[250:])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_ragged_batch_is_each_sequence_alone(executor: str) -> None:
    """Dense rows, sparse rows, rows of both kinds, a single one, and a chunk of a sequence that was begun before."""
    prompts = [prompt(length, seed=length) for length in (1, 310, 17, 120, 333)]
    pages = [[0], [1, 2, 3, 4, 5], [6], [7, 8], [15, 13, 9, 10, 11, 12]]
    runner = toy(executor, COARSE_TINY)
    runner.run(plan_step([(prompts[-1][:200], 0, pages[-1])]))
    parts = [(tokens, 0, own) for tokens, own in zip(prompts, pages, strict=True)][:-1]
    together = runner.run(plan_step([*parts, (prompts[-1][200:], 200, pages[-1])])).logits.copy()
    wanted = [alone(toy(executor, COARSE_TINY), tokens) for tokens in prompts]
    wanted[-1] = wanted[-1][200:]
    check(together, np.concatenate(wanted))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_others_left_in_pages_is_never_read(executor: str) -> None:
    runner, tokens = toy(executor, COARSE_TINY), prompt(290)
    wanted = alone(runner, tokens)
    for seed in (1, 2):
        runner.randomize_pages(np.arange(16, dtype=np.int32), seed=seed)
        check(alone(runner, tokens, [14, 3, 9, 2, 0]), wanted)


def stored_keys(store: CompressedKeys, pages_P: np.ndarray, *, layer: int, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The compressed keys, and the coarse ones, of the first tokens of a sequence with these pages."""
    fine, coarse = (compressed_slots(store.sparse, pages_P, num_tokens=num_tokens, times=times) for times in (1, COARSE))
    return store.fine[layer, fine], None if store.coarse is None else store.coarse[layer, coarse]


@pytest.mark.parametrize("executor", ["torch", CUDA])
def test_random_pages_have_the_compressed_keys_of_their_keys(executor: str) -> None:
    """As the reference, which makes them anew, would see: the next token's logits are its own."""
    runner = toy(executor, COARSE_TINY)
    runner.randomize_pages(np.array([5, 2, 11], np.int32), seed=1)
    keys = runner._cache.keys[1]  # type: ignore[attr-defined]
    tokens = (np.array([5, 2, 11])[:, None] * 64 + np.arange(64)).ravel()
    compressed, coarse = stored_keys(runner._cache.compressed, np.array([5, 2, 11]), layer=1, num_tokens=192)  # type: ignore[attr-defined]
    keys = keys.cpu()[tokens].numpy()
    np.testing.assert_allclose(compressed.cpu(), compress(COARSE_TINY, keys), atol=1e-6)
    np.testing.assert_allclose(coarse.cpu(), compress(COARSE_TINY, keys, times=COARSE), atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sparse", [COARSE_TINY, ODD], ids=["paper", "odd"])
@pytest.mark.parametrize(
    "sizes", [(333,), (1,) * 333, (31, 1, 1, 31, 64, 205), (127, 1, 100, 105), (50,) * 6 + (33,)], ids=lambda s: f"{len(s)}"
)
def test_compressed_keys_made_step_by_step_are_those_of_all_keys(sizes: tuple[int, ...], sparse: SparseConfig, device: str) -> None:
    """Two sequences side by side on scattered pages; every compressed key is written once, in the step that writes its last token."""
    config, pages = toy_config(num_layers=1, num_kv_heads=2, head_dim=4), ([7, 1, 4, 9, 3, 0], [2, 8, 6, 5, 11, 10])
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn((12 * 64, 2, 4), generator=generator).to(device)
    store = CompressedKeys.empty(config, sparse, num_pages=12, device=keys.device)
    stored, start, written = torch.full_like(keys, torch.nan), 0, list[int]()
    for size in sizes:
        step = plan_step([([0] * size, start, own) for own in pages])
        stored[step.slots_T] = keys[step.slots_T]
        store.write(0, stored, plan_sparse(sparse, step))
        written += new_compressed_keys(sparse, step).slots_W.tolist()
        start += size
        for own in pages:
            slots = (np.array(own)[:, None] * 64 + np.arange(64)).ravel()[:start]
            fine, coarse = stored_keys(store, np.array(own), layer=0, num_tokens=start)
            sequence = keys[slots].cpu().numpy()
            np.testing.assert_allclose(fine.cpu(), compress(sparse, sequence), atol=1e-6)
            if coarse is not None:
                np.testing.assert_allclose(coarse.cpu(), compress(sparse, sequence, times=COARSE), atol=1e-6)
    wanted = [slot for own in pages for slot in compressed_slots(sparse, np.array(own), num_tokens=start).tolist()]
    assert sorted(written) == sorted(wanted)
