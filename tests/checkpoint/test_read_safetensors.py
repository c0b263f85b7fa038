"""The safetensors reader: the same bytes as the public library, and a clear refusal of every wrong file."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from checkpoint_files import raw_safetensors, write_safetensors
from hostile import F32, SAFETENSORS
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.checkpoint import TensorFile, read_safetensors
from minicpm4.errors import CheckpointError, MiniCPMError


@pytest.mark.parametrize("stored", ["f32", "f16"])
def test_reads_the_bytes_that_the_public_library_wrote(tmp_path: Path, stored: str) -> None:
    random = np.random.default_rng(1)
    tensors = {"b": random.standard_normal((3, 5)).astype(f"<{stored[0]}{int(stored[1:]) // 8}"), "a": np.ones(7, np.float32)}
    safetensors.numpy.save_file(tensors, tmp_path / "x.safetensors", {"format": "np"})
    file = read_safetensors(tmp_path / "x.safetensors")
    assert file.metadata == {"format": "np"}
    assert set(file.tensors) == {"a", "b"}
    tensor = file.load("b")
    assert (tensor.name, tensor.format.name, tensor.shape, tensor.data.tobytes()) == ("b", stored, (3, 5), tensors["b"].tobytes())
    assert not tensor.data.flags.writeable


def test_bf16_is_read_as_the_public_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors({"a": {"dtype": "BF16", "shape": [3, 4], "data_offsets": [0, 24]}}, bytes(range(24))))
    [(name, public)] = safetensors.deserialize(path.read_bytes())
    tensor = read_safetensors(path).load("a")
    assert (tensor.name, list(tensor.shape), tensor.data.tobytes()) == (name, public["shape"], bytes(public["data"]))
    assert tensor.format.name == "bf16"


def test_another_dtype_is_an_error_only_when_the_tensor_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(
        raw_safetensors({"ids": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}, "a": {**F32, "data_offsets": [16, 24]}}, bytes(24))
    )
    file = read_safetensors(path)
    assert file.load("a").shape == (2,)
    with pytest.raises(CheckpointError, match=r"'ids' is dtype 'I64' \(2,\); supported are"):
        file.load("ids")


@pytest.mark.parametrize("dtype", ["q4_1", "f32", ""], ids=repr)
def test_a_dtype_cannot_pose_as_a_packed_format(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw_safetensors({"a": {"dtype": dtype, "shape": [32], "data_offsets": [0, 20]}}, bytes(20)))
    with pytest.raises(CheckpointError, match="supported are"):
        read_safetensors(path).load("a")


@pytest.mark.parametrize("shape", [[], [1, 1, 2]], ids=str)
def test_only_vectors_and_matrices_are_loaded(tmp_path: Path, shape: list[int]) -> None:
    path = tmp_path / "x.safetensors"
    size = 8 if shape else 4
    path.write_bytes(raw_safetensors({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}, bytes(size)))
    with pytest.raises(CheckpointError, match="vectors and matrices"):
        read_safetensors(path).load("a")


def test_a_header_that_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    text = json.dumps({"a": F32}).encode().ljust(0x280)  # 640 as length: bytes 80 02, those of a pickle
    path.write_bytes(raw_safetensors(text, bytes(8)))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert set(read_safetensors(path).tensors) == {"a"}


@pytest.mark.parametrize("case", SAFETENSORS)
def test_wrong_files_are_refused_with_their_reason(tmp_path: Path, case: str) -> None:
    data, word = SAFETENSORS[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=word) as refusal:
        read_safetensors(path)
    assert refusal.value.hint
    assert len(str(refusal.value)) < 700


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("safetensors") / "small.safetensors"
    write_safetensors(path, {"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)})
    return path


def read_or_refuse(path: Path, data: bytes) -> TensorFile | None:
    """The file as far as the reader takes it, with every tensor loaded and touched; None if it refuses. Other errors fail the test."""
    path.write_bytes(data)
    try:
        file = read_safetensors(path)
        for name in file.tensors:
            int(file.load(name).data.sum())
    except MiniCPMError:
        return None
    return file


def test_truncated_anywhere(small: Path) -> None:
    data = small.read_bytes()
    for size in range(len(data)):
        assert read_or_refuse(small.with_name("cut.safetensors"), data[:size]) is None, size


@settings(max_examples=80, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 7)), min_size=1, max_size=4))
def test_bit_flips(small: Path, flips: list[tuple[int, int]]) -> None:
    data = bytearray(small.read_bytes())
    for position, bit in flips:
        data[position % len(data)] ^= 1 << bit
    read_or_refuse(small.with_name("flipped.safetensors"), bytes(data))


@settings(max_examples=80, deadline=None)
@given(header=st.binary(max_size=200), data=st.binary(max_size=40), is_object=st.booleans())
def test_random_bytes(small: Path, header: bytes, data: bytes, is_object: bool) -> None:
    read_or_refuse(small.with_name("random.safetensors"), raw_safetensors(b"{" + header, data) if is_object else header + data)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["F32", "BF16"]),
    lambda v: st.lists(v, max_size=3), max_leaves=4
)  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(
    header=st.dictionaries(
        st.text(max_size=4) | st.just("__metadata__"),
        JSON_VALUES | st.fixed_dictionaries({"dtype": JSON_VALUES, "shape": JSON_VALUES, "data_offsets": JSON_VALUES}),
        max_size=3,
    )
)
def test_random_headers(small: Path, header: dict[str, object]) -> None:
    read_or_refuse(small.with_name("random.safetensors"), raw_safetensors(header, bytes(16)))
