"""What `open_checkpoint` takes and refuses, what stays valid after closing, and that hostile files cost little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_files import TINY_JSON, gguf_array, gguf_key, raw_gguf, tiny_weights, write_folder, write_gguf_model
from hostile import FOREIGN, GGUF, SAFETENSORS, Canary
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.checkpoint import open_checkpoint, read_gguf, read_safetensors
from minicpm4.errors import CheckpointError, MiniCPMError

NORM = "model.norm.weight"


def test_a_folder_with_one_gguf_file(tmp_path: Path) -> None:
    write_gguf_model(tmp_path / "x.gguf")
    assert open_checkpoint(tmp_path).path == tmp_path / "x.gguf"
    write_gguf_model(tmp_path / "y.gguf")
    with pytest.raises(CheckpointError, match="holds 2 GGUF files; name one"):
        open_checkpoint(tmp_path)


def test_safetensors_go_before_gguf(tmp_path: Path) -> None:
    write_gguf_model(tmp_path / "x.gguf")
    write_folder(tmp_path)
    assert open_checkpoint(tmp_path).folder == tmp_path


def test_a_gguf_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    write_gguf_model(tmp_path / "model.bin")
    assert open_checkpoint(tmp_path / "model.bin").config.num_layers == 2


def test_a_single_safetensors_file_of_another_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert len(open_checkpoint(folder).tensors) == len(tiny_weights())
    (folder / "more.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"2 safetensors files but no model.safetensors.index.json"):
        open_checkpoint(folder)


def test_a_file_of_a_folder_is_not_a_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    for file in ("model.safetensors", "config.json"):
        with pytest.raises(CheckpointError, match="is not a GGUF file; name the folder"):
            open_checkpoint(folder / file)


def test_empty_and_half_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config.json and no .gguf file"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY_JSON))
    with pytest.raises(CheckpointError, match=r"holds no weights; expected model.safetensors"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["absent", "../absent", "/absent/x.gguf", "nul\0nul", "x" * 4096, "\udc80\ud800", "/dev/null", "/dev/zero"], ids=ascii
)
def test_names_that_lead_nowhere(name: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        open_checkpoint(Path(name))
    assert refusal.value.hint
    str(refusal.value).encode()  # it can be printed
    assert len(str(refusal.value)) < 600


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch(mode=0)
    with pytest.raises(CheckpointError, match="Permission denied; check the path"):
        open_checkpoint(tmp_path / "x.gguf")


def test_files_that_the_system_does_not_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user without permission meets them, whoever runs the tests."""

    def denied(*arguments: object, **details: object) -> None:
        raise PermissionError(13, "Permission denied")

    write_gguf_model(tmp_path / "x.gguf")
    folder = write_folder(tmp_path / "tiny")
    monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(CheckpointError, match=r"cannot read .*x.gguf': Permission denied; check the path and its permissions"):
        open_checkpoint(tmp_path / "x.gguf")
    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(CheckpointError, match=r"cannot read .*config.json': Permission denied; check the folder and its permissions"):
        open_checkpoint(folder)
    monkeypatch.setattr(Path, "glob", denied)
    with pytest.raises(CheckpointError, match=r"cannot open .*tiny': .*Permission denied; check the path and its permissions"):
        open_checkpoint(folder)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    with pytest.raises(CheckpointError, match=r"cannot read .*x.gguf': cannot mmap an empty file; download the file again"):
        open_checkpoint(tmp_path / "x.gguf")


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_told_by_their_first_bytes(tmp_path: Path, name: str) -> None:
    data, word = FOREIGN[name]
    (tmp_path / name).write_bytes(data)
    if name.endswith(".safetensors"):
        (tmp_path / "config.json").write_text(json.dumps(TINY_JSON))
        (tmp_path / name).rename(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=word) as refusal:
        open_checkpoint(tmp_path if name.endswith(".safetensors") else tmp_path / name)
    assert refusal.value.hint


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.pkl", "model.ckpt", "weights.npy"])
def test_pickles_are_refused_and_never_run(tmp_path: Path, name: str) -> None:
    import pickle

    (tmp_path / name).write_bytes(pickle.dumps(Canary(str(tmp_path / "ran"))))
    (tmp_path / "config.json").write_text(json.dumps(TINY_JSON))
    with pytest.raises(CheckpointError, match="convert it to safetensors"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="is a Python pickle; it is not read, since reading it can run code"):
        open_checkpoint(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="is a Python pickle"):
        open_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()
    pickle.loads((tmp_path / "model.safetensors").read_bytes())
    assert (tmp_path / "ran").exists()  # the canary was alive


