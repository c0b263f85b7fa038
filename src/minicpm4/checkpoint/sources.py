"""Where a parameter lies in a model's files, and how it is had from there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from minicpm4.checkpoint.gguf_model import unpermuted_rows
from minicpm4.checkpoint.mapped import TensorFile, TensorInfo
from minicpm4.checkpoint.ternary_container import CODES, DAMAGED, SCALES, join_ternary, ternary_info, ternary_pairs
from minicpm4.errors import CheckpointError
from minicpm4.model import PackedTensor


class Source(Protocol):
    """info: of the parameter; its offset is that of its first bytes. parts: the tensors that make it, each with its file.

    heads: how many heads its rows must be put in order for (`unpermuted_rows`), 0 for as they are.
    """

    @property
    def info(self) -> TensorInfo: ...
    @property
    def parts(self) -> tuple[tuple[TensorFile, TensorInfo], ...]: ...
    @property
    def heads(self) -> int: ...
    def load(self, name: str) -> PackedTensor:
        """The parameter as stored, under the name that is given; CheckpointError where it cannot be had."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file."""

    file: TensorFile
    name: str
    heads: int = 0

    @property
    def info(self) -> TensorInfo:
        return self.file.tensors[self.name]

    @property
    def parts(self) -> tuple[tuple[TensorFile, TensorInfo], ...]:
        return ((self.file, self.info),)

    def load(self, name: str) -> PackedTensor:
        tensor = replace(self.file.load(self.name), name=name)
        if not self.heads:
            return tensor
        rows = unpermuted_rows(self.heads, tensor.shape[0] // self.heads)
        return tensor.take_rows(rows) if len(tensor.shape) == 2 else tensor.take_elements(rows)


@dataclass(frozen=True)
class TernaryTensor:
    """A matrix of our ternary container."""

    codes_file: TensorFile
    scales_file: TensorFile
    name: str
    info: TensorInfo
    heads: int = 0

    @property
    def parts(self) -> tuple[tuple[TensorFile, TensorInfo], ...]:
        files = ((self.codes_file, CODES), (self.scales_file, SCALES))
        return tuple((file, file.tensors[self.name + suffix]) for file, suffix in files)

    def load(self, name: str) -> PackedTensor:
        codes, scales = (
            file.file.array(info.offset, count=info.nbytes, dtype=np.dtype(np.uint8)).reshape(info.shape[0], -1)
            for file, info in self.parts
        )
        return join_ternary(name, codes, scales)


def find_sources(files: list[TensorFile]) -> dict[str, Source]:
    """Every tensor of a folder's safetensors files by its name, ternary matrices put together."""
    found: dict[str, Source] = {name: StoredTensor(file, name) for file in files for name in file.tensors}
    for name, (codes_file, scales_file) in ternary_pairs(files).items():
        if name in found:
            raise CheckpointError(f"tensor {name!r:.100} is stored as codes and scales, and as itself", hint=DAMAGED)
        info = ternary_info(name, found.pop(name + CODES).info, found.pop(name + SCALES).info)
        found[name] = TernaryTensor(codes_file, scales_file, name, info)
    return found
