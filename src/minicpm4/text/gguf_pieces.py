"""SentencePiece tokenizers of GGUF files (`llama`): tokens, scores and types become a model for the SentencePiece library."""

from __future__ import annotations

import numpy as np

from minicpm4.errors import CheckpointError
from minicpm4.text.gguf_vocabulary import BYTE, DAMAGED, PREFIX, UNKNOWN, UNUSED, GgufVocabulary, number_array
from minicpm4.text.piece_codec import PieceCodec
from minicpm4.text.piece_model import byte_pair_model
from minicpm4.text.tokenizer import Tokenizer


def piece_tokenizer(vocabulary: GgufVocabulary, *, space_prefix: bool | None) -> Tokenizer:
    scores = np.zeros(len(vocabulary.texts), np.float32)
    if PREFIX + "scores" in vocabulary.metadata:
        scores = number_array(vocabulary.metadata, "scores", kinds="f", count=len(vocabulary.texts))
    if not np.isfinite(scores).all():
        raise CheckpointError(f"GGUF metadata: {PREFIX}scores holds infinities or values that are no numbers", hint=DAMAGED)
    adds_space = vocabulary.get("add_space_prefix", bool, True) if space_prefix is None else space_prefix
    texts, types = completed(vocabulary.texts, vocabulary.types)
    all_scores = [*scores.tolist(), *[0.0] * (len(texts) - len(scores))]
    codec = PieceCodec(byte_pair_model(texts, all_scores, types, adds_space=adds_space), num_pieces=len(vocabulary.texts))
    return vocabulary.tokenizer(codec, adds_bos=True, drops_space=adds_space)


def completed(texts: list[str], types: list[int]) -> tuple[list[str], list[int]]:
    """The pieces and their types as the library wants them: exactly one unknown piece, and bytes all or none.

    What is missing comes after the file's own pieces, where `PieceCodec` knows it from them.
    """
    unknown = [i for i, kind in enumerate(types) if kind == UNKNOWN]
    fixed = [UNUSED if i in unknown[1:] else kind for i, kind in enumerate(types)]
    more = [] if unknown else [("[UNKNOWN]", UNKNOWN)]
    if BYTE in types:
        present = {text for text, kind in zip(texts, types, strict=True) if kind == BYTE}
        more += [(text, BYTE) for byte in range(256) if (text := f"<0x{byte:02X}>") not in present]
    return [*texts, *(text for text, _ in more)], [*fixed, *(kind for _, kind in more)]
