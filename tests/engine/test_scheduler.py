"""Pages and scheduling by their invariants: nothing lost, nothing shared, every token computed once or again after preemption."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.engine.draft import Accepted, Draft
from minicpm4.engine.request import Request
from minicpm4.engine.sampler import ChosenToken
from minicpm4.engine.scheduler import Scheduler, Sequence
from minicpm4.model import PAGE_TOKENS, pages_for


class Requests(dict):
    """Requests by their numbers, which nothing chooses tokens for."""

    def __missing__(self, number):
        self[number] = Request(number, None, 0, 0, frozenset())
        return self[number]


def sequence_of(*numbers, tokens, requests=None, **details):
    requests = Requests() if requests is None else requests
    return Sequence([requests[number] for number in numbers], [*tokens], **details)


def accepted(plan, *tokens, rows=()):
    """What `commit` takes: each complete chunk's requests get these tokens, 0 where none are given."""
    choices = tuple(ChosenToken(token, None) for token in tokens or (0,))
    return {
        request.number: Accepted(choices, rows, None) for chunk in plan.chunks if chunk.is_complete for request in chunk.sequence.requests
    }


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
        (sequence_of(i, tokens=range(1000 * i, 1000 * i + prompt)), answer, arrival) for i, (prompt, answer, arrival) in enumerate(requests)
    ]
    wanted = {sequence.requests[0].number: len(sequence.tokens) + answer for sequence, answer, _ in waiting}
    finished = set()
    for round_number in range(100_000):
        for item in [item for item in waiting if item[2] <= round_number]:
            waiting.remove(item)
            scheduler.add(item[0])
        plan = scheduler.plan()
        if not plan.chunks:
            assert not scheduler.has_work, "work is left and nothing runs"
            if not waiting:
                break
            continue
        step = plan.step()
        assert len(step.tokens_T) <= max_step_tokens
        held = list(cache.run(step))
        taken = [page for chunk in plan.chunks for page in chunk.sequence.pages]
        assert len(taken) == len(set(taken)), "no page belongs to two sequences"
        for chunk, tokens in zip(plan.chunks, held, strict=True):
            sequence = chunk.sequence
            assert tokens == sequence.tokens[: sequence.num_cached + chunk.num_tokens], "the cache holds the sequence's own tokens"
        outcomes = {
            number: Accepted((ChosenToken(len(chunk.sequence.tokens), None),), (), None)
            for chunk in plan.chunks if chunk.is_complete for number in [chunk.sequence.requests[0].number]
        }  # fmt: skip
        scheduler.commit(plan, outcomes)
        for chunk in plan.chunks:
            [request] = chunk.sequence.requests
            if len(chunk.sequence.tokens) == wanted[request.number]:
                scheduler.remove(request)
                finished.add(request.number)
    assert finished == set(wanted)
    assert scheduler.pool.num_free == num_pages


def test_those_that_decode_go_before_prompts():
    scheduler = Scheduler(num_pages=20, max_step_tokens=10)
    scheduler.add(sequence_of(0, tokens=range(5)))
    plan = scheduler.plan()
    assert len(plan.chunks) == 1
    scheduler.commit(plan, accepted(plan, 5))
    scheduler.add(sequence_of(1, tokens=range(100)))
    plan = scheduler.plan()
    found = [(chunk.sequence.requests[0].number, chunk.num_tokens, chunk.is_complete) for chunk in plan.chunks]
    assert found == [(0, 1, True), (1, 9, False)]
    step = plan.step()
    assert step.logit_rows_R.tolist() == [0]
    assert step.positions_T.tolist() == [5, *range(9)]
    assert step.starts_S1.tolist() == [0, 1, 10]


def test_the_last_to_come_gives_way():
    scheduler = Scheduler(num_pages=3, max_step_tokens=256)
    first, second = sequence_of(0, tokens=range(64)), sequence_of(1, tokens=range(60))
    for sequence in (first, second):
        scheduler.add(sequence)
    compute(scheduler, scheduler.plan())
    first.tokens += range(64)  # now it needs all three pages
    assert numbers_of(scheduler.plan()) == [[0]]
    assert scheduler.num_preemptions == 1
    assert (list(second.pages), second.num_cached) == ([], 0)


