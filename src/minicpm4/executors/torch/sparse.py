"""InfLLM v2 in torch: the rule of `model.sparse` for many rows at once, with gradients through attention and none through selection.

Memory does not grow with rows times tokens: rows go in chunks, each gathers the keys and values that it chose. A row costs one product with
each compressed key (a sixteenth of its sequence) and a copy of at most max_blocks * 64 keys and values; with gradients a chunk is computed
again in the backward pass. Copies cost more than products: with gradients, a sequence of few times what its rows choose is masked instead.
"""

# R rows of a chunk, L tokens, B blocks, C chosen blocks, P pages, X slots, G kv heads, J query heads of a kv head, D head dim

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from minicpm4.executors.torch.compressed import RowKeys, score_blocks
from minicpm4.model import PAGE_TOKENS
from minicpm4.model.config import SparseConfig

CHUNK_ELEMENTS = 1 << 23  # of the keys that a chunk of rows gathers: 32 MB, ten rows of MiniCPM4-0.5B's 96 blocks
# A sequence of at most so many times the tokens that a row chooses is masked, where there are gradients: to gather each row's keys takes
# several times as long there. The border itself was not measured on a quiet machine.
MASKED_TIMES = 8


@dataclass(frozen=True)
class RowTokens:
    """Where the tokens of each row's text lie.

    pages_RP: of each row, or one table for all. start, path_RL: of a draft tree: the token at position start + i lies in slot path[i], as
    far as the row's own; None where all lie in the pages.
    """

    pages_RP: Tensor
    start: int = 0
    path_RL: Tensor | None = None

    def of_rows(self, rows: slice) -> RowTokens:
        pages_RP = self.pages_RP if len(self.pages_RP) == 1 else self.pages_RP[rows]
        return RowTokens(pages_RP, self.start, None if self.path_RL is None else self.path_RL[rows])

    def slots(self, tokens_RX: Tensor) -> Tensor:
        """Of tokens at or before each row, int64 [R, ...]."""
        count, shape = len(tokens_RX), tokens_RX.shape
        tokens_RX = tokens_RX.flatten(1)
        pages_RX = self.pages_RP.expand(count, -1).gather(1, (tokens_RX // PAGE_TOKENS).clamp(max=self.pages_RP.shape[1] - 1))
        slots_RX = pages_RX * PAGE_TOKENS + tokens_RX % PAGE_TOKENS
        if self.path_RL is not None:
            after_RX = (tokens_RX - self.start).clamp(min=0)
            slots_RX = torch.where(tokens_RX < self.start, slots_RX, self.path_RL.gather(1, after_RX))
        return slots_RX.view(shape)


def attend_sparse(
    sparse: SparseConfig,
    q_TGJD: Tensor,
    cached: tuple[Tensor, Tensor, RowTokens],
    *,
    keys: tuple[RowKeys, RowKeys | None],
    positions_T: Tensor,
) -> Tensor:
    """Sparse rows, [T, G, J, D]. cached: keys and values [X, G, D], and where each row's are. keys: compressed, fine and coarse."""
    k_XGD, v_XGD, tokens = cached
    has_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q_TGJD, k_XGD, v_XGD))
    num_pages = tokens.pages_RP.shape[1]
    is_masked = has_gradient and num_pages <= MASKED_TIMES * sparse.max_blocks
    attend = attend_masked if is_masked else attend_blocks
    most_tokens = PAGE_TOKENS * (num_pages if is_masked else sparse.max_blocks)
    size = max(1, CHUNK_ELEMENTS // (most_tokens * q_TGJD.shape[1] * q_TGJD.shape[3]))
    outputs = []
    for first in range(0, len(q_TGJD), size):
        rows = slice(first, first + size)
        q_RGJD, positions_R, of_rows = q_TGJD[rows], positions_T[rows], (k_XGD, v_XGD, tokens.of_rows(rows))
        with torch.no_grad():
            chosen = tuple(None if each is None else each.of_rows(rows) for each in keys)
            blocks_RGC = select_blocks(sparse, q_RGJD.detach().float(), chosen, positions_R=positions_R)  # type: ignore[arg-type]
        to_chosen = partial(attend, blocks_RGC=blocks_RGC, positions_R=positions_R)
        if has_gradient:
            outputs.append(checkpoint(to_chosen, q_RGJD, of_rows, use_reentrant=False, preserve_rng_state=False))
        else:
            outputs.append(to_chosen(q_RGJD, of_rows))
    return torch.cat(outputs)


def attend_blocks(q_RGJD: Tensor, cached: tuple[Tensor, Tensor, RowTokens], *, blocks_RGC: Tensor, positions_R: Tensor) -> Tensor:
    """Attention to the tokens of the chosen blocks that are not after the row; a block after the row is no choice.

    What a mask leaves out is read from the row's own token instead of where it would lie: nothing after a row is ever touched.
    """
    k_XGD, v_XGD, row_tokens = cached
    own_R11 = positions_R[:, None, None]
    tokens_RGL = (blocks_RGC[..., None] * PAGE_TOKENS + torch.arange(PAGE_TOKENS, device=blocks_RGC.device)).flatten(2)
    is_seen_RGL = tokens_RGL <= own_R11
    slots_RGL = row_tokens.slots(tokens_RGL.minimum(own_R11))
    groups_G1 = torch.arange(k_XGD.shape[1], device=k_XGD.device)[:, None]
    k_RGLD, v_RGLD = (x_XGD[slots_RGL, groups_G1].to(q_RGJD.dtype) for x_XGD in (k_XGD, v_XGD))
    return functional.scaled_dot_product_attention(q_RGJD, k_RGLD, v_RGLD, attn_mask=is_seen_RGL[:, :, None])


def attend_masked(q_RGJD: Tensor, cached: tuple[Tensor, Tensor, RowTokens], *, blocks_RGC: Tensor, positions_R: Tensor) -> Tensor:
    """The same for rows of one sequence whose tokens lie in order, by products with all of them up to the last row; those must be finite,
    chosen or not."""
    k_XGD, v_XGD, _ = cached
    length = int(positions_R[-1]) + 1
    tokens_L = torch.arange(length, device=positions_R.device)
    num_blocks = (length - 1) // PAGE_TOKENS + 1
    is_chosen_RGB = torch.zeros((*blocks_RGC.shape[:2], num_blocks + 1), dtype=torch.bool, device=blocks_RGC.device)
    is_chosen_RGB = is_chosen_RGB.scatter(-1, blocks_RGC.clamp(max=num_blocks), True)  # the last takes blocks after the row
    is_seen_RGL = is_chosen_RGB[..., tokens_L // PAGE_TOKENS] & (tokens_L <= positions_R[:, None, None])
    k_G1LD, v_G1LD = (x_XGD[:length].to(q_RGJD.dtype).transpose(0, 1)[:, None] for x_XGD in (k_XGD, v_XGD))
    q_GJRD, is_seen_G1RL = q_RGJD.permute(1, 2, 0, 3), is_seen_RGL.transpose(0, 1)[:, None]
    out_GJRD = functional.scaled_dot_product_attention(q_GJRD, k_G1LD, v_G1LD, attn_mask=is_seen_G1RL, enable_gqa=True)
    return out_GJRD.permute(2, 0, 1, 3)


def select_blocks(sparse: SparseConfig, q_RGJD: Tensor, keys: tuple[RowKeys, RowKeys | None], *, positions_R: Tensor) -> Tensor:
    """The blocks of each row and kv head, ascending, [R, G, C]; rows with fewer than others end in blocks after their own."""
    own_R = positions_R // PAGE_TOKENS
    num_blocks = int(own_R.max()) + 1
    scores_RGB = score_blocks(sparse, q_RGJD, keys, positions_R=positions_R, num_blocks=num_blocks)
    first_R1, local_R1 = sparse.init_blocks, (own_R - sparse.num_local_blocks + 1)[:, None]
    indices_B = torch.arange(num_blocks, device=own_R.device)
    is_between_RB = (indices_B >= first_R1) & (indices_B < local_R1)
    scores_RGB = scores_RGB.masked_fill(~is_between_RB[:, None], -torch.inf)
    ranked, order = scores_RGB.sort(dim=-1, descending=True, stable=True)  # stable: of equals the lower block comes first
    nothing_R11 = (own_R + 1)[:, None, None]
    best_RGC = torch.where(ranked == -torch.inf, nothing_R11, order)[..., : sparse.num_best_blocks]
    first_C = torch.arange(sparse.init_blocks, device=own_R.device)
    local_RC = local_R1 + torch.arange(sparse.num_local_blocks, device=own_R.device)
    forced_RC = torch.cat((first_C.expand(len(own_R), -1), torch.where(local_RC < first_R1, own_R[:, None] + 1, local_RC)), dim=1)
    blocks_RGC = torch.cat((forced_RC[:, None].expand(-1, q_RGJD.shape[1], -1), best_RGC), dim=-1).sort(dim=-1).values
    return blocks_RGC[..., : min(sparse.max_blocks, num_blocks)]
