"""A model whose parameters train: a module with the published names, and the project's forward pass over packed documents."""

# T rows, R rows that give logits, V vocabulary, K hidden size

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from minicpm4.executors.torch.ops import TorchOps
from minicpm4.executors.torch.packed import PackedAttention
from minicpm4.executors.torch.weights import LowRank, Plain, Weight
from minicpm4.model import ModelConfig, assemble, forward
from minicpm4.model.config import SparseConfig
from minicpm4.model.forward import RunBlock

Wrap = Callable[[str, Weight], Weight]


class TrainableModel(nn.Module):
    """Parameters are registered under the names that they are given by: `state_dict` is a published checkpoint, and what was added to it.

    parameters: those of the config, float32 or bfloat16; others are registered beside them (adapters). wrap: what a parameter is multiplied
    as, by its name: fake-quantized, or with an adapter; plain unless given.
    """

    def __init__(
        self, config: ModelConfig, parameters: Mapping[str, Tensor], *, context_length: int | None = None, wrap: Wrap | None = None
    ) -> None:
        super().__init__()
        self.config, self.context_length = config, context_length or config.context_length
        self._wrap = wrap or (lambda name, weight: weight)
        for name, tensor in parameters.items():
            *modules, own = name.split(".")
            module: nn.Module = self
            for part in modules:
                if part not in dict(module.named_children()):
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(own, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor))

    def forward(
        self,
        tokens_T: Tensor,
        lengths: Sequence[int],
        *,
        logit_rows_R: Tensor | None = None,
        sparse: SparseConfig | None = None,
        run_block: RunBlock | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [R, V] and hidden states [R, K] of packed documents of these lengths; of all rows unless some are asked for.

        sparse: the rule of attention, None for dense; both read the same parameters. run_block: see `model.forward.forward`.
        """
        attention = PackedAttention(sparse)
        model = assemble(self.config, self.weight, context_length=self.context_length)
        step = attention.inputs(tokens_T, lengths, logit_rows_R=logit_rows_R)
        return forward(TorchOps(self.config, attention), model, step, run_block=run_block)

    def weight(self, name: str) -> Weight:
        return self._wrap(name, Plain(self.get_parameter(name)))


def adapter_parameters(shapes: Mapping[str, tuple[int, ...]], *, rank: int, generator: torch.Generator) -> dict[str, nn.Parameter]:
    """Of matrices with these shapes, by their names: what LoRA trains beside them, at first without effect."""
    made = {}
    for name, (num_out, num_in) in shapes.items():
        down, up = adapter_names(name)
        made[down] = nn.Parameter(torch.randn((rank, num_in), generator=generator) * num_in**-0.5)
        made[up] = nn.Parameter(torch.zeros((num_out, rank)))
    return made


def adapter_names(name: str) -> tuple[str, str]:
    """Of the matrices of a parameter's adapter, as PEFT names them: down and up."""
    module = name.removesuffix(".weight")
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def with_adapters(parameters: Mapping[str, Tensor], *, scale: float) -> Wrap:
    """Wraps the parameters that have an adapter among these."""

    def wrap(name: str, weight: Weight) -> Weight:
        down, up = adapter_names(name)
        if down not in parameters:
            return weight
        return LowRank(weight, down_RK=parameters[down], up_NR=parameters[up], scale=scale)

    return wrap
