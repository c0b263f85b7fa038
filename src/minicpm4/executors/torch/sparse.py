"""InfLLM v2 in torch: the rule of `model.sparse` for many rows at once, with gradients through attention and none through selection.

Memory does not grow with rows times tokens: rows go in chunks, each gathers the keys and values that it chose. Kernels are kept
beside their pages and made once, when their last token is written. A row costs one product with each kernel (a sixteenth of its
sequence) and a copy of at most max_blocks * 64 keys and values; with gradients a chunk is computed again in the backward pass. Copies
cost more than products: with gradients, a sequence of few times what its rows choose is masked instead.
"""

# R rows of a chunk, L tokens, N kernels, B blocks, C chosen blocks, W kernels made at once, K tokens of a kernel,
# P pages, X places of a store, G kv heads, J query heads of a kv head, D head dim

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from minicpm4.model import PAGE_TOKENS, ModelConfig
from minicpm4.model.config import SparseConfig
from minicpm4.model.sparse import COARSE
from minicpm4.model.sparse_step import NewKernels, SparseStep, kernel_slots, places_per_page

CHUNK_ELEMENTS = 1 << 23  # of the keys that a chunk of rows gathers: 32 MB, ten rows of MiniCPM4-0.5B's 96 blocks
WRITE_KERNELS = 256  # made at once: their tokens are gathered first
# A sequence of at most so many times the tokens that a row chooses is masked, where there are gradients: to gather each row's keys takes
# several times as long there. The border itself was not measured on a quiet machine.
MASKED_TIMES = 8


@dataclass(frozen=True)
class KernelStore:
    """Kernels of every layer in float32, [layers, X, G, D], X places beside every page; coarse: None where the rule needs none."""

    sparse: SparseConfig
    kernels: Tensor
    coarse: Tensor | None

    @classmethod
    def empty(cls, config: ModelConfig, sparse: SparseConfig, *, num_pages: int, device: torch.device) -> KernelStore:
        def store(times: int) -> Tensor:
            places = num_pages * places_per_page(sparse, times=times)
            return torch.zeros((config.num_layers, places, config.num_kv_heads, config.head_dim), device=device)

        return cls(sparse, store(1), store(COARSE) if sparse.has_coarse_lse else None)

    def extended(self, num_pages: int) -> KernelStore:
        """The same with places beside more pages, behind the others."""

        def longer(store: Tensor, times: int) -> Tensor:
            return functional.pad(store, (0, 0, 0, 0, 0, num_pages * places_per_page(self.sparse, times=times)))

        return KernelStore(self.sparse, longer(self.kernels, 1), None if self.coarse is None else longer(self.coarse, COARSE))

    @property
    def stores(self) -> tuple[Tensor, ...]:
        return (self.kernels,) if self.coarse is None else (self.kernels, self.coarse)

    def write(self, layer: int, keys_XGD: Tensor, step: SparseStep) -> None:
        """Makes the kernels that the step completes, from this layer's keys as they are stored."""
        write_means(self.kernels[layer], keys_XGD, step.kernels)
        if self.coarse is not None and step.coarse is not None:
            write_means(self.coarse[layer], keys_XGD, step.coarse)

    def read(self, layer: int, pages_P: np.ndarray, *, num_tokens: int) -> tuple[Tensor, Tensor | None]:
        """The kernels, and the coarse ones, of a sequence's first num_tokens tokens: float32 [N, G, D]."""
        slots = (kernel_slots(self.sparse, pages_P, num_tokens=num_tokens, times=times) for times in (1, COARSE))
        fine, coarse = (torch.from_numpy(slots_N).to(self.kernels.device) for slots_N in slots)
        return self.kernels[layer, fine], None if self.coarse is None else self.coarse[layer, coarse]


def write_means(store_XGD: Tensor, keys_XGD: Tensor, new: NewKernels) -> None:
    slots_W, tokens_WK = (torch.from_numpy(array).to(store_XGD.device, torch.int64) for array in (new.slots_W, new.tokens_WK))
    for slots, tokens in zip(slots_W.split(WRITE_KERNELS), tokens_WK.split(WRITE_KERNELS), strict=True):
        store_XGD[slots] = keys_XGD[tokens].float().mean(dim=1)


