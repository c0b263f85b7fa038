"""Prompts in bfloat16: near the reference in every format, and a row's logits its own whatever is computed with it."""

from dataclasses import replace

import numpy as np
import pytest

from minicpm4 import _native
from minicpm4.errors import UnsupportedError
from minicpm4.executors import backend
from minicpm4.model.tensors import STORAGE_FORMATS
from tests.toy import TOY, plan_step, toy_config, toy_executor, toy_weights

needs_unit = pytest.mark.skipif(None not in backend("native").capabilities.bf16_isas, reason="no unit for matrices of bfloat16 (AMX)")
# Whole blocks of every format, and enough columns that two threads take wide tasks, which three or nine do not.
WIDE = toy_config(hidden_size=512, intermediate_size=1280, num_layers=2, head_dim=32, num_heads=8, context_length=1024)
# Wide tasks of q, gate and up as well.
WIDER = replace(WIDE, hidden_size=1280, intermediate_size=1536, num_heads=16)
ROUNDED = [name for name in STORAGE_FORMATS if name != "f32"]
TOKENS = np.random.default_rng(3).integers(0, WIDE.vocab_size, 600)


def rms(values):
    return float(np.sqrt(np.mean(values**2)))


def executor_of(format_name="q4_0", *, config=WIDE, **options):
    weights = toy_weights(config, format_name=format_name)
    chosen = {"prompt_activations": "bf16", "activations": "int8", "max_step_tokens": 600, **options}
    return toy_executor("native", config, weights, **chosen)


@needs_unit
@pytest.mark.parametrize("format_name", ROUNDED)
def test_prompts_are_rounded_as_the_reference_rounds(format_name):
    """A value that lies between two of bfloat16 may go to the other one, as sums in another order differ, and moves all that follows."""
    step = plan_step([(TOKENS[:40], 0, [0]), (TOKENS[:30], 0, [1])], prompts=[0])
    weights = toy_weights(WIDE, format_name=format_name)

    def reference(prompts):
        return toy_executor("reference", WIDE, weights, activations="int16", prompt_activations=prompts).run(step).logits

    wanted, unrounded = reference("bf16"), reference("same")
    found = executor_of(format_name, activations="int16").run(step).logits
    noise = rms(wanted[:40] - unrounded[:40])
    assert noise > 1e-4
    assert rms(found[:40] - wanted[:40]) < 0.5 * noise
    assert rms(found[40:] - wanted[40:]) < 0.5 * noise


@needs_unit
@pytest.mark.parametrize("activations", ["f32", "int8", "int16"])
def test_a_row_is_its_own(activations):
    """One prompt in chunks of odd sizes, beside a sequence that decodes in the middle of two prompts; and on other threads."""
    runner = executor_of(activations=activations, threads=2)
    whole = runner.run(plan_step([(TOKENS, 0, range(10))], prompts=[0])).logits.copy()
    for size in (1, 17, 250):
        for first in range(0, 600 if size > 1 else 20, size):
            part = runner.run(plan_step([(TOKENS[first : first + size], first, range(10))], prompts=[0])).logits
            np.testing.assert_array_equal(part, whole[first : first + size])
    decoded = [runner.run(plan_step([([token], at, [15])])).logits.copy() for at, token in enumerate(TOKENS[:3])]
    mixed = runner.run(plan_step([(TOKENS[:70], 0, [12, 13]), ([TOKENS[2]], 2, [15]), (TOKENS[:33], 0, [14])], prompts=[0, 2])).logits
    np.testing.assert_array_equal(mixed[:70], whole[:70])
    np.testing.assert_array_equal(mixed[70:71], decoded[2])
    np.testing.assert_array_equal(mixed[71:], whole[:33])
    others = executor_of(activations=activations, threads=9)
    np.testing.assert_array_equal(others.run(plan_step([(TOKENS, 0, range(10))], prompts=[0])).logits, whole)
    narrow = executor_of(activations=activations, threads=3, max_step_tokens=17)
    np.testing.assert_array_equal(narrow.run(plan_step([(TOKENS[:17], 0, [0])], prompts=[0])).logits, whole[:17])


@needs_unit
@pytest.mark.parametrize("heads", [1, 8], ids=lambda heads: f"{heads} kv heads")
def test_wide_tasks_compute_what_narrow_ones_do(heads):
    """One thread, two and five: as many wide tasks as the columns and the threads allow."""
    config = replace(WIDER, num_kv_heads=heads)
    step = plan_step([(TOKENS[:70], 0, [0, 1])], prompts=[0])
    wanted = executor_of(config=config, threads=5).run(step).logits.copy()
    for threads in (1, 2):
        np.testing.assert_array_equal(executor_of(config=config, threads=threads).run(step).logits, wanted)


@needs_unit
def test_what_was_generated_is_not_rounded():
    step = plan_step([(TOKENS[:40], 0, [0])])
    same = executor_of(prompt_activations="same").run(step).logits
    np.testing.assert_array_equal(executor_of().run(step).logits, same)


def test_who_cannot_round_says_so():
    with pytest.raises(UnsupportedError, match="executor native cannot do prompt activations: bf16"):
        toy_executor("native", TOY, toy_weights(TOY), prompt_activations="bf16", isa="generic")
    assert not _native.has_bf16_matrices("generic")
