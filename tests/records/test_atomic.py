"""A file is written whole or not at all: errors, a full disk and a kill leave the old one."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from minicpm4.records import atomic_file, write_atomic


def test_a_file_and_its_folder_are_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_atomic(path, "ä")
    write_atomic(path, "b")
    assert path.read_text() == "b"
    assert [one.name for one in path.parent.iterdir()] == ["file.json"]


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"new")
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        write_half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def run_writer(path: Path, body: str, *, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    code = f"""
import os, signal
from pathlib import Path
from minicpm4.records import atomic_file
with atomic_file(Path({str(path)!r})) as file:
    {body}
"""

    def limit_files() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limit_files)


def test_a_disk_without_room_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    done = run_writer(path, "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); file.write(bytes(1 << 20))", limit=1 << 16)
    assert done.returncode == 1
    assert "OSError" in done.stderr
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_leaves_the_old_file_and_a_name_that_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    done = run_writer(path, "file.write(bytes(1 << 20)); file.flush(); os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == -9
    assert path.read_bytes() == b"old"
    [left] = [one for one in tmp_path.iterdir() if one != path]
    assert left.name.endswith(".partial")
