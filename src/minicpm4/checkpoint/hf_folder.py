"""A folder as the Hugging Face libraries write it: config.json, safetensors in one file or in shards, generation_config.json.

Custom code in the folder is never looked at. Names in the index are somebody else's: they are kept inside the folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from minicpm4.checkpoint.foreign import CONVERT, FOREIGN_SUFFIXES
from minicpm4.checkpoint.json_file import read_json
from minicpm4.checkpoint.mapped import TensorFile
from minicpm4.checkpoint.safetensors import read_safetensors
from minicpm4.checkpoint.ternary_container import METHOD
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.model import ModelConfig
from minicpm4.model.hf_config import config_from_hf

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
OTHER_WEIGHTS = ("adapter_model", "consolidated", "optimizer", "training_args", "scheduler", "rng_state")  # how their names begin
MAX_SHARDS = 512  # each takes an open file
DAMAGED = "the download is incomplete or damaged; get the folder again"


def read_config(folder: Path) -> tuple[ModelConfig, tuple[str, ...]]:
    """The model that config.json describes, and what the user should know of it."""
    values = read_json(folder / "config.json")
    quantization = values.pop("quantization_config", None)
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if quantization is not None and method != METHOD:
        raise ConfigError(
            f"the weights in {folder.name} are quantized with {method!r:.40}", hint="get the unquantized model, or a GGUF file of it"
        )
    config, warnings = config_from_hf(values)
    return config, tuple(warnings)


def read_generation(folder: Path) -> tuple[dict[str, object], tuple[str, ...]]:
    """generation_config.json without its nested values, which are warned of; {} where there is none."""
    path = folder / "generation_config.json"
    if not path.exists():
        return {}, ()
    values = read_json(path)
    plain = {key: value for key, value in values.items() if is_plain(value) or (isinstance(value, list) and all(map(is_plain, value)))}
    nested = ", ".join(sorted(f"{key:.40}" for key in values.keys() - plain.keys()))
    return plain, (f"generation_config.json: ignored keys {nested}",) if nested else ()


def is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def read_weights(folder: Path) -> list[TensorFile]:
    """The folder's safetensors files; a tensor is in one of them. Adapters and other programs' copies that lie beside do not count."""
    if (folder / SINGLE).exists():
        return [read_safetensors(folder / SINGLE)]
    if (folder / INDEX).exists():
        return read_shards(folder)
    present = sorted(folder.glob("*.safetensors"))
    found = [path for path in present if not path.name.startswith(OTHER_WEIGHTS)]
    if present and not found:
        raise CheckpointError(
            f"{folder.name} holds {present[0].name}, which is not a whole model in the published names",
            hint="get the model itself; merge an adapter into it with the library that trained it",
        )
    if len(found) == 1:
        return [read_safetensors(found[0])]
    if found:
        raise CheckpointError(f"{folder.name} holds {len(found)} safetensors files but no {INDEX}", hint=DAMAGED)
    foreign = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in FOREIGN_SUFFIXES)
    if foreign:
        raise CheckpointError(f"{folder.name} holds weights only as {foreign[0]!r:.80}", hint=CONVERT)
    raise CheckpointError(f"{folder.name} holds no weights", hint=f"expected {SINGLE}, {INDEX} with its shards, or a .gguf file")


def read_shards(folder: Path) -> list[TensorFile]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{INDEX} has no weight_map from tensors to files", hint=DAMAGED)
    shards = sorted(set(weight_map.values()))
    if len(shards) > MAX_SHARDS:
        raise CheckpointError(f"{INDEX} names {len(shards)} files, at most {MAX_SHARDS} are read", hint=DAMAGED)
    return placed_once(weight_map, {shard: read_safetensors(shard_path(folder, shard)) for shard in shards})


def placed_once(weight_map: Mapping[str, str], files: Mapping[str, TensorFile]) -> list[TensorFile]:
    """The shards, each tensor in one of them: where the index says, if several hold it. CheckpointError where the index does not say.

    A tensor that the index leaves out, or names though no shard has it, is no error yet: what the model needs is checked afterwards.
    """
    places = Counter(name for file in files.values() for name in file.tensors)
    twice = {name for name, count in places.items() if count > 1}
    for name in twice:
        shard = files.get(weight_map.get(name, ""))
        if shard is None or name not in shard.tensors:
            raise CheckpointError(f"tensor {name!r:.100} is in {places[name]} shards, and {INDEX} does not say in which", hint=DAMAGED)
    return [
        replace(file, tensors={name: info for name, info in file.tensors.items() if name not in twice or weight_map[name] == shard})
        for shard, file in files.items()
    ]


def shard_path(folder: Path, shard: str) -> Path:
    """The file that a name in the index means: in the folder, or in the blobs beside it if the folder is a hub cache's snapshot."""
    try:
        root, path = folder.resolve(), (folder / shard).resolve()
        roots = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
        if any(path.is_relative_to(allowed) for allowed in roots):
            if path.is_file():
                return folder / shard
            raise CheckpointError(f"the shard {shard!r:.100} that {INDEX} names is missing", hint=DAMAGED)
    except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL, a ring of links
        raise CheckpointError(f"{INDEX} names a shard {shard!r:.100}, which cannot be a file: {error!s:.100}", hint=DAMAGED) from error
    raise CheckpointError(f"{INDEX} names a shard {shard!r:.100} outside the folder", hint="copy the file into the folder if you trust it")