def test_arrays_outlive_the_checkpoint_and_loading_does_not(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_folder(tmp_path))
    kept = checkpoint.load(NORM)
    checkpoint.release()
    checkpoint.close()
    checkpoint.close()
    checkpoint.release()
    assert kept.data.tobytes() == tiny_weights()[NORM].tobytes()
    with pytest.raises(CheckpointError, match="was closed; open the checkpoint again"):
        checkpoint.load(NORM)


def test_an_unknown_name_is_our_own_mistake(tmp_path: Path) -> None:
    with open_checkpoint(write_folder(tmp_path)) as checkpoint, pytest.raises(KeyError):
        checkpoint.load("nonsense")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small.gguf"
    write_gguf_model(path)
    return path


@settings(max_examples=120, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 7)), min_size=1, max_size=3))
def test_bit_flips_in_a_model(small: Path, flips: list[tuple[int, int]]) -> None:
    data = bytearray(small.read_bytes())
    for position, bit in flips:  # metadata and tensor table take the first 2.7 thousand bytes
        data[position] ^= 1 << bit
    path = small.with_name("flipped.gguf")
    path.write_bytes(data)
    try:
        with open_checkpoint(path) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.load(name)
    except MiniCPMError:
        return


CHILD = """
import json, resource, sys
from pathlib import Path
from minicpm4.checkpoint import read_gguf, read_safetensors
from minicpm4.hardware import peak_memory
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
before, results = peak_memory(), {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        (read_gguf if path.suffix == ".gguf" else read_safetensors)(path)
        results[path.name] = "opened"
    except Exception as error:
        results[path.name] = type(error).__name__
print(json.dumps({"results": results, "grown": peak_memory() - before}))
"""


def test_hostile_files_take_little_memory(tmp_path: Path) -> None:
    """Every hostile file, and some that are all size, in one process that may address 1 GiB."""
    for suffix, cases in (("safetensors", SAFETENSORS), ("gguf", GGUF)):
        for name, (data, _) in cases.items():
            (tmp_path / f"{name}.{suffix}").write_bytes(data)
    for name, start, size in (
        ("sparse-header.safetensors", (99_000_000).to_bytes(8, "little") + b"{", 100_000_000),
        ("long-name.safetensors", ((8 << 20) + 12).to_bytes(8, "little") + '{"\U0001f600'.encode() + b"a" * (8 << 20) + b'":1}  ', 0),
        ("many-strings.gguf", raw_gguf([gguf_key("a", 9, gguf_array(8, 2_000_000, b""))]), 100 << 20),
        ("larger-than-memory.gguf", raw_gguf(), 4 << 30),
    ):
        with open(tmp_path / name, "wb") as file:
            file.write(start)
            file.truncate(max(size, len(start)))  # sparse: no disk is used
    run = subprocess.run([sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    report = json.loads(run.stdout)
    assert {name: kind for name, kind in report["results"].items() if kind != "CheckpointError"} == {"many-strings.gguf": "opened"}
    assert report["grown"] < 300 << 20


def test_readers_are_public(tmp_path: Path) -> None:
    write_gguf_model(tmp_path / "x.gguf")
    assert "token_embd.weight" in read_gguf(tmp_path / "x.gguf").tensors
    assert NORM in read_safetensors(write_folder(tmp_path / "y") / "model.safetensors").tensors
