"""Sharing does not show: answers are those of each request alone, whatever is shared, copied, preempted, cancelled or fails.

First with a model that is a function of the tokens that a sequence's pages hold, in any order of events; then with real executors.
"""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4 import SamplingParams
from minicpm4.engine.engine import Engine
from minicpm4.engine.limits import Limits
from minicpm4.executors import StepResult, backend
from minicpm4.model import PAGE_TOKENS, pages_for
from minicpm4.model.config import SparseConfig
from tests.toy import TOY, toy_executor, toy_weights

VOCABULARY = 50


class Failure(Exception):
    """What a step may meet."""


class Pages:
    """An executor whose logits are drawn from the tokens that a sequence's pages hold. Fails where `failures` says so, before a copy, after
    it, or half through a step's writing."""

    prompt_numerics = 0

    def __init__(self, num_pages, failures=()):
        self.slots = np.full((num_pages, PAGE_TOKENS, 2), -1)
        self.failures = list(failures)
        self.num_rows = 0
        self.is_shared = lambda page: False

    def fail_sometimes(self):
        if self.failures and self.failures.pop():
            raise Failure

    def copy_pages(self, sources, targets):
        self.fail_sometimes()
        assert len(set(targets)) == len(targets)
        assert not any(map(self.is_shared, targets)), "a copy is one sequence's own"
        self.slots[targets] = self.slots[sources]

    def run(self, step):
        assert not any(map(self.is_shared, step.slots_T // PAGE_TOKENS)), "nobody writes into a page that others hold"
        written, half = np.stack((step.tokens_T, step.positions_T), axis=1), len(step.tokens_T) // 2
        flat = self.slots.reshape(-1, 2)
        flat[step.slots_T[:half]] = written[:half]
        self.fail_sometimes()
        flat[step.slots_T] = written
        self.num_rows += len(written)
        rows = np.searchsorted(step.starts_S1, step.logit_rows_R, side="right") - 1
        logits = np.array([self.logits(step.pages_SP[row], step.lengths_S[row]) for row in rows])
        return StepResult(logits.reshape(-1, VOCABULARY))

    def logits(self, pages, length):
        held = self.slots[pages[: pages_for(length)]].reshape(-1, 2)[:length]
        assert held[:, 1].tolist() == list(range(length)), "a sequence's pages hold its positions in order"
        return np.random.default_rng(zlib.crc32(held[:, 0].tobytes())).standard_normal(VOCABULARY, np.float32)


def engine_of(executor, *, context_length=1000, vocab_size=VOCABULARY, **limits):
    engine = Engine(executor, Limits(vocab_size, frozenset(), context_length, **{"max_step_tokens": 100, **limits}))
    executor.is_shared = engine.scheduler.pool.is_shared
    return engine


def alone(prompt, params):
    """Tokens of each sample in an engine of its own."""
    engine = engine_of(Pages(20), num_pages=20, prefix_cache=False)
    return [run(engine, {request: []}) for sample in params.samples for request in engine.add(prompt, sample)]


def run(engine, tokens):
    while engine.scheduler.has_work:
        for event in engine.step():
            tokens[event.request] += event.tokens
    [one] = tokens.values()
    return one


def prompt_of(family, shared, length):
    """Two prompts of a family begin with the same tokens, as far as their `shared` reach."""
    start = [int(token) for token in np.random.default_rng(family).integers(0, VOCABULARY, shared)]
    return (start + [(length * 7 + i) % VOCABULARY for i in range(length)])[: max(1, length)]


REQUESTS = st.tuples(
    st.builds(prompt_of, st.integers(0, 1), st.sampled_from([0, 63, 64, 100, 128, 192]), st.integers(1, 260)),
    st.builds(
        SamplingParams, n=st.integers(1, 4), max_tokens=st.integers(1, 40), temperature=st.sampled_from([0.0, 1.0]), seed=st.integers(0, 3)
    ),
    st.integers(0, 12),  # the step before which it arrives
    st.none() | st.tuples(st.integers(0, 3), st.integers(0, 40)),  # which sample is cancelled, and before which step
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(REQUESTS, min_size=1, max_size=6),
    st.integers(6, 16),
    st.sampled_from([3, 17, 64, 200]),
    st.booleans(),
    st.lists(st.booleans(), max_size=12),
)
def test_whatever_happens_answers_are_those_alone(requests, num_pages, max_step_tokens, prefix_cache, failures):
    engine = engine_of(Pages(num_pages, failures), num_pages=num_pages, max_step_tokens=max_step_tokens, prefix_cache=prefix_cache)
    wanted, tokens, cancelled = {}, {}, {}
    waiting = list(requests)
    for step in range(100_000):
        for item in [item for item in waiting if item[2] <= step]:
            waiting.remove(item)
            prompt, params, _, cancel = item
            numbers = engine.add(prompt, params)
            wanted |= dict(zip(numbers, alone(prompt, params), strict=True))
            tokens |= {number: [] for number in numbers}
            if cancel is not None and cancel[0] < params.n:
                cancelled[numbers[cancel[0]]] = cancel[1]
        for request in [request for request, when in cancelled.items() if when == step]:
            engine.cancel(request)
        try:
            for event in engine.step():
                tokens[event.request] += event.tokens
        except Failure:
            continue
        if not waiting and not engine.scheduler.has_work:
            break
    for request, answer in tokens.items():
        assert answer == (wanted[request][: len(answer)] if request in cancelled else wanted[request])
    assert engine.scheduler.pool.num_free == num_pages


def test_a_prompt_is_computed_once_for_its_samples():
    engine = engine_of(executor := Pages(20), num_pages=20)
    params = SamplingParams(n=5, max_tokens=4, temperature=1.0, seed=1)
    tokens = {request: [] for request in engine.add(list(range(40)) * 4, params)}
    while engine.scheduler.has_work:
        for event in engine.step():
            tokens[event.request] += event.tokens
    assert executor.num_rows == 160 + 5 * 3
    assert list(tokens.values()) == alone(list(range(40)) * 4, params)
    assert len({tuple(answer) for answer in tokens.values()}) == 5


def test_an_executor_with_a_cache_a_sequence_shares_and_copies_nothing():
    """Each sample computes its prompt, and a second request too; answers are the same."""
    engine = engine_of(executor := Pages(40), num_pages=40, shares_pages=False)
    executor.copy_pages = None
    prompt, params = list(range(40)) * 4, SamplingParams(n=3, max_tokens=4, temperature=1.0, seed=1)
    tokens = {request: [] for _ in range(2) for request in engine.add(prompt, params)}
    while engine.scheduler.has_work:
        for event in engine.step():
            tokens[event.request] += event.tokens
    assert list(tokens.values()) == alone(prompt, params) * 2
    assert executor.num_rows == 6 * (160 + 3)


def test_a_second_turn_computes_what_is_new():
    engine = engine_of(executor := Pages(20), num_pages=20)
    question = [1, 2, 3] * 30
    [request] = engine.add(question, SamplingParams(max_tokens=60))
    answer = run(engine, {request: []})
    before = executor.num_rows
    [request] = engine.add([*question, *answer, 7, 8, 9], SamplingParams(max_tokens=1))
    [event] = [event for _ in range(2) for event in engine.step()]
    assert event.reused_tokens == engine.scheduler.num_reused_tokens == 128
    assert executor.num_rows - before == 153 - 128


# Bits of logits, of which log-probabilities tell: native computes a row in the same order whatever surrounds it.
LONG = [int(token) for token in np.random.default_rng(1).integers(0, TOY.vocab_size, 300)]
PROMPTS = [LONG, LONG[:200], [*LONG[:130], *LONG[:50]], LONG[:128], [*LONG[:64], *LONG[100:300]]]
RULES = {"dense": None, "sparse": SparseConfig(window_size=64, topk=2, dense_len=100)}
PARAMS = SamplingParams(max_tokens=40, logprobs=0)


def kinds():
    """(rule, cache, activations of prompts)."""
    has_bf16 = None in backend("native").capabilities.bf16_isas
    needs_unit = pytest.mark.skipif(not has_bf16, reason="no unit for matrices of bfloat16 (AMX)")
    same = [(rule, kv_format, "same") for rule in RULES for kv_format in ("f16", "int8")]
    return [*same, *(pytest.param((*kind, "bf16"), marks=needs_unit) for kind in (("dense", "int8"), ("sparse", "f16")))]


@pytest.fixture(scope="module", params=kinds(), ids="-".join)
def native(request):
    rule, kv_format, prompts = request.param
    options = {"kv_format": kv_format, "sparse": RULES[rule], "num_pages": 40, "max_step_tokens": 96, "threads": 1}
    options["prompt_activations"] = prompts
    executor = toy_executor("native", TOY, toy_weights(TOY, format_name="q8_0"), activations="int8", **options)
    yield executor
    executor.close()


def answers(engine, prompts, params):
    """Tokens and their log-probabilities, of each sample of each prompt."""
    found = {request: [] for prompt in prompts for request in engine.add(prompt, params)}
    while engine.scheduler.has_work:
        for event in engine.step():
            found[event.request] += [(token, logprobs.logprob) for token, logprobs in zip(event.tokens, event.logprobs, strict=True)]
    return list(found.values())


def native_engine(native, *, num_pages=40, prefix_cache=True):
    limits = {"num_pages": num_pages, "max_step_tokens": 96, "prefix_cache": prefix_cache}
    return engine_of(native, context_length=512, vocab_size=TOY.vocab_size, **limits)


@pytest.fixture(scope="module")
def cold(native):
    """Each prompt in an engine of its own, on pages that hold noise."""
    found = []
    for seed, prompt in enumerate(PROMPTS):
        native.randomize_pages(np.arange(40, dtype=np.int32), seed=seed)
        found += answers(native_engine(native, prefix_cache=False), [prompt], PARAMS)
    return found


def test_a_warm_cache_gives_the_bits_of_a_cold_one(native, cold):
    """One after the other, then all again; contexts that part in the middle of a page, at its end, and where a kernel crosses it."""
    engine = native_engine(native)
    assert [answer for prompt in PROMPTS for answer in answers(engine, [prompt], PARAMS)] == cold
    assert engine.scheduler.num_reused_tokens == 192 + 128 + 64 + 64
    assert answers(engine, PROMPTS, PARAMS) == cold
    assert engine.scheduler.pool.num_free == 40


def test_a_conversation_may_come_before_its_beginning_and_after(native):
    """What was an answer is then part of a prompt, and the other way around: where that shows, pages of the one are not the other's."""
    params = PARAMS.replace(max_tokens=80)
    beginning = LONG[:200]
    [answer] = answers(native_engine(native, prefix_cache=False), [beginning], params)
    whole = [*beginning, *(token for token, _ in answer), *LONG[:30]]
    [after_whole] = answers(native_engine(native, prefix_cache=False), [whole], params)
    engine = native_engine(native)
    assert answers(engine, [whole], params) == [after_whole]
    assert answers(engine, [beginning], params) == [answer]
    engine = native_engine(native)
    assert answers(engine, [beginning], params) == [answer]
    assert answers(engine, [whole], params) == [after_whole]
    assert engine.scheduler.num_reused_tokens == (192 if native.prompt_numerics else 256)


def test_together_and_preempted_too(native, cold):
    for num_pages in (40, 10, 7):
        engine = native_engine(native, num_pages=num_pages)
        assert answers(engine, PROMPTS, PARAMS) == cold
        assert answers(engine, PROMPTS[::-1], PARAMS) == cold[::-1]
        assert engine.scheduler.pool.num_free == num_pages
    assert engine.scheduler.num_preemptions > 0


@pytest.mark.parametrize("num_pages", [40, 8])
def test_samples_are_those_of_their_seeds_alone(native, num_pages):
    params = PARAMS.replace(n=4, temperature=1.0, seed=(1 << 64) - 2)
    engine = native_engine(native, num_pages=num_pages)
    together = answers(engine, PROMPTS[1:3], params)
    apart = [answers(native_engine(native, prefix_cache=False), [p], one)[0] for p in PROMPTS[1:3] for one in params.samples]
    assert together == apart
    assert (engine.scheduler.num_preemptions > 0) == (num_pages == 8)
    assert engine.scheduler.pool.num_free == num_pages
