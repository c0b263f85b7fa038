"""SentencePiece tokenizers of GGUF files (`llama`): tokens, scores and types become a model for the SentencePiece library."""

from __future__ import annotations

import numpy as np

from minicpm4.errors import CheckpointError
from minicpm4.text.gguf_vocabulary import DAMAGED, PREFIX, GgufVocabulary, number_array
from minicpm4.text.piece_codec import PieceCodec
from minicpm4.text.piece_model import byte_pair_model
from minicpm4.text.tokenizer import Tokenizer


def piece_tokenizer(vocabulary: GgufVocabulary, *, space_prefix: bool | None) -> Tokenizer:
    scores = number_array(vocabulary.metadata, "scores", kinds="f", count=len(vocabulary.texts))
    if not np.isfinite(scores).all():
        raise CheckpointError(f"GGUF metadata: {PREFIX}scores holds infinities or values that are no numbers", hint=DAMAGED)
    adds_space = vocabulary.get("add_space_prefix", bool, True) if space_prefix is None else space_prefix
    model = byte_pair_model(vocabulary.texts, scores.tolist(), vocabulary.types, adds_space=adds_space)
    return vocabulary.tokenizer(PieceCodec(model), adds_bos=True, drops_space=adds_space)
