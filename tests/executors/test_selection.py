"""The blocks that rows choose, looked at: executors against each other, and a prompt in chunks against the prompt at once.

The native executor tells what it chose in the last layer; `reference` and `torch` are watched while they choose.
"""

import numpy as np
import pytest
import torch

from minicpm4.executors import Executor
from minicpm4.executors.reference import attention as reference_attention
from minicpm4.executors.torch import sparse as torch_sparse
from minicpm4.model import pages_for
from minicpm4.model.config import SparseConfig
from minicpm4.model.sparse import COARSE, candidates, is_sparse, num_compressed, pool_blocks, score_compressed, select_blocks
from minicpm4.model.step import Step
from tests.toy import CUDA, POISON, plan_step, toy_config, toy_executor, toy_weights

RULES = {
    "tiny": SparseConfig(window_size=64, topk=2, dense_len=0),
    "mixed": SparseConfig(window_size=128, topk=3, dense_len=300),
    "coarse": SparseConfig(window_size=64, topk=2, dense_len=100, has_coarse_lse=True),
    "odd": SparseConfig(kernel_size=16, kernel_stride=8, window_size=64, topk=3, init_blocks=2, dense_len=-1, has_coarse_lse=True),
    "wide": SparseConfig(kernel_size=64, kernel_stride=64, window_size=64, topk=3, dense_len=0, has_coarse_lse=True),
}
LENGTH, PAGES = 400, (3, 9, 5, 1, 12, 0, 7)
# Around the borders of compressed keys, coarse compressed keys, pages, and of what is dense.
SPLITS = (1, 15, 16, 31, 32, 33, 63, 64, 65, 95, 99, 100, 101, 127, 128, 129, 191, 255, 256, 257, 299, 300, 301, 384, 399)
NEAR = 1e-4  # scores that differ by less of themselves may change places when sums are made in another order, through three layers


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Fills as `reference` and `torch` choose: for each row the blocks, [G, max_blocks] with -1 behind, and whether it was clear, [G]."""
    seen: list[tuple[np.ndarray, np.ndarray]] = []

    def keep(sparse: SparseConfig, blocks_GC: np.ndarray, is_clear_G: np.ndarray) -> None:
        padded = np.full((len(blocks_GC), sparse.max_blocks), -1)
        padded[:, : blocks_GC.shape[1]] = blocks_GC
        seen.append((padded, is_clear_G))

    def select_and_keep(sparse: SparseConfig, q_GJD: np.ndarray, compressed_NGD: np.ndarray, **details: object) -> np.ndarray:
        blocks_GC = select_blocks(sparse, q_GJD, compressed_NGD, **details)  # type: ignore[arg-type]
        keep(sparse, blocks_GC, clear_choices(sparse, q_GJD, compressed_NGD, **details))  # type: ignore[arg-type]
        return blocks_GC

    select_in_torch = torch_sparse.select_blocks

    def select_and_keep_in_torch(
        sparse: SparseConfig, q_RGJD: torch.Tensor, compressed: tuple[torch.Tensor, torch.Tensor | None], *, positions_R: torch.Tensor
    ) -> torch.Tensor:
        blocks_RGC = select_in_torch(sparse, q_RGJD, compressed, positions_R=positions_R)
        for blocks_GC, position in zip(blocks_RGC.cpu().numpy(), positions_R.tolist(), strict=True):
            keep(sparse, np.where(blocks_GC > position // 64, -1, blocks_GC), np.zeros(len(blocks_GC), bool))
        return blocks_RGC

    monkeypatch.setattr(reference_attention, "select_blocks", select_and_keep)
    monkeypatch.setattr(torch_sparse, "select_blocks", select_and_keep_in_torch)
    return seen


def clear_choices(
    sparse: SparseConfig, q_GJD: np.ndarray, compressed_NGD: np.ndarray, *, position: int, coarse_NGD: np.ndarray | None
) -> np.ndarray:
    """Whether no score is nearly that of the last block taken, bool [G]; the same is clear: of a compressed key that two blocks share."""
    between, count = candidates(sparse, position), sparse.num_best_blocks
    if len(between) <= count:
        return np.ones(len(q_GJD), bool)
    seen = None if coarse_NGD is None else coarse_NGD[: num_compressed(sparse, position + 1, times=COARSE)]
    scores_GB = pool_blocks(sparse, score_compressed(q_GJD, compressed_NGD[: num_compressed(sparse, position + 1)], seen), between)
    last_G1 = -np.sort(-scores_GB, axis=1)[:, count - 1 : count]
    is_near_GB = (abs(scores_GB - last_G1) < NEAR * last_G1) & (scores_GB != last_G1)
    return ~is_near_GB.any(axis=1)


def toy(executor: str, rule: str, **options: object) -> Executor:
    """options: num_layers, num_heads, num_kv_heads are the model's; others the executor's."""
    config = toy_config(**{name: options.pop(name) for name in list(options) if name.startswith("num_")})
    return toy_executor(
        executor, config, toy_weights(config), sparse=RULES[rule], context_length=1024, max_step_tokens=1024, threads=1, **options
    )


def prompt(length: int = LENGTH) -> list[int]:
    return np.random.default_rng(length).integers(0, POISON, length).tolist()  # type: ignore[no-any-return]


def chosen(runner: Executor, step: Step, watched: list[tuple[np.ndarray, np.ndarray]], rule: str) -> tuple[np.ndarray, np.ndarray]:
    """What the step's sparse rows choose in the last layer, [rows, G, max_blocks], and whether `reference` was clear, [rows, G]."""
    watched.clear()
    runner.run(step)
    if runner.name == "native":
        blocks: np.ndarray = runner.chosen_blocks()  # type: ignore[attr-defined]
        return blocks, np.zeros(blocks.shape[:2], bool)
    count = int(is_sparse(RULES[rule], step.positions_T).sum())
    last = watched[len(watched) - count :]
    if not last:
        return np.zeros((0, 1, RULES[rule].max_blocks), int), np.zeros((0, 1), bool)
    return np.stack([blocks for blocks, _ in last]), np.stack([is_clear for _, is_clear in last])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("executor", ["torch", CUDA, "native"])
