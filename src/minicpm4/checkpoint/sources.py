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
    """info: of the parameter; its offset is that of its first bytes. files: those that hold it."""

    @property
    def info(self) -> TensorInfo: ...
    @property
    def files(self) -> tuple[TensorFile, ...]: ...
    def load(self, name: str) -> PackedTensor:
        """The parameter as stored, under the name that is given; CheckpointError where it cannot be had."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file. heads: how many heads its rows must be put in order for (`unpermuted_rows`), 0 for as they are."""

    file: TensorFile
    name: str
    heads: int = 0

    @property
    def info(self) -> TensorInfo:
        return self.file.tensors[self.name]

    @property
    def files(self) -> tuple[TensorFile, ...]:
        return (self.file,)

    def load(self, name: str) -> PackedTensor:
        tensor = replace(self.file.load(self.name), name=name)
        return tensor.take_rows(unpermuted_rows(self.heads, tensor.num_rows // self.heads)) if self.heads else tensor


@dataclass(frozen=True)
class TernaryTensor:
    """A matrix of our ternary container."""

    codes_file: TensorFile
    scales_file: TensorFile
    name: str
    info: TensorInfo

    @property
    def files(self) -> tuple[TensorFile, ...]:
        return (self.codes_file, self.scales_file)

    def load(self, name: str) -> PackedTensor:
        parts = []
        for file, suffix in ((self.codes_file, CODES), (self.scales_file, SCALES)):
            info = file.tensors[self.name + suffix]
            parts.append(file.file.array(info.offset, count=info.nbytes, dtype=np.dtype(np.uint8)).reshape(info.shape[0], -1))
        return join_ternary(name, *parts)


def find_sources(files: list[TensorFile]) -> dict[str, Source]:
    """Every tensor of a folder's safetensors files by its name, ternary matrices put together."""
    found: dict[str, Source] = {name: StoredTensor(file, name) for file in files for name in file.tensors}
    for name, (codes_file, scales_file) in ternary_pairs(files).items():
        if name in found:
            raise CheckpointError(f"tensor {name!r:.100} is stored as codes and scales, and as itself", hint=DAMAGED)
        info = ternary_info(name, found.pop(name + CODES).info, found.pop(name + SCALES).info)
        found[name] = TernaryTensor(codes_file, scales_file, name, info)
    return found
