"""Gradients of sparse attention: against dense attention in float64 with everything masked that was not chosen, which torch
differentiates by itself. What is chosen comes from the rule in numpy, row by row.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from minicpm4.executors.torch import sparse as torch_sparse
from minicpm4.executors.torch.packed import PackedAttention
from minicpm4.executors.torch.trainable import TrainableModel
from minicpm4.model import PAGE_TOKENS
from minicpm4.model.config import SparseConfig
from minicpm4.model.parameters import parameter_shapes
from minicpm4.model.sparse import compress, is_sparse, select_blocks
from tests.toy import DEVICES, toy_config

TINY = SparseConfig(window_size=64, topk=2, dense_len=150)


def seen_tokens(sparse: SparseConfig, q_TGJD: np.ndarray, k_TGD: np.ndarray) -> np.ndarray:
    """bool [G, T, T]: which tokens each row and kv head attends to."""
    compressed = compress(sparse, k_TGD)
    seen = np.tril(np.ones((k_TGD.shape[1], len(q_TGJD), len(q_TGJD)), bool))
    for row in np.flatnonzero(is_sparse(sparse, np.arange(len(q_TGJD)))):
        for group, blocks in enumerate(select_blocks(sparse, q_TGJD[row], compressed, position=int(row))):
            seen[group, row] &= np.isin(np.arange(len(q_TGJD)) // PAGE_TOKENS, blocks)
    return seen


def masked_dense(q_TGJD: Tensor, k_TGD: Tensor, v_TGD: Tensor, seen_GTT: Tensor) -> Tensor:
    scores = torch.einsum("tgjd,lgd->gjtl", q_TGJD, k_TGD) / q_TGJD.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen_GTT[:, None], -torch.inf).softmax(dim=-1)
    return torch.einsum("gjtl,lgd->tgjd", weights, v_TGD)


@pytest.fixture(params=[0, torch_sparse.MASKED_TIMES], ids=["gathered", "masked"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen keys are gathered, or those not chosen masked; rows go in two or three chunks."""
    monkeypatch.setattr(torch_sparse, "MASKED_TIMES", request.param)
    monkeypatch.setattr(torch_sparse, "CHUNK_ELEMENTS", 1 << 18)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize(("groups", "heads"), [(2, 1), (1, 3), (2, 8), (1, 16)], ids=str)
def test_attention_has_the_gradients_of_masked_dense_attention(groups: int, heads: int, device: torch.device) -> None:
    """Two sequences in a batch, of dense and sparse rows, no length a multiple of anything."""
    generator, lengths = torch.Generator().manual_seed(heads), (347, 211)
    shapes = ((groups, heads, 6), (groups, 6), (groups, 6))
    inputs = [random_values((sum(lengths), *shape), generator, device=device).requires_grad_() for shape in shapes]
    upstream = random_values((sum(lengths), groups * heads * 6), generator, device=device)

    attention = PackedAttention(TINY)
    step = attention.inputs(torch.zeros(sum(lengths), dtype=torch.int64, device=device), lengths)
    out = attention.attend(inputs[0].flatten(1, 2), *inputs[1:], layer=0, step=step.attention).flatten(1)
    got = torch.autograd.grad(out, inputs, upstream)

    parts = []
    for q, k, v in zip(*(x.split(lengths) for x in inputs), strict=True):
        seen = seen_tokens(TINY, *(x.detach().float().cpu().numpy() for x in (q, k)))
        assert 0.4 < seen.sum() / np.tril(np.ones_like(seen)).sum() < 0.95
        parts.append(masked_dense(q, k, v, torch.from_numpy(seen).to(device)).flatten(1))
    wanted_out = torch.cat(parts)
    wanted = torch.autograd.grad(wanted_out, inputs, upstream)
    torch.testing.assert_close(out, wanted_out, rtol=0, atol=1e-12)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)


def random_values(shape: tuple[int, ...], generator: torch.Generator, *, device: torch.device) -> Tensor:
    """The same on every device."""
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(device)


def loss_gradients(sparse: SparseConfig | None, tokens: list[int], *, device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Of every parameter of a small model."""
    config = toy_config(vocab_size=7, hidden_size=8, intermediate_size=5, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)
    generator = torch.Generator().manual_seed(0)
    shapes = parameter_shapes(config)
    model = TrainableModel(config, {name: random_values(shape, generator, device=device) for name, shape in shapes.items()})
    logits, _ = model(torch.tensor(tokens, device=device), [len(tokens)], sparse=sparse)
    loss = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(tokens[1:], device=device))
    return loss, list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.usefixtures("_way")
def test_a_model_trains_sparsely_with_the_parameters_that_it_trains_densely_with(device: torch.device) -> None:
    """All blocks seen: the same loss and gradients. Some left out: others, and every parameter still has one."""
    tokens = np.random.default_rng(0).integers(0, 7, 300).tolist()
    dense, whole, few = (loss_gradients(sparse, tokens, device=device) for sparse in (None, SparseConfig(dense_len=0), TINY))
    torch.testing.assert_close(whole, dense, rtol=0, atol=1e-10)
    assert abs(few[0] - dense[0]) > 1e-4
    assert all(gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in few[1])
