"""Where a model comes from: a folder, a file, `default`, or an id of the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from minicpm4.checkpoint import default_model, hub
from minicpm4.checkpoint.default_model import Progress
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.hardware import is_offline

DEFAULT = "default"
CHOICES = "name a model's folder, a .gguf file, a hub id (owner/name), or: default"


def resolve(model: str, *, revision: str | None = None, offline: bool = False, progress: Progress | None = None) -> Path:
    """The folder or file of a model, downloaded if need be.

    model: `default`, a path, `owner/name`, or `owner/name/file.gguf`; a path that exists goes before a hub id, and `./default`
    is a folder of that name. revision: a branch, tag or commit, of a hub id only. offline: use what is on this machine, as if
    MINICPM4_OFFLINE were set. progress: told (bytes done, bytes in all) of the default model; the hub's library shows its own.
    Raises CheckpointError where the model cannot be had, ConfigError for a revision of something that has none,
    UnsupportedError where the hub's library is not installed.
    """
    offline = offline or is_offline()
    local, hub_id = existing(model), hub.parse_hub_id(model)
    if revision is not None and (model == DEFAULT or local is not None or hub_id is None):
        raise ConfigError(f"revision {revision!r:.80} was given, but {model!r:.80} is not a hub id", hint="leave the revision out")
    if model == DEFAULT:
        return default_model.fetch(offline=offline, progress=progress)
    if local is not None:
        return local
    if hub_id is None:
        raise CheckpointError(f"there is no model {model!r:.200}", hint=CHOICES)
    return hub.fetch_from_hub(*hub_id, revision=revision, offline=offline)


def existing(model: str) -> Path | None:
    """The path, if something is there; None also for names that no file can have."""
    try:
        path = Path(model).expanduser()
        return path if model and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, a user that is not
        return None
