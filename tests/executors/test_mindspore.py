"""What is the MindSpore executor's own: few graphs, none made again; our kernels as custom operations; what it refuses.

That it computes as the reference does is said where all executors are compared: test_agreement, test_batches, test_sparse_attention,
test_files_agree, test_against_transformers.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.errors import CapacityError, UnsupportedError
from minicpm4.executors import create_executor
from minicpm4.model.config import RopeConfig, SparseConfig
from tests.toy import executor_options, plan_step, toy_config, toy_executor, toy_weights

pytestmark = pytest.mark.mindspore
CONFIG = toy_config()


def prompt(length: int, *, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 97, length).tolist()


def test_a_context_that_grows_to_the_caches_size_needs_one_graph() -> None:
    weights = toy_weights(CONFIG)
    runner, reference = (
        toy_executor(name, CONFIG, weights, context_length=320, num_pages=5, max_step_tokens=rows)
        for name, rows in (("mindspore", 128), ("reference", 320))
    )
    tokens, pages = prompt(320), range(5)
    for start in (0, 128):
        runner.run(plan_step([(tokens[start : start + 128], start, pages)], wants_all=False))
    got = [runner.run(plan_step([([tokens[i]], i, pages)])).logits.copy()[0] for i in range(256, 320)]
    assert runner.sizes == [(128, 1), (1, 1)]
    np.testing.assert_allclose(got, reference.run(plan_step([(tokens, 0, pages)])).logits[256:], rtol=0, atol=1e-5)


def test_steps_of_many_sizes_share_few_graphs() -> None:
    runner = toy_executor("mindspore", CONFIG, toy_weights(CONFIG), max_step_tokens=100)
    for count in (1, 2, 7, 8, 9, 60, 64, 65, 99, 100):
        runner.run(plan_step([(prompt(count), 0, [0, 1])], wants_all=False))
    assert runner.sizes == [(1, 1), (8, 1), (64, 1), (100, 1)]


def test_executors_in_one_process_do_not_share_graphs() -> None:
    """An earlier executor's addresses would be in a graph that was taken for another's."""
    for seed in range(3):
        weights = toy_weights(CONFIG, seed=seed)
        step = plan_step([(prompt(5), 0, [0])])
        runner = toy_executor("mindspore", CONFIG, weights)
        np.testing.assert_allclose(runner.run(step).logits, toy_executor("reference", CONFIG, weights).run(step).logits, rtol=0, atol=1e-5)
        runner.close()


@pytest.mark.parametrize("threads", [1, 3])
def test_sizes_that_are_no_multiples_of_a_vector(threads: int) -> None:
    config = toy_config(hidden_size=35, intermediate_size=51, num_heads=3, num_kv_heads=1, head_dim=10, vocab_size=53)
    weights = toy_weights(config)
    step = plan_step([(prompt(70, seed=1), 0, [0, 1]), ([5, 6], 0, [2])])
    step = type(step)(**vars(step) | {"tokens_T": step.tokens_T % 53})
    got, wanted = (toy_executor(name, config, weights, threads=threads).run(step).logits for name in ("mindspore", "reference"))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5)


def test_long_rope_at_far_positions() -> None:
    """Angles of 100000 radians keep their cosines."""
    rope = RopeConfig(10000.0, (1.0,) * 12, tuple(1 + 0.5 * i for i in range(12)), 64, 1.1)
    config = toy_config(rope=rope, context_length=131072)
    weights, pages = toy_weights(config), [*([0] * 1562), 1, 2]
    runner, reference = (toy_executor(name, config, weights, num_pages=3) for name in ("mindspore", "reference"))
    step = plan_step([(prompt(20), 0, [0])])
    assert np.isfinite(runner.run(plan_step([(prompt(20), 100_000, pages)])).logits).all()
    rotated, wanted = (r.run(step).logits for r in (runner, reference))
    np.testing.assert_allclose(rotated, wanted, rtol=0, atol=1e-5)


def test_choices_say_what_was_chosen_and_why() -> None:
    runner = toy_executor("mindspore", CONFIG, toy_weights(CONFIG), isa="generic", max_step_tokens=64)
    told = " ".join(map(str, runner.choices))
    for words in (
        "device cpu (asked for; MindSpore 2.",
        "isa generic (asked for)",
        "fp32 on cpu (products, lookups and attention by our",
        "graphs of 1, 8, 64 rows",
    ):
        assert words in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_format": "bf16"}, "MindSpore finds no Ascend device: .*; use --device cpu"),
        ({}, "on Ascend keys and values are kept in bf16, not f16; add --kv-format bf16"),
        ({"kv_format": "bf16", "sparse": SparseConfig()}, "on Ascend the MindSpore executor attends densely; add --no-sparse"),
        ({"kv_format": "bf16", "isa": "generic"}, "an instruction set is the CPU's; leave out --isa"),
    ],
)
def test_the_ascend_table_is_refused_without_its_device(options: dict[str, object], message: str) -> None:
    chosen, cache = executor_options("mindspore", context_length=64, num_pages=1, device="ascend", **options)
    with pytest.raises(UnsupportedError, match=message):
        create_executor("mindspore", CONFIG, lambda name: pytest.fail(name), options=chosen, cache=cache, formats=())


def test_threads_that_the_system_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    from minicpm4.executors.mindspore import cpu

    def refuse(members: int) -> None:
        raise RuntimeError("no more")

    monkeypatch.setattr(cpu._native, "SharedThreadPool", refuse)
    with pytest.raises(CapacityError, match="the system gives no 2 threads: no more; lower the number of threads"):
        toy_executor("mindspore", CONFIG, toy_weights(CONFIG))


def test_the_default_model_answers(default_gguf: Path) -> None:
    """Two of a batch, greedily, as the native executor does with float activations."""
    prompts, params = ["The capital of France is", "Water boils at"], SamplingParams(max_tokens=8, temperature=0.0)
    texts = []
    for executor, wishes in (("mindspore", {}), ("native", {"activations": "f32"})):
        with LLM(str(default_gguf), executor=executor, context_length=256, kv_format="f32", threads=1, **wishes) as llm:
            texts.append([answer.text for answer in llm.generate(prompts, params)])
    assert texts[0] == texts[1]
    assert "Paris" in texts[0][0]


def test_a_process_without_source_of_its_own_computes_and_ends(tmp_path: Path) -> None:
    """MindSpore reads functions from their source; who calls them may have none."""
    code = (
        "from tests.toy import *; config = toy_config(); runner = toy_executor('mindspore', config, toy_weights(config));"
        "print(runner.run(plan_step([([5], 0, [0])])).logits.shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (0, "(1, 97)\n")
    assert "leaked" not in done.stderr
