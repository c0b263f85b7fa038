"""The native executor at the edges: steps that share pages, more threads than there are, a fork, formats that there are not."""

import subprocess
import sys

import numpy as np
import pytest

from minicpm4 import _native
from minicpm4.model import PAGE_TOKENS, Segment, Step, make_step
from tests.toy import TOY, toy_config, toy_executor, toy_weights

NUM_PAGES = 40  # several stretches of the cache


def step_of_sharers(count: int, position: int) -> Step:
    """Sequences of one row each that read the same pages, but for the last one, which each writes."""
    shared = range(position // PAGE_TOKENS)
    return make_step([Segment(tokens=[row % TOY.vocab_size], start=position, pages=[*shared, NUM_PAGES + row]) for row in range(count)])


def test_many_sequences_may_share_pages():
    config = toy_config(context_length=(NUM_PAGES + 1) * PAGE_TOKENS)
    executor = toy_executor("native", config, toy_weights(config), num_pages=NUM_PAGES + 200, max_step_tokens=200)
    executor.randomize_pages(np.arange(NUM_PAGES, dtype=np.int32), seed=1)
    position = NUM_PAGES * PAGE_TOKENS
    together = executor.run(step_of_sharers(200, position)).logits.copy()  # 600 stretches, of a cache of three
    assert np.isfinite(together).all()
    alone = executor.run(step_of_sharers(1, position)).logits
    np.testing.assert_array_equal(together[TOY.vocab_size :][:1], together[:1])  # the same token, the same result
    assert alone.shape == (1, TOY.vocab_size)


def run_in_child(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_more_threads_than_the_system_gives():
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
    done = run_in_child(f"{limit}from minicpm4 import _native\ntry:\n    _native.ThreadPool(1000)\nexcept RuntimeError: print('refused')")
    assert (done.returncode, done.stdout) == (0, "refused\n")


def test_a_team_does_not_survive_a_fork():
    code = """
import os, numpy as np
from minicpm4 import _native
pool, arena, data = _native.ThreadPool(2), _native.Arena(), np.zeros((64, 34), np.uint8)
child = os.fork()
try:
    _native.pack("q8_0", 64, 32, data, pool, arena)
except RuntimeError as error:
    print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""
    done = run_in_child(code)
    assert (done.returncode, done.stdout) == (0, "a pool of threads does not survive a fork\n"), done.stderr


def test_kv_formats_are_looked_up():
    with pytest.raises(ValueError, match="no KV format int3"):
        _native.Program(
            "generic",
            _native.ThreadPool(1),
            max_rows=1,
            code_bytes=1,
            has_bf16_prompts=False,
            num_pages=1,
            num_layers=1,
            num_heads=1,
            num_kv_heads=1,
            head_dim=2,
            kv_format="int3",
            sparse=None,
        )
