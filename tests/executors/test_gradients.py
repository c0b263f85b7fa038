"""Gradients through the torch operations: of every parameter, against finite differences in float64."""

import numpy as np
import pytest
import torch

from minicpm4.executors.torch.ops import TorchCache, TorchOps, TorchStep
from minicpm4.model import assemble, forward
from minicpm4.model.parameters import parameter_shapes
from tests.toy import DEVICES, plan_step, toy_config

CONFIG = toy_config(vocab_size=7, hidden_size=6, intermediate_size=5, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)
# Two sequences in one batch: what one's gradient must not do is reach the other.
STEP = plan_step([([1, 5, 3, 5], 0, [1]), ([6, 2], 0, [0])])


def logits_of(*parameters: torch.Tensor) -> torch.Tensor:
    named = dict(zip(parameter_shapes(CONFIG), parameters, strict=True))
    device = parameters[0].device
    ops = TorchOps(CONFIG, TorchCache.empty(CONFIG, 2, dtype=torch.float64, device=device))
    return forward(ops, assemble(CONFIG, named.__getitem__, context_length=64), TorchStep.of(STEP, device))[0]


@pytest.fixture(params=DEVICES)
def parameters(request: pytest.FixtureRequest) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = parameter_shapes(CONFIG).values()
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(request.param).requires_grad_() for shape in shapes]


def test_every_parameter_has_the_gradient_of_finite_differences(parameters: list[torch.Tensor]) -> None:
    assert torch.autograd.gradcheck(logits_of, parameters, eps=1e-6, atol=1e-6, rtol=1e-4)


def test_a_sequence_has_no_gradient_of_another(parameters: list[torch.Tensor]) -> None:
    logits_of(*parameters)[:4].sum().backward()
    used = np.flatnonzero(parameters[0].grad.abs().sum(1).cpu().numpy())
    assert set(used.tolist()) == {1, 3, 5}  # the first sequence's tokens; the head is another matrix
