"""A model on disk: what it is, and its parameters one by one under their canonical names, as stored.

`open_checkpoint` takes a Hugging Face folder, a GGUF file, or a folder that holds one, checks that the weights are exactly
those of the config, and reads no weight. Does not know what the bits mean (quant), nor what becomes of them (executors).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from minicpm4.checkpoint import hf_folder
from minicpm4.checkpoint.foreign import refuse_foreign
from minicpm4.checkpoint.gguf import read_gguf
from minicpm4.checkpoint.gguf_model import read_gguf_model
from minicpm4.checkpoint.mapped import MappedFile, TensorInfo
from minicpm4.checkpoint.sources import Source, StoredTensor, find_sources
from minicpm4.errors import CheckpointError
from minicpm4.model import STORAGE_FORMATS, ModelConfig, PackedTensor
from minicpm4.model.parameters import EMBEDDING, HEAD, check_parameters, layer_parameter, parameter_shapes

ROPE_BUFFERS = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached")  # restate the config
SAMPLED_BYTES = 4096


@dataclass(frozen=True)
class Checkpoint:
    """An open model. Close it, or use it in a `with`, once its tensors are loaded; arrays made before stay valid.

    warnings: sentences for the user. folder: where tokenizer files lie, None for a GGUF file, whose metadata holds them.
    metadata: a GGUF file's, whole (see `gguf.Cursor.value` for its types), None for a folder. generation: plain values and
    lists of them from generation_config.json, unchecked otherwise. sources: by canonical name, in the order of a forward pass.
    """

    name: str
    path: Path
    config: ModelConfig
    warnings: tuple[str, ...]
    folder: Path | None
    metadata: Mapping[str, object] | None
    generation: Mapping[str, object]
    sources: Mapping[str, Source] = field(repr=False)

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every parameter's format, shape and size."""
        return {name: source.info for name, source in self.sources.items()}

    @property
    def formats(self) -> frozenset[str]:
        return frozenset(info.format for info in self.tensors.values())

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(file.path for file in self._mapped())

    @property
    def file_bytes(self) -> int:
        """Size of the weights' files."""
        return sum(file.size for file in self._mapped())

    def load(self, name: str) -> PackedTensor:
        """A parameter as stored: a view of the file (possibly unaligned), or a copy where its parts are put in order.

        name: as in `tensors`; another is a KeyError. CheckpointError once the checkpoint is closed, or for a reserved ternary code.
        """
        return self.sources[name].load(name)

    def release(self) -> None:
        """Gives back the memory of file pages that were read; call it between tensors to keep the peak low."""
        for file in self._mapped():
            file.release()

    def close(self) -> None:
        for file in self._mapped():
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _mapped(self) -> list[MappedFile]:
        return list({id(file): file.file for source in self.sources.values() for file, _ in source.parts}.values())


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
        if len(ggufs) > 1:
            raise CheckpointError(f"{folder.name} holds {len(ggufs)} GGUF files", hint=f"name one, such as {str(ggufs[0])!r:.200}")
        return open_file(ggufs[0])
    if not (folder / "config.json").exists():
        raise CheckpointError(
            f"{str(folder)!r:.300} holds no config.json and no .gguf file", hint="name the folder that holds the model's files"
        )
    config, warnings = hf_folder.read_config(folder)
    generation, more_warnings = hf_folder.read_generation(folder)
    found = find_sources(hf_folder.read_weights(folder))
    ignorable = {name for name in found if name.endswith(ROPE_BUFFERS)} | ({HEAD} if config.has_tied_head else set())
    if HEAD in found and config.has_tied_head:
        check_same(found[EMBEDDING] if EMBEDDING in found else found[HEAD], found[HEAD])
    return Checkpoint(
        name=folder_name(folder),
        path=folder,
        config=config,
        warnings=warnings + more_warnings,
        folder=folder,
        metadata=None,
        generation=generation,
        sources=checked_sources(config, found, ignorable=ignorable),
    )


def open_file(path: Path) -> Checkpoint:
    mapped = MappedFile(path)
    if path.suffix.lower() != ".gguf" and mapped.read(0, 4) != b"GGUF":
        refuse_foreign(path, mapped.read(0, 512))
        raise CheckpointError(f"{path.name} is not a GGUF file", hint="name the folder of a safetensors model, not one of its files")
    file = read_gguf(path)
    model = read_gguf_model(file)
    config, heads = model.config, dict[str, int]()
    for index in range(config.num_layers):
        heads |= {layer_parameter(index, "q"): config.num_heads, layer_parameter(index, "k"): config.num_kv_heads}
    return Checkpoint(
        name=path.stem,
        path=path,
        config=config,
        warnings=model.warnings,
        folder=None,
        metadata=file.metadata,
        generation={},
        sources=checked_sources(config, {name: StoredTensor(file, stored, heads.get(name, 0)) for name, stored in model.names.items()}),
    )


def checked_sources(config: ModelConfig, found: Mapping[str, Source], *, ignorable: Iterable[str] = ()) -> dict[str, Source]:
    """The config's parameters, which must be those found, all of formats that we know."""
    check_parameters(config, {name: source.info.shape for name, source in found.items()}, ignorable=ignorable)
    for name in parameter_shapes(config):
        stored = found[name].info.format
        if stored not in STORAGE_FORMATS:
            raise CheckpointError(f"tensor {name} is stored as {stored}", hint=f"get the model in one of {', '.join(STORAGE_FORMATS)}")
    return {name: found[name] for name in parameter_shapes(config)}


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
