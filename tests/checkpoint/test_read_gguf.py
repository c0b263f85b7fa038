"""The GGUF reader: what the public package wrote, byte for byte, and a clear refusal of every wrong file."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from checkpoint_files import close_writer, gguf_array, gguf_key, gguf_string, gguf_tensor, raw_gguf
from hostile import GGUF
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.checkpoint import StringArray, TensorFile, read_gguf
from minicpm4.checkpoint.gguf_types import FORMAT_OF_TYPE
from minicpm4.errors import CheckpointError, MiniCPMError
from minicpm4.model.tensors import STORAGE_FORMATS


@pytest.mark.parametrize("name", FORMAT_OF_TYPE.values())
def test_every_format_has_the_bytes_that_the_public_package_wrote(tmp_path: Path, name: str) -> None:
    storage = STORAGE_FORMATS[name]
    data = np.random.default_rng(2).integers(0, 256, (3, storage.row_bytes(512)), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("first", np.ones(5, np.float32))
    writer.add_tensor("a", data, raw_dtype=gguf.GGMLQuantizationType[name.upper()])
    close_writer(writer)
    tensor = read_gguf(tmp_path / "x.gguf").load("a")
    assert (tensor.format, tensor.shape) == (storage, (3, 512))
    assert np.array_equal(tensor.data, data)
    assert not tensor.data.flags.writeable


def test_reads_every_kind_of_metadata(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -30000)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -2_000_000_000)
    writer.add_float32("f32", 0.5)
    writer.add_bool("yes", True)
    writer.add_string("text", "Grüße 词")
    writer.add_uint64("u64", 1 << 63)
    writer.add_int64("i64", -(1 << 62))
    writer.add_float64("f64", 1e300)
    writer.add_array("numbers", [1.5, -2.5])
    writer.add_array("flags", [True, False])
    writer.add_array("words", ["a", "", "词", "d e"])
    writer.add_array("empty", [""])
    close_writer(writer)
    found = read_gguf(tmp_path / "x.gguf").metadata
    scalars = {key: value for key, value in found.items() if isinstance(value, int | float | str)}
    assert scalars == {
        "general.architecture": "llama", "u8": 200, "i8": -100, "u16": 60000, "i16": -30000, "u32": 4_000_000_000, "i32": -2_000_000_000,
        "f32": 0.5, "yes": True, "text": "Grüße 词", "u64": 1 << 63, "i64": -(1 << 62), "f64": 1e300,
    }  # fmt: skip
    assert scalars["yes"] is True
    assert isinstance(found["numbers"], np.ndarray)
    assert (found["numbers"].dtype, found["numbers"].tolist()) == (np.float32, [1.5, -2.5])
    assert isinstance(found["flags"], np.ndarray)
    assert (found["flags"].dtype, found["flags"].tolist()) == (np.bool_, [True, False])
    words = found["words"]
    assert isinstance(words, StringArray)
    assert (list(words), len(words), words[2], words[-1], words[1:3]) == (["a", "", "词", "d e"], 4, "词", "d e", ["", "词"])
    with pytest.raises(IndexError):
        words[4]


def test_a_token_that_is_not_utf8_is_an_error_when_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(raw_gguf([gguf_key("tokens", 9, gguf_array(8, 2, gguf_string("ok") + gguf_string(b"\xff")))]))
    tokens = read_gguf(path).metadata["tokens"]
    assert isinstance(tokens, StringArray)
    assert tokens[0] == "ok"
    with pytest.raises(CheckpointError, match=r"'tokens'\[1\] is not UTF-8"):
        list(tokens)


def test_alignment_of_the_file_is_kept(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_custom_alignment(256)
    for name in "abc":
        writer.add_tensor(name, np.full(3, ord(name), np.float32))
    close_writer(writer)
    file = read_gguf(tmp_path / "x.gguf")
    assert [info.offset % 256 for info in file.tensors.values()] == [0, 0, 0]
    assert [file.load(name).data[0].view("<f4").tolist() for name in "abc"] == [[97.0] * 3, [98.0] * 3, [99.0] * 3]


@pytest.mark.parametrize("case", GGUF)
def test_wrong_files_are_refused_with_their_reason(tmp_path: Path, case: str) -> None:
    data, word = GGUF[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as refusal:
        read_gguf(path)
    assert word in str(refusal.value)
    assert refusal.value.hint
    assert len(str(refusal.value)) < 700


def test_a_header_larger_than_its_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(raw_gguf([gguf_key("a", 9, gguf_array(0, 64 << 20, b""))]))
    with open(path, "r+b") as file:
        file.truncate(100 << 20)  # sparse: no disk is used
    with pytest.raises(CheckpointError, match="limit of 64 MiB"):
        read_gguf(path)


def small_gguf() -> bytes:
    keys = [
        gguf_key("general.architecture", 8, gguf_string("llama")),
        gguf_key("n", 4, struct.pack("<I", 7)),
        gguf_key("words", 9, gguf_array(8, 2, gguf_string("a") + gguf_string("bc"))),
        gguf_key("numbers", 9, gguf_array(6, 3, bytes(12))),
    ]
    return raw_gguf(keys, [gguf_tensor("m", [32, 2], 8), gguf_tensor("v", [3], 0, 96)], bytes(96 + 12))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gguf") / "x.gguf"


def read_or_refuse(path: Path, data: bytes) -> TensorFile | None:
    """The file as far as the reader takes it, with everything in it touched; None if it refuses. Other errors fail the test."""
    path.write_bytes(data)
    try:
        file = read_gguf(path)
        for name in file.tensors:
            int(file.load(name).data.sum())
        for value in file.metadata.values():
            assert not isinstance(value, StringArray) or list(value) is not None
    except MiniCPMError:
        return None
    return file


def test_truncated_anywhere(place: Path) -> None:
    data = small_gguf()
    assert read_or_refuse(place, data) is not None
    for size in range(len(data)):
        assert read_or_refuse(place, data[:size]) is None, size


@settings(max_examples=200, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 7)), min_size=1, max_size=4))
def test_bit_flips(place: Path, flips: list[tuple[int, int]]) -> None:
    data = bytearray(small_gguf())
    for position, bit in flips:
        data[position % len(data)] ^= 1 << bit
    read_or_refuse(place, bytes(data))


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=200), tensors=st.integers(0, 3), keys=st.integers(0, 3), is_headed=st.booleans())
def test_random_bytes(place: Path, data: bytes, tensors: int, keys: int, is_headed: bool) -> None:
    read_or_refuse(place, b"GGUF" + struct.pack("<Iqq", 3, tensors, keys) + data if is_headed else data)
