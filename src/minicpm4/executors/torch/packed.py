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


@dataclass(frozen=True)
class Bucket:
    """Rows of documents of similar length. rows: of the step, document after document; a slice where they follow each other.

    places: where they stand in [B * L]; None where all documents are as long as the longest.
    """

    rows: slice | Tensor
    places: Tensor | None
    size: int
    longest: int


@dataclass(frozen=True)
class PackedPlan:
    """order_T: where each row's result lies among those of all groups, one after the other; None where the groups are in the rows' order.

    sparse: of each document with sparse rows, its first row, its first sparse row, its end.
    """

    buckets: tuple[Bucket, ...]
    sparse: tuple[tuple[int, int, int], ...]
    order_T: Tensor | None


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
        outputs = [attend_bucket(bucket, q_THD, k_TGD, v_TGD) for bucket in step.buckets]
        outputs += [self.attend_document(document, q_THD, k_TGD, v_TGD) for document in step.sparse]
        together = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return together if step.order_T is None else together[step.order_T]

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
        x = x[bucket.rows]
        if bucket.places is not None:
            x = x.new_zeros((bucket.size * bucket.longest, *x.shape[1:])).index_copy(0, bucket.places, x)
        padded.append(x.unflatten(0, shape))
    out = attend_causal(*padded).flatten(0, 1)
    return out if bucket.places is None else out[bucket.places]


def plan_packed(lengths_S: np.ndarray, sparse: SparseConfig | None, *, device: torch.device) -> PackedPlan:
    ends_S = np.cumsum(lengths_S)
    starts_S = ends_S - lengths_S
    dense_S = lengths_S if sparse is None else np.minimum(lengths_S, max(0, sparse.dense_len))
    groups, order = [], []
    for documents in length_buckets(dense_S):
        rows, bucket = make_bucket(starts_S[documents], dense_S[documents], device=device)
        groups.append(bucket)
        order.append(rows)
    documents = np.flatnonzero(dense_S < lengths_S)
    order += [np.arange(starts_S[document] + dense_S[document], ends_S[document]) for document in documents]
    of_sparse = tuple((int(starts_S[d]), int(starts_S[d] + dense_S[d]), int(ends_S[d])) for d in documents)
    rows = np.concatenate(order)
    is_in_order = np.array_equal(rows, np.arange(len(rows)))
    return PackedPlan(tuple(groups), of_sparse, None if is_in_order else torch.from_numpy(np.argsort(rows)).to(device))


def make_bucket(starts_B: np.ndarray, lengths_B: np.ndarray, *, device: torch.device) -> tuple[np.ndarray, Bucket]:
    """Rows, document after document, and the bucket of them."""
    longest, within = int(lengths_B.max()), np.arange(lengths_B.sum()) - np.repeat(np.cumsum(lengths_B) - lengths_B, lengths_B)
    rows = np.repeat(starts_B, lengths_B) + within
    places = np.repeat(np.arange(len(lengths_B)) * longest, lengths_B) + within
    is_padded, is_slice = len(rows) < len(lengths_B) * longest, rows[-1] - rows[0] == len(rows) - 1  # rows ascend
    where = slice(int(rows[0]), int(rows[-1]) + 1) if is_slice else torch.from_numpy(rows).to(device)
    return rows, Bucket(where, torch.from_numpy(places).to(device) if is_padded else None, len(lengths_B), longest)
