"""A model on disk: what it is, and its parameters one by one under their canonical names, as stored.

`open_checkpoint` takes a Hugging Face folder, a GGUF file, or a folder that holds one, checks that the weights are exactly
those of the config, and reads no weight. Does not know what the bits mean (quant), nor what becomes of them (executors).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import TracebackType

from minicpm4.checkpoint import hf_folder
from minicpm4.checkpoint.foreign import refuse_foreign
from minicpm4.checkpoint.gguf_model import read_gguf_model
from minicpm4.checkpoint.gguf_parts import only_set, read_gguf_parts
from minicpm4.checkpoint.mapped import MappedFile, TensorInfo
from minicpm4.checkpoint.sources import Source, StoredTensor, find_sources
from minicpm4.errors import CheckpointError
from minicpm4.model import ModelConfig, PackedTensor
from minicpm4.model.parameters import EMBEDDING, HEAD, check_parameters, group_of, parameter_shapes
from minicpm4.model.tensors import STORAGE_FORMATS

ROPE_BUFFERS = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached")  # restate the config
SAMPLED_BYTES = 4096


@dataclass(frozen=True)
class Checkpoint:
    """An open model. Close it, or use it in a `with`, once its tensors are loaded; arrays made before stay valid.

    warnings: sentences for the user. folder: where tokenizer files lie, None for a GGUF file, whose metadata holds them.
    metadata: a GGUF file's, whole (see `gguf.Cursor.value` for its types), None for a folder. generation: plain values and
    lists of them from generation_config.json, unchecked otherwise. sources: by canonical name, in the order of a forward pass.
    others: files of the model that hold no tensors. groups: tensors of `model.parameters.GROUPS` beside the backbone, by group and name; of
    a folder alone.
    """

    name: str
    path: Path
    config: ModelConfig
    warnings: tuple[str, ...]
    folder: Path | None
    metadata: Mapping[str, object] | None
    generation: Mapping[str, object]
    sources: Mapping[str, Source] = field(repr=False)
    others: tuple[MappedFile, ...] = ()
    groups: Mapping[str, Mapping[str, Source]] = field(default_factory=dict, repr=False)

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every parameter's format, shape and size."""
        return {name: source.info for name, source in self.sources.items()}

    @property
    def formats(self) -> frozenset[str]:
        return frozenset(info.format for info in self.tensors.values())

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self._mapped)

    @property
    def file_bytes(self) -> int:
        """Size of the weights' files."""
        return sum(file.size for file in self._mapped)

    def load(self, name: str) -> PackedTensor:
        """A parameter as stored: a view of the file (possibly unaligned), or a copy where its parts are put in order.

        name: as in `tensors`; another is a KeyError. CheckpointError once the checkpoint is closed, or for a reserved ternary code.
        """
        return self.sources[name].load(name)

    def release(self) -> None:
        """Gives back the memory of file pages that were read; call it between tensors to keep the peak low."""
        for file in self._mapped:
            file.release()

    def close(self) -> None:
        for file in self._mapped:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @cached_property
    def _mapped(self) -> list[MappedFile]:
        sources = chain(self.sources.values(), *(group.values() for group in self.groups.values()))
        parts = (part.file for source in sources for part, _ in source.parts)
        return list({id(file): file for file in (*self.others, *parts)}.values())


def open_checkpoint(path: Path) -> Checkpoint:
    """The model at a path. CheckpointError, ConfigError where there is none, or none that can be run."""
    try:
        if path.is_dir():
            return open_folder(path)
        if not path.exists():
            raise CheckpointError(f"there is no {str(path)!r:.300}", hint="name a model's folder, a .gguf file, or: default")
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be listed
        raise CheckpointError(f"cannot open {str(path)!r:.300}: {error!s:.200}", hint="check the path and its permissions") from error
    return open_file(path)


def open_folder(folder: Path) -> Checkpoint:
    """Safetensors first, then a single GGUF file."""
    ggufs = sorted(folder.glob("*.gguf"))
    if ggufs and not any(folder.glob("*.safetensors")):
        model = only_set(ggufs)
        if model is None:
            raise CheckpointError(f"{folder.name} holds {len(ggufs)} GGUF files", hint=f"name one, such as {str(ggufs[0])!r:.200}")
        return open_file(model)
    if not (folder / "config.json").exists():
        raise CheckpointError(
            f"{str(folder)!r:.300} holds no config.json and no .gguf file", hint="name the folder that holds the model's files"
        )
    config, warnings = hf_folder.read_config(folder)
    generation, more_warnings = hf_folder.read_generation(folder)
    found = with_full_names(find_sources(hf_folder.read_weights(folder)))
    if HEAD in found and config.has_tied_head:
        found.setdefault(EMBEDDING, found[HEAD])
        check_same(found[EMBEDDING], found[HEAD])
    ignorable = {name for name in found if name.endswith(ROPE_BUFFERS)} | ({HEAD} if config.has_tied_head else set())
    sources, unused = checked_sources(config, found, ignorable=ignorable)
    groups, unused = known_groups(config, found, unused)
    return Checkpoint(
        name=folder_name(folder),
        path=folder,
        config=config,
        warnings=(*warnings, *more_warnings, *unused_warning(unused)),
        folder=folder,
        metadata=None,
        generation=generation,
        sources=sources,
        groups=groups,
    )


