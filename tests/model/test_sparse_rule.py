"""The rule of InfLLM v2 against the paper's formulas spelled out, and by hand where a hand can."""

from collections.abc import Iterator

import numpy as np
import pytest

from minicpm4.model.config import SparseConfig
from minicpm4.model.sparse import (
    COARSE,
    Attended,
    candidates,
    compress,
    compressed_of_block,
    compressed_place,
    count_attended,
    is_sparse,
    num_blocks,
    num_compressed,
    pool_blocks,
    score_compressed,
    select_blocks,
)

PAPER = SparseConfig()
SMALL = SparseConfig(window_size=128, topk=3, dense_len=0)  # 1 + 2 + 2 blocks


def random_heads(length: int, *, groups: int = 2, heads: int = 3, dim: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A query [G, J, D] and keys [L, G, D] of which a few stand out for it."""
    random = np.random.default_rng(seed)
    q, k = random.standard_normal((groups, heads, dim), np.float32), random.standard_normal((length, groups, dim), np.float32)
    return q, k + 2 * q.mean(axis=1) * (random.random((length, 1, 1)) < 0.02)


def chosen(sparse: SparseConfig, q: np.ndarray, keys: np.ndarray, position: int) -> np.ndarray:
    coarse = compress(sparse, keys, times=COARSE)
    return select_blocks(sparse, q, compress(sparse, keys), position=position, coarse_NGD=coarse)


def blocks_of_the_paper(sparse: SparseConfig, q: np.ndarray, keys: np.ndarray, position: int) -> Iterator[set[int]]:
    """Spelled out in float64, token by token: arXiv 2509.24663, section 3."""
    size, stride, block = sparse.kernel_size, sparse.kernel_stride, sparse.block_size
    own, best = position // block, sparse.topk - sparse.init_blocks
    starts = [start for start in range(0, position + 1, stride) if start + size - 1 <= position]
    for group, query in enumerate(q.astype(np.float64)):
        relevance = np.zeros(len(starts))
        for head in query:
            products = np.array([head @ keys[s : s + size, group].astype(np.float64).mean(axis=0) for s in starts]) / len(head) ** 0.5
            relevance += np.exp(products) / np.exp(products).sum()
        first = {b for b in range(sparse.init_blocks) if b <= own}
        local = {b for b in range(own + 1) if b > own - sparse.window_size // block}
        scores = {
            b: max(r for r, s in zip(relevance, starts, strict=True) if s < (b + 1) * block and s + size > b * block)
            for b in set(range(own + 1)) - first - local
        }
        yield first | local | set(sorted(scores, key=lambda b: (-scores[b], b))[:best])


@pytest.mark.parametrize("position", [0, 30, 31, 63, 64, 191, 192, 319, 320, 447, 448, 555, 700, 999])
@pytest.mark.parametrize(
    "sparse", [SMALL, SparseConfig(window_size=64, topk=4, init_blocks=2, kernel_size=48), SparseConfig(topk=1, window_size=64)]
)
def test_the_selection_is_the_papers(sparse: SparseConfig, position: int) -> None:
    q, keys = random_heads(1000, seed=position)
    got = chosen(sparse, q, keys, position)
    assert [set(row) for row in got.tolist()] == list(blocks_of_the_paper(sparse, q, keys, position))
    assert (np.diff(got, axis=1) > 0).all(), "ascending, none twice"


@pytest.mark.parametrize("heads", [1, 3, 8, 16])
def test_any_group_of_heads_chooses_together(heads: int) -> None:
    q, keys = random_heads(900, groups=3, heads=heads, seed=heads)
    got = chosen(SMALL, q, keys, 890)
    assert [set(row) for row in got.tolist()] == list(blocks_of_the_paper(SMALL, q, keys, 890))
    assert len({tuple(row) for row in got.tolist()}) > 1, "each kv head for itself"


def test_the_sum_is_what_counts_and_not_a_single_head() -> None:
    """Two heads that like a compressed key a little beat one that likes another alone; by hand: shares 1/2 + 1/2 against 1/2 + 0."""
    compressed = np.array([[[9.0, 9.0]], [[9.0, -9.0]], [[-9.0, 9.0]]], np.float32)
    scores = score_compressed(np.array([[[9.0, 0.0], [0.0, 9.0]]], np.float32), compressed)
    np.testing.assert_allclose(scores, [[1, 0.5, 0.5]], atol=1e-6)


def test_equal_scores_go_to_the_lower_block() -> None:
    keys = np.ones((1024, 1, 4), np.float32)
    assert chosen(SMALL, np.ones((1, 2, 4), np.float32), keys, 1023).tolist() == [[0, 1, 2, 14, 15]]


def test_a_block_is_as_good_as_the_best_compressed_key_that_touches_it() -> None:
    scores = np.zeros((1, 40), np.float32)
    scores[0, 11] = 1  # tokens 176 to 207: of blocks 2 and 3
    np.testing.assert_array_equal(pool_blocks(SMALL, scores, range(6)), [[0, 0, 1, 1, 0, 0]])
    assert [list(compressed_of_block(PAPER, block)) for block in (0, 1, 5)] == [[0, 1, 2, 3], [3, 4, 5, 6, 7], [19, 20, 21, 22, 23]]


@pytest.mark.parametrize(("tokens", "count"), [(0, 0), (31, 0), (32, 1), (47, 1), (48, 2), (64, 3), (131072, 8191)])
def test_a_compressed_key_is_there_once_all_its_tokens_are(tokens: int, count: int) -> None:
    assert num_compressed(PAPER, tokens) == count
    assert num_compressed(PAPER, tokens) == sum(16 * j + 31 < tokens for j in range(tokens))


def test_coarse_compressed_keys_are_four_times_as_long_and_as_rare() -> None:
    assert [num_compressed(PAPER, tokens, times=COARSE) for tokens in (0, 127, 128, 191, 192, 131072)] == [0, 0, 1, 1, 2, 2047]


def test_compressed_keys_are_means_and_do_not_depend_on_how_many_are_made() -> None:
    _, keys = random_heads(300)
    compressed, coarse = compress(PAPER, keys), compress(PAPER, keys, times=COARSE)
    assert (len(compressed), len(coarse)) == (17, 3)
    np.testing.assert_allclose(compressed[5], keys[80:112].astype(np.float64).mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(coarse[2], keys[128:256].astype(np.float64).mean(axis=0), atol=1e-6)
    for length in range(301):
        np.testing.assert_array_equal(compress(PAPER, keys[:length]), compressed[: num_compressed(PAPER, length)])
    np.testing.assert_array_equal(compress(PAPER, keys[80:112]), compressed[5:6])


def test_a_page_keeps_the_compressed_keys_that_end_in_it() -> None:
    assert [compressed_place(PAPER, kernel) for kernel in range(8)] == [(0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]
    assert [compressed_place(PAPER, kernel, times=COARSE) for kernel in range(3)] == [(1, 0), (2, 0), (3, 0)]
    for kernel in range(100):
        page, place = compressed_place(PAPER, kernel)
        assert num_compressed(PAPER, 64 * page) <= kernel < num_compressed(PAPER, 64 * page + 64)
        assert 0 <= place < PAPER.compressed_per_block


def test_the_future_is_never_looked_at() -> None:
    for position in range(400, 600, 7):
        q, keys = random_heads(700, seed=position)
        wanted = chosen(SMALL, q, keys, position)
        keys[position + 1 :] = np.nan
        np.testing.assert_array_equal(chosen(SMALL, q, keys, position), wanted)


@pytest.mark.parametrize(
    "sparse", [PAPER, SMALL, SparseConfig(window_size=64, topk=1), SparseConfig(init_blocks=3, topk=5, window_size=64)]
)
def test_every_candidate_overlaps_a_compressed_key_that_is_seen(sparse: SparseConfig) -> None:
    for position in range(0, 9000, 61):
        seen = num_compressed(sparse, position + 1)
        assert all(compressed_of_block(sparse, block).start < seen for block in candidates(sparse, position))


def test_all_blocks_while_there_are_no_more_than_the_papers_96() -> None:
    assert PAPER.max_blocks == 96
    always = SparseConfig(dense_len=-1)
    counts = num_blocks(always, np.array([0, 63, 64, 6143, 6144, 131071]))
    assert counts.tolist() == [1, 1, 2, 96, 96, 96]
    q, keys = random_heads(6144)
    assert chosen(always, q, keys, 6143).tolist() == [list(range(96))] * 2


def test_a_row_is_sparse_once_it_sees_more_than_dense_len() -> None:
    positions = np.array([0, 1, 8190, 8191, 8192])
    assert is_sparse(PAPER, positions).tolist() == [False, False, False, False, True]
    for always in (0, -1):
        assert is_sparse(SparseConfig(dense_len=always), positions).all()


@pytest.mark.parametrize("sparse", [SMALL, SparseConfig(window_size=64, topk=4, init_blocks=2, dense_len=300)])
def test_the_counts_are_those_of_the_selection(sparse: SparseConfig) -> None:
    for position in range(0, 900, 13):
        q, keys = random_heads(900, groups=1, heads=1, seed=position)
        blocks = chosen(sparse, q, keys, position)[0] if is_sparse(sparse, np.array(position)) else np.arange(position // 64 + 1)
        tokens = (blocks[:, None] * 64 + np.arange(64) <= position).sum()
        counted = count_attended(sparse, np.array([position]))
        assert counted == Attended(len(blocks), position // 64 + 1, tokens, position + 1, 1)


def test_counts_add_up_and_say_under_five_percent_at_128k() -> None:
    assert count_attended(None, np.arange(65)) == Attended(66, 66, 65 * 66 // 2, 65 * 66 // 2, 65)
    none = count_attended(PAPER, np.zeros(0, np.int32))
    assert (none.share, none.mean_blocks) == (1, (0, 0))
    assert count_attended(None, np.arange(63, 65)).mean_blocks == (1.5, 1.5)
    last = count_attended(PAPER, np.array([131071], np.int32))
    assert last == Attended(96, 2048, 6144, 131072, 1)
    assert last.share < 0.05


def test_the_shortcut_divides_by_coarse_sums() -> None:
    """By hand: every product is 0, so a sum over n compressed keys is n and each compressed key's share of three heads 3 / n."""
    q, zeros = np.ones((1, 3, 4), np.float32), np.zeros((900, 1, 4), np.float32)
    compressed, coarse = compress(PAPER, zeros), compress(PAPER, zeros, times=COARSE)
    np.testing.assert_allclose(score_compressed(q, compressed), 3 / len(compressed), rtol=1e-6)
    np.testing.assert_allclose(score_compressed(q, compressed, coarse), 3 / len(coarse), rtol=1e-6)
    np.testing.assert_array_equal(score_compressed(q, compressed[:2], coarse[:0]), score_compressed(q, compressed[:2]))
    assert score_compressed(q, compressed[:0]).shape == (1, 0)


def test_the_shortcut_is_only_taken_when_asked_for() -> None:
    shortcut = SparseConfig(window_size=128, topk=3, dense_len=0, has_coarse_lse=True)
    exact, short = ([], [])
    for seed in range(20):
        q, keys = random_heads(1500, heads=4, seed=seed)
        exact.append(chosen(SMALL, 3 * q, keys, 1499))
        short.append(chosen(shortcut, 3 * q, keys, 1499))
    assert not np.array_equal(exact, short)
    assert np.mean(np.array(exact) == np.array(short)) > 0.7, "close, on keys of which some stand out"
