"""A GGUF model in one file or in several: `name-00001-of-00003.gguf` and the others beside it, as llama.cpp's gguf-split writes them.

The first part has the metadata, and tensors or none; each part says which of how many it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from minicpm4.checkpoint.gguf import read_gguf
from minicpm4.checkpoint.mapped import TensorFile, TensorInfo
from minicpm4.errors import CheckpointError
from minicpm4.model import PackedTensor
from minicpm4.model.config import KeyReader

PART_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
MAX_PARTS = 512  # each takes an open file


@dataclass(frozen=True)
class GGUFParts:
    """files: the parts in order; one for a model in a single file."""

    files: tuple[TensorFile, ...]

    @property
    def name(self) -> str:
        return self.files[0].file.path.name

    @property
    def metadata(self) -> Mapping[str, object]:
        return self.files[0].metadata

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        return {name: info for file in self.files for name, info in file.tensors.items()}

    def file_of(self, tensor: str) -> TensorFile:
        return next(file for file in self.files if tensor in file.tensors)

    def load(self, tensor: str) -> PackedTensor:
        return self.file_of(tensor).load(tensor)


def read_gguf_parts(path: Path) -> GGUFParts:
    """The model whose first or only file this is. CheckpointError for another part, and for parts that are missing or no set."""
    first = read_gguf(path)
    number, count = part_of(first)
    if count <= 1:
        return GGUFParts((first,))
    paths = part_paths(path, count)
    if number != 0:
        raise CheckpointError(f"{path.name} is part {number + 1} of {count}", hint=f"name the first one: {paths[0].name}")
    missing = next((part.name for part in paths if not part.exists()), None)
    if missing is not None:
        raise CheckpointError(f"{path.name} is one of {count} parts, and {missing} is missing", hint="download all parts into one folder")
    parts = GGUFParts((first, *map(read_gguf, paths[1:])))
    check_parts(parts, count)
    return parts


def part_of(file: TensorFile) -> tuple[int, int]:
    """The file's number, from 0, and how many parts there are; (0, 0) for a whole model."""
    reader = KeyReader(file.metadata, "GGUF metadata")
    return reader.get("split.no", int, 0), reader.get("split.count", int, 0)


def part_paths(path: Path, count: int) -> list[Path]:
    match = PART_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count or not 1 < count <= MAX_PARTS:
        raise CheckpointError(
            f"{path.name} is one of {count} parts, but its name does not say so", hint=f"name the parts as NAME-00001-of-{count:05}.gguf"
        )
    return [path.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf") for number in range(1, count + 1)]


def check_parts(parts: GGUFParts, count: int) -> None:
    for number, file in enumerate(parts.files):
        if part_of(file) != (number, count):
            raise CheckpointError(
                f"{file.file.path.name} calls itself part {part_of(file)[0] + 1} of {part_of(file)[1]}, expected {number + 1} of {count}",
                hint="the parts are of different models; download them again",
            )
    total, stated = sum(len(file.tensors) for file in parts.files), parts.metadata.get("split.tensors.count")
    if len(parts.tensors) != total or stated not in (None, total):
        raise CheckpointError(
            f"the {count} parts of {parts.name} hold {total} tensors, {total - len(parts.tensors)} of them twice; expected {stated}",
            hint="the parts are of different models; download them again",
        )


def only_set(paths: list[Path]) -> Path | None:
    """The first of these files if they are one model: a file, or all parts of one."""
    firsts = [path for path in paths if (match := PART_NAME.fullmatch(path.name)) is None or int(match[2]) == 1]
    if len(firsts) != 1:
        return None
    match = PART_NAME.fullmatch(firsts[0].name)
    if match is None:
        return firsts[0] if len(paths) == 1 else None
    is_one_set = all((other := PART_NAME.fullmatch(path.name)) and other[1] == match[1] and other[3] == match[3] for path in paths)
    return firsts[0] if is_one_set else None
