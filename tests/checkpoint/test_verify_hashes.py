"""Sums of model files: from a manifest, from the hub's cache, from the pinned default; and one flipped byte is found."""

import hashlib
from pathlib import Path

import pytest
from checkpoint_files import write_folder

from minicpm4.checkpoint import hash_files, open_checkpoint
from minicpm4.checkpoint.default_model import DEFAULT_MODEL
from minicpm4.errors import CheckpointError


def sum_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_manifest_finds_one_flipped_byte_in_a_shard(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny", shards=3)
    shards = sorted(folder.glob("*.safetensors"))
    lines = [
        f"{sum_of(shards[0])}  {shards[0].name}",
        "",
        f"{sum_of(shards[1]).upper()} *{shards[1].name}",
        f"{sum_of(shards[2])}  ./{shards[2].name}",
    ]
    (folder / "SHA256SUMS").write_text("\n".join(lines))
    files = open_checkpoint(folder).files
    told: list[tuple[int, int]] = []
    assert [(check.is_wrong, check.source) for check in hash_files(files, progress=lambda *now: told.append(now))] == [
        (False, "SHA256SUMS")
    ] * 3
    assert told[-1] == (sum(path.stat().st_size for path in shards),) * 2
    data = bytearray(shards[1].read_bytes())
    data[-1] ^= 1
    shards[1].write_bytes(data)
    assert [check.path for check in hash_files(open_checkpoint(folder).files) if check.is_wrong] == [shards[1]]


def test_nothing_states_the_sum(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"abc")
    [check] = hash_files((tmp_path / "x.gguf",))
    assert (check.found[:8], check.expected, check.is_wrong) == ("ba7816bf", None, False)
    assert check.source == "nothing states it; put a SHA256SUMS beside it"
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  other.gguf\n")
    assert hash_files((tmp_path / "x.gguf",))[0].source == "SHA256SUMS does not name it"


def test_the_hub_names_blobs_by_their_sums(tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / hashlib.sha256(b"abc").hexdigest()).write_bytes(b"abc")
    (blobs / ("0" * 64)).write_bytes(b"abc")
    for index, blob in enumerate(sorted(blobs.iterdir())):
        (tmp_path / f"{index}.safetensors").symlink_to(blob)
    checks = hash_files((tmp_path / "0.safetensors", tmp_path / "1.safetensors"))
    assert [(check.is_wrong, check.source) for check in checks] == [(True, "the hub"), (False, "the hub")]


def test_the_default_model_is_what_was_pinned(default_gguf: Path) -> None:
    [check] = hash_files((default_gguf,))
    assert (check.expected, check.is_wrong) == (DEFAULT_MODEL.file_sha256, False)
    assert "default" in check.source


@pytest.mark.parametrize(
    ("text", "word"), [("not a sum\n", "line 1 is not a sum and a name; make the file with: sha256sum"), ("x" * (1 << 21), "larger than")]
)
def test_a_manifest_that_is_none(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "x.gguf").write_bytes(b"abc")
    (tmp_path / "SHA256SUMS").write_text(text)
    with pytest.raises(CheckpointError, match=word):
        hash_files((tmp_path / "x.gguf",))


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file or directory; check the path"):
        hash_files((tmp_path / "x.gguf",))
