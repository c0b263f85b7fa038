"""Two thousand requests from eight threads, a third of them aborted at random moments: nothing is lost, and no answer shows it."""

import random
import sys
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor

import pytest

from minicpm4 import SamplingParams
from tests.engine.toy_llm import hook_into, toy_llm

NUM_THREADS, NUM_REQUESTS = 8, 2000
CACHE_TOKENS = 10 * 64
TEXTS = [("The cat isn't here; they're THERE. " * count)[start:] for count in (1, 3, 8, 15) for start in (0, 1, 5, 12)]
KINDS = [SamplingParams(max_tokens=length, seed=length, temperature=t, ignore_eos=True) for length in (3, 20) for t in (0.0, 1.0)]
KINDS.append(SamplingParams(max_tokens=20, stop=("e", "a"), temperature=1.0, seed=5))


@pytest.fixture
def busy_switching():
    """Threads take turns a hundred times as often as they would."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 100)
    yield
    sys.setswitchinterval(before)


class Client:
    """Asks, one request after the other; a third of them it aborts, or leaves to others who do while it reads."""

    def __init__(self, llm, seed, *, victims, texts):
        self.llm, self.random, self.victims, self.texts = llm, random.Random(seed), victims, texts
        self.counts, self.num_cut = Counter[str](), 0

    def run(self, number):
        for _ in range(number):
            prompt, index = self.random.choice(TEXTS), self.random.randrange(len(KINDS))
            params, expected = KINDS[index], self.texts[prompt, index]
            kind = self.random.choice(["generate", "stream", "generate", "stream", "closed", "left to others"])
            self.counts[kind] += 1
            if kind == "generate":
                assert self.llm.generate(prompt, params).text == expected
            elif kind == "stream":
                assert "".join(self.llm.stream(prompt, params)) == expected
            else:
                assert expected.startswith(self.aborted(kind, prompt, params))

    def aborted(self, kind, prompt, params):
        stream, text = self.llm.stream(prompt, params), ""
        if kind == "left to others":
            self.victims.append(stream)
            text = "".join(stream)
            self.num_cut += stream.completion.finish_reason == "cancelled"
            return text
        for _ in range(self.random.choice([0, 0, 1, 2, 5])):
            text += next(stream, "")
        if self.random.random() < 0.5:
            stream.close()
        return text  # else nobody holds it from here on


def test_aborts_at_random_moments(tmp_path, patience, busy_switching):
    with toy_llm(tmp_path, context_length=256, prefix_cache=False) as llm:
        texts = {(prompt, i): llm.generate(prompt, params).text for prompt in TEXTS for i, params in enumerate(KINDS)}
    with toy_llm(tmp_path, context_length=256, cache_tokens=CACHE_TOKENS) as llm:
        hooked = hook_into(llm, max_step_tokens=32)  # prompts take one to six steps
        victims, random_moment = deque(), random.Random(1)

        def abort_one():
            """In the middle of a step, so that the victim waits, is read, or answers."""
            if victims and random_moment.random() < 0.5:
                victims.popleft().close()

        hooked.before_step = abort_one
        clients = [Client(llm, seed, victims=victims, texts=texts) for seed in range(NUM_THREADS)]
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(lambda client: client.run(NUM_REQUESTS // NUM_THREADS), clients))
        counts = sum((client.counts for client in clients), Counter())
        assert counts.total() == NUM_REQUESTS
        assert min(counts.values()) > NUM_REQUESTS // 10
        assert sum(client.num_cut for client in clients) > counts["left to others"] // 4
        victims.clear()
        assert llm.session.num_requests == 0
        pool = llm.session._engine.scheduler.pool
        assert pool.num_free == pool.num_pages == CACHE_TOKENS // 64
