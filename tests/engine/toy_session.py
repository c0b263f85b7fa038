"""Sessions on a small random model, for tests of what threads do to them."""

import threading

import numpy as np

from minicpm4 import SamplingParams
from minicpm4.engine.engine import Engine
from minicpm4.engine.limits import Limits
from minicpm4.engine.session import Session
from tests.toy import TOY, toy_executor, toy_weights

PROMPTS = [[5, 6, 7], list(range(70)), [11], [90, 3, 3, 3, 8], list(range(40, 60))]
LONG = [int(token) for token in np.random.default_rng(1).integers(0, TOY.vocab_size, 150)]  # four steps of 48
PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)
NUM_PAGES = 16
DEADLINE = 60  # seconds, for what takes milliseconds


class Answers:
    """The sink of one submission: its tokens and errors."""

    def __init__(self, session, prompt, params=PARAMS):
        self.session, self.tokens, self.errors, self.news = session, [[] for _ in range(params.n)], [], threading.Event()
        self.requests = session.submit(prompt, params, self.take, on_error=lambda request, error: self.errors.append(error))

    def take(self, request, event):
        self.tokens[request.sample] += tokens_of(event)
        if event.finish_reason is not None:
            self.news.set()

    def is_over(self):
        return all(request.is_over for request in self.requests)

    def wait(self):
        self.session.run_until(self.is_over)
        for request in self.requests:
            if request.error is not None:
                raise request.error
        return self.tokens

    def abort(self):
        for request in self.requests:
            self.session.abort(request)


def tokens_of(event):
    return [*event.tokens]


def pages_in_use(session):
    return NUM_PAGES - session._engine.scheduler.pool.num_free


def steps(session, hooked, number):
    """Computes so many."""
    begun = []
    hooked.before_step = lambda: begun.append(1)
    session.run_until(lambda: len(begun) >= number)


def new_executor():
    return toy_executor("native", TOY, toy_weights(TOY), num_pages=NUM_PAGES, max_step_tokens=48, threads=1)


def session_of(executor, **options):
    return Session(Engine(executor, Limits(TOY.vocab_size, frozenset(), 400, num_pages=NUM_PAGES, max_step_tokens=48)), **options)
