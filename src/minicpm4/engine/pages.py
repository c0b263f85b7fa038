"""Which pages of the KV cache are free and which are taken. Deals in page ids; what a page holds is the executor's."""

from __future__ import annotations

from collections.abc import Iterable


class PagePool:
    """Pages 0 .. num_pages - 1; lowest free ids first, so that memory that was touched is touched again."""

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._is_taken = [False] * num_pages

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """`count` pages that were free; the caller has seen that there are so many."""
        assert 0 <= count <= len(self._free), f"{count} pages wanted, {len(self._free)} are free"
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._is_taken[page] = True
        return pages

    def give_back(self, pages: Iterable[int]) -> None:
        """Frees pages; each must be taken."""
        for page in pages:
            assert self._is_taken[page], f"page {page} is given back twice"
            self._is_taken[page] = False
            self._free.append(page)
