"""InfLLM v2: which blocks of 64 tokens a row attends to, and how many that is. The rule, in numpy, one row at a time.

Source: arXiv 2509.24663 and the MiniCPM4 report (2506.07900), their 96-block rule: 1 first + 32 local + the best 63 of the others.
For a row at position i of a sequence, and for each kv head on its own:

1. A compressed key j (the paper's kernel) is the float32 mean of stored keys [16j, 16j + 32), as the cache holds them. Row i sees it once
   all its tokens are there: 16j + 31 <= i. No parameter is involved, so dense and sparse attention share all weights.
2. Each query head's scores are softmax(q k / sqrt(D)) over the compressed keys that its row sees; the heads of a group are summed.
3. A block's score is the largest of the compressed keys that overlap it, seen ones only: compressed keys 4b - 1 to 4b + 3.
4. The row attends, in full resolution and causally, to the first block, to the 32 blocks that end with its own, and to the
   best 63 of those between. Of equal scores the lower block wins.

What the paper leaves open, and what is chosen here:
- Sparse or dense is a row's own matter: sparse if i + 1 > dense_len, whatever its sequence, chunk or batch will be. So a prompt
  in one step, in chunks, decoded or on shared pages selects the same. (The published code decides for a whole call: there, the
  early rows of a long prompt are sparse too.)
- Means are kept in float32. An executor that keeps them in fewer bits, or sums in another order, may choose otherwise where two
  blocks score alike; comparisons look at the margin between the last block taken and the first one left.
- A row that sees no compressed key attends to what it is given by force.
- With has_coarse_lse, step 2 divides by sums over compressed keys of 128 tokens, one every 64; a row that sees none of those is exact.
"""

# T rows, L tokens, N compressed keys, B blocks, C chosen blocks, G kv heads, J query heads of a kv head, D head dim

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from minicpm4.model.config import SparseConfig

Whole = TypeVar("Whole", int, np.ndarray)
COARSE = 4  # the coarse compressed keys of the shortcut are so many times as long, and begin so many times as rarely


def is_sparse(sparse: SparseConfig, positions_T: np.ndarray) -> np.ndarray:
    """Whether each row chooses its blocks, bool [T]; the others attend to everything at or before them."""
    return positions_T + 1 > sparse.dense_len


