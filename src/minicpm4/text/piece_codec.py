"""A codec on the `sentencepiece` library, and the tokenizer.model files that it reads."""

from __future__ import annotations

from pathlib import Path

from sentencepiece import SentencePieceProcessor

from minicpm4.errors import CheckpointError
from minicpm4.text.files import AGAIN, MAX_TOKENIZER_BYTES, read_bytes
from minicpm4.text.folder_settings import FolderSettings
from minicpm4.text.library_errors import guarded
from minicpm4.text.piece_model import normalizer
from minicpm4.text.token_text import piece_bytes
from minicpm4.text.tokenizer import Tokenizer, WholeToken, check_rows


class PieceCodec:
    """model: a serialized SentencePiece model. num_pieces: its ids are 0 to num_pieces - 1; pieces that the model has beyond it are none
    of the vocabulary, and the unknown one takes their place."""

    def __init__(self, model: bytes, *, num_pieces: int | None = None) -> None:
        with guarded("reading the SentencePiece model"):
            self._processor = SentencePieceProcessor()
            self._processor.load_from_serialized_proto(model)
            size = int(self._processor.get_piece_size())
            self.num_pieces, self._is_whole = size if num_pieces is None else num_pieces, num_pieces in (None, size)
            self._unknown = [i for i in [int(self._processor.unk_id())] if 0 <= i < self.num_pieces]

    def encode(self, text: str) -> list[int]:
        with guarded("tokenizing the text"):
            ids = list(self._processor.encode(text))
        return ids if self._is_whole else [own for i in ids for own in ([i] if i < self.num_pieces else self._unknown)]

    def token_bytes(self, token_id: int) -> bytes:
        return piece_bytes(self.piece(token_id)) if token_id < self.num_pieces else b""

    def piece(self, token_id: int) -> str:
        return str(self._processor.id_to_piece(token_id))

    def control_tokens(self) -> list[WholeToken]:
        """The pieces that stand for no text, the unknown one among them."""
        with guarded("reading the SentencePiece model"):
            ids = range(self.num_pieces)
            found = [i for i in ids if self._processor.is_control(i) or self._processor.is_unknown(i)]
            return [WholeToken(self.piece(i), i) for i in found]

    def piece_id(self, text: str) -> int | None:
        """The piece of exactly this text."""
        found = int(self._processor.piece_to_id(text))
        return found if 0 <= found < self.num_pieces and self.piece(found) == text else None

    def own_id(self, role: str) -> int | None:
        """The model's own `bos` or `eos` piece."""
        found = int(getattr(self._processor, f"{role}_id")())
        return None if found < 0 else found

    def adds_space(self) -> bool:
        """Whether the model puts a space before every text; its behaviour tells."""
        ids = self.encode("a")
        return bool(ids) and self.token_bytes(ids[0]).startswith(b" ")


def read_tokenizer_model(path: Path, settings: FolderSettings, *, vocab_size: int) -> Tokenizer:
    """The tokenizer of a tokenizer.model, with the added tokens and conventions of the files beside it."""
    model = read_bytes(path, limit=MAX_TOKENIZER_BYTES)
    codec = PieceCodec(model)
    adds_space = codec.adds_space()
    if adds_space and not settings.is_legacy:
        codec = PieceCodec(model + normalizer(adds_space=False))
    check_rows(range(codec.num_pieces), vocab_size=vocab_size)
    tokens = whole_tokens(codec, settings)
    ids = {token.text: token.id for token in tokens if token.id < vocab_size}
    bos_id, eos_id = (
        codec.own_id(role) if text is None else ids.get(text) for role, text in (("bos", settings.bos), ("eos", settings.eos))
    )
    own_end = codec.own_id("eos")
    ends = {} if own_end is None or own_end >= vocab_size else {own_end: "the end of tokenizer.model"}
    return Tokenizer(
        codec=codec,
        vocab_size=vocab_size,
        whole_tokens=tuple(token for token in tokens if token.id < vocab_size),
        bos_id=bos_id,
        before=(bos_id,) if settings.adds_bos is not False and bos_id is not None else (),
        ends=ends if eos_id is None else {**ends, eos_id: "eos_token of the tokenizer's settings"},
        spaces_first=adds_space and not settings.is_legacy,
        drops_space=adds_space,
    )


def whole_tokens(codec: PieceCodec, settings: FolderSettings) -> list[WholeToken]:
    """The model's control pieces, the added tokens, and pieces that the settings name as special."""
    tokens = {token.id: token for token in codec.control_tokens()}
    for token in settings.added:
        check_added(codec, token)
        tokens[token.id] = token
    known = {token.text for token in tokens.values()}
    for named in settings.special:
        token_id = None if named.text in known else codec.piece_id(named.text)
        if token_id is not None:
            tokens[token_id] = WholeToken(named.text, token_id, True, named.strips_left, named.strips_right, named.is_word)
    return list(tokens.values())


def check_added(codec: PieceCodec, token: WholeToken) -> None:
    """CheckpointError for an added token that takes the id of another piece."""
    if 0 <= token.id < codec.num_pieces and codec.piece(token.id) != token.text:
        raise CheckpointError(
            f"the added token {token.text!r:.100} has the id {token.id}, which is that of {codec.piece(token.id)!r:.100}", hint=AGAIN
        )
