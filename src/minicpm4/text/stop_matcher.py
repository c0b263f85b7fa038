"""Stop strings in text that arrives in pieces: what may be shown already, and where it ends.

Follows the matching rule of Knuth, Morris and Pratt, one character at a time, so the cost does not grow with what is held
back and the result does not depend on how the text was cut.
"""

from __future__ import annotations

from collections.abc import Sequence

from minicpm4.errors import RequestError


class StopMatcher:
    """Ends the text before the stop string that is complete first, the longest of them if several are.

    is_stopped: whether one was found; later text is dropped then.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """RequestError for a stop string without characters, or a string where a list of them is expected."""
        if isinstance(stops, str) or not all(stops):
            raise RequestError(
                "a stop string is empty, or stop strings are not a list", hint="give a list of texts of one character or more"
            )
        self.is_stopped = False
        self._held = ""
        self._searches = [Search(stop) for stop in stops]

    def push(self, text: str) -> str:
        """The text that can be shown now: up to the stop string, or up to what may become one."""
        if self.is_stopped or not self._searches:
            return "" if self.is_stopped else text
        for index, character in enumerate(text):
            complete = [len(search.stop) for search in self._searches if search.advance(character)]
            if complete:
                self.is_stopped = True
                return self._release(text[: index + 1], held=max(complete), keeps=False)
        return self._release(text, held=max(search.matched for search in self._searches))

    def finish(self) -> str:
        """What was held back, which is no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _release(self, text: str, *, held: int, keeps: bool = True) -> str:
        """Everything but the last `held` characters, which are kept or dropped."""
        whole = self._held + text
        end = len(whole) - held
        self._held = whole[end:] if keeps else ""
        return whole[:end]


class Search:
    """One stop string's search. matched: how many of its first characters the text so far ends with."""

    def __init__(self, stop: str) -> None:
        self.stop, self.matched = stop, 0
        self._shorter = [0] * len(stop)  # by matched characters less one: the longest border of that prefix
        for index in range(1, len(stop)):
            self._shorter[index] = self._next(self._shorter[index - 1], stop[index])

    def advance(self, character: str) -> bool:
        """Whether the stop string is complete with this character."""
        self.matched = self._next(self.matched, character)
        return self.matched == len(self.stop)

    def _next(self, matched: int, character: str) -> int:
        while matched and self.stop[matched] != character:
            matched = self._shorter[matched - 1]
        return matched + 1 if self.stop[matched] == character else matched
