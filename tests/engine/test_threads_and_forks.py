"""One model, several threads that use it at once; and forked processes, which have none of its threads."""

import asyncio
import gc
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from minicpm4 import LLM, RequestError, SamplingParams
from tests.conftest import ROOT
from tests.engine.toy_llm import toy_llm


@pytest.fixture(scope="module")
def llm(default_gguf):
    with LLM(default_gguf, context_length=1024) as llm:
        yield llm


def test_several_threads_share_a_batch(llm):
    """Answers are those of each request alone; a stream among them, and one that is let go of."""
    prompts = ["The sun " * count for count in (2, 9, 17, 30)] * 2
    params = SamplingParams(max_tokens=24, ignore_eos=True)
    alone = [llm.generate(prompt, params).text for prompt in prompts]

    def streamed(prompt):
        for _ in llm.stream(prompt, params.replace(max_tokens=200)):
            break
        return "".join(llm.stream(prompt, params))

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(streamed if i % 2 else lambda p: llm.generate(p, params).text, prompt) for i, prompt in enumerate(prompts)]
        assert [one.result(timeout=100) for one in waiting] == alone
    gc.collect()
    llm.generate("a", SamplingParams(max_tokens=1))
    assert llm.session.num_requests == 0


PARAMS = SamplingParams(max_tokens=16, ignore_eos=True, temperature=1.0, seed=7)


@pytest.fixture
def toy(tmp_path, patience):
    with toy_llm(tmp_path, context_length=256, cache_tokens=4096) as llm:
        yield llm


def test_threads_generate_stream_and_score(toy):
    """Each with its own; a stream that nobody reads on keeps nobody from going on."""
    ids = toy.encode("The cat isn't here; " * 5)
    unread = toy.stream("In 1234", PARAMS.replace(max_tokens=200))
    next(unread)
    uses = [
        lambda: toy.generate("The cat", PARAMS).text,
        lambda: [answer.text for answer in toy.generate(["In 1234", "two spaces"], PARAMS.replace(n=2))],
        lambda: "".join(toy.stream("The cat isn't", PARAMS)),
        lambda: toy.generate("two", PARAMS.replace(stop=("e", "a", "t"))).text,
        lambda: toy.score(ids).logprobs_N.tolist(),
    ]
    alone = [use() for use in uses]
    with ThreadPoolExecutor(10) as pool:
        waiting = [pool.submit(lambda use=use: [use() for _ in range(8)]) for use in uses * 2]
        for number, one in enumerate(waiting):
            for result in one.result(60):
                np.testing.assert_equal(result, alone[number % 5])
    unread.close()
    assert toy.session.num_requests == 0


def test_a_stream_may_be_read_and_closed_by_different_threads(toy):
    stream = toy.stream("The cat", PARAMS.replace(max_tokens=150))
    with ThreadPoolExecutor(3) as pool:
        reading = [pool.submit(lambda: "".join(stream)) for _ in range(2)]
        while not stream.completion.token_ids:
            pass
        pool.submit(stream.close).result(60)
        parts = [one.result(60) for one in reading]
    assert sorted("".join(parts)) == sorted(stream.completion.text)
    assert toy.session.num_requests == 0


def test_from_asyncio(toy):
    """As a server would: a coroutine for each client, some of whom hang up."""
    texts = ["The cat", "In 1234", "two spaces", "def f(x):"] * 3
    alone = [toy.generate(text, PARAMS).text for text in texts]

    async def ask(text):
        return (await asyncio.to_thread(toy.generate, text, PARAMS)).text

    async def hang_up(text):
        with toy.stream(text, PARAMS.replace(max_tokens=200)) as stream:
            await asyncio.to_thread(next, stream)

    async def all_at_once():
        return await asyncio.gather(*map(ask, texts), *map(hang_up, texts[:4]))

    assert asyncio.run(all_at_once())[: len(texts)] == alone
    assert toy.session.num_requests == 0


def test_a_closed_model_is_told_to_other_threads(default_gguf):
    llm = LLM(str(default_gguf), context_length=512)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(llm.generate, "The sun", SamplingParams(max_tokens=400, ignore_eos=True))
        while not llm.session.num_requests:
            time.sleep(0.001)
        llm.close()
        with pytest.raises(RequestError, match="this LLM was closed"):
            running.result(timeout=100)


OWN_IN_CHILD = """
import os, sys
from minicpm4 import LLM
llm = LLM(sys.argv[1], context_length=64, threads=2)
llm.generate("a")
child = os.fork()
if child == 0:
    llm = LLM(sys.argv[1], context_length=64, threads=2)  # lets go of the parent's
    print(len(llm.generate("a").token_ids) > 0, flush=True)
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


def test_a_forked_process_lets_go_of_its_parents_model(default_gguf):
    done = subprocess.run([sys.executable, "-c", OWN_IN_CHILD, str(default_gguf)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


FORK = """
import os, sys
from minicpm4 import LLM, RequestError
llm = LLM(sys.argv[1], context_length=64, threads=2)
child = os.fork()
if child == 0:
    try:
        llm.generate("a")
    except RequestError as error:
        print(error, flush=True)
    llm.close()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print(len(llm.generate("a").token_ids) > 0)
"""


def test_a_forked_process_is_told(default_gguf):
    done = subprocess.run([sys.executable, "-c", FORK, str(default_gguf)], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("this LLM was made in another process, whose threads are not in this one; make it in the process")
    assert done.stdout.endswith("True\n")


FORK_IN_ANY_STATE = """
import os, sys, threading
from pathlib import Path
from minicpm4 import RequestError, SamplingParams
from tests.engine.toy_llm import hook_into, toy_llm

llm = toy_llm(Path(sys.argv[1]), context_length=256)
hooked = hook_into(llm, max_step_tokens=32)
params = SamplingParams(max_tokens=100, ignore_eos=True)
expected = llm.generate("The cat", params).text


def fork():
    child = os.fork()
    if child:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        return
    for use in (lambda: llm.generate("a"), lambda: llm.score([5, 6]), lambda: llm.stream("a"), llm.session.run_forever):
        try:
            use()
        except RequestError as error:
            assert "was made in another process" in str(error)
        else:
            os._exit(1)
    if sys.argv[3] == "closes":
        llm.close()
        stream.close()
    sys.stdout.flush()
    raise SystemExit(7)


def in_thread():
    global result
    result = llm.generate("The cat", params).text


stream, result = llm.stream("In 1234", params), expected
state = sys.argv[2]
if state == "decoding":
    next(stream)
elif state == "in a step of another thread":  # whose end the child never sees
    begun, let_go = threading.Event(), threading.Event()
    hooked.before_step = lambda: (begun.set(), let_go.wait())
    thread = threading.Thread(target=in_thread)
    thread.start()
    begun.wait()
elif state == "in an own step":
    def fork_once():
        hooked.before_step = lambda: None
        fork()
    hooked.before_step = fork_once
    assert llm.generate("The cat", params).text == expected
if state != "in an own step":
    fork()
if state == "in a step of another thread":
    let_go.set()
    thread.join()
assert result == expected
print(len("".join(stream)) > 0)
"""
STATES = ["idle", "decoding", "in a step of another thread", "in an own step"]


@pytest.mark.parametrize("ends", ["closes", "only exits"])
@pytest.mark.parametrize("state", STATES)
def test_a_fork_in_any_state(tmp_path, state, ends):
    command = [sys.executable, "-c", FORK_IN_ANY_STATE, str(tmp_path), state, ends]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
