"""JSON that came with a model, read within bounds: size, number of nodes, depth, and no key twice."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from minicpm4.errors import CheckpointError

MAX_BYTES = 16 << 20  # the largest published index is 9 MB; parsed, a hostile one takes up to ten times its size
MAX_NODES = 500_000  # lists and objects


def parse_json(data: bytes, source: str) -> dict[str, Any]:
    """The object that the text holds; CheckpointError, which names the source, for anything else."""
    if len(data) > MAX_BYTES or data.count(b"{") + data.count(b"[") > MAX_NODES:
        raise CheckpointError(
            f"{source} is too large: {len(data)} bytes of JSON",
            hint=f"at most {MAX_BYTES} bytes and {MAX_NODES} lists and objects are read; is it this model's file?",
        )

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise CheckpointError(f"{source} holds the key {key!r:.100} twice", hint="remove one of them, or get the file again")
            found[key] = value
        return found

    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{source} is not valid JSON: {error!s:.200}", hint="get the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{source} holds a {type(value).__name__}, expected an object", hint="get the file again")
    return value


def read_json(path: Path) -> dict[str, Any]:
    """parse_json of a regular file."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_BYTES:
            raise CheckpointError(f"{path.name} is not a regular file of at most {MAX_BYTES} bytes", hint="get the file again")
        return parse_json(path.read_bytes(), path.name)
    except OSError as error:
        raise CheckpointError(f"cannot read {str(path)!r:.300}: {error.strerror}", hint="check the folder and its permissions") from error
