"""Are these the bytes that were published? Compares SHA-256 sums of a model's files with whatever states them.

Statements are read from a SHA256SUMS file in the folder, from the names of a hub cache's blobs, and from the pinned default
model. Does not look into tensors: whether weights are finite numbers is for those who can decode them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from minicpm4.checkpoint.default_model import DEFAULT_MODEL
from minicpm4.errors import CheckpointError

Progress = Callable[[int, int], None]
MANIFEST = "SHA256SUMS"
MAX_MANIFEST_BYTES = 1 << 20
MANIFEST_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
PIECE = 1 << 20


@dataclass(frozen=True)
class FileHash:
    """A file's sum, and the one it should have; expected is None where nothing states it, and source says who does."""

    path: Path
    found: str
    expected: str | None
    source: str

    @property
    def is_wrong(self) -> bool:
        return self.expected is not None and self.expected != self.found


def hash_files(files: tuple[Path, ...], *, progress: Progress | None = None) -> tuple[FileHash, ...]:
    """The sums of a model's files (Checkpoint.files), each beside the one it should have.

    progress: told the bytes done and the bytes there are. Raises CheckpointError where a file cannot be read, or where a
    manifest holds a line that is none.
    """
    try:
        total, done, sums = sum(path.stat().st_size for path in files), 0, []
        for path in files:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while piece := file.read(PIECE):
                    digest.update(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(done, total)
            sums.append(FileHash(path, digest.hexdigest(), *expected_sum(path)))
        return tuple(sums)
    except OSError as error:
        raise CheckpointError(
            f"cannot read {str(error.filename)!r:.300}: {error.strerror}", hint="check the path and its permissions"
        ) from error


def expected_sum(path: Path) -> tuple[str | None, str]:
    """The sum that somebody states of the file, and who."""
    manifest = path.parent / MANIFEST
    if manifest.is_file():
        expected = read_manifest(manifest).get(path.name)
        return expected, MANIFEST if expected else f"{MANIFEST} does not name it"
    target = path.resolve()
    if target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name):  # the hub names large files by their sums
        return target.name, "the hub"
    if path.name == DEFAULT_MODEL.file_name:
        return DEFAULT_MODEL.file_sha256, "the pinned default model"
    return None, f"nothing states it; put a {MANIFEST} beside it"


def read_manifest(path: Path) -> dict[str, str]:
    """Sums by file name, from lines as sha256sum writes them."""
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise CheckpointError(f"{path.name} is larger than {MAX_MANIFEST_BYTES} bytes", hint="is it a list of sums?")
    sums = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        match = MANIFEST_LINE.fullmatch(line)
        if match is None and line.strip():
            raise CheckpointError(f"{path.name}: line {number} is not a sum and a name", hint="make the file with: sha256sum")
        if match is not None:
            sums[match[2].removeprefix("./")] = match[1].lower()
    return sums
