"""What the tokenizer libraries raise, as our errors. A panic of a library written in Rust is no Exception; it is caught too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from minicpm4.errors import CheckpointError, MiniCPMError


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """CheckpointError, naming what was done, for whatever a library raises while it reads or applies a model's data."""
    try:
        yield
    except MiniCPMError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{what} failed: {error!s:.200}", hint="the tokenizer is damaged; get the model's files again") from error