def compute(scheduler, plan):
    """What the engine does after a step, for sequences that get token 0."""
    scheduler.note_copied()
    scheduler.commit(plan, accepted(plan))


def numbers_of(plan):
    return [[request.number for request in chunk.sequence.requests] for chunk in plan.chunks]


class Numbered(Scheduler):
    """One whose requests are removed by their numbers."""

    def __init__(self, **sizes):
        super().__init__(**sizes)
        self.requests = Requests()

    def remove(self, number):
        super().remove(self.requests[number])

    def add_tokens(self, *numbers, tokens, **details):
        self.add(sequence_of(*numbers, tokens=tokens, requests=self.requests, **details))


def started(*numbers, prompt, num_pages, prefix_cache=True, **details):
    """A scheduler that has computed this prompt for these requests."""
    scheduler = Numbered(num_pages=num_pages, max_step_tokens=512, prefix_cache=prefix_cache)
    scheduler.add_tokens(*numbers, tokens=prompt, **details)
    compute(scheduler, scheduler.plan())
    return scheduler


def parts_of(plan):
    return {chunk.sequence.requests[0].number: (list(chunk.sequence.pages), chunk.num_tokens) for chunk in plan.chunks}


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
    scheduler.add_tokens(1, tokens=[*range(140), 7])
    scheduler.add_tokens(2, tokens=[*range(64), *range(64)])
    scheduler.add_tokens(3, tokens=[*range(128)])
    plan = scheduler.plan()
    assert parts_of(plan)[1] == ([0, 1, 2], 13)
    assert parts_of(plan)[2] == ([0, 3], 64)
    assert parts_of(plan)[3] == ([0, 4], 64)  # something must be left to compute
    assert scheduler.num_reused_tokens == 128 + 64 + 64


def test_without_a_prefix_cache_nothing_is_found():
    scheduler = started(0, prompt=range(150), num_pages=8, prefix_cache=False)
    scheduler.add_tokens(1, tokens=[*range(150)])
    assert parts_of(scheduler.plan())[1][1] == 150
    assert scheduler.num_reused_tokens == 0


def test_sequences_that_computed_the_same_side_by_side_keep_one_of_each_page():
    scheduler = Numbered(num_pages=8, max_step_tokens=512)
    for number in range(2):
        scheduler.add_tokens(number, tokens=range(150))
    plan = scheduler.plan()
    assert scheduler.pool.num_free == 2
    compute(scheduler, plan)
    assert scheduler.pool.num_free == 4
    assert parts_of(scheduler.plan()) == {0: ([0, 1, 2], 1), 1: ([0, 1, 5], 1)}


@pytest.mark.parametrize("prefix_cache", [True, False], ids=["shared", "not"])
def test_pages_that_are_shared_count_once_when_a_sequence_starts(prefix_cache):
    """Five pages: three of the first sequence, of which the second lacks one; without sharing it lacks three."""
    scheduler = started(0, prompt=range(150), num_pages=5, prefix_cache=prefix_cache)
    scheduler.add_tokens(1, tokens=[*range(128), *range(20)])
    assert len(scheduler.plan().chunks) == (2 if prefix_cache else 1)


@pytest.mark.parametrize("num_pages", [4, 5, 6])
def test_known_pages_that_nobody_holds_are_no_room_beside_themselves(num_pages):
    """The second sequence finds two free pages, and takes one more; they cannot be had twice."""
    scheduler = started(0, prompt=range(150), num_pages=num_pages)
    scheduler.remove(0)
    scheduler.add_tokens(1, tokens=[90] * 100)
    compute(scheduler, scheduler.plan())
    scheduler.add_tokens(2, tokens=[*range(128), *range(20)])
    assert len(scheduler.plan().chunks) == (2 if num_pages > 4 else 1)
    assert scheduler.num_preemptions == 0