def attend_sparse(
    sparse: SparseConfig,
    q_TGJD: Tensor,
    cached: tuple[Tensor, Tensor, Tensor],
    *,
    kernels: tuple[Tensor, Tensor | None],
    positions_T: Tensor,
) -> Tensor:
    """Sparse rows of one sequence, [T, G, J, D].

    cached: keys and values [X, G, D], and the sequence's pages in them, [P]. kernels: as `KernelStore.read` gives them.
    """
    k_XGD, v_XGD, pages_P = cached
    has_gradient = any(x.requires_grad for x in (q_TGJD, k_XGD, v_XGD))
    is_masked = has_gradient and len(pages_P) <= MASKED_TIMES * sparse.max_blocks
    attend = attend_masked if is_masked else attend_blocks
    tokens = PAGE_TOKENS * (len(pages_P) if is_masked else sparse.max_blocks)
    rows = max(1, CHUNK_ELEMENTS // (tokens * q_TGJD.shape[1] * q_TGJD.shape[3]))
    outputs = []
    for q_RGJD, positions_R in zip(q_TGJD.split(rows), positions_T.split(rows), strict=True):
        with torch.no_grad():
            blocks_RGC = select_blocks(sparse, q_RGJD.detach().float(), kernels, positions_R=positions_R)
        chosen = {"blocks_RGC": blocks_RGC, "positions_R": positions_R}
        if has_gradient:
            outputs.append(checkpoint(attend, q_RGJD, cached, use_reentrant=False, preserve_rng_state=False, **chosen))
        else:
            outputs.append(attend(q_RGJD, cached, **chosen))
    return torch.cat(outputs)


def attend_blocks(q_RGJD: Tensor, cached: tuple[Tensor, Tensor, Tensor], *, blocks_RGC: Tensor, positions_R: Tensor) -> Tensor:
    """Attention to the tokens of the chosen blocks that are not after the row; a block after the row is no choice.

    What a mask leaves out is read from the row's own token instead of where it would lie: nothing after a row is ever touched.
    """
    k_XGD, v_XGD, pages_P = cached
    own_R11 = positions_R[:, None, None]
    tokens_RGL = (blocks_RGC[..., None] * PAGE_TOKENS + torch.arange(PAGE_TOKENS, device=blocks_RGC.device)).flatten(2)
    is_seen_RGL = tokens_RGL <= own_R11
    tokens_RGL = tokens_RGL.minimum(own_R11)
    slots_RGL = pages_P[tokens_RGL // PAGE_TOKENS] * PAGE_TOKENS + tokens_RGL % PAGE_TOKENS
    groups_G1 = torch.arange(k_XGD.shape[1], device=k_XGD.device)[:, None]
    k_RGLD, v_RGLD = (x_XGD[slots_RGL, groups_G1].to(q_RGJD.dtype) for x_XGD in (k_XGD, v_XGD))
    return functional.scaled_dot_product_attention(q_RGJD, k_RGLD, v_RGLD, attn_mask=is_seen_RGL[:, :, None])


def attend_masked(q_RGJD: Tensor, cached: tuple[Tensor, Tensor, Tensor], *, blocks_RGC: Tensor, positions_R: Tensor) -> Tensor:
    """The same, by products with all tokens up to the last row; those must be finite, chosen or not."""
    k_XGD, v_XGD, pages_P = cached
    length = int(positions_R.max()) + 1
    tokens_L = torch.arange(length, device=positions_R.device)
    slots_L = pages_P[tokens_L // PAGE_TOKENS] * PAGE_TOKENS + tokens_L % PAGE_TOKENS
    num_blocks = int(tokens_L[-1]) // PAGE_TOKENS + 1
    is_chosen_RGB = torch.zeros((*blocks_RGC.shape[:2], num_blocks + 1), dtype=torch.bool, device=blocks_RGC.device)
    is_chosen_RGB = is_chosen_RGB.scatter(-1, blocks_RGC.clamp(max=num_blocks), True)  # the last takes blocks after the row
    is_seen_RGL = is_chosen_RGB[..., tokens_L // PAGE_TOKENS] & (tokens_L <= positions_R[:, None, None])
    k_G1LD, v_G1LD = (x_XGD[slots_L].to(q_RGJD.dtype).transpose(0, 1)[:, None] for x_XGD in (k_XGD, v_XGD))
    q_GJRD, is_seen_G1RL = q_RGJD.permute(1, 2, 0, 3), is_seen_RGL.transpose(0, 1)[:, None]
    out_GJRD = functional.scaled_dot_product_attention(q_GJRD, k_G1LD, v_G1LD, attn_mask=is_seen_G1RL, enable_gqa=True)
    return out_GJRD.permute(2, 0, 1, 3)


def select_blocks(sparse: SparseConfig, q_RGJD: Tensor, kernels: tuple[Tensor, Tensor | None], *, positions_R: Tensor) -> Tensor:
    """The blocks of each row and kv head, ascending, [R, G, C]; rows with fewer than others end in blocks after their own."""
    own_R = positions_R // PAGE_TOKENS
    scores_RGB = score_blocks(sparse, q_RGJD, kernels, positions_R=positions_R)
    first_R1, local_R1 = sparse.init_blocks, (own_R - sparse.num_local_blocks + 1)[:, None]
    indices_B = torch.arange(scores_RGB.shape[-1], device=own_R.device)
    is_between_RB = (indices_B >= first_R1) & (indices_B < local_R1)
    scores_RGB = scores_RGB.masked_fill(~is_between_RB[:, None], -torch.inf)
    ranked, order = scores_RGB.sort(dim=-1, descending=True, stable=True)  # stable: of equals the lower block comes first
    nothing_R11 = (own_R + 1)[:, None, None]
    best_RGC = torch.where(ranked == -torch.inf, nothing_R11, order)[..., : sparse.num_best_blocks]
    first_C = torch.arange(sparse.init_blocks, device=own_R.device)
    local_RC = local_R1 + torch.arange(sparse.num_local_blocks, device=own_R.device)
    forced_RC = torch.cat((first_C.expand(len(own_R), -1), torch.where(local_RC < first_R1, own_R[:, None] + 1, local_RC)), dim=1)
    blocks_RGC = torch.cat((forced_RC[:, None].expand(-1, q_RGJD.shape[1], -1), best_RGC), dim=-1).sort(dim=-1).values
    return blocks_RGC[..., : min(sparse.max_blocks, int(own_R.max()) + 1)]


def score_blocks(sparse: SparseConfig, q_RGJD: Tensor, kernels: tuple[Tensor, Tensor | None], *, positions_R: Tensor) -> Tensor:
    """The largest share of the kernels that overlap a block, of those that the row sees: [R, G, B], B all blocks up to the rows' own."""
    (fine_NGD, coarse_NGD), num_blocks = kernels, int(positions_R.max()) // PAGE_TOKENS + 1
    scores_GJRN = kernel_products(q_RGJD, fine_NGD)
    is_hidden_RN = hidden_kernels(sparse, len(fine_NGD), positions_R=positions_R)
    lse_GJR1 = masked_lse(scores_GJRN, is_hidden_RN)
    if coarse_NGD is not None:
        are_hidden_RN = hidden_kernels(sparse, len(coarse_NGD), positions_R=positions_R, times=COARSE)
        coarse_GJR1 = masked_lse(kernel_products(q_RGJD, coarse_NGD), are_hidden_RN)
        lse_GJR1 = torch.where(coarse_GJR1 == -torch.inf, lse_GJR1, coarse_GJR1)
    shares_GRN = (scores_GJRN - lse_GJR1).exp().masked_fill(is_hidden_RN, 0).sum(dim=1)
    before, per_block = sparse.kernel_size // sparse.kernel_stride - 1, sparse.kernels_per_block  # kernels that reach in from before
    after = num_blocks * per_block - shares_GRN.shape[-1]
    padded = functional.pad(shares_GRN, (before, max(0, after)))
    return padded.unfold(-1, before + per_block, per_block)[:, :, :num_blocks].amax(dim=-1).transpose(0, 1)


def kernel_products(q_RGJD: Tensor, kernels_NGD: Tensor) -> Tensor:
    """q k / sqrt(D), [G, J, R, N]."""
    scores = q_RGJD.permute(1, 2, 0, 3).flatten(1, 2) @ kernels_NGD.permute(1, 2, 0)
    return scores.unflatten(1, (q_RGJD.shape[2], q_RGJD.shape[0])) / q_RGJD.shape[3] ** 0.5


def hidden_kernels(sparse: SparseConfig, count: int, *, positions_R: Tensor, times: int = 1) -> Tensor:
    """Which of the sequence's first `count` kernels hold a token after the row, bool [R, N]."""
    lasts_N = times * (torch.arange(count, device=positions_R.device) * sparse.kernel_stride + sparse.kernel_size) - 1
    return lasts_N > positions_R[:, None]


def masked_lse(scores_GJRN: Tensor, is_hidden_RN: Tensor) -> Tensor:
    """[G, J, R, 1]; -inf where nothing is seen."""
    return scores_GJRN.masked_fill(is_hidden_RN, -torch.inf).logsumexp(dim=-1, keepdim=True)
