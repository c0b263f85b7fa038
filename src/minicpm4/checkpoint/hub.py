"""Models of the Hugging Face hub, through its own library, which knows the cache, the token and the mirror to use.

Only weights, configs and tokenizers are asked for, never code.
"""

from __future__ import annotations

import re
from pathlib import Path

from minicpm4.errors import CheckpointError, UnsupportedError

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:/([A-Za-z0-9][\w./-]{0,200}\.gguf))?", re.ASCII)
PATTERNS = ["*.json", "*.safetensors", "tokenizer.model", "*.jinja"]


def parse_hub_id(model: str) -> tuple[str, str | None] | None:
    """(owner/name, file) of `owner/name` or `owner/name/file.gguf`; None where the name is neither."""
    match = HUB_ID.fullmatch(model)
    if match is None or ".." in model or "--" in model:
        return None
    return match[1], match[2]


def fetch_from_hub(repository: str, file: str | None, *, revision: str | None, offline: bool) -> Path:
    """The snapshot's folder, or the one GGUF file asked for; what is in the library's cache is not downloaded again.

    The library shows its own progress. UnsupportedError where it is not installed, CheckpointError for whatever else fails.
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UnsupportedError(
            f"{repository} is a hub id, and huggingface_hub is not installed", hint="pip install 'minicpm4[hub]'"
        ) from error
    try:
        folder = Path(
            snapshot_download(
                repository, revision=revision, local_files_only=offline, allow_patterns=PATTERNS if file is None else [all_parts(file)]
            )
        )
    except Exception as error:  # the library passes on the errors of several HTTP and storage libraries
        reason = next(iter(str(error).strip().splitlines()), "no reason given")
        where = (
            "is not in the cache, and the network may not be used"
            if offline
            else f"could not be had from the hub: {type(error).__name__}: {reason:.300}"
        )
        raise CheckpointError(
            f"{repository}{f' at revision {revision}' if revision else ''} {where}",
            hint="run once online"
            if offline
            else "check the name (there is no such path here either), the network, and HF_TOKEN if the model is gated",
        ) from error
    path = folder if file is None else folder / file
    if not path.exists() or (file is None and not any(path.glob("*.safetensors"))):
        raise CheckpointError(
            f"{repository} has no {file or 'safetensors files'}", hint=f"for a GGUF file, name it: {repository}/FILE.gguf"
        )
    return path


def all_parts(file: str) -> str:
    """The pattern of a GGUF file's name, or of all parts of the set that it is a part of."""
    return re.sub(r"-\d{5}-of-(\d{5})\.gguf$", r"-*-of-\1.gguf", file)
