"""A session on a small random model: what threads, aborts, failures and closing do to requests."""

import gc
import signal
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minicpm4 import CapacityError, MiniCPMError, RequestError
from tests.engine.toy_session import DEADLINE, LONG, PARAMS, PROMPTS, Answers, pages_in_use, session_of, steps

pytestmark = pytest.mark.usefixtures("patience")


@pytest.mark.parametrize("temperature", [0.0, 1.0], ids=str)
def test_threads_share_steps(session, hooked, alone, temperature):
    params = [PARAMS.replace(max_tokens=4 + 5 * i, temperature=temperature, seed=i, n=1 + i % 2) for i in range(5)]
    expected = [alone(prompt, one) for prompt, one in zip(PROMPTS, params, strict=True)]
    num_steps = 0

    def count():
        nonlocal num_steps
        num_steps += 1

    hooked.before_step = count
    answers = [Answers(session, prompt, one) for prompt, one in zip(PROMPTS, params, strict=True)]
    with ThreadPoolExecutor(5) as pool:
        assert list(pool.map(lambda one: one.wait(), answers, timeout=DEADLINE)) == expected
    assert num_steps < 24 + 8  # those of the longest, and of the prompts
    assert (pages_in_use(session), session.num_requests) == (0, 0)


@pytest.mark.parametrize(
    ("prompt", "params", "error"),
    [
        ([], PARAMS, RequestError),
        ([97], PARAMS, RequestError),
        ([1], PARAMS.replace(logit_bias={97: 1.0}), RequestError),
        ([1], PARAMS.replace(stop_token_ids=(98,)), RequestError),
        ([1] * 400, PARAMS, CapacityError),
    ],
    ids=["empty", "no token", "bias", "stop", "long"],
)
def test_refuses_what_the_engine_refuses(session, prompt, params, error):
    with pytest.raises(error) as of_engine:
        session._engine.add(prompt, params)
    with pytest.raises(error) as of_session:
        Answers(session, prompt, params)
    assert str(of_engine.value) == str(of_session.value)
    assert session.num_requests == 0


def test_submitting_and_aborting_wait_for_no_step(session, held, alone):
    with ThreadPoolExecutor(1) as pool:
        first = Answers(session, PROMPTS[0])
        running = pool.submit(first.wait)
        assert held.begun.wait(DEADLINE)
        second, third = Answers(session, PROMPTS[1]), Answers(session, PROMPTS[2])
        third.abort()
        with pytest.raises(RequestError, match="the prompt is empty"):
            Answers(session, [])
        held.let_go.set()
        assert running.result(DEADLINE) == alone(PROMPTS[0])
    assert second.wait() == alone(PROMPTS[1])
    assert (third.tokens, third.wait(), pages_in_use(session)) == ([[]], [[]], 0)


@pytest.mark.parametrize(
    ("prompt", "num_steps"), [(LONG, 0), (LONG, 1), (LONG, 4), (LONG, 6)], ids=["queued", "prefilling", "begun", "decoding"]
)
def test_an_abort_frees_pages_without_a_step(session, hooked, alone, prompt, num_steps):
    answers = Answers(session, prompt, PARAMS.replace(n=3, temperature=1.0))
    steps(session, hooked, num_steps)
    assert (pages_in_use(session) > 0) == (num_steps > 0)
    session.abort(answers.requests[1])
    assert session.num_requests == 2
    answers.abort()
    answers.abort()
    assert (pages_in_use(session), session.num_requests) == (0, 0)
    assert not session._submitted
    assert Answers(session, PROMPTS[0]).wait() == alone(PROMPTS[0])


def test_one_that_waits_for_room_is_aborted(session, hooked):
    big = [Answers(session, LONG, PARAMS.replace(max_tokens=200, n=4, temperature=1.0, seed=s)) for s in range(2)]
    steps(session, hooked, 60)
    last = Answers(session, LONG[::-1])
    steps(session, hooked, 2)
    assert last.tokens == [[]]
    last.abort()
    assert session.num_requests == 8
    for one in big:
        one.abort()
    assert pages_in_use(session) == 0


def test_one_of_several_samples_is_aborted_before_the_engine_knows_them(session, alone):
    params = PARAMS.replace(n=3, temperature=1.0, seed=4)
    answers = Answers(session, PROMPTS[1], params)
    session.abort(answers.requests[1])
    expected = alone(PROMPTS[1], params)
    assert answers.wait() == [expected[0], [], expected[2]]
    assert pages_in_use(session) == 0


@pytest.mark.parametrize("when", ["before", "between", "in the middle of"])
def test_an_abort_ends_who_waits_in_another_thread(session, held, when):
    answers = Answers(session, LONG)
    with ThreadPoolExecutor(2) as pool:
        if when == "before":
            answers.abort()
        waiting = [pool.submit(answers.wait) for _ in range(2)]  # one computes, one sleeps
        if when != "before":
            assert held.begun.wait(DEADLINE)
            answers.abort()
        held.let_go.set()
        assert [one.result(DEADLINE) for one in waiting] == [[[]]] * 2
    assert pages_in_use(session) == 0


