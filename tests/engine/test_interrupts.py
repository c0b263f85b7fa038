"""Ctrl-C at random points of what shares the engine: other threads' answers are right, and nothing stays behind."""

import random
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minicpm4 import RequestError, SamplingParams
from tests.engine.toy_llm import toy_llm

SHARED = {"session.py", "turns.py", "stream.py", "llm.py", "answer.py"}  # an engine's own steps have tests of their own
PARAMS = SamplingParams(max_tokens=12, ignore_eos=True, temperature=1.0, seed=3)
TEXTS = ["The cat isn't here; " * count for count in (1, 2, 4)]
NUM_ROUNDS = 300


@pytest.fixture
def llm(tmp_path):
    with toy_llm(tmp_path, context_length=256) as llm:
        yield llm


@pytest.fixture
def interrupt_later():
    """Raises KeyboardInterrupt so many seconds later, or as soon as the main thread is in one of the shared files; 0 for no more."""

    def interrupt(number, frame):
        if Path(frame.f_code.co_filename).name in SHARED:
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 20e-6)

    before = signal.signal(signal.SIGALRM, interrupt)
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def uses(llm):
    """What the main thread is interrupted in, and what each gives undisturbed."""

    def left():
        next(llm.stream(TEXTS[0], PARAMS))

    def closed():
        with llm.stream(TEXTS[2], PARAMS) as stream:
            next(stream)

    several = PARAMS.replace(n=2)
    return [
        lambda: [answer.text for answer in llm.generate(TEXTS, PARAMS)],
        lambda: [answer.text for answer in llm.generate(TEXTS[1], several).choices],
        lambda: "".join(llm.stream(TEXTS[1], PARAMS)),
        lambda: llm.score(llm.encode(TEXTS[2])).logprobs_N.tolist(),
        left,
        closed,
    ]


@pytest.mark.timeout(120, method="thread")  # the alarm is ours
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # a finalizer that is interrupted is told of, no more
def test_interrupts_at_random_points(llm, interrupt_later, patience):
    expected = [use() for use in uses(llm)]
    alone = [llm.generate(text, PARAMS).text for text in TEXTS]
    is_over, moment = threading.Event(), random.Random(0)
    num_interrupts = 0

    def ask_on(index):
        """Answers are right, or say that they were cut; how many were right."""
        found = []
        while not is_over.is_set():
            try:
                found.append(llm.generate(TEXTS[index], PARAMS).text)
            except RequestError as error:
                found.append(error.message)
        assert set(found) <= {alone[index], "the answer was interrupted while a token was added to it"}
        return found.count(alone[index])

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(ask_on, index) for index in (0, 2)]
        try:
            for number in range(NUM_ROUNDS):
                use, result = uses(llm)[number % 6], expected[number % 6]
                try:
                    interrupt_later(moment.uniform(1e-6, 6e-3))
                    assert use() == result
                except KeyboardInterrupt:
                    num_interrupts += 1
                interrupt_later(0)
        finally:
            is_over.set()
        assert all(other.result(60) > 0 for other in others)
    assert num_interrupts > NUM_ROUNDS // 10
    assert llm.generate(TEXTS, PARAMS)[0].text == alone[0]
    assert llm.session.num_requests == 0
    pool = llm.session._engine.scheduler.pool
    assert pool.num_free == pool.num_pages
