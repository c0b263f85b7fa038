"""What is measured or checked: a model's config and weights, from a checkpoint or made up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from minicpm4.checkpoint import open_checkpoint, resolve
from minicpm4.deploy.random_weights import SHAPES, random_weights, shape_config
from minicpm4.engine import LoadOptions, LoadProgress
from minicpm4.engine.load import tile_cache_of, watched_loader
from minicpm4.executors.base import WeightLoader
from minicpm4.model import ModelConfig


@dataclass(frozen=True)
class Subject:
    """formats: the storage formats that `weights` gives. flags: the options of `minicpm4 bench` that name it.

    tile_cache: the file that keeps its packed weights, None for nowhere.
    """

    name: str
    config: ModelConfig
    weights: WeightLoader
    formats: frozenset[str]
    flags: tuple[str, ...]
    tile_cache: Path | None = None


@contextmanager
def checkpoint_subject(load: LoadOptions, *, progress: LoadProgress | None = None) -> Iterator[Subject]:
    """The model that load names; usable while this lasts."""
    download = None if progress is None else lambda done, total: progress("downloading", done, total)
    path = resolve(load.model, revision=load.revision, offline=load.offline, progress=download)
    with open_checkpoint(path) as checkpoint:
        weights, flags = (
            watched_loader(checkpoint, progress),
            ("--model", str(path.resolve()), *(["--tile-cache"] if load.tile_cache else [])),
        )
        yield Subject(
            checkpoint.name, checkpoint.config, weights, checkpoint.formats, flags, tile_cache_of(checkpoint) if load.tile_cache else None
        )


def random_subject(shape: str, format_name: str, *, context_length: int, seed: int) -> Subject:
    """Random weights: shape is "0.5B", "8B", or the path of a config.json."""
    config = shape_config(shape, context_length=context_length)
    weights, formats = random_weights(config, format_name, seed=seed)
    flags = ("--random", shape if shape in SHAPES else str(Path(shape).resolve()), "--format", format_name)
    return Subject(f"random {shape} {format_name}", config, weights, formats, flags)