@pytest.mark.parametrize("does", ["abort", "close", "stop"])
def test_a_signal_handler_in_a_step(session, hooked, does):
    answers = Answers(session, LONG)
    acts = {"abort": answers.abort, "close": session.close, "stop": session.stop}

    def interrupt():
        hooked.before_step = lambda: None
        signal.raise_signal(signal.SIGUSR1)

    hooked.before_step = interrupt
    before = signal.signal(signal.SIGUSR1, lambda number, frame: acts[does]())
    try:
        if does == "abort":
            assert answers.wait() == [[]]
            assert pages_in_use(session) == 0
        elif does == "close":
            with pytest.raises(RequestError, match="this LLM was closed"):
                answers.wait()
            assert session._engine is None
        else:
            session.run_forever()
            assert session.num_requests == 1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_finalizer_in_a_step(session, hooked):
    class Owner:
        pass

    kept, dropped = Answers(session, PROMPTS[0]), Answers(session, LONG)
    owners = [Owner()]
    owners[0].itself = owners[0]  # so that the collector finds it, in the middle of whatever runs
    weakref.finalize(owners[0], dropped.abort)

    def collect():
        owners.clear()
        gc.collect()

    hooked.before_step = collect
    assert len(kept.wait()[0]) == 12
    assert (dropped.tokens, pages_in_use(session)) == ([[]], 0)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt], ids=lambda error: error.__name__)
def test_a_failing_step_reaches_its_thread_and_others_go_on(session, hooked, held, alone, error):
    first, second = Answers(session, PROMPTS[0]), Answers(session, PROMPTS[1])

    def fail():
        held.hold()
        raise error("of the test")

    hooked.before_step = fail
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(first.wait)
        assert held.begun.wait(DEADLINE)
        threading.Timer(0.05, held.let_go.set).start()
        assert second.wait() == alone(PROMPTS[1])
        with pytest.raises(error, match="of the test"):
            running.result(DEADLINE)
    assert first.wait() == alone(PROMPTS[0])
    assert pages_in_use(session) == 0


def test_everybody_is_told_where_every_step_fails(session, hooked):
    hooked.before_step = lambda: 1 // 0
    with ThreadPoolExecutor(3) as pool:
        for one in [pool.submit(Answers(session, prompt).wait) for prompt in PROMPTS[:3]]:
            with pytest.raises(ZeroDivisionError):
                one.result(DEADLINE)


def test_a_sink_that_raises_ends_its_own_request(session, alone):
    def refuse(request, event):
        raise ValueError("of the sink")

    other, errors = Answers(session, PROMPTS[0]), []
    [request] = session.submit(LONG, PARAMS, refuse, on_error=lambda request, error: errors.append((request, str(error))))
    assert other.wait() == alone(PROMPTS[0])
    assert errors == [(request, "of the sink")]
    assert str(request.error) == "of the sink"
    assert pages_in_use(session) == 0


def test_what_only_the_engine_refuses_ends_its_request(session, monkeypatch):
    def refuse(prompt, params):
        raise CapacityError("of the engine")

    answers = Answers(session, PROMPTS[0])
    monkeypatch.setattr(session._engine, "add", refuse)
    with pytest.raises(CapacityError, match="of the engine"):
        answers.wait()
    assert (len(answers.errors), session.num_requests) == (1, 0)


def test_a_sink_may_abort_and_submit_but_not_wait(session, alone):
    told = []

    def take(request, event):
        session.abort(request)
        told.append(Answers(session, PROMPTS[0]))
        for wait in (told[0].wait, session.run_forever, lambda: session.score([1, 2])):
            with pytest.raises(RequestError, match="this thread computes a step and would wait for itself"):
                wait()

    [request] = session.submit(PROMPTS[1], PARAMS, take)
    session.run_until(lambda: request.is_over)
    assert len(told) == 1
    assert told[0].wait() == alone(PROMPTS[0])


def test_closing_waits_for_the_step(hooked, held):
    closed = threading.Event()
    session = session_of(hooked, on_close=closed.set)
    running, queued = Answers(session, PROMPTS[0]), Answers(session, LONG)
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(running.wait), pool.submit(queued.wait)]
        assert held.begun.wait(DEADLINE)
        closing = pool.submit(session.close)
        while not session._is_closing:
            pass
        assert not closed.is_set()
        with pytest.raises(RequestError, match="this LLM was closed"):
            Answers(session, PROMPTS[0])
        held.let_go.set()
        closing.result(DEADLINE)
        assert closed.is_set()
        for one in waiting:
            with pytest.raises(RequestError, match="this LLM was closed; make a new one"):
                one.result(DEADLINE)
    assert (len(running.errors), len(queued.errors), session.num_requests) == (1, 1, 0)
    session.close()
    running.abort()
    for use in (lambda: session.score([1, 2]), session.run_forever, lambda: session.run_until(lambda: False)):
        with pytest.raises(RequestError, match="this LLM was closed"):
            use()


def test_scores_come_between_the_steps_of_others(session, hooked):
    """Two threads that score without a pause do not keep a third from its steps, nor it them."""
    scores, is_over = session.score(LONG[:40]).logprobs_N, threading.Event()

    def score_on():
        number = 0
        while not is_over.is_set() or number < 3:
            np.testing.assert_array_equal(session.score(LONG[:40]).logprobs_N, scores)
            number += 1
        return number

    with ThreadPoolExecutor(2) as pool:
        scoring = [pool.submit(score_on) for _ in range(2)]
        tokens = Answers(session, PROMPTS[0], PARAMS.replace(max_tokens=50)).wait()
        is_over.set()
        assert len(tokens[0]) == 50
        assert all(one.result(DEADLINE) >= 3 for one in scoring)
    with pytest.raises(MiniCPMError):
        session.score([1])
    assert pages_in_use(session) == 0