@pytest.mark.parametrize(("heads", "kv_heads", "layers"), [(8, 1, 1), (8, 1, 3), (6, 2, 2), (16, 1, 1)], ids=str)
def test_all_choose_the_same_blocks(watched: list, rule: str, executor: str, heads: int, kv_heads: int, layers: int) -> None:
    """But where two scores are nearly equal, which is seldom."""
    shape = {"num_heads": heads, "num_kv_heads": kv_heads, "num_layers": layers}
    step = plan_step([(prompt(), 0, PAGES), (prompt(317), 0, (2, 4, 6, 8, 10))])
    wanted, is_clear = chosen(toy("reference", rule, **shape), step, watched, rule)
    got, _ = chosen(toy(executor, rule, **shape), step, watched, rule)
    assert wanted.shape == (int(is_sparse(RULES[rule], step.positions_T).sum()), kv_heads, RULES[rule].max_blocks)
    np.testing.assert_array_equal(got[is_clear], wanted[is_clear])
    assert is_clear.mean() > 0.99


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "cache",
    [("f32", "f32"), ("f16", "f32"), ("bf16", "f32"), ("int8", "f32"), ("int8", "int8"), ("int8", "int16")],
    ids="-".join,
)
def test_a_prompt_in_chunks_chooses_what_it_chooses_at_once(cache: tuple[str, str], rule: str) -> None:
    """To the last block and the last bit, wherever it is cut."""
    runner, tokens = toy("native", rule, kv_format=cache[0], activations=cache[1]), prompt()
    logits = runner.run(plan_step([(tokens, 0, range(pages_for(LENGTH)))])).logits.copy()
    wanted = runner.chosen_blocks()  # type: ignore[attr-defined]
    assert len(np.unique(wanted, axis=0)) > 5
    for sizes in (*((split, LENGTH - split) for split in SPLITS), (57,) * 7 + (1,), (64,) * 6 + (16,), (380, *(1,) * 20)):
        start, parts, blocks = 0, [], []
        for size in sizes:
            parts.append(runner.run(plan_step([(tokens[start : start + size], start, PAGES)])).logits.copy())
            blocks.append(runner.chosen_blocks())  # type: ignore[attr-defined]
            start += size
        np.testing.assert_array_equal(np.concatenate(blocks), wanted)
        np.testing.assert_array_equal(np.concatenate(parts), logits)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("executor", ["reference", "torch", CUDA])
def test_others_choose_in_chunks_what_they_choose_at_once(watched: list, executor: str, rule: str) -> None:
    """But where two scores are nearly equal: there, another shape of the same product may be summed in another order."""
    runner, tokens = toy(executor, rule, num_layers=2), prompt()
    whole = plan_step([(tokens, 0, range(pages_for(LENGTH)))])
    _, is_clear = chosen(toy("reference", rule, num_layers=2), whole, watched, rule)
    wanted, _ = chosen(runner, whole, watched, rule)
    for split in (31, 100, 129, 301, 399):
        parts = [(tokens[:split], 0), (tokens[split:], split)]
        got = np.concatenate([chosen(runner, plan_step([(part, start, PAGES)]), watched, rule)[0] for part, start in parts])
        np.testing.assert_array_equal(got[is_clear], wanted[is_clear])


def test_a_step_without_sparse_rows_chooses_nothing() -> None:
    runner = toy("native", "mixed")
    runner.run(plan_step([(prompt(310), 0, range(5))]))
    assert runner.chosen_blocks().shape == (10, 1, 5)  # type: ignore[attr-defined]
    runner.run(plan_step([(prompt(20), 0, [0])]))
    assert runner.chosen_blocks().shape == (0, 1, 5)  # type: ignore[attr-defined]
