"""Writes SentencePiece models: the few fields of the ModelProto message that a byte-pair tokenizer needs, in protobuf's wire format.

A message is a series of fields; messages written one after the other are merged, and the last value of a field counts.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

VARINT, BYTES, FLOAT = 0, 2, 5  # wire types
PIECES, TRAINER, NORMALIZER = 1, 2, 3  # fields of the model
PIECE_TEXT, PIECE_SCORE, PIECE_TYPE = 1, 2, 3
MODEL_TYPE, BYTE_FALLBACK, BYTE_PAIRS = 3, 35, 2
NAME, ADDS_SPACE, REMOVES_SPACES, ESCAPES_SPACES = 1, 3, 4, 5
BYTE_TYPE = 6


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def number_field(field: int, value: int) -> bytes:
    return varint(field << 3 | VARINT) + varint(value)


def bytes_field(field: int, value: bytes) -> bytes:
    return varint(field << 3 | BYTES) + varint(len(value)) + value


def normalizer(*, adds_space: bool) -> bytes:
    """A part of a model: text is left as it is, but for a space before it."""
    fields = [bytes_field(NAME, b"identity"), number_field(ADDS_SPACE, int(adds_space)), number_field(REMOVES_SPACES, 0)]
    return bytes_field(NORMALIZER, b"".join(fields) + number_field(ESCAPES_SPACES, 1))


def byte_pair_model(texts: Sequence[str], scores: Sequence[float], types: Sequence[int], *, adds_space: bool) -> bytes:
    """A whole model. types: as SentencePiece and GGUF number them, 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte."""
    trainer = number_field(MODEL_TYPE, BYTE_PAIRS) + number_field(BYTE_FALLBACK, int(BYTE_TYPE in types))
    score_tag, type_tags = varint(PIECE_SCORE << 3 | FLOAT), [number_field(PIECE_TYPE, kind) for kind in range(BYTE_TYPE + 1)]
    pieces = [
        bytes_field(PIECES, bytes_field(PIECE_TEXT, text.encode()) + score_tag + struct.pack("<f", score) + type_tags[kind])
        for text, score, kind in zip(texts, scores, types, strict=True)
    ]
    return b"".join(pieces) + bytes_field(TRAINER, trainer) + normalizer(adds_space=adds_space)
