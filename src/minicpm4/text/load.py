"""Makes the tokenizer of a model: from the files of a folder, or from a GGUF file's metadata.

Each library is imported where its kind of tokenizer is met, since most processes need one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minicpm4.errors import CheckpointError
from minicpm4.text.folder_settings import read_folder_settings
from minicpm4.text.gguf_vocabulary import read_gguf_vocabulary
from minicpm4.text.tokenizer import Tokenizer


def load_tokenizer(folder: Path, *, vocab_size: int) -> Tokenizer:
    """The tokenizer of a folder: tokenizer.json if there is one, else tokenizer.model.

    vocab_size: rows of the model's embedding. CheckpointError where there is no tokenizer, or it is damaged or another model's.
    """
    settings = read_folder_settings(folder)
    if (folder / "tokenizer.json").exists():
        from minicpm4.text.library_codec import read_tokenizer_json

        return read_tokenizer_json(folder / "tokenizer.json", settings, vocab_size=vocab_size)
    if (folder / "tokenizer.model").exists():
        from minicpm4.text.piece_codec import read_tokenizer_model

        return read_tokenizer_model(folder / "tokenizer.model", settings, vocab_size=vocab_size)
    raise CheckpointError(f"{folder.name!r:.200} holds no tokenizer", hint="put the model's tokenizer.json or tokenizer.model there")


def load_gguf_tokenizer(metadata: Mapping[str, Any], *, vocab_size: int, space_prefix: bool | None = None) -> Tokenizer:
    """The tokenizer in a GGUF file's metadata, as llama.cpp would read it.

    metadata: string arrays as sequences of strings, number arrays as numpy's. space_prefix: whether every text between control
    tokens gets a space before it (SentencePiece models only); None for what the file says, which is yes where it says nothing.
    MiniCPM4's own tokenizer gives none, though its GGUF files do not say so. CheckpointError for a tokenizer that is missing,
    damaged, another model's, or of another kind.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        from minicpm4.text.gguf_byte_pairs import byte_pair_tokenizer

        return byte_pair_tokenizer(read_gguf_vocabulary(metadata, vocab_size=vocab_size))
    if kind == "llama":
        from minicpm4.text.gguf_pieces import piece_tokenizer

        return piece_tokenizer(read_gguf_vocabulary(metadata, vocab_size=vocab_size), space_prefix=space_prefix)
    raise CheckpointError(f"GGUF metadata: tokenizer.ggml.model is {kind!r:.80}", hint="supported: gpt2, llama")
