"""Packed weights that are kept in a file: what is read back is what was packed, and whatever is wrong with the file is found."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from minicpm4 import _native
from minicpm4.errors import UnsupportedError
from minicpm4.executors import Executor, Preferences, resolve_options
from minicpm4.executors.native import tile_cache
from minicpm4.model import PackedTensor
from minicpm4.model.tensors import STORAGE_FORMATS
from tests.quant.storage import random_tensor
from tests.toy import plan_step, toy_config, toy_executor, toy_weights

WIDE = toy_config(hidden_size=256, intermediate_size=512, num_heads=16, head_dim=16)
STEP = plan_step([([1, 2, 3, 4], 0, [0])])


def executor_of(path: Path | None, weights: dict[str, PackedTensor], **options: object) -> Executor:
    return toy_executor("native", WIDE, weights, tile_cache=path, **options)


def choice_of(executor: Executor) -> str | None:
    return next((choice.value for choice in executor.choices if choice.what == "packed weights"), None)


def matrices_unread(weights: dict[str, PackedTensor]) -> dict[str, PackedTensor]:
    """The same, without what need not be loaded when the file is there: reading a matrix is a KeyError."""
    return {name: tensor for name, tensor in weights.items() if len(tensor.shape) == 1}


@pytest.mark.parametrize("name", STORAGE_FORMATS)
def test_the_second_load_reads_what_the_first_kept(tmp_path: Path, name: str) -> None:
    path, weights = tmp_path / "cache" / "model.bin", toy_weights(WIDE, format_name=name)
    first = executor_of(path, weights, activations="int8")
    second = executor_of(path, matrices_unread(weights), activations="int8", threads=1)
    plain = executor_of(None, weights, activations="int8")
    assert [choice_of(executor) for executor in (first, second, plain)] == ["made and kept", "kept ones", None]
    assert first.weight_bytes == second.weight_bytes == plain.weight_bytes
    for executor in (first, second):
        np.testing.assert_array_equal(executor.run(STEP).logits, plain.run(STEP).logits)
        assert executor.warnings == ()
    assert [file.name for file in path.parent.iterdir()] == ["model.bin"]  # nothing unfinished is left


def changed(offset: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda data: b"", "does not begin as such a file does"),
        (lambda data: b"GGUF" + data[4:], "does not begin as such a file does"),
        (lambda data: data[:8] + b"\xff" * 8 + data[16:], "does not begin as such a file does"),
        (changed(30), "the header's checksum is wrong"),
        (changed(17), "the header's checksum is wrong"),
        (lambda data: data[:200], "the header's checksum is wrong"),
        (changed(-1), "the checksum is wrong"),
        (changed(-20_000), "the checksum is wrong"),
        (lambda data: data[:-64], "the file is too short"),
    ],
)
def test_a_file_that_is_not_what_was_written_is_made_again(tmp_path: Path, spoil: Callable[[bytes], bytes], problem: str) -> None:
    path, weights = tmp_path / "model.bin", toy_weights(WIDE, format_name="q4_0")
    executor_of(path, weights)
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    again = executor_of(path, weights)
    assert len(again.warnings) == 1
    assert again.warnings[0].startswith(f"the packed weights in {path} are made again: it ")
    assert problem in again.warnings[0]
    assert path.read_bytes() == whole
    np.testing.assert_array_equal(again.run(STEP).logits, executor_of(None, weights).run(STEP).logits)


def test_files_of_other_models_and_versions_are_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, weights = tmp_path / "model.bin", toy_weights(WIDE, format_name="q4_0")
    narrow = toy_config(num_layers=2)
    toy_executor("native", narrow, toy_weights(narrow), tile_cache=path)
    assert "it holds other matrices than the model" in executor_of(path, weights).warnings[0]
    monkeypatch.setattr(_native, "PACKED_FORM", "another")
    assert "it was written by another version" in executor_of(path, weights).warnings[0]
    assert executor_of(path, weights).warnings == ()


def test_a_header_that_lies_is_refused(tmp_path: Path) -> None:
    """One whose checksum is right: sizes are checked against the formats, places against the file."""
    path, pool = tmp_path / "model.bin", _native.ThreadPool(2)
    tensor = random_tensor("q4_0", 16, 64)
    weight = _native.pack("q4_0", 16, 64, tensor.data, pool, _native.Arena())
    entry = {"format": "q4_0", "shape": [16, 64], "offset": 1024, "checksum": weight.checksum(pool)}
    for lie in ({"offset": 1 << 62}, {"offset": -1}, {"format": "q3_k"}, {"format": "q4_k"}, {"checksum": "x"}, {"shape": [16, 65]}):
        header = json.dumps({"form": _native.PACKED_FORM, "matrices": {"w": entry | lie}}).encode()
        crc = tile_cache.zlib.crc32(header).to_bytes(4, "little")
        start = tile_cache.MAGIC + len(header).to_bytes(8, "little") + crc + header
        path.write_bytes(start.ljust(1024, b"\0") + weight.bytes().tobytes())
        with pytest.raises(tile_cache.TileCacheError, match="it is damaged"):
            tile_cache.read_tiles(path, {"w": tuple((entry | lie)["shape"])}, pool)


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    executor = executor_of(tmp_path / "file" / "model.bin", toy_weights(WIDE, format_name="q4_0"))
    assert len(executor.warnings) == 2  # it cannot be read, nor written
    assert "cannot be kept in" in executor.warnings[1]
    executor.run(STEP)


def test_checksums_show_any_change_and_do_not_depend_on_threads() -> None:
    tensor = random_tensor("q8_0", 256, 8192)  # several pieces
    one, two = _native.ThreadPool(1), _native.ThreadPool(2)
    packed = _native.pack("q8_0", 256, 8192, tensor.data, two, _native.Arena())
    assert packed.checksum(one) == packed.checksum(two)
    seen = {packed.checksum(one)}
    for at in (0, 33, 1_000_000):
        data = tensor.data.copy()
        data.reshape(-1)[at] ^= 4
        seen.add(_native.pack("q8_0", 256, 8192, data, two, _native.Arena()).checksum(two))
    assert len(seen) == 4


@pytest.mark.parametrize("executor", ["reference", "torch"])
def test_other_executors_pack_nothing(tmp_path: Path, executor: str) -> None:
    with pytest.raises(UnsupportedError, match=f"executor {executor} has no tile_cache to set to .*leave out --tile-cache"):
        resolve_options(executor, Preferences(tile_cache=tmp_path / "model.bin"), WIDE)


def test_an_unfinished_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, weights = tmp_path / "model.bin", toy_weights(WIDE, format_name="q4_0")
    path.write_bytes(b"old")

    def fail(file: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(tile_cache, "write_matrices", lambda file, matrices, pool: fail(file))
    assert "No space left on device" in executor_of(path, weights).warnings[1]
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("model.bin", b"old")]
