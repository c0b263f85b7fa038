"""Files that came with a tokenizer, read within bounds of size and of structure."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from minicpm4.errors import CheckpointError

MAX_TOKENIZER_BYTES = 64 << 20  # the largest published tokenizer.json takes 33 MB
MAX_SETTINGS_BYTES = 4 << 20
MAX_NODES = 4_000_000  # lists and objects; half a million merges take as many
AGAIN = "get the model's files again"


def read_bytes(path: Path, *, limit: int) -> bytes:
    """A regular file of at most `limit` bytes."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > limit:
            raise CheckpointError(f"{path.name} is not a regular file of at most {limit} bytes", hint=AGAIN)
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {str(path)!r:.300}: {error.strerror}", hint="check the folder and its permissions") from error


def read_text(path: Path, *, limit: int) -> str:
    try:
        return read_bytes(path, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path.name} is not UTF-8: {error!s:.100}", hint=AGAIN) from error


def parse_object(text: str, name: str) -> dict[str, Any]:
    """The JSON object that the text holds."""
    if text.count("{") + text.count("[") > MAX_NODES:
        raise CheckpointError(f"{name} holds more than {MAX_NODES} lists and objects", hint=AGAIN)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is not valid JSON: {error!s:.200}", hint=AGAIN) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} holds a {type(value).__name__}, expected an object", hint=AGAIN)
    return value


def read_settings(path: Path) -> dict[str, Any]:
    """A small JSON file; {} where there is none."""
    return parse_object(read_text(path, limit=MAX_SETTINGS_BYTES), path.name) if path.exists() else {}
