"""Gradients through the torch operations: of every parameter, against finite differences in float64; of packed documents, against each
alone."""

import numpy as np
import pytest
import torch

from minicpm4.executors.torch.dense import length_buckets
from minicpm4.executors.torch.ops import TorchOps
from minicpm4.executors.torch.packed import PackedAttention
from minicpm4.executors.torch.trainable import TrainableModel
from minicpm4.executors.torch.weights import Plain
from minicpm4.model import assemble, forward
from minicpm4.model.config import SparseConfig
from minicpm4.model.parameters import parameter_shapes
from tests.toy import DEVICES, toy_config

CONFIG = toy_config(vocab_size=7, hidden_size=6, intermediate_size=5, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)
LENGTHS = [4, 2, 3]
TINY = SparseConfig(window_size=64, topk=2, dense_len=150)


def tokens_of(lengths: list[int], device: torch.device | str = "cpu") -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(sum(lengths)).integers(0, 7, sum(lengths))).to(device)


def logits_of(*parameters: torch.Tensor) -> torch.Tensor:
    """Of three documents in one batch; the last is padded to the first's length, the second goes alone."""
    named = dict(zip(parameter_shapes(CONFIG), parameters, strict=True))
    attention = PackedAttention()
    step = attention.inputs(tokens_of(LENGTHS, parameters[0].device), LENGTHS)
    return forward(TorchOps(CONFIG, attention), assemble(CONFIG, lambda name: Plain(named[name]), context_length=64), step)[0]


def random_parameters(device: str = "cpu") -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = parameter_shapes(CONFIG).values()
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("device", DEVICES)
def test_every_parameter_has_the_gradient_of_finite_differences(device: str) -> None:
    assert torch.autograd.gradcheck(logits_of, random_parameters(device), eps=1e-6, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_document_has_no_gradient_of_another(device: str) -> None:
    parameters, tokens = random_parameters(device), tokens_of(LENGTHS).tolist()
    logits_of(*parameters)[4:6].sum().backward()
    assert parameters[0].grad is not None
    used = np.flatnonzero(parameters[0].grad.abs().sum(1).cpu().numpy())
    assert set(used.tolist()) == set(tokens[4:6])  # the head is another matrix


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sparse", [None, TINY, SparseConfig(window_size=64, topk=2, dense_len=-1, has_coarse_lse=True)], ids=str)
@pytest.mark.parametrize("lengths", [[301], [5, 300, 1, 210, 290, 1, 149, 6, 151], [64] * 5], ids=["one", "ragged", "equal"])
def test_packed_documents_are_each_as_alone(lengths: list[int], sparse: SparseConfig | None, device: str) -> None:
    """Logits, and the gradients of every parameter of a sum over all, to rounding in float64."""
    named = dict(zip(parameter_shapes(CONFIG), random_parameters(device), strict=True))
    model = TrainableModel(CONFIG, named, context_length=512)
    tokens, upstream = (
        tokens_of(lengths, device),
        torch.randn(sum(lengths), 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    )
    packed = model(tokens, lengths, sparse=sparse)[0]
    alone = torch.cat([model(document, [len(document)], sparse=sparse)[0] for document in tokens.split(lengths)])
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-12)
    got, wanted = (torch.autograd.grad((logits * upstream.to(device)).sum(), list(model.parameters())) for logits in (packed, alone))
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_buckets_hold_every_document_once_and_little_padding() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        lengths = random.integers(0, 3000, random.integers(1, 60))
        buckets = length_buckets(lengths)
        assert sorted(np.concatenate([*buckets, np.zeros(0, int)]).tolist()) == np.flatnonzero(lengths).tolist()
        assert all(lengths[bucket].min() >= 0.75 * lengths[bucket].max() for bucket in buckets)
        assert len(buckets) <= 1 + np.log(3000) / np.log(4 / 3)


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """The most elements of a tensor that an operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor):
                self.elements = max(self.elements, each.numel())
        return result


@pytest.mark.parametrize("sparse", [None, SparseConfig(window_size=64, topk=2, dense_len=256)], ids=["dense", "sparse"])
def test_memory_is_linear_in_rows(sparse: SparseConfig | None) -> None:
    """Forward and backward: no tensor larger than a row's widest times the rows. Four times the rows, at most four times the largest."""

    def largest(length: int) -> int:
        config = toy_config(num_layers=1, vocab_size=7)
        shape = ((length, config.num_heads, 24), (length, 1, 24), (length, 1, 24))
        q, k, v = (torch.randn(each, requires_grad=True) for each in shape)
        attention = PackedAttention(sparse)
        step = attention.inputs(torch.zeros(length, dtype=torch.int64), [length - 700, 300, 400])
        with LargestTensor() as seen:
            attention.attend(q, k, v, layer=0, step=step.attention).sum().backward()
        return seen.elements

    if sparse is None:
        assert largest(2048) <= 2048 * 8 * 24 * 4 / 3
        assert largest(8192) <= 8192 * 8 * 24 * 4 / 3
    else:  # chunks of a bounded size, and scores of a chunk's rows with a sixteenth of the tokens
        assert largest(8192) <= 1.1 * max(largest(4096), 8192 * 8 * 24)
