"""Pages by their invariants: counts that add up, nothing in two places, and published pages that are what they are published for."""

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from minicpm4.engine.pages import PagePool
from minicpm4.model import PAGE_TOKENS

NUM_PAGES = 6


def page_of(letter: int) -> list[int]:
    return [letter] * PAGE_TOKENS


def test_the_lowest_unpublished_pages_come_first_and_the_longest_free_published_last():
    pool = PagePool(4)
    first, second, third = pool.allocate(3)
    assert [first, second, third] == [0, 1, 2]
    assert pool.publish(first, page_of(7), after=None) == first
    assert pool.publish(second, page_of(8), after=first) == second
    pool.release([third, second, first])
    assert pool.num_free == 4
    assert pool.match_prefix([*page_of(7), *page_of(8), 5]) == [first, second]
    assert pool.allocate(3) == [2, 3, 1]  # what follows is forgotten before what it follows
    assert pool.match_prefix([*page_of(7), *page_of(8)]) == [first]
    pool.retain([first])
    assert (pool.num_free, pool.is_shared(first)) == (0, False)


def test_only_the_very_same_tokens_are_found():
    pool = PagePool(4)
    pages = pool.allocate(3)
    pool.publish(pages[0], page_of(1), after=None)
    pool.publish(pages[1], page_of(2), after=pages[0])
    assert pool.match_prefix(page_of(1)[:-1]) == []
    assert pool.match_prefix(page_of(2)) == []  # published only after the other
    assert pool.match_prefix([*page_of(1), *page_of(1)]) == [0]
    assert pool.match_prefix([*page_of(1), *page_of(2)[:-1], 3]) == [0]
    assert pool.publish(pages[2], np.array(page_of(1)), after=None) == 0  # another holds the same
    pool.release(pages)
    pool.allocate(4)
    assert pool.match_prefix(page_of(1)) == []


def test_what_follows_an_unpublished_page_stays_unpublished():
    """Also where the page before it was published once: it may come to hold something else."""
    pool = PagePool(2)
    first, second = pool.allocate(2)
    assert pool.publish(second, page_of(2), after=first) == second
    assert pool.match_prefix(page_of(2)) == []
    pool.publish(first, page_of(1), after=None)
    pool.release([second, first])
    assert pool.allocate(2) == [second, first]
    pool.publish(second, page_of(2), after=first)
    assert pool.match_prefix([*page_of(1), *page_of(2)]) == []


def test_mistakes_are_said():
    pool = PagePool(3)
    pages = pool.allocate(2)
    pool.release(pages)
    for mistake, message in (
        (lambda: pool.release(pages[:1]), "page 0 is released, but nobody holds it"),
        (lambda: pool.allocate(4), "4 pages wanted, 3 are free"),
        (lambda: pool.retain([0]), "page 0 is retained, but it holds nothing"),
        (lambda: pool.publish(0, page_of(1), after=None), "page 0 is published, but nobody holds it"),
    ):
        with pytest.raises(AssertionError, match=message):
            mistake()
    [page] = pool.allocate(1)
    pool.publish(page, page_of(1), after=None)
    with pytest.raises(AssertionError, match=f"page {page} is published for other tokens"):
        pool.publish(page, page_of(2), after=None)


class Sharers(RuleBasedStateMachine):
    """Sequences of pages that grow, fork, end and begin on what is published; `contents` is what each page was filled with last."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(NUM_PAGES)
        self.sequences: list[tuple[list[int], list[int]]] = []  # pages and the letters that fill them
        self.contents = [()] * NUM_PAGES

    @rule(letters=st.lists(st.integers(1, 2), max_size=4))
    def begin(self, letters: list[int]) -> None:
        pages = self.pool.match_prefix([token for letter in letters for token in page_of(letter)])
        for index, page in enumerate(pages):
            assert self.contents[page] == tuple(letters[: index + 1]), "a page that is found was filled after the same pages"
        self.pool.retain(pages)
        self.sequences.append((pages, letters[: len(pages)]))

    @precondition(lambda self: self.sequences and self.pool.num_free)
    @rule(data=st.data(), letter=st.integers(1, 2), is_published=st.booleans())
    def grow(self, data: st.DataObject, letter: int, is_published: bool) -> None:
        pages, letters = data.draw(st.sampled_from(self.sequences))
        [page] = self.pool.allocate(1)
        assert not any(page in others for others, _ in self.sequences), "a page that is taken was nobody's"
        self.contents[page] = (*letters, letter)
        if is_published:
            published = self.pool.publish(page, page_of(letter), after=pages[-1] if pages else None)
            if published != page:
                self.pool.retain([published])
                self.pool.release([page])
            page = published
        pages.append(page)
        letters.append(letter)
        assert self.contents[page] == tuple(letters)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        pages, letters = data.draw(st.sampled_from(self.sequences))
        self.pool.retain(pages)
        self.sequences.append(([*pages], [*letters]))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        pages, _ = self.sequences.pop(data.draw(st.integers(0, len(self.sequences) - 1)))
        self.pool.release(reversed(pages))

    @invariant()
    def books_balance(self) -> None:
        counts = [sum(page in pages for pages, _ in self.sequences) for page in range(NUM_PAGES)]
        assert [self.pool.is_free(page) for page in range(NUM_PAGES)] == [count == 0 for count in counts]
        assert [self.pool.is_shared(page) for page in range(NUM_PAGES)] == [count > 1 for count in counts]
        assert self.pool.num_free == counts.count(0)

    def teardown(self) -> None:
        for pages, _ in self.sequences:
            self.pool.release(reversed(pages))
        assert sorted(self.pool.allocate(NUM_PAGES)) == list(range(NUM_PAGES))


Sharers.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
test_sharers = Sharers.TestCase


def test_a_salt_keeps_pages_apart():
    """Pages of one tenant, or of one adapter, are not matched by another's."""
    pool = PagePool(3)
    [own] = pool.allocate(1)
    pool.publish(own, page_of(1), after=None, salt="one")
    assert pool.match_prefix(page_of(1), salt=lambda number: "one") == [own]
    assert pool.match_prefix(page_of(1), salt=lambda number: "other") == pool.match_prefix(page_of(1)) == []
