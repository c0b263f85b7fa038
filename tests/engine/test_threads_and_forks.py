"""One model, several threads that use it at once; and forked processes, which have none of its threads."""

import gc
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from minicpm4 import LLM, RequestError, SamplingParams


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
