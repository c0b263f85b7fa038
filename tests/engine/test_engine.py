"""The engine on a small random model: batches, preemption, endings, and what it refuses."""

import numpy as np
import pytest

from minicpm4 import CapacityError, RequestError, SamplingParams
from minicpm4.engine.engine import Engine, Limits
from tests.toy import TOY, toy_executor, toy_weights

PROMPTS = [[5, 6, 7], list(range(70)), [11], [90, 3, 3, 3, 8], list(range(40, 60))]


@pytest.fixture(scope="module")
def executor():
    executor = toy_executor("native", TOY, toy_weights(TOY), num_pages=16, max_step_tokens=48)
    yield executor
    executor.close()


def engine_of(executor, *, num_pages=16, eos_ids=(), context_length=512):
    limits = Limits(TOY.vocab_size, frozenset(eos_ids), context_length=context_length, num_pages=num_pages, max_step_tokens=48)
    return Engine(executor, limits)


def answers(engine, prompts, params):
    requests = [engine.add(prompt, params)[0] for prompt in prompts]
    tokens, reasons = {request: [] for request in requests}, {}
    while engine.scheduler.has_work:
        for event in engine.step():
            tokens[event.request] += [event.token] if event.token is not None else []
            if event.finish_reason:
                reasons[event.request] = event.finish_reason
    return [tokens[request] for request in requests], [reasons[request] for request in requests]


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=str)
def test_together_as_alone(executor, temperature):
    params = SamplingParams(max_tokens=30, temperature=temperature, seed=5, ignore_eos=True)
    together, reasons = answers(engine_of(executor), PROMPTS, params)
    alone = [answers(engine_of(executor), [prompt], params)[0][0] for prompt in PROMPTS]
    assert together == alone
    assert reasons == ["length"] * len(PROMPTS)


def test_preempted_as_undisturbed(executor):
    params = SamplingParams(max_tokens=100)
    roomy, tight = engine_of(executor), engine_of(executor, num_pages=4)
    expected, got = answers(roomy, PROMPTS, params), answers(tight, PROMPTS, params)
    assert roomy.scheduler.num_preemptions == 0 < tight.scheduler.num_preemptions
    assert got == expected
    assert tight.scheduler.pool.num_free == 4


def test_endings(executor):
    [[first, second, *_]], _ = answers(engine_of(executor), [PROMPTS[0]], SamplingParams(max_tokens=4))
    assert answers(engine_of(executor, eos_ids=[second]), [PROMPTS[0]], SamplingParams()) == ([[first]], ["stop"])
    assert answers(engine_of(executor), [PROMPTS[0]], SamplingParams(stop_token_ids=(first,))) == ([[]], ["stop"])
    tokens, reasons = answers(engine_of(executor, eos_ids=[second]), [PROMPTS[0]], SamplingParams(max_tokens=4, ignore_eos=True))
    assert (tokens[0][:2], reasons) == ([first, second], ["length"])
    tokens, reasons = answers(engine_of(executor, context_length=10), [PROMPTS[0]], SamplingParams())
    assert (len(tokens[0]), reasons) == (7, ["length"])


def test_a_cancelled_request_frees_its_pages(executor):
    engine = engine_of(executor)
    [kept], [gone] = engine.add(PROMPTS[1], SamplingParams(max_tokens=5)), engine.add(PROMPTS[0], SamplingParams(max_tokens=50))
    seen = set()
    for _ in range(4):
        seen |= {event.request for event in engine.step()}
    engine.cancel(gone)
    engine.cancel(gone)
    while engine.scheduler.has_work:
        assert {event.request for event in engine.step()} <= {kept}
    assert gone in seen
    assert engine.scheduler.pool.num_free == 16
    assert engine.step() == []


def test_refuses(executor):
    engine = engine_of(executor, num_pages=2, context_length=200)
    for prompt, params, error, match in (
        ([], SamplingParams(), RequestError, "the prompt is empty"),
        ([97], SamplingParams(), RequestError, "token 97 is not in the vocabulary of 97"),
        ([1], SamplingParams(logit_bias={97: 1.0}), RequestError, "token 97"),
        ([1] * 128, SamplingParams(), CapacityError, "the prompt has 128 tokens, the context holds 128 with the answer"),
    ):
        with pytest.raises(error, match=match):
            engine.add(prompt, params)
    assert not engine.scheduler.has_work


class Interrupted:
    """Stands for a sampler, and for Ctrl-C in the middle of its work."""

    def choose(self, logits, peaks=None):
        raise KeyboardInterrupt


def test_an_interrupted_step_is_computed_again(executor):
    params = SamplingParams(max_tokens=8, temperature=1.0, seed=2, frequency_penalty=1.0)
    undisturbed, _ = answers(engine_of(executor), PROMPTS[:3], params)
    engine = engine_of(executor)
    requests = [engine.add(prompt, params)[0] for prompt in PROMPTS[:3]]
    events = [event for _ in range(4) for event in engine.step()]
    victim = engine._running[requests[2]]
    victim.sampler, sampler = Interrupted(), victim.sampler
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    victim.sampler = sampler
    [late] = engine.add(PROMPTS[3], params)
    while engine.scheduler.has_work:
        events += engine.step()
    assert [[e.token for e in events if e.request == request] for request in requests] == undisturbed
    assert [e.token for e in events if e.request == late] == answers(engine_of(executor), [PROMPTS[3]], params)[0][0]


class BrokenExecutor:
    """Gives NaN for one of two requests."""

    peaks = None

    def run(self, step):
        logits = np.zeros((len(step.logit_rows_R), TOY.vocab_size), np.float32)
        logits[step.tokens_T[step.logit_rows_R] == 1] = np.nan
        return logits


def test_broken_arithmetic_ends_one_request_alone():
    engine = engine_of(BrokenExecutor())
    tokens, reasons = answers(engine, [[1], [2]], SamplingParams(max_tokens=3))
    assert reasons == ["error", "length"]
    assert (tokens[0], len(tokens[1])) == ([], 3)
    assert engine.scheduler.pool.num_free == 16
