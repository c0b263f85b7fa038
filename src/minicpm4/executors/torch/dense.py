"""Dense attention over what all rows see, and over what the rows of a step see of each other. No mask of rows times cached tokens.

Memory is linear in rows and tokens: scores are never kept, but those of a draft tree's rows with each other.
"""

# B sequences, Q rows, L tokens, H query heads, G kv heads, J query heads of a kv head, D head dim

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

SHORTEST = 0.75  # of a bucket, as a share of its longest: at most a third of a bucket is padding

Partial = tuple[Tensor, Tensor]  # attention to some of the tokens, [Q, H, D], and the logarithm of its summed exponentials, [Q, H]


def length_buckets(lengths_S: np.ndarray) -> list[np.ndarray]:
    """Sequences of similar length together, ascending in each bucket: at most log(longest) / log(4 / 3) buckets; empty ones not."""
    order_S = np.argsort(-lengths_S, kind="stable")
    falling_S, first, buckets = lengths_S[order_S], 0, []
    end = int((falling_S > 0).sum())
    while first < end:
        after = min(end, int(np.searchsorted(-falling_S, -SHORTEST * falling_S[first], side="right")))
        buckets.append(np.sort(order_S[first:after]))
        first = after
    return buckets


def attend_causal(q_BQHD: Tensor, k_BQGD: Tensor, v_BQGD: Tensor) -> Tensor:
    """Each row sees the rows of its sequence up to its own. What lies behind a sequence's last row must be finite, and is seen by none of
    its rows. Differentiable."""
    q, k, v = (x.transpose(1, 2) for x in (q_BQHD, k_BQGD, v_BQGD))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


def attend_batch(q_BHD: Tensor, k_BLGD: Tensor, v_BLGD: Tensor, *, sees_BL: Tensor | None) -> Tensor:
    """One row a sequence, [B, H, D]. sees_BL: None where every row sees all tokens.

    Query heads of a kv head are rows of one product: beside `enable_gqa`, 1.4 times as fast in bfloat16 and 2.8 times in float32 at
    1024 tokens of the 0.5B shape, 2 and 4.3 times at 4096 (one thread, AVX-512).
    """
    q_BGJD = q_BHD.unflatten(1, (k_BLGD.shape[2], -1))
    k, v = (x.transpose(1, 2) for x in (k_BLGD, v_BLGD))
    mask = None if sees_BL is None else sees_BL[:, None, None]
    return functional.scaled_dot_product_attention(q_BGJD, k, v, attn_mask=mask).flatten(1, 2)


def all_tokens(q_QHD: Tensor, k_LGD: Tensor, v_LGD: Tensor) -> Partial:
    """Rows that see every one of the tokens."""
    heads, count = k_LGD.shape[1], len(q_QHD)
    q_1GRD = q_QHD.unflatten(1, (heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)[None]  # R: J x Q
    out, lse = with_lse(q_1GRD, *(x.transpose(0, 1)[None] for x in (k_LGD, v_LGD)))
    out_GJQD, lse_GJQ = out[0].unflatten(1, (-1, count)), lse[0].unflatten(1, (-1, count))
    return out_GJQD.permute(2, 0, 1, 3).flatten(1, 2), lse_GJQ.permute(2, 0, 1).flatten(1)


def own_rows(q_QHD: Tensor, k_LGD: Tensor, v_LGD: Tensor, *, sees_QL: Tensor | None) -> Partial:
    """Rows that see some of the step's rows of their sequence: those of a mask, or without one those up to their own.

    A mask does not hide a number that is none, since 0 times NaN is NaN: tokens with one count as zeros, and rows that see one as NaN.
    """
    is_broken_L = ~(k_LGD.isfinite() & v_LGD.isfinite()).flatten(1).all(dim=1)
    k_LGD, v_LGD = (x_LGD.masked_fill(is_broken_L[:, None, None], 0) for x_LGD in (k_LGD, v_LGD))
    if sees_QL is None:
        out, lse = with_lse(*(x.transpose(0, 1)[None] for x in (q_QHD, k_LGD, v_LGD)), is_causal=True)
        out_QHD, lse_QH = out[0].transpose(0, 1), lse[0].transpose(0, 1)
        is_broken_Q = is_broken_L.cumsum(0) > 0
    else:
        out_QHD, lse_QH = masked(q_QHD, k_LGD, v_LGD, sees_QL=sees_QL)
        is_broken_Q = (sees_QL & is_broken_L).any(dim=1)
    return out_QHD.masked_fill(is_broken_Q[:, None, None], torch.nan), lse_QH


def masked(q_QHD: Tensor, k_LGD: Tensor, v_LGD: Tensor, *, sees_QL: Tensor) -> Partial:
    """For a tree's rows, of which there are at most 64: scores in full."""
    q_GJQD = q_QHD.unflatten(1, (k_LGD.shape[1], -1)).permute(1, 2, 0, 3)
    scores_GJQL = (q_GJQD @ k_LGD.permute(1, 2, 0)[:, None]).float() / q_QHD.shape[-1] ** 0.5
    scores_GJQL = scores_GJQL.masked_fill(~sees_QL, -torch.inf)
    lse_GJQ1 = scores_GJQL.logsumexp(dim=-1, keepdim=True)
    out_GJQD = (scores_GJQL - lse_GJQ1).exp().to(v_LGD.dtype) @ v_LGD.transpose(0, 1)[:, None]
    return out_GJQD.permute(2, 0, 1, 3).flatten(1, 2), lse_GJQ1[..., 0].permute(2, 0, 1).flatten(1)


def merge(first: Partial, second: Partial) -> Tensor:
    """Attention to the tokens of both."""
    (one_QHD, one_QH), (two_QHD, two_QH) = first, second
    lse_QH = torch.logaddexp(one_QH, two_QH)
    weights = ((part_QH - lse_QH).exp()[..., None] for part_QH in (one_QH, two_QH))
    return (one_QHD * next(weights) + two_QHD * next(weights)).to(one_QHD.dtype)


def with_lse(q_BHQD: Tensor, k_BGLD: Tensor, v_BGLD: Tensor, *, is_causal: bool = False) -> tuple[Tensor, Tensor]:
    """What `scaled_dot_product_attention` computes, and the logarithm of summed exponentials, float32 [B, H, Q], which it drops."""
    if q_BHQD.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_BHQD, k_BGLD, v_BGLD, 0.0, is_causal)
        return out, lse
    times = q_BHQD.shape[1] // k_BGLD.shape[1]
    k, v = (x.repeat_interleave(times, dim=1) if times > 1 else x for x in (k_BGLD, v_BGLD))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(q_BHQD, k, v, None, True, 0.0, is_causal)
    return out, lse[..., : q_BHQD.shape[2]]
