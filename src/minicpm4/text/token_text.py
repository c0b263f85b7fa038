"""What the text of a token stands for in a tokenizer's file: the two spellings that language models use.

Byte-level vocabularies (GPT-2) write each byte as one printable character; piece vocabularies (SentencePiece) write a space
as U+2581 and a byte that is no character as `<0x0A>`.
"""

from __future__ import annotations

import re

SPACE_PIECE = "\u2581"
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # bytes that GPT-2 writes as themselves
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]  # in order, as the characters from U+0100 on
BYTE_OF = {chr(byte): byte for byte in PRINTABLE} | {chr(0x100 + index): byte for index, byte in enumerate(OTHERS)}


def byte_level_bytes(text: str) -> bytes:
    """A byte-level token's bytes. One that holds other characters was added later and stands for itself."""
    try:
        return bytes(BYTE_OF[character] for character in text)
    except KeyError:
        return text.encode()


def piece_bytes(text: str) -> bytes:
    byte = BYTE_PIECE.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace(SPACE_PIECE, " ").encode()
