"""Attention in MindSpore's own operations, for any device: each row gathers the blocks that it attends to, and masks what it may not see.

Dense rows gather all blocks that there may be, so that nothing is compiled again as a context grows; they pay for the context's limit,
not its length. Sparse rows (InfLLM v2, `model.sparse`) gather the blocks that they choose. Rows go in chunks to bound the memory.
"""

# T rows, R rows of a chunk, W pages (blocks) of a sequence, C gathered blocks, L tokens of these, N kernels, K tokens of a kernel,
# G kv heads, J query heads of a kv head, D head dim

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from minicpm4.executors.base import ExecutorOptions
from minicpm4.executors.mindspore.rows import GraphStep, Rows
from minicpm4.model import PAGE_TOKENS, ModelConfig, pages_for
from minicpm4.model.config import SparseConfig
from minicpm4.model.sparse import kernel_place, num_kernels
from minicpm4.model.sparse_step import places_per_page

CHUNK_ELEMENTS = 1 << 23  # of the keys that a chunk of rows gathers
FORCED, NEVER = 1e30, -1.0  # ranks of blocks that a row always attends to, and of those that it does not: scores are 0 to J


class GatherAttention:
    """Keys, values and kernels of all layers, [places, G * D] each in `dtype`; one page more than the cache's, for padding rows."""

    def __init__(self, config: ModelConfig, options: ExecutorOptions, dtype: ms.Type) -> None:
        self.config, self.sparse = config, options.sparse
        self.num_blocks = pages_for(options.context_length)
        places = (options.num_pages + 1) * PAGE_TOKENS
        self.keys, self.values = (self.store(name, places, dtype) for name in ("keys", "values"))
        self.kernels: list[Parameter] = []
        if self.sparse is not None:
            self.kernels = self.store("kernels", (options.num_pages + 1) * places_per_page(self.sparse), ms.float32)

    def store(self, name: str, places: int, dtype: ms.Type) -> list[Parameter]:
        columns = self.config.num_kv_heads * self.config.head_dim
        return [
            Parameter(Tensor(np.zeros((places, columns), np.float32)).astype(dtype), name=f"{name}.{layer}", requires_grad=False)
            for layer in range(self.config.num_layers)
        ]

    @property
    def kv_bytes(self) -> int:
        return sum(int(parameter.nbytes) for parameter in (*self.keys, *self.values, *self.kernels))

    def attend(self, qkv: tuple[Rows, Rows, Rows], *, layer: int, step: GraphStep) -> Rows:
        """See `model.ops.Ops.attend`."""
        q, k, v = qkv
        for stored, new in ((self.keys[layer], k), (self.values[layer], v)):
            ops.scatter_update(stored, step.slots_T, ops.cast(new.values, stored.dtype))
        if self.sparse is not None:
            means = ops.mean(ops.cast(ops.gather(self.keys[layer], step.kernel_tokens_TK, 0), ms.float32), 1)
            ops.scatter_update(self.kernels[layer], step.kernel_slots_T, means)
        c, rows = self.config, q.values.shape[0]
        q_TGJD = ops.reshape(ops.cast(q.values, ms.float32), (rows, c.num_kv_heads, -1, c.head_dim))
        pages_TW = ops.gather(step.pages_TW, step.sequences_T, 0)
        size = max(1, CHUNK_ELEMENTS // (self.num_gathered * PAGE_TOKENS * c.num_kv_heads * c.head_dim))
        outputs = []
        for first in range(0, rows, size):
            chunk = slice(first, min(first + size, rows))
            outputs.append(self.attend_chunk(q_TGJD[chunk], pages_TW[chunk], step.positions_T.values[chunk], layer))
        out = outputs[0] if len(outputs) == 1 else ops.concat(outputs, 0)
        return Rows(ops.cast(ops.reshape(out, q.values.shape), q.values.dtype), q.count)

    @property
    def num_gathered(self) -> int:
        """C: blocks of a sparse row, or of the longest dense one."""
        if self.sparse is None:
            return self.num_blocks
        return min(self.num_blocks, max(self.sparse.max_blocks, pages_for(max(0, self.sparse.dense_len))))

    def attend_chunk(self, q_RGJD: Tensor, pages_RW: Tensor, positions_R: Tensor, layer: int) -> Tensor:
        c, count = self.config, q_RGJD.shape[0]
        blocks_RGC = self.choose_blocks(q_RGJD, pages_RW, positions_R, layer)
        within = Tensor(np.arange(PAGE_TOKENS, dtype=np.int32))
        blocks = ops.reshape(blocks_RGC, (count, -1))
        pages = ops.gather_elements(pages_RW, 1, ops.cast(ops.minimum(blocks, self.num_blocks - 1), ms.int32))
        shape = (count, c.num_kv_heads, -1)
        positions_RGL = ops.reshape(ops.expand_dims(blocks, 2) * PAGE_TOKENS + within, shape)
        slots_RGL = ops.reshape(ops.expand_dims(pages, 2) * PAGE_TOKENS + within, shape)
        is_seen = ops.less_equal(positions_RGL, ops.reshape(positions_R, (-1, 1, 1)))
        heads = Tensor(np.arange(c.num_kv_heads, dtype=np.int32).reshape(1, -1, 1))
        keys, values = (self.take_heads(stored[layer], slots_RGL * c.num_kv_heads + heads) for stored in (self.keys, self.values))
        is_seen_P1L = ops.reshape(is_seen, (count * c.num_kv_heads, 1, -1))  # P: pairs of row and kv head
        scores = self.products(q_RGJD, keys)
        weights = ops.softmax(ops.select(ops.broadcast_to(is_seen_P1L, scores.shape), scores, ops.full_like(scores, -1e30)), -1)
        seen_values = ops.select(ops.broadcast_to(ops.transpose(is_seen_P1L, (0, 2, 1)), values.shape), values, ops.zeros_like(values))
        return ops.reshape(ops.bmm(weights, seen_values), q_RGJD.shape)

    def take_heads(self, stored: Parameter, places_RGL: Tensor) -> Tensor:
        """Heads [R * G, L, D] in float32; places: place * G + kv head."""
        by_head = ops.reshape(stored, (-1, self.config.head_dim))
        flat = ops.cast(ops.gather(by_head, ops.reshape(places_RGL, (-1,)), 0), ms.float32)
        return ops.reshape(flat, (places_RGL.shape[0] * self.config.num_kv_heads, -1, self.config.head_dim))

    def products(self, q_RGJD: Tensor, keys_PLD: Tensor) -> Tensor:
        """q k / sqrt(D), [R * G, J, L]."""
        q_PJD = ops.reshape(q_RGJD * float(self.config.head_dim**-0.5), (-1, *q_RGJD.shape[2:]))
        return ops.bmm(q_PJD, ops.transpose(keys_PLD, (0, 2, 1)))

    def choose_blocks(self, q_RGJD: Tensor, pages_RW: Tensor, positions_R: Tensor, layer: int) -> Tensor:
        """int32 [R, G, C]; a row that has fewer gets blocks behind its own, of which it sees nothing."""
        shape = (*q_RGJD.shape[:2], self.num_gathered)
        blocks_W = Tensor(np.arange(self.num_blocks, dtype=np.int32))
        if self.num_gathered == self.num_blocks and self.sparse is None:
            return ops.broadcast_to(blocks_W, shape)
        sparse = self.sparse
        assert sparse is not None, "dense rows gather all blocks"
        own_R1 = ops.expand_dims(ops.floor_div(positions_R, PAGE_TOKENS), 1)
        is_past = ops.less_equal(blocks_W, own_R1)
        is_dense = ops.expand_dims(ops.less(positions_R, max(0, sparse.dense_len)), 1)
        is_local = ops.greater(blocks_W, own_R1 - sparse.num_local_blocks)
        is_forced = ops.logical_and(is_past, ops.logical_or(ops.logical_or(is_dense, is_local), ops.less(blocks_W, sparse.init_blocks)))
        ranks_RGW = self.score_blocks(sparse, q_RGJD, (pages_RW, positions_R), layer)
        for condition, rank in ((is_past, NEVER), (ops.logical_not(is_forced), FORCED)):  # where it does not hold, the rank is fixed
            mask = ops.broadcast_to(ops.expand_dims(condition, 1), ranks_RGW.shape)
            ranks_RGW = ops.select(mask, ranks_RGW, ops.full_like(ranks_RGW, rank))
        ranked, order = ops.topk(ranks_RGW, self.num_gathered)
        count_C = Tensor(np.arange(self.num_gathered, dtype=np.int32).reshape(1, 1, -1))
        num_R = ops.select(ops.reshape(is_dense, (-1,)), ops.full_like(positions_R, self.num_gathered), ops.full_like(positions_R, sparse.max_blocks))
        is_taken = ops.logical_and(ops.greater(ranked, NEVER), ops.less(count_C, ops.reshape(num_R, (-1, 1, 1))))
        return ops.select(is_taken, ops.cast(order, ms.int32), ops.full_like(ops.cast(order, ms.int32), self.num_blocks))

    def score_blocks(self, sparse: SparseConfig, q_RGJD: Tensor, place: tuple[Tensor, Tensor], layer: int) -> Tensor:
        """Steps 2 and 3 of the rule, [R, G, W]: 0 where no kernel is seen. place: pages and positions of the rows."""
        (pages_RW, positions_R), count = place, q_RGJD.shape[0]
        kernels_N = np.arange(num_kernels(sparse, self.num_blocks * PAGE_TOKENS))
        indices_N, places_N = kernel_place(sparse, kernels_N)
        slots_RN = ops.gather(pages_RW, Tensor(indices_N.astype(np.int32)), 1) * places_per_page(sparse) + Tensor(places_N.astype(np.int32))
        heads = Tensor(np.arange(self.config.num_kv_heads, dtype=np.int32).reshape(1, -1, 1))
        kernels = self.take_heads(self.kernels[layer], ops.expand_dims(slots_RN, 1) * self.config.num_kv_heads + heads)
        lasts_N = Tensor((kernels_N * sparse.kernel_stride + sparse.kernel_size - 1).astype(np.int32))
        is_seen_RN = ops.less_equal(lasts_N, ops.expand_dims(positions_R, 1))
        scores = ops.reshape(self.products(q_RGJD, kernels), (count, self.config.num_kv_heads, -1, len(kernels_N)))
        is_seen = ops.broadcast_to(ops.reshape(is_seen_RN, (count, 1, 1, -1)), scores.shape)
        shares = ops.softmax(ops.select(is_seen, scores, ops.full_like(scores, -1e30)), -1)
        shares_RGN = ops.sum(ops.select(is_seen, shares, ops.zeros_like(shares)), 2)
        before, per_block = sparse.kernel_size // sparse.kernel_stride - 1, sparse.kernels_per_block  # kernels that reach in from before
        spans = np.arange(self.num_blocks)[:, None] * per_block + np.arange(-before, per_block)
        spans = np.where((spans < 0) | (spans >= len(kernels_N)), len(kernels_N), spans)  # there is no such kernel: a zero
        with_zero = ops.concat((shares_RGN, ops.zeros_like(shares_RGN[:, :, :1])), -1)
        spanned = ops.gather(with_zero, Tensor(spans.astype(np.int32).reshape(-1)), 2)
        return ops.max(ops.reshape(spanned, (*shares_RGN.shape[:2], self.num_blocks, -1)), -1)[0]
