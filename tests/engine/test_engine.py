"""The engine on a small random model: batches, preemption, endings, and what it refuses."""

import numpy as np
import pytest

from minicpm4 import CapacityError, RequestError, SamplingParams
from minicpm4.engine.draft import Draft
from minicpm4.engine.engine import Engine
from minicpm4.engine.limits import Limits
from minicpm4.engine.sampler import Sampler
from minicpm4.engine.scheduler import Scheduler
from minicpm4.executors import StepResult
from minicpm4.executors.native import NativeExecutor
from tests.toy import TOY, toy_executor, toy_weights

PROMPTS = [[5, 6, 7], list(range(70)), [11], [90, 3, 3, 3, 8], list(range(40, 60))]


@pytest.fixture(scope="module")
def executor():
    executor = toy_executor("native", TOY, toy_weights(TOY), num_pages=16, max_step_tokens=48)
    yield executor
    executor.close()


def engine_of(executor, *, num_pages=16, eos_ids=(), context_length=512, drafter=None):
    limits = Limits(TOY.vocab_size, frozenset(eos_ids), context_length=context_length, num_pages=num_pages, max_step_tokens=48)
    return Engine(executor, limits, drafter=drafter)


def answers(engine, prompts, params):
    requests = [engine.add(prompt, params)[0] for prompt in prompts]
    tokens, reasons = {request: [] for request in requests}, {}
    while engine.scheduler.has_work:
        for event in engine.step():
            tokens[event.request] += event.tokens
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


CUTS = {  # the parts of a step
    "plan": (Scheduler, "plan"),
    "copy": (NativeExecutor, "copy_pages"),
    "run": (NativeExecutor, "run"),
    "sample": (Sampler, "choose"),
    "commit": (Scheduler, "commit"),
    "report": (Engine, "_advance"),
}


@pytest.mark.parametrize("cut", [*CUTS, "after plan", "after copy", "after run", "after sample"])
def test_a_step_that_is_cut_loses_nothing_and_publishes_nothing(executor, monkeypatch, cut):
    """Ctrl-C before and after each part of a step; what was committed is reported by the next one."""
    params = SamplingParams(max_tokens=8, temperature=1.0, seed=2, frequency_penalty=1.0, n=2)
    prompts = [PROMPTS[0], list(range(70)), PROMPTS[2]]
    undisturbed = samples(engine_of(executor), prompts, params)
    engine, (kind, name), is_after = engine_of(executor), CUTS[cut.removeprefix("after ")], cut.startswith("after")
    original = getattr(kind, name)
    state = {"calls": 0}

    def interrupted(*arguments, **details):
        state["calls"] += 1
        result = original(*arguments, **details) if is_after else None
        if state["calls"] in (2, 3, 5):
            raise KeyboardInterrupt
        return result if is_after else original(*arguments, **details)

    published = engine.scheduler.pool._by_key
    monkeypatch.setattr(kind, name, interrupted)
    assert samples(engine, prompts, params, before_failure=lambda: dict(published)) == undisturbed
    assert engine.scheduler.pool.num_free == 16


def samples(engine, prompts, params, *, before_failure=None):
    """Tokens of each request; steps that are interrupted are taken again, and have published nothing."""
    tokens = {request: [] for prompt in prompts for request in engine.add(prompt, params)}
    while engine.scheduler.has_work or engine._committed:
        published = before_failure() if before_failure else None
        try:
            for event in engine.step():
                tokens[event.request] += event.tokens
        except KeyboardInterrupt:
            assert engine._committed or before_failure() == published
    return list(tokens.values())


class TreeDrafter:
    """Guesses a random tree, in which some path follows what the answer will be."""

    def __init__(self, answer_of):
        self.answer_of, self.random = answer_of, np.random.default_rng(0)

    def draft(self, request, tokens, room):
        goes_on = self.answer_of.get(request, [])[len(tokens) - self.answer_of["prompt", request] :]
        guesses, parents, last = [], [], -1
        for true in goes_on[: int(self.random.integers(0, 5))]:
            for token in self.random.permutation([true, *self.random.integers(0, 90, 2).tolist()]).tolist():
                guesses.append(token)
                parents.append(last)
            last = next(row for row, (token, parent) in enumerate(zip(guesses, parents, strict=True)) if (token, parent) == (true, last))
        return Draft(tuple(guesses), tuple(parents)).cut(room)


@pytest.mark.parametrize("name", ["reference", "native"])
@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=str)
def test_a_draft_changes_no_answer(name, temperature):
    """Guesses that come true and others, in trees: answers, logprobs and endings are those without, in fewer steps."""
    runner = toy_executor(name, TOY, toy_weights(TOY), num_pages=16, max_step_tokens=48)
    params = SamplingParams(max_tokens=40, temperature=temperature, seed=5, frequency_penalty=0.5, logprobs=1)
    plain, plain_reasons = answers(engine_of(runner), PROMPTS, params)
    answer_of = dict(enumerate(plain)) | {("prompt", number): len(prompt) for number, prompt in enumerate(PROMPTS)}
    engine = engine_of(runner, drafter=TreeDrafter(answer_of))
    assert answers(engine, PROMPTS, params) == (plain, plain_reasons)
    assert engine.scheduler.pool.num_free == 16


class BrokenExecutor:
    """Gives NaN for one of two requests."""

    prompt_numerics = 0

    def run(self, step):
        logits = np.zeros((len(step.logit_rows_R), TOY.vocab_size), np.float32)
        logits[step.tokens_T[step.logit_rows_R] == 1] = np.nan
        return StepResult(logits)


def test_broken_arithmetic_ends_one_request_alone():
    engine = engine_of(BrokenExecutor())
    tokens, reasons = answers(engine, [[1], [2]], SamplingParams(max_tokens=3))
    assert reasons == ["error", "length"]
    assert (tokens[0], len(tokens[1])) == ([], 3)
    assert engine.scheduler.pool.num_free == 16
