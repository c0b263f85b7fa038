"""What weights are in torch: each kind multiplies and reads rows as its numbers do; adapters and rounded weights have the gradients that
their formulas say.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from minicpm4.executors.torch.trainable import TrainableModel, adapter_names, adapter_parameters, with_adapters
from minicpm4.executors.torch.weights import Blocked, FakeQuantized, LowRank, Newest, Pair, Plain, Stored, Weight, fuse
from minicpm4.model.parameters import layer_parameter, parameter_shapes
from minicpm4.quant import dequantize, quantize
from tests.toy import toy_config

GENERATOR = torch.Generator().manual_seed(0)
CONFIG = toy_config(vocab_size=11, hidden_size=8, intermediate_size=6, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4)
IDS = torch.tensor([3, 0, 3])


def random(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64).to(dtype)


def rounded(x: Tensor) -> Tensor:
    return torch.round(x * 2) / 2


def stored() -> Weight:
    return Stored(quantize(np.random.default_rng(0).standard_normal((5, 32), np.float32), "q4_0", name="w"), dtype=torch.float32, device=torch.device("cpu"))  # fmt: skip  # noqa: E501


KINDS: dict[str, Callable[[], Weight]] = {
    "plain": lambda: Plain(random(5, 32)),
    "stored": stored,
    "fake quantized": lambda: FakeQuantized(Plain(random(5, 32)), rounded),
    "adapter": lambda: LowRank(Plain(random(5, 32)), down_RK=random(2, 32), up_NR=random(5, 2), scale=0.7),
    "adapter of stored": lambda: LowRank(stored(), down_RK=random(2, 32).float(), up_NR=random(5, 2).float(), scale=0.7),
    "adapter of rounded": lambda: LowRank(
        FakeQuantized(Plain(random(5, 32)), rounded), down_RK=random(2, 32), up_NR=random(5, 2), scale=2.0
    ),
    "part": lambda: fuse([random(3, 32), random(5, 32)], Newest(), prepare=Plain)[1],
}


@pytest.mark.parametrize("kind", KINDS)
def test_products_and_rows_are_those_of_the_numbers(kind: str) -> None:
    weight = KINDS[kind]()
    values = weight.values()
    x = random(3, 32, dtype=values.dtype)
    torch.testing.assert_close(weight.linear(x), x @ values.T, rtol=0, atol=1e-5 if values.dtype == torch.float32 else 1e-13)
    torch.testing.assert_close(weight.rows(IDS), values[IDS], rtol=0, atol=1e-6 if values.dtype == torch.float32 else 1e-13)


def test_stored_rows_are_dequantized_as_the_whole() -> None:
    weight = stored()
    assert isinstance(weight, Stored)
    np.testing.assert_array_equal(weight.rows(IDS).numpy(), dequantize(weight.stored)[IDS])
    assert weight.nbytes == weight.stored.nbytes


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize(("n", "k"), [(5, 24), (33, 192)], ids=str)
def test_blocks_multiply_as_plain_ones(n: int, k: int, rows: int) -> None:
    """In bfloat16: one rounding of a sum of k products of size one, in another order."""
    values = random(n, k, dtype=torch.bfloat16)
    x = random(rows, k, dtype=torch.bfloat16)
    got, wanted = Blocked(values).linear(x), x.double() @ values.double().T
    torch.testing.assert_close(got.double(), wanted, rtol=2**-8, atol=2**-8 * k**0.5)


def test_parts_share_one_product_and_each_input_has_its_own() -> None:
    calls = []

    class Counted(Plain):
        def linear(self, x_TK: Tensor) -> Tensor:
            calls.append(x_TK)
            return super().linear(x_TK)

    tensors = [random(n, 4) for n in (3, 2, 4)]
    newest = Newest()
    parts = fuse(tensors, newest, prepare=Counted)
    for x in (random(2, 4), random(2, 4)):
        for part, tensor in zip(parts, tensors, strict=True):
            torch.testing.assert_close(part.linear(x), x @ tensor.T)
    assert len(calls) == 2
    assert sum(part.nbytes for part in parts) == sum(tensor.nbytes for tensor in tensors)


def test_a_pair_reads_one_and_multiplies_with_the_other() -> None:
    table, matrix = Plain(random(5, 4)), Plain(random(5, 4))
    pair, x = Pair(table, matrix), random(2, 4)
    torch.testing.assert_close(pair.rows(IDS), table.tensor[IDS])
    torch.testing.assert_close(pair.linear(x), x @ matrix.tensor.T)


def test_rounding_passes_the_gradient_of_the_rounded_numbers_through() -> None:
    """d/dW of sum(upstream * (x @ round(W).T)) is upstream.T @ x, whatever the rounding."""
    exact, x, upstream = random(5, 4).requires_grad_(), random(3, 4).requires_grad_(), random(3, 5)
    weight = FakeQuantized(Plain(exact), rounded)
    assert torch.equal(weight.values(), rounded(exact))
    (weight.linear(x) * upstream).sum().backward()
    torch.testing.assert_close(exact.grad, upstream.T @ x.detach())
    torch.testing.assert_close(x.grad, upstream @ rounded(exact.detach()))


def test_an_adapter_has_the_gradients_of_its_formula() -> None:
    """y = x W' + s (x A') B': dA = s (u B)' x, dB = s u' (x A'), dW = u' x, dx = u (W + s B A)."""
    base, down, up, x = (random(*shape).requires_grad_() for shape in ((5, 4), (2, 4), (5, 2), (3, 4)))
    upstream = random(3, 5)
    (LowRank(Plain(base), down_RK=down, up_NR=up, scale=0.3).linear(x) * upstream).sum().backward()
    w, a, b, rows = (tensor.detach() for tensor in (base, down, up, x))
    torch.testing.assert_close(down.grad, 0.3 * (upstream @ b).T @ rows)
    torch.testing.assert_close(up.grad, 0.3 * upstream.T @ (rows @ a.T))
    torch.testing.assert_close(base.grad, upstream.T @ rows)
    torch.testing.assert_close(x.grad, upstream @ (w + 0.3 * b @ a))