def num_compressed(sparse: SparseConfig, num_tokens: int, *, times: int = 1) -> int:
    """Compressed keys that lie wholly in the first num_tokens tokens; the row at position i sees num_compressed(sparse, i + 1).

    times: COARSE for the coarse ones.
    """
    return max(0, (num_tokens - times * sparse.kernel_size) // (times * sparse.kernel_stride) + 1)


def compressed_place(sparse: SparseConfig, index: Whole, *, times: int = 1) -> tuple[Whole, Whole]:
    """Where a compressed key, or each of an array of them, is kept: (index of a page in its sequence, place beside that page).

    It is the page of its *last* token: everything that it is made of lies at or before that page, so that a page which sequences share, or
    which is copied, takes along compressed keys that are right for all of them. Page b holds those from 4b - 1 to 4b + 2, places 0 to 3; of
    the coarse ones b - 1, place 0.
    """
    last = times * (index * sparse.kernel_stride + sparse.kernel_size) - 1
    return last // sparse.block_size, last % sparse.block_size // (times * sparse.kernel_stride)


def compressed_of_block(sparse: SparseConfig, block: int) -> range:
    """The compressed keys that overlap a block; the last of them may not be complete yet."""
    first = (block * sparse.block_size - sparse.kernel_size) // sparse.kernel_stride + 1
    return range(max(0, first), (block + 1) * sparse.compressed_per_block)


def candidates(sparse: SparseConfig, position: int) -> range:
    """The blocks that a row chooses among: after the first ones, before its window. Each overlaps a compressed key that it sees."""
    first_local = position // sparse.block_size - sparse.num_local_blocks + 1
    return range(sparse.init_blocks, max(sparse.init_blocks, first_local))


def compress(sparse: SparseConfig, keys_LGD: np.ndarray, *, times: int = 1) -> np.ndarray:
    """All compressed keys of a sequence's first L keys, float32 [N, G, D]; times: COARSE for the coarse ones.

    Added up token by token, so that a compressed key does not depend on how many others are made with it.
    """
    count, size, stride = num_compressed(sparse, len(keys_LGD), times=times), times * sparse.kernel_size, times * sparse.kernel_stride
    sums_NGD = np.zeros((count, *keys_LGD.shape[1:]), np.float32)
    for offset in range(size if count else 0):
        sums_NGD += keys_LGD[offset : offset + (count - 1) * stride + 1 : stride]
    return sums_NGD * np.float32(1 / size)


def score_compressed(q_GJD: np.ndarray, compressed_NGD: np.ndarray, coarse_NGD: np.ndarray | None = None) -> np.ndarray:
    """Step 2: each compressed key's share of attention, summed over the heads of a group, float32 [G, N].

    compressed_NGD: those that the row sees. coarse_NGD: the coarse ones that it sees, None or none of them to be exact.
    """
    scores_GJN = compressed_products(q_GJD, compressed_NGD)
    has_coarse = coarse_NGD is not None and len(coarse_NGD)
    over_GJN = compressed_products(q_GJD, coarse_NGD) if has_coarse else scores_GJN  # type: ignore[arg-type]
    largest_GJ1 = over_GJN.max(axis=-1, keepdims=True, initial=-np.inf)
    with np.errstate(over="ignore"):  # a compressed key may stand out of coarse ones by more than exp can say: the best there is
        shares_GJN = np.exp(scores_GJN - largest_GJ1) / np.exp(over_GJN - largest_GJ1).sum(axis=-1, keepdims=True)
    return shares_GJN.sum(axis=1)


def compressed_products(q_GJD: np.ndarray, compressed_NGD: np.ndarray) -> np.ndarray:
    """q k / sqrt(D), float32 [G, J, N]."""
    products: np.ndarray = q_GJD @ compressed_NGD.transpose(1, 2, 0)
    return products / np.float32(np.sqrt(q_GJD.shape[-1]))


def pool_blocks(sparse: SparseConfig, scores_GN: np.ndarray, blocks: range) -> np.ndarray:
    """Step 3: each block's score, float32 [G, B], from the scores of the N compressed keys that the row sees."""
    return np.stack([scores_GN[:, spanned(sparse, block)].max(axis=1, initial=0) for block in blocks], axis=1)


def spanned(sparse: SparseConfig, block: int) -> slice:
    compressed = compressed_of_block(sparse, block)
    return slice(compressed.start, compressed.stop)


def select_blocks(
    sparse: SparseConfig, q_GJD: np.ndarray, compressed_NGD: np.ndarray, *, position: int, coarse_NGD: np.ndarray | None = None
) -> np.ndarray:
    """The blocks that a sparse row attends to, ascending, int [G, C]; C = num_blocks(sparse, position) for every head.

    compressed_NGD, coarse_NGD: the sequence's, at least as many as the row sees; what lies behind those is not read. coarse_NGD is
    needed with has_coarse_lse.
    """
    own, between = position // sparse.block_size, candidates(sparse, position)
    best_GC = np.zeros((len(q_GJD), 0), np.int64)
    if between and sparse.num_best_blocks:
        seen_NGD = compressed_NGD[: num_compressed(sparse, position + 1)]
        coarse = None if coarse_NGD is None else coarse_NGD[: num_compressed(sparse, position + 1, times=COARSE)]
        scores_GB = pool_blocks(sparse, score_compressed(q_GJD, seen_NGD, coarse if sparse.has_coarse_lse else None), between)
        order_GB = np.argsort(-scores_GB, axis=1, kind="stable")  # stable: of equals the lower block comes first
        best_GC = np.sort(order_GB[:, : sparse.num_best_blocks], axis=1) + between.start
    first = np.arange(min(between.start, own + 1))
    local = np.arange(max(len(first), own - sparse.num_local_blocks + 1), own + 1)
    forced_first, forced_local = (np.broadcast_to(forced, (len(q_GJD), len(forced))) for forced in (first, local))
    return np.concatenate((forced_first, best_GC, forced_local), axis=1)


def num_blocks(sparse: SparseConfig, positions_T: np.ndarray) -> np.ndarray:
    """How many blocks each row attends to, int [T]: all that there are, or max_blocks for sparse rows with more."""
    total_T = positions_T // sparse.block_size + 1
    return np.where(is_sparse(sparse, positions_T), np.minimum(total_T, sparse.max_blocks), total_T)


@dataclass(frozen=True)
class Attended:
    """What rows attend to, added up: the same for every layer and head, a matter of positions alone.

    blocks_selected of blocks_total; tokens_attended of tokens_visible, those at or before each row. num_rows: how many were added up.
    """

    blocks_selected: int
    blocks_total: int
    tokens_attended: int
    tokens_visible: int
    num_rows: int

    @property
    def mean_blocks(self) -> tuple[float, float]:
        """Blocks selected and in total, of the mean row; zeros for no rows."""
        return self.blocks_selected / max(1, self.num_rows), self.blocks_total / max(1, self.num_rows)

    @property
    def share(self) -> float:
        """Of the tokens that the rows could see; 1 for no rows."""
        return self.tokens_attended / self.tokens_visible if self.tokens_visible else 1.0


def count_attended(sparse: SparseConfig | None, positions_T: np.ndarray) -> Attended:
    """What rows at these positions attend to; sparse: None where all attention is dense."""
    rule = sparse or SparseConfig()
    positions_T = positions_T.astype(np.int64)
    total_T = positions_T // rule.block_size + 1
    chosen_T = total_T if sparse is None else num_blocks(sparse, positions_T)
    left_out = (total_T - chosen_T).sum() * rule.block_size  # whole blocks: a row's own, which may be partly filled, is always there
    visible = (positions_T + 1).sum()
    return Attended(int(chosen_T.sum()), int(total_T.sum()), int(visible - left_out), int(visible), len(positions_T))
