"""Parameters in the form that the torch executor multiplies with: one product for those that meet the same input, and blocks for oneDNN."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from minicpm4.executors.base import WeightLoader
from minicpm4.executors.torch.weights import Blocked, Newest, Pair, Plain, Stored, Weight, fuse
from minicpm4.hardware import Choice
from minicpm4.model import Model, ModelConfig, assemble
from minicpm4.model.parameters import EMBEDDING, layer_parameter
from minicpm4.quant import dequantize

FUSED = (("q", "k", "v"), ("gate", "up"))  # roles of a layer that meet the same input


def choose_products(dtype: torch.dtype, device: torch.device) -> Choice:
    """How matrices are kept."""
    if device.type != "cpu":
        return Choice("products", "plain", "the device's own")
    if dtype != torch.bfloat16:
        return Choice("products", "plain", "float32 gains nothing by blocks")
    if not torch.backends.mkldnn.is_available() or not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return Choice("products", "plain", "oneDNN has no bfloat16 on this CPU")
    return Choice("products", "blocked", "oneDNN's own order is faster for few rows")


class Loader:
    """Gives a weight by its parameter's name, each once; those that are fused are made when the first of them is asked for."""

    def __init__(self, config: ModelConfig, stored: WeightLoader, *, dtype: torch.dtype, device: torch.device, products: str) -> None:
        self.config, self.stored, self.dtype, self.device = config, stored, dtype, device
        self.prepare: Callable[[Tensor], Weight] = Blocked if products == "blocked" else Plain
        self.newest = Newest()
        groups = [[layer_parameter(index, role) for role in roles] for index in range(config.num_layers) for roles in FUSED]
        self._groups = {name: group for group in groups for name in group}
        self._made: dict[str, Weight] = {}

    def model(self, context_length: int) -> Model[Weight]:
        return assemble(self.config, self, context_length=context_length)

    def __call__(self, name: str) -> Weight:
        if name in self._groups and name not in self._made:
            group = self._groups[name]
            tensors = [self.read(member) for member in group]
            self._made |= zip(group, fuse(tensors, self.newest, prepare=self.prepare), strict=True)
        if name in self._made:
            return self._made.pop(name)
        if name == EMBEDDING and self.device.type == "cpu":
            return self.embedding()
        tensor = self.read(name)
        return self.prepare(tensor) if tensor.ndim == 2 and name != EMBEDDING else Plain(tensor)

    def embedding(self) -> Weight:
        """A step reads few of its rows: they are read as the file has them, and take no memory. A tied head is multiplied with."""
        stored = self.stored(EMBEDDING)
        table = Stored(stored, dtype=self.dtype, device=self.device)
        if not self.config.has_tied_head:
            return table
        return Pair(table, self.prepare(torch.from_numpy(dequantize(stored)).to(self.dtype)))

    def read(self, name: str) -> Tensor:
        """Dequantized."""
        return torch.from_numpy(dequantize(self.stored(name))).to(self.device, self.dtype)
