"""Pages and scheduling by their invariants: nothing lost, nothing shared, every token computed once or again after preemption."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.engine.pages import PagePool
from minicpm4.engine.scheduler import Part, Scheduler, Sequence, build_step
from minicpm4.model import PAGE_TOKENS, pages_for


def test_a_page_is_given_back_once():
    pool = PagePool(3)
    pages = pool.take(2)
    pool.give_back(pages)
    assert pool.num_free == 3
    with pytest.raises(AssertionError, match="given back twice"):
        pool.give_back(pages[:1])
    with pytest.raises(AssertionError, match="4 pages wanted, 3 are free"):
        pool.take(4)


class Cache:
    """Stands for an executor: remembers which token each slot holds, and checks that every step reads what was written."""

    def __init__(self, num_pages):
        self.slots = np.full((num_pages * PAGE_TOKENS, 2), -1)

    def run(self, step):
        self.slots[step.slots_T] = np.stack((step.tokens_T, step.positions_T), axis=1)
        for row, length in enumerate(step.lengths_S):
            pages = step.pages_SP[row, : pages_for(length)]
            held = self.slots[(pages[:, None] * PAGE_TOKENS + np.arange(PAGE_TOKENS)).reshape(-1)[:length]]
            assert held[:, 1].tolist() == list(range(length)), "a sequence's pages hold its positions in order"
            yield held[:, 0].tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(1, 90), st.integers(0, 20)), min_size=1, max_size=8),
    st.integers(7, 14),
    st.sampled_from([1, 17, 64, 200]),
)
def test_everybody_is_served_whatever_comes(requests, num_pages, max_step_tokens):
    scheduler, cache = Scheduler(num_pages=num_pages, max_step_tokens=max_step_tokens), Cache(num_pages)
    waiting = [
        (Sequence(i, list(range(1000 * i, 1000 * i + prompt))), answer, arrival) for i, (prompt, answer, arrival) in enumerate(requests)
    ]
    wanted = {sequence.request: len(sequence.tokens) + answer for sequence, answer, _ in waiting}
    finished = set()
    for round_number in range(100_000):
        for item in [item for item in waiting if item[2] <= round_number]:
            waiting.remove(item)
            scheduler.add(item[0])
        parts = scheduler.plan()
        if not parts:
            assert not scheduler.has_work, "work is left and nothing runs"
            if not waiting:
                break
            continue
        step = build_step(parts)
        assert len(step.tokens_T) <= max_step_tokens
        held = list(cache.run(step))
        taken = [page for part in parts for page in part.sequence.pages]
        assert len(taken) == len(set(taken)), "no page belongs to two sequences"
        for part, tokens in zip(parts, held, strict=True):
            sequence = part.sequence
            assert tokens == sequence.tokens[: sequence.num_cached + part.num_tokens], "the cache holds the sequence's own tokens"
            sequence.num_cached += part.num_tokens
            if part.is_complete:
                sequence.tokens.append(len(sequence.tokens))
                if len(sequence.tokens) == wanted[sequence.request]:
                    scheduler.remove(sequence)
                    finished.add(sequence.request)
    assert finished == set(wanted)
    assert scheduler.pool.num_free == num_pages


def test_those_that_decode_go_before_prompts():
    scheduler = Scheduler(num_pages=20, max_step_tokens=10)
    first, second = Sequence(0, list(range(5))), Sequence(1, list(range(100)))
    scheduler.add(first)
    assert len(scheduler.plan()) == 1
    first.num_cached, first.tokens = 5, [*first.tokens, 5]
    scheduler.add(second)
    parts = scheduler.plan()
    assert [(part.sequence.request, part.num_tokens, part.is_complete) for part in parts] == [(0, 1, True), (1, 9, False)]
    step = build_step(parts)
    assert step.wanted_R.tolist() == [0]
    assert step.positions_T.tolist() == [5, *range(9)]
    assert step.starts_S1.tolist() == [0, 1, 10]


def test_the_last_to_come_gives_way():
    scheduler = Scheduler(num_pages=3, max_step_tokens=256)
    first, second = Sequence(0, list(range(64))), Sequence(1, list(range(60)))
    for sequence in (first, second):
        scheduler.add(sequence)
    for part in scheduler.plan():
        part.sequence.num_cached += part.num_tokens
    first.tokens += range(65)  # now it needs all three pages
    second.tokens.append(0)
    parts = scheduler.plan()
    assert [part.sequence.request for part in parts] == [0]
    assert scheduler.num_preemptions == 1
    assert (second.pages, second.num_cached) == ([], 0)


def test_a_part_without_tokens_is_a_mistake():
    with pytest.raises(AssertionError, match="at least one token"):
        build_step([Part(Sequence(0, [1, 2], num_cached=2, pages=[0]), 0, is_complete=True)])
