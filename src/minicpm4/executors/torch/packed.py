"""Attention over packed documents, for training: no cache, and no loop over documents but those with sparse rows.

Documents of similar length go together, padded to the longest of them: what pads lies behind every row of its document, so a causal
product needs no mask. Memory is linear in rows, and gradients are exact.
"""

# T rows, B documents of a bucket, L rows of the longest, H query heads, G kv heads, D head dim

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minicpm4.executors.torch.compressed import RowKeys, compress
from minicpm4.executors.torch.dense import attend_causal, length_buckets
from minicpm4.executors.torch.ops import TorchStep
from minicpm4.executors.torch.sparse import RowTokens, attend_sparse
from minicpm4.model import pages_for
from minicpm4.model.config import SparseConfig
from minicpm4.model.sparse import COARSE

# Documents of so many rows go alone, unpadded: there are few of them, and each is work enough for a call.
# Figures of one thread of a shared AVX-512 machine: 16 query and 2 kv heads of 64, float32; seconds forward + backward, peak memory.
# 50 documents of 32768 rows: 1.4 + 3.3, 670 MB; one call a document 1.3 + 2.7, 470 MB. 253 of 16384: 0.37 + 0.52; a call each
# 0.21 + 0.36. 20 of 8192: 0.32 + 0.57; one mask of all rows by all rows 3.2 + 7.0. Without the limit, and rows gathered bucket by
# bucket: 2.7 + 5.6 of the 32768.
# torch 2.13 has no other way on a CPU: `flex_attention` has no backward there, nested tensors no causal attention.
LONE_ROWS = 512


@dataclass(frozen=True)
class Bucket:
    """Documents of similar length. places: where their rows stand in [size * longest]; None where all are as long as the longest."""

    num_rows: int
    places: Tensor | None
    size: int
    longest: int


@dataclass(frozen=True)
class PackedPlan:
    """order_T: the rows in the order of the buckets and the sparse rows after them, and back_T: from there to their places; None where they
    are in this order.

    num_dense: of the rows in the buckets. sparse: of each document with sparse rows, its first row, its first sparse row, its end.
    """

    buckets: tuple[Bucket, ...]
    sparse: tuple[tuple[int, int, int], ...]
    num_dense: int
    order_T: Tensor | None
    back_T: Tensor | None


class PackedAttention:
    """See `ops.Attention`. sparse: the rule by which rows attend to some blocks only, None where all attention is dense."""

    def __init__(self, sparse: SparseConfig | None = None) -> None:
        self.sparse = sparse

    def inputs(self, tokens_T: Tensor, lengths: Sequence[int], *, logit_rows_R: Tensor | None = None) -> TorchStep:
        """Documents one after the other, of these lengths. logit_rows_R: all rows unless given."""
        starts, device = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths), tokens_T.device
        assert len(starts) == len(tokens_T), "lengths are those of the documents that the rows make up"
        rows = torch.arange(len(tokens_T), device=device)
        positions_T = rows - torch.from_numpy(starts).to(device)
        wanted = rows if logit_rows_R is None else logit_rows_R
        return TorchStep(tokens_T, positions_T, wanted, plan_packed(np.asarray(lengths), self.sparse, device=device))

    def attend(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, *, layer: int, step: PackedPlan) -> Tensor:
        inputs = (q_THD, k_TGD, v_TGD)
        sizes = [bucket.num_rows for bucket in step.buckets]
        ordered = inputs if step.order_T is None else tuple(x.index_select(0, step.order_T) for x in inputs)
        parts = zip(*(x[: step.num_dense].split(sizes) for x in ordered), strict=True)  # one split, whose gradient is one `cat`
        outputs = [attend_bucket(bucket, *part) for bucket, part in zip(step.buckets, parts, strict=True)]
        outputs += [self.attend_document(document, *inputs) for document in step.sparse]
        together = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return together if step.back_T is None else together.index_select(0, step.back_T)

    def attend_document(self, document: tuple[int, int, int], *inputs: Tensor) -> Tensor:
        """Sparse rows of one document."""
        assert self.sparse is not None, "only a rule makes rows sparse"
        first, middle, end = document
        q_QHD, (k_LGD, v_LGD) = inputs[0][middle:end], (x[first:end] for x in inputs[1:])
        with torch.no_grad():
            fine = RowKeys(compress(self.sparse, k_LGD))
            coarse = RowKeys(compress(self.sparse, k_LGD, times=COARSE)) if self.sparse.has_coarse_lse else None
        tokens = RowTokens(torch.arange(pages_for(end - first), device=k_LGD.device)[None])
        positions = torch.arange(middle - first, end - first, device=k_LGD.device)
        q_QGJD = q_QHD.unflatten(1, (k_LGD.shape[1], -1))
        out = attend_sparse(self.sparse, q_QGJD, (k_LGD, v_LGD, tokens), keys=(fine, coarse), positions_T=positions)
        return out.flatten(1, 2)


def attend_bucket(bucket: Bucket, *inputs: Tensor) -> Tensor:
    """The bucket's rows, [rows, H, D]."""
    shape, padded = (bucket.size, bucket.longest), []
    for x in inputs:
        if bucket.places is not None:
            x = x.new_zeros((bucket.size * bucket.longest, *x.shape[1:])).index_copy(0, bucket.places, x)
        padded.append(x.unflatten(0, shape))
    out = attend_causal(*padded).flatten(0, 1)
    return out if bucket.places is None else out.index_select(0, bucket.places)


def plan_packed(lengths_S: np.ndarray, sparse: SparseConfig | None, *, device: torch.device) -> PackedPlan:
    ends_S = np.cumsum(lengths_S)
    starts_S = ends_S - lengths_S
    dense_S = lengths_S if sparse is None else np.minimum(lengths_S, max(0, sparse.dense_len))
    groups, order = [], []
    alone = [np.array([document]) for document in np.flatnonzero(dense_S >= LONE_ROWS)]
    for documents in (*alone, *length_buckets(np.where(dense_S < LONE_ROWS, dense_S, 0))):
        rows, bucket = make_bucket(starts_S[documents], dense_S[documents], device=device)
        groups.append(bucket)
        order.append(rows)
    num_dense = sum(bucket.num_rows for bucket in groups)
    documents = np.flatnonzero(dense_S < lengths_S)
    order += [np.arange(starts_S[document] + dense_S[document], ends_S[document]) for document in documents]
    of_sparse = tuple((int(starts_S[d]), int(starts_S[d] + dense_S[d]), int(ends_S[d])) for d in documents)
    rows = np.concatenate(order)
    ways = (None, None)
    if not np.array_equal(rows, np.arange(len(rows))):
        ways = tuple(torch.from_numpy(way).to(device) for way in (rows, np.argsort(rows)))  # type: ignore[assignment]
    return PackedPlan(tuple(groups), of_sparse, num_dense, *ways)


def make_bucket(starts_B: np.ndarray, lengths_B: np.ndarray, *, device: torch.device) -> tuple[np.ndarray, Bucket]:
    """Rows, document after document, and the bucket of them."""
    longest, within = int(lengths_B.max()), np.arange(lengths_B.sum()) - np.repeat(np.cumsum(lengths_B) - lengths_B, lengths_B)
    rows = np.repeat(starts_B, lengths_B) + within
    places = None
    if len(rows) < len(lengths_B) * longest:
        places = torch.from_numpy(np.repeat(np.arange(len(lengths_B)) * longest, lengths_B) + within).to(device)
    return rows, Bucket(len(rows), places, len(lengths_B), longest)
