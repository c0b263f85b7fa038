"""What the tests of sessions share."""

import threading

import pytest

from tests.engine.toy_llm import Hooked
from tests.engine.toy_session import DEADLINE, PARAMS, Answers, new_executor, session_of


@pytest.fixture
def patience(monkeypatch):
    """Sleepers do not look again by themselves, so that a wake-up that is lost shows."""
    monkeypatch.setattr("minicpm4.engine.turns.PATIENCE", 1000.0)


@pytest.fixture(scope="module")
def native():
    executor = new_executor()
    yield executor
    executor.close()


@pytest.fixture
def hooked(native):
    return Hooked(native)


@pytest.fixture
def session(hooked):
    return session_of(hooked)


@pytest.fixture(scope="module")
def alone():
    """A function: the answers to a prompt in a session of its own, on an executor of its own."""
    executor = new_executor()
    yield lambda prompt, params=PARAMS: Answers(session_of(executor), prompt, params).wait()
    executor.close()


@pytest.fixture
def held(hooked):
    """The next step of the session is being computed until `let_go` is set; `begun` says that it is."""

    class Held:
        begun, let_go = threading.Event(), threading.Event()

        def hold(self):
            hooked.before_step = lambda: None
            self.begun.set()
            assert self.let_go.wait(DEADLINE)

    held = Held()
    hooked.before_step = held.hold
    yield held
    held.let_go.set()