def test_samples_that_wait_for_their_prompt_are_promised_a_page_each():
    scheduler = Numbered(num_pages=6, max_step_tokens=64)
    scheduler.add_tokens(0, 1, 2, 3, tokens=[*range(100)])  # two pages, and three more when they part
    scheduler.add_tokens(4, tokens=[5] * 65)
    assert numbers_of(scheduler.plan()) == [[0, 1, 2, 3]]
    compute(scheduler, scheduler.plan())
    assert numbers_of(scheduler.plan()) == [[0, 1, 2, 3]]
    scheduler.remove(3)
    assert numbers_of(scheduler.plan()) == [[0, 1, 2], [4]]


def test_a_sample_that_gives_way_leaves_the_others_their_pages():
    scheduler = started(0, 1, prompt=range(100), num_pages=3)
    compute(scheduler, scheduler.plan())  # three pages: one shared, one of each
    first, second = (chunk.sequence for chunk in scheduler.plan().chunks)
    first.tokens += range(40)
    assert parts_of(scheduler.plan()) == {0: ([0, 2, 1], 41)}
    assert (list(second.pages), scheduler.num_preemptions) == ([], 1)
    scheduler.remove(0)
    assert parts_of(scheduler.plan()) == {1: ([0, 2], 38)}  # the prompt's full page is still published, and what was generated waits
    compute(scheduler, scheduler.plan())
    assert parts_of(scheduler.plan()) == {1: ([0, 2], 1)}


def test_a_step_says_which_tokens_have_the_numerics_of_prompts():
    scheduler = started(0, prompt=range(70), num_pages=3, prompt_numerics=7)
    [sequence] = (chunk.sequence for chunk in scheduler.plan().chunks)
    scheduler.add_tokens(1, tokens=[7, 8], prompt_numerics=7)
    assert scheduler.plan().step().numerics_S.tolist() == [0, 7]
    sequence.num_cached = 0  # as after it gave its pages up
    assert scheduler.plan().step().numerics_S.tolist() == [7, 7]


DRAFT = Draft((5, 6, 7, 8), (-1, 0, -1, 2))  # two pairs, of which one may come true


def test_only_what_was_accepted_of_a_draft_is_cached_and_published():
    """63 tokens are cached; the draft crosses the page's end, and a rejected one never becomes a prefix."""
    scheduler = started(0, prompt=range(62), num_pages=4)
    plan = scheduler.plan(lambda sequence, room: DRAFT)
    step = plan.step()
    assert step.tokens_T.tolist() == [0, 5, 6, 7, 8]
    assert step.positions_T.tolist() == [62, 63, 64, 63, 64]
    assert step.logit_rows_R.tolist() == [0, 1, 2, 3, 4]
    scheduler.commit(plan, accepted(plan, 7, 9, rows=(2,)))
    [chunk] = scheduler.plan().chunks
    assert (chunk.sequence.tokens[61:], chunk.sequence.num_cached) == ([61, 0, 7, 9], 64)
    assert scheduler.pool.match_prefix([*range(62), 0, 5], salt=chunk.sequence.page_salt) == []
    assert len(scheduler.pool.match_prefix([*range(62), 0, 7], salt=chunk.sequence.page_salt)) == 1


def test_a_draft_takes_nobodys_pages_and_no_more_room_than_there_is():
    scheduler = started(0, prompt=range(62), num_pages=1)
    [chunk] = scheduler.plan(lambda sequence, room: DRAFT).chunks
    assert chunk.draft is None
    assert scheduler.num_preemptions == 0
    scheduler = started(0, prompt=range(62), num_pages=4)
    scheduler.max_step_tokens = 3
    [chunk] = scheduler.plan(lambda sequence, room: DRAFT).chunks
    assert chunk.draft == Draft((5, 6), (-1, 0))


def test_adapters_and_tenants_do_not_share_prefixes():
    scheduler = started(0, prompt=range(100), num_pages=8, adapter=1)
    scheduler.add_tokens(1, tokens=range(100), adapter=2)
    scheduler.add_tokens(2, tokens=range(100), adapter=1, salt="tenant")
    scheduler.add_tokens(3, tokens=range(100), adapter=1)
    assert [chunk.num_tokens for chunk in scheduler.plan().chunks] == [1, 100, 100, 36]
