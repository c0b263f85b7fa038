"""Pages and scheduling by their invariants: nothing lost, nothing shared, every token computed once or again after preemption."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.engine.scheduler import Part, Scheduler, Sequence, build_step
from minicpm4.model import PAGE_TOKENS, pages_for


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
        (Sequence([i], list(range(1000 * i, 1000 * i + prompt))), answer, arrival) for i, (prompt, answer, arrival) in enumerate(requests)
    ]
    wanted = {sequence.requests[0]: len(sequence.tokens) + answer for sequence, answer, _ in waiting}
    finished = set()
    for round_number in range(100_000):
        for item in [item for item in waiting if item[2] <= round_number]:
            waiting.remove(item)
            scheduler.add(item[0])
        parts = scheduler.plan().parts
        if not parts:
            assert not scheduler.has_work, "work is left and nothing runs"
            if not waiting:
                break
            continue
        step = build_step(parts)
        assert len(step.tokens_T) <= max_step_tokens
        held = list(cache.run(step).logits)
        taken = [page for part in parts for page in part.sequence.pages]
        assert len(taken) == len(set(taken)), "no page belongs to two sequences"
        scheduler.note_written(parts)
        for part, tokens in zip(parts, held, strict=True):
            sequence = part.sequence
            assert tokens == sequence.tokens[: sequence.num_cached + part.num_tokens], "the cache holds the sequence's own tokens"
            sequence.num_cached += part.num_tokens
            if part.is_complete:
                sequence.tokens.append(len(sequence.tokens))
                [request] = sequence.requests
                if len(sequence.tokens) == wanted[request]:
                    scheduler.remove(request)
                    finished.add(request)
    assert finished == set(wanted)
    assert scheduler.pool.num_free == num_pages


def test_those_that_decode_go_before_prompts():
    scheduler = Scheduler(num_pages=20, max_step_tokens=10)
    first, second = Sequence([0], list(range(5))), Sequence([1], list(range(100)))
    scheduler.add(first)
    assert len(scheduler.plan().parts) == 1
    first.num_cached, first.tokens = 5, [*first.tokens, 5]
    scheduler.add(second)
    parts = scheduler.plan().parts
    assert [(part.sequence.requests, part.num_tokens, part.is_complete) for part in parts] == [([0], 1, True), ([1], 9, False)]
    step = build_step(parts)
    assert step.logit_rows_R.tolist() == [0]
    assert step.positions_T.tolist() == [5, *range(9)]
    assert step.starts_S1.tolist() == [0, 1, 10]


def test_the_last_to_come_gives_way():
    scheduler = Scheduler(num_pages=3, max_step_tokens=256)
    first, second = Sequence([0], list(range(64))), Sequence([1], list(range(60)))
    for sequence in (first, second):
        scheduler.add(sequence)
    for part in scheduler.plan().parts:
        part.sequence.num_cached += part.num_tokens
    first.tokens += range(65)  # now it needs all three pages
    second.tokens.append(0)
    parts = scheduler.plan().parts
    assert [part.sequence.requests for part in parts] == [[0]]
    assert scheduler.num_preemptions == 1
    assert (second.pages, second.num_cached) == ([], 0)


def test_a_part_without_tokens_is_a_mistake():
    with pytest.raises(AssertionError, match="at least one token"):
        build_step([Part(Sequence([0], [1, 2], num_cached=2, pages=[0]), 0, is_prompt=True, is_complete=True)])


def compute(scheduler, plan):
    """What the engine does after a step, for sequences that get token 0."""
    scheduler.note_copied()
    scheduler.note_written(plan.parts)
    for part in scheduler.split(plan.parts):
        if part.is_complete:
            part.sequence.tokens.append(0)
        part.sequence.num_cached += part.num_tokens


def started(*requests, prompt, num_pages, prefix_cache=True):
    """A scheduler that has computed this prompt for these requests."""
    scheduler = Scheduler(num_pages=num_pages, max_step_tokens=512, prefix_cache=prefix_cache)
    scheduler.add(Sequence([*requests], [*prompt]))
    compute(scheduler, scheduler.plan())
    return scheduler


def parts_of(plan):
    return {part.sequence.requests[0]: (part.sequence.pages, part.num_tokens) for part in plan.parts}


def test_samples_share_the_prompt_and_all_but_the_last_copy_the_page_that_they_write():
    scheduler = started(0, 1, 2, prompt=range(100), num_pages=8)
    assert scheduler.pool.num_free == 6
    plan = scheduler.plan()
    assert parts_of(plan) == {0: ([0, 2], 1), 1: ([0, 3], 1), 2: ([0, 1], 1)}
    assert plan.copies == {2: 1, 3: 1}
    compute(scheduler, plan)
    assert scheduler.plan().copies == {}
    for request in range(3):
        scheduler.remove(request)
    assert scheduler.pool.num_free == 8


def test_samples_of_full_pages_copy_nothing():
    scheduler = started(0, 1, prompt=range(128), num_pages=8)
    plan = scheduler.plan()
    assert (parts_of(plan), plan.copies) == ({0: ([0, 1, 2], 1), 1: ([0, 1, 3], 1)}, {})


def test_a_copy_is_planned_again_until_it_was_made_and_forgotten_with_its_sequence():
    scheduler = started(0, 1, 2, prompt=range(100), num_pages=8)
    assert scheduler.plan().copies == {2: 1, 3: 1}
    assert scheduler.plan().copies == {2: 1, 3: 1}
    scheduler.remove(2)  # which would have written in place
    scheduler.remove(0)
    assert scheduler.plan().copies == {3: 1}
    scheduler.note_copied()
    assert scheduler.plan().copies == {}


def test_a_sequence_that_begins_as_another_did_goes_on_after_its_full_pages():
    scheduler = started(0, prompt=range(150), num_pages=8)
    scheduler.remove(0)
    scheduler.add(Sequence([1], [*range(140), 7]))
    scheduler.add(Sequence([2], [*range(64), *range(64)]))
    scheduler.add(Sequence([3], [*range(128)]))
    plan = scheduler.plan()
    assert parts_of(plan)[1] == ([0, 1, 2], 13)
    assert parts_of(plan)[2] == ([0, 3], 64)
    assert parts_of(plan)[3] == ([0, 4], 64)  # something must be left to compute
    assert scheduler.num_reused_tokens == 128 + 64 + 64


def test_without_a_prefix_cache_nothing_is_found():
    scheduler = started(0, prompt=range(150), num_pages=8, prefix_cache=False)
    scheduler.add(Sequence([1], [*range(150)]))
    assert parts_of(scheduler.plan())[1][1] == 150
    assert scheduler.num_reused_tokens == 0


def test_sequences_that_computed_the_same_side_by_side_keep_one_of_each_page():
    scheduler = Scheduler(num_pages=8, max_step_tokens=512)
    for request in range(2):
        scheduler.add(Sequence([request], [*range(150)]))
    plan = scheduler.plan()
    assert scheduler.pool.num_free == 2
    compute(scheduler, plan)
    assert scheduler.pool.num_free == 4
    assert parts_of(scheduler.plan()) == {0: ([0, 1, 2], 1), 1: ([0, 1, 5], 1)}


@pytest.mark.parametrize("prefix_cache", [True, False], ids=["shared", "not"])
def test_pages_that_are_shared_count_once_when_a_sequence_starts(prefix_cache):
    """Five pages: three of the first sequence, of which the second lacks one; without sharing it lacks three."""
    scheduler = started(0, prompt=range(150), num_pages=5, prefix_cache=prefix_cache)
    scheduler.add(Sequence([1], [*range(128), *range(20)]))
    assert len(scheduler.plan().parts) == (2 if prefix_cache else 1)


@pytest.mark.parametrize("num_pages", [4, 5, 6])
def test_known_pages_that_nobody_holds_are_no_room_beside_themselves(num_pages):
    """The second sequence finds two free pages, and takes one more; they cannot be had twice."""
    scheduler = started(0, prompt=range(150), num_pages=num_pages)
    scheduler.remove(0)
    scheduler.add(Sequence([1], [90] * 100))
    compute(scheduler, scheduler.plan())
    scheduler.add(Sequence([2], [*range(128), *range(20)]))
    assert len(scheduler.plan().parts) == (2 if num_pages > 4 else 1)
    assert scheduler.num_preemptions == 0


def test_samples_that_wait_for_their_prompt_are_promised_a_page_each():
    scheduler = Scheduler(num_pages=6, max_step_tokens=64)
    scheduler.add(Sequence([0, 1, 2, 3], [*range(100)]))  # two pages, and three more when they part
    scheduler.add(Sequence([4], [5] * 65))
    assert [part.sequence.requests for part in scheduler.plan().parts] == [[0, 1, 2, 3]]
    compute(scheduler, scheduler.plan())
    assert [part.sequence.requests for part in scheduler.plan().parts] == [[0, 1, 2, 3]]
    scheduler.remove(3)
    assert [part.sequence.requests for part in scheduler.plan().parts] == [[0, 1, 2], [4]]


def test_a_sample_that_gives_way_leaves_the_others_their_pages():
    scheduler = started(0, 1, prompt=range(100), num_pages=3)
    compute(scheduler, scheduler.plan())  # three pages: one shared, one of each
    first, second = (part.sequence for part in scheduler.plan().parts)
    first.tokens += range(40)
    assert parts_of(scheduler.plan()) == {0: ([0, 2, 1], 41)}
    assert (second.pages, scheduler.num_preemptions) == ([], 1)
    scheduler.remove(0)
    assert parts_of(scheduler.plan()) == {1: ([0, 2], 36)}  # the prompt's full page is still known, and what was generated waits
    compute(scheduler, scheduler.plan())
    assert parts_of(scheduler.plan()) == {1: ([0, 2], 2)}


def test_a_step_says_which_tokens_are_of_prompts():
    scheduler = started(0, prompt=range(70), num_pages=3)
    [sequence] = (part.sequence for part in scheduler.plan().parts)
    scheduler.add(Sequence([1], [7, 8]))
    assert build_step(scheduler.plan().parts).is_prompt_S.tolist() == [0, 1]
    sequence.num_cached = 0  # as after it gave its pages up
    assert build_step(scheduler.plan().parts).is_prompt_S.tolist() == [1, 1]