def trainable(**more: Tensor) -> dict[str, Tensor]:
    return {**{name: random(*shape, dtype=torch.float32) * 0.3 for name, shape in parameter_shapes(CONFIG).items()}, **more}


def test_state_has_the_published_names_and_loads() -> None:
    parameters = trainable()
    model, other = TrainableModel(CONFIG, parameters), TrainableModel(CONFIG, trainable())
    state = model.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == parameter_shapes(CONFIG)
    other.load_state_dict(state)
    tokens = torch.arange(7)
    assert torch.equal(model(tokens, [7])[0], other(tokens, [7])[0])


def test_adapters_alone_train_and_begin_without_effect() -> None:
    names = [layer_parameter(index, role) for index in range(2) for role in ("q", "down")]
    shapes = {name: parameter_shapes(CONFIG)[name] for name in names}
    parameters = {name: torch.nn.Parameter(value, requires_grad=False) for name, value in trainable().items()}
    adapters = adapter_parameters(shapes, rank=2, generator=torch.Generator().manual_seed(1))
    plain = TrainableModel(CONFIG, parameters)
    adapted = TrainableModel(CONFIG, {**parameters, **adapters}, wrap=with_adapters(adapters, scale=2.0))
    tokens = torch.arange(9) % 7
    assert torch.equal(plain(tokens, [5, 4])[0], adapted(tokens, [5, 4])[0])
    assert set(adapted.state_dict()) - set(plain.state_dict()) == {each for name in names for each in adapter_names(name)}
    optimizer = torch.optim.SGD([value for value in adapted.parameters() if value.requires_grad], lr=0.5)
    for _ in range(2):  # an adapter's first matrix has no gradient while the second is 0
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(adapted(tokens, [9])[0][:-1], tokens[1:]).backward()
        optimizer.step()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in adapters.values())
    assert all(value.grad is None for value in parameters.values())
    assert not torch.equal(plain(tokens, [9])[0], adapted(tokens, [9])[0])
