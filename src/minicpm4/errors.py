"""The few exceptions that callers of minicpm4 meet. Each says what happened and, in `hint`, what to do next."""

from __future__ import annotations


class MiniCPMError(Exception):
    """Base of every error that this package raises on purpose.

    message: what was found and what was expected, in the caller's words.
    hint: the next step, or "" where there is none to offer.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class CheckpointError(MiniCPMError):
    """A file is missing, damaged, hostile, or not a model at all."""


class ConfigError(MiniCPMError):
    """A model description or an option holds a value that cannot be right."""


class RequestError(MiniCPMError):
    """A prompt or a sampling parameter is out of range."""


class CapacityError(MiniCPMError):
    """The work does not fit the context, the cache or the memory of this machine."""


class UnsupportedError(MiniCPMError):
    """The chosen executor cannot do what was asked; the hint names what can."""