def with_full_names(found: Mapping[str, Source]) -> dict[str, Source]:
    """The tensors under the names of a whole model; files of a model without its head leave the first part out."""
    prefix = EMBEDDING.partition(".")[0] + "."
    if EMBEDDING in found or EMBEDDING.removeprefix(prefix) not in found:
        return dict(found)
    return {name if name == HEAD or name.startswith(prefix) else prefix + name: source for name, source in found.items()}


def known_groups(config: ModelConfig, found: Mapping[str, Source], unused: Iterable[str]) -> tuple[dict[str, dict[str, Source]], list[str]]:
    """Of the tensors that the backbone does not use, those of known groups by group, and the names of the others."""
    groups, others = dict[str, dict[str, Source]](), list[str]()
    for name in unused:
        group = group_of(name, config)
        if group is None:
            others.append(name)
        else:
            groups.setdefault(group, {})[name] = found[name]
    return groups, others


def unused_warning(names: list[str]) -> tuple[str, ...]:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (f"tensors that are no part of the model are not used: {', '.join(names[:3])}{more}",) if names else ()


def open_file(path: Path) -> Checkpoint:
    mapped = MappedFile(path)
    if path.suffix.lower() != ".gguf" and mapped.read(0, 4) != b"GGUF":
        refuse_foreign(path, mapped.read(0, 512))
        raise CheckpointError(f"{path.name} is not a GGUF file", hint="name the folder of a safetensors model, not one of its files")
    parts = read_gguf_parts(path)
    model = read_gguf_model(parts)
    found = {name: StoredTensor(parts.file_of(stored), stored, model.heads.get(name, 0)) for name, stored in model.names.items()}
    return Checkpoint(
        name=path.stem,
        path=path,
        config=model.config,
        warnings=model.warnings,
        folder=None,
        metadata=parts.metadata,
        generation={},
        sources=checked_sources(model.config, found)[0],
        others=tuple(file.file for file in parts.files if not file.tensors),
    )


def checked_sources(
    config: ModelConfig, found: Mapping[str, Source], *, ignorable: Iterable[str] = ()
) -> tuple[dict[str, Source], list[str]]:
    """The config's parameters, which must be among those found, all of formats that we know; and the names of tensors not used."""
    unused = check_parameters(config, {name: source.info.shape for name, source in found.items()}, ignorable=ignorable)
    for name in parameter_shapes(config):
        stored = found[name].info.format
        if stored not in STORAGE_FORMATS:
            raise CheckpointError(f"tensor {name} is stored as {stored}", hint=f"get the model in one of {', '.join(STORAGE_FORMATS)}")
    return {name: found[name] for name in parameter_shapes(config)}, unused


def check_same(embedding: Source, head: Source) -> None:
    """CheckpointError if a head that the config ties to the embedding is another matrix; a sample of its bytes is compared."""
    first, second = embedding.info, head.info
    is_same = (first.format, first.shape) == (second.format, second.shape)
    if is_same and first.format in STORAGE_FORMATS:
        ours, theirs = (source.load(name).data.reshape(-1) for source, name in ((embedding, EMBEDDING), (head, HEAD)))
        for offset in range(0, ours.size, max(1, ours.size // 16)):
            is_same &= bool((ours[offset : offset + SAMPLED_BYTES] == theirs[offset : offset + SAMPLED_BYTES]).all())
    if not is_same:
        raise CheckpointError(
            "config.json ties the head to the embedding, but lm_head.weight differs from it",
            hint="set tie_word_embeddings to false in config.json",
        )


def folder_name(folder: Path) -> str:
    """The folder's name, or the hub's name of a model whose snapshot it is."""
    root = folder.resolve()
    if root.parent.name == "snapshots" and root.parents[1].name.startswith("models--"):
        return root.parents[1].name.removeprefix("models--").replace("--", "/")
    return root.name
