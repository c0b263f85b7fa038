"""GGUF's tensor types: the two formats under Q2_0's number, types that are refused by name, version 2, and models in several files."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from checkpoint_files import gguf_key, gguf_string, gguf_tensor, raw_gguf, tiny_weights, write_gguf_model

from minicpm4.checkpoint import open_checkpoint, read_gguf
from minicpm4.checkpoint.gguf_types import OTHER_TYPES, Q2_0_TYPE, format_of_type
from minicpm4.errors import CheckpointError

KEYS = [gguf_key("general.architecture", 8, gguf_string("llama"))]
SHAPES = {"a": (3, 128), "b": (5, 256), "norm": (7,)}
GROUP_BYTES = {64: 18, 128: 34}


def q2_0_file(path: Path, group: int, *, alignment: int = 32, tail: int = 0, shapes: dict[str, tuple[int, ...]] | None = None) -> Path:
    """Tensors of Q2_0 and a vector of float32, as a writer with groups of this size places them; tail: bytes after the last."""
    table, data = [], b""
    for name, shape in (SHAPES if shapes is None else shapes).items():
        is_vector = len(shape) == 1
        size = 4 * shape[0] if is_vector else math.prod(shape) // group * GROUP_BYTES[group]
        data += bytes(-len(data) % alignment)
        table.append(gguf_tensor(name, reversed(shape), 0 if is_vector else Q2_0_TYPE, len(data)))
        data += bytes(size)
    path.write_bytes(raw_gguf(KEYS, table, data + bytes(tail)))
    return path


@pytest.mark.parametrize("tail", [0, 31])
@pytest.mark.parametrize(("group", "name"), [(64, "q2_0"), (128, "q2_0_g128")])
def test_the_group_of_q2_0_is_told_by_the_room(tmp_path: Path, group: int, name: str, tail: int) -> None:
    file = read_gguf(q2_0_file(tmp_path / "x.gguf", group, tail=tail))
    assert {info.format for info in file.tensors.values()} == {name, "f32"}
    assert file.load("b").data.nbytes == 5 * 256 // group * GROUP_BYTES[group]


def test_rows_that_only_one_group_divides(tmp_path: Path) -> None:
    file = read_gguf(q2_0_file(tmp_path / "x.gguf", 64, shapes={"a": (3, 192)}))
    assert file.tensors["a"].format == "q2_0"


@pytest.mark.parametrize("tail", [40, -20])
def test_bytes_that_no_group_has(tmp_path: Path, tail: int) -> None:
    path = q2_0_file(tmp_path / "x.gguf", 64, tail=max(0, tail), shapes={"a": (3, 128)})
    path.write_bytes(path.read_bytes()[: tail if tail < 0 else None])
    with pytest.raises(CheckpointError, match="neither the bytes of groups of 64"):
        read_gguf(path)


@pytest.mark.parametrize("number", OTHER_TYPES)
def test_types_that_are_not_read_are_refused_by_name(tmp_path: Path, number: int) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(raw_gguf(KEYS, [gguf_tensor("m", [256, 2], number)], bytes(4096)))
    with pytest.raises(CheckpointError, match=rf"x\.gguf: tensor 'm' has type {number}, {OTHER_TYPES[number]}\b.*not supported") as refusal:
        read_gguf(path)
    assert "q4_k" in str(refusal.value.hint)


def test_a_type_of_no_name() -> None:
    with pytest.raises(CheckpointError, match="f has type 99, which is unknown: not supported"):
        format_of_type(99, group=64, where="f")
    with pytest.raises(CheckpointError, match="PQ2_0, whose weights need transformed activations"):
        format_of_type(142, group=64, where="f")


def test_version_2_reads_as_version_3(tmp_path: Path) -> None:
    for version in (2, 3):
        (tmp_path / f"{version}.gguf").write_bytes(raw_gguf(KEYS, [gguf_tensor("m", [4, 2])], bytes(range(32)), version=version))
    old, new = (read_gguf(tmp_path / f"{version}.gguf") for version in (2, 3))
    assert old.metadata == new.metadata
    assert np.array_equal(old.load("m").data, new.load("m").data)


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    write_gguf_model(tmp_path / "m", max_tensors=8)
    return sorted(tmp_path.glob("m-*.gguf"))


def test_parts_are_one_model(parts: list[Path]) -> None:
    assert len(parts) == 3
    for named in (parts[0], parts[0].parent):
        with open_checkpoint(named) as checkpoint:
            assert checkpoint.file_bytes == sum(part.stat().st_size for part in parts)
            for name, weight in tiny_weights().items():
                assert checkpoint.load(name).data.tobytes() == weight.tobytes()


def test_a_part_that_is_missing(parts: list[Path]) -> None:
    parts[2].unlink()
    with pytest.raises(CheckpointError, match=re.escape(f"{parts[0].name} is one of 3 parts, and {parts[2].name} is missing")):
        open_checkpoint(parts[0])


def test_another_part_than_the_first(parts: list[Path]) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"{parts[1].name} is part 2 of 3; name the first one: {parts[0].name}")):
        open_checkpoint(parts[1])


def test_a_part_twice(parts: list[Path]) -> None:
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(CheckpointError, match="calls itself part 2 of 3, expected 3 of 3"):
        open_checkpoint(parts[0])
