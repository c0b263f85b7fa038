"""A session that one thread serves, and others push requests into."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.engine.toy_session import DEADLINE, LONG, PROMPTS, Answers, pages_in_use

pytestmark = pytest.mark.usefixtures("patience")


@pytest.fixture
def served(session):
    """The session, which a thread serves; its future says how that ended."""
    with ThreadPoolExecutor(1) as pool:
        session.future = pool.submit(session.run_forever)
        yield session
        session.stop()


def asleep(session):
    while not session._sleepers:
        pass


def test_a_server_wakes_for_what_comes(served, alone):
    for prompt in PROMPTS:
        asleep(served)
        answers = Answers(served, prompt)
        assert answers.news.wait(DEADLINE)
        assert answers.tokens == alone(prompt)
    assert Answers(served, PROMPTS[1]).wait() == alone(PROMPTS[1])  # who waits and who serves share steps
    assert len(served.score(LONG).logprobs_N) == len(LONG) - 1
    asleep(served)
    assert pages_in_use(served) == 0
    served.stop()
    served.future.result(DEADLINE)
    served.stop()
    served.run_forever()  # was stopped before it began


def test_an_abort_while_the_server_sleeps_or_computes(served, held):
    answers = Answers(served, LONG)
    assert held.begun.wait(DEADLINE)
    answers.abort()
    held.let_go.set()
    asleep(served)
    assert (answers.tokens, pages_in_use(served)) == ([[]], 0)


def test_a_server_that_is_closed_returns(served):
    asleep(served)
    served.close()
    assert served.future.result(DEADLINE) is None


def test_a_step_that_fails_under_a_server_is_told_to_all(session, hooked, held, alone):
    def fail():
        held.hold()
        raise MemoryError("no more")

    hooked.before_step = fail
    with ThreadPoolExecutor(2) as pool:
        pushed = Answers(session, PROMPTS[0])
        serving = pool.submit(session.run_forever)
        assert held.begun.wait(DEADLINE)
        waiting = pool.submit(Answers(session, LONG).wait)
        held.let_go.set()
        with pytest.raises(MemoryError):
            serving.result(DEADLINE)
        error = waiting.exception(DEADLINE)  # none where it came later, and computed for itself
        assert error is None or str(error).endswith("failed: MemoryError: no more; ask again")
    assert [str(error) for error in pushed.errors] == ["the step that computed this answer failed: MemoryError: no more; ask again"]
    assert isinstance(pushed.requests[0].error.__cause__, MemoryError)
    assert Answers(session, PROMPTS[0]).wait() == alone(PROMPTS[0])
    assert pages_in_use(session) == 0
