"""Pages of the KV cache: how many sequences hold each, which are free, and which are published under the tokens that they stand for.

Deals in page ids and tokens; what a page holds of them is the executor's.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from collections.abc import Sequence as Sized
from dataclasses import dataclass
from itertools import count

from minicpm4.model import PAGE_TOKENS

NOTHING = 0  # the serial of what comes before the first page
Key = tuple[int, bytes, Hashable]


@dataclass(frozen=True)
class Published:
    """What a published page stands for. key: the serial of the page before it, its own tokens, and a salt for what else its contents depend
    on: two pages have the same key only if all that up to their ends is the same. serial: its own, which no other page ever has."""

    key: Key
    serial: int


class PagePool:
    """Pages 0 .. num_pages - 1; any number of sequences may hold a page, and one that nobody holds is free.

    A full page can be published under its tokens and those before it, and is then matched by them, held or free, until it is allocated for
    something else. Unpublished pages are allocated first, the lowest ids of them at the start, so that memory that was touched is touched
    again; then published ones, the one that was longest free first.
    """

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._num_holders = [0] * num_pages
        self._free_unpublished = list(range(num_pages - 1, -1, -1))
        self._free_published: OrderedDict[int, None] = OrderedDict()
        self._published: dict[int, Published] = {}
        self._by_key: dict[Key, int] = {}
        self._serials = count(NOTHING + 1)

    @property
    def num_free(self) -> int:
        return len(self._free_unpublished) + len(self._free_published)

    def is_shared(self, page: int) -> bool:
        """Whether more than one holds it, so that nobody may write into it."""
        return self._num_holders[page] > 1

    def is_free(self, page: int) -> bool:
        return self._num_holders[page] == 0

    def allocate(self, number: int) -> list[int]:
        """So many pages that were free, held once from now on; the caller has seen that there are so many."""
        assert 0 <= number <= self.num_free, f"{number} pages wanted, {self.num_free} are free"
        return [self._allocate_one() for _ in range(number)]

    def retain(self, pages: Iterable[int]) -> None:
        """Holds pages once more; each is held, or free and published."""
        for page in pages:
            assert self._num_holders[page] or page in self._free_published, f"page {page} is retained, but it holds nothing"
            self._free_published.pop(page, None)
            self._num_holders[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Lets go of pages, each of which is held; those of a sequence from its end, so that what follows is forgotten before what it
        follows."""
        for page in pages:
            assert self._num_holders[page], f"page {page} is released, but nobody holds it"
            self._num_holders[page] -= 1
            if self._num_holders[page] == 0 and page in self._published:
                self._free_published[page] = None
            elif self._num_holders[page] == 0:
                self._free_unpublished.append(page)

    def publish(self, page: int, tokens: Sized[int], *, after: int | None, salt: Hashable = None) -> int:
        """Publishes a page that holds these tokens, a page full, and follows `after` (None: it is the first). salt: see Published.

        The page that is published for them from now on: this one, or another that was before. A page that follows an unpublished one
        stays unpublished.
        """
        before = NOTHING if after is None else self._serial_of(after)
        if before is None:
            return page
        key = (before, bytes_of(tokens), salt)
        if key not in self._by_key:
            assert self._num_holders[page], f"page {page} is published, but nobody holds it"
            assert page not in self._published, f"page {page} is published for other tokens"
            self._by_key[key], self._published[page] = page, Published(key, next(self._serials))
        return self._by_key[key]

    def match_prefix(self, tokens: Sized[int], *, salt: Callable[[int], Hashable] = lambda number: None) -> list[int]:
        """The published pages of a sequence that begins with these tokens, from its first on, as far as they reach. salt: see Published, of
        the sequence's page of that number."""
        pages, before = list[int](), NOTHING
        for number in range(len(tokens) // PAGE_TOKENS):
            own = tokens[number * PAGE_TOKENS : (number + 1) * PAGE_TOKENS]
            page = self._by_key.get((before, bytes_of(own), salt(number)))
            if page is None:
                break
            pages.append(page)
            before = self._published[page].serial
        return pages

    def _allocate_one(self) -> int:
        if self._free_unpublished:
            page = self._free_unpublished.pop()
        else:
            page, _ = self._free_published.popitem(last=False)
            del self._by_key[self._published.pop(page).key]
        self._num_holders[page] = 1
        return page

    def _serial_of(self, page: int) -> int | None:
        published = self._published.get(page)
        return None if published is None else published.serial


def bytes_of(tokens: Sized[int]) -> bytes:
    return array("i", tokens).tobytes()
