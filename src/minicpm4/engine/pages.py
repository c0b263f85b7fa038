"""Pages of the KV cache: how many hold each, which are free, and which are known by the tokens that they stand for.

Deals in page ids and tokens; what a page holds of them is the executor's.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Sized
from dataclasses import dataclass
from itertools import count

from minicpm4.model import PAGE_TOKENS

NOTHING = 0  # the serial of what comes before the first page
Key = tuple[int, bytes, int]


@dataclass(frozen=True)
class Known:
    """What a known page stands for. key: the serial of the page before it, its own tokens, and how many of these are of a prompt where
    that is told apart: two pages have the same key only if all that up to their ends is the same. serial: its own, which no other page
    ever has."""

    key: Key
    serial: int


class PagePool:
    """Pages 0 .. num_pages - 1; any number of sequences may hold a page, and one that nobody holds is free.

    A full page can be made known by its tokens and those before it, and is then found by them, held or free, until it is taken for
    something else. Unknown pages are taken first, the lowest ids of them at the start, so that memory that was touched is touched
    again; then known ones, the one that was longest free first.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._num_holders = [0] * num_pages
        self._free_unknown = list(range(num_pages - 1, -1, -1))
        self._free_known: OrderedDict[int, None] = OrderedDict()
        self._known: dict[int, Known] = {}
        self._by_key: dict[Key, int] = {}
        self._serials = count(NOTHING + 1)

    @property
    def num_free(self) -> int:
        return len(self._free_unknown) + len(self._free_known)

    def is_shared(self, page: int) -> bool:
        """Whether more than one holds it, so that nobody may write into it."""
        return self._num_holders[page] > 1

    def is_free(self, page: int) -> bool:
        return self._num_holders[page] == 0

    def take(self, number: int) -> list[int]:
        """So many pages that were free, held once from now on; the caller has seen that there are so many."""
        assert 0 <= number <= self.num_free, f"{number} pages wanted, {self.num_free} are free"
        return [self._take_one() for _ in range(number)]

    def share(self, pages: Iterable[int]) -> None:
        """Holds pages once more; each is held, or free and known."""
        for page in pages:
            assert self._num_holders[page] or page in self._free_known, f"page {page} is shared, but it holds nothing"
            self._free_known.pop(page, None)
            self._num_holders[page] += 1

    def give_back(self, pages: Iterable[int]) -> None:
        """Lets go of pages, each of which is held; those of a sequence from its end, so that what follows is forgotten before what it
        follows."""
        for page in pages:
            assert self._num_holders[page], f"page {page} is given back, but nobody holds it"
            self._num_holders[page] -= 1
            if self._num_holders[page] == 0 and page in self._known:
                self._free_known[page] = None
            elif self._num_holders[page] == 0:
                self._free_unknown.append(page)

    def make_known(self, page: int, tokens: Sized[int], *, after: int | None, num_prompt: int = 0) -> int:
        """Makes a page known that holds these tokens, a page full, and follows `after` (None: it is the first). num_prompt: see Known.

        The page that is known for them from now on: this one, or another that was known before. A page that follows an unknown one
        stays unknown.
        """
        before = NOTHING if after is None else self._serial_of(after)
        if before is None:
            return page
        key = (before, bytes_of(tokens), num_prompt)
        if key not in self._by_key:
            assert self._num_holders[page], f"page {page} is made known, but nobody holds it"
            assert page not in self._known, f"page {page} is known for other tokens"
            self._by_key[key], self._known[page] = page, Known(key, next(self._serials))
        return self._by_key[key]

    def find(self, tokens: Sized[int], *, num_prompt: Callable[[int], int] = lambda number: 0) -> list[int]:
        """The known pages of a sequence that begins with these tokens, from its first on, as far as they reach. num_prompt: see Known, of
        the sequence's page of that number."""
        pages, before = list[int](), NOTHING
        for number in range(len(tokens) // PAGE_TOKENS):
            own = tokens[number * PAGE_TOKENS : (number + 1) * PAGE_TOKENS]
            page = self._by_key.get((before, bytes_of(own), num_prompt(number)))
            if page is None:
                break
            pages.append(page)
            before = self._known[page].serial
        return pages

    def _take_one(self) -> int:
        if self._free_unknown:
            page = self._free_unknown.pop()
        else:
            page, _ = self._free_known.popitem(last=False)
            del self._by_key[self._known.pop(page).key]
        self._num_holders[page] = 1
        return page

    def _serial_of(self, page: int) -> int | None:
        known = self._known.get(page)
        return None if known is None else known.serial


def bytes_of(tokens: Sized[int]) -> bytes:
    return array("i", tokens).tobytes()
