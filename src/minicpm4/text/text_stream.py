"""Token ids that arrive one by one, as text: a character is given out when it is whole, never in parts."""

from __future__ import annotations

import codecs

from minicpm4.text.tokenizer import Tokenizer


class TextStream:
    """The pieces that `push` and `finish` return make up `tokenizer.decode` of all ids, with the same options."""

    def __init__(self, tokenizer: Tokenizer, *, skips_special: bool = True, is_continuation: bool = False) -> None:
        self._tokenizer, self._skips_special = tokenizer, skips_special
        self._drops_space = tokenizer.drops_space and not is_continuation
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is certain now; bytes that can no longer become UTF-8 are U+FFFD."""
        data = self._tokenizer.shown_bytes(token_id, skips_special=self._skips_special)
        if self._drops_space and data:
            data, self._drops_space = data.removeprefix(b" "), False
        return self._decoder.decode(data)

    def finish(self) -> str:
        """The rest: U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)
