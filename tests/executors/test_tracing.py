"""A trace says the whole forward pass, padding changes no array's beginning, and the paths of trees are steps that give their logits."""

import numpy as np
import pytest

from minicpm4.executors.paths import kept_path_step, path_steps
from minicpm4.executors.reference.ops import ReferenceCache, ReferenceOps, ReferenceWeight
from minicpm4.executors.tracing import (
    INPUTS,
    AddBias,
    AddScaled,
    Attend,
    Embed,
    HeadNorm,
    Linear,
    Padder,
    RmsNorm,
    Rope,
    Rotation,
    Scale,
    Swiglu,
    Take,
    trace,
)
from minicpm4.model import PAGE_TOKENS, Segment, Step, assemble, forward, make_step
from minicpm4.model.config import SparseConfig
from minicpm4.quant import dequantize
from tests.toy import logits_of, plan_step, toy_config, toy_executor, toy_weights

CONFIG = toy_config()


class Weight(ReferenceWeight):
    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


def replay(instruction, values, ops: ReferenceOps, step: Step) -> np.ndarray:
    i, v = instruction, values
    return {
        Embed: lambda: ops.embed(i.table, step.tokens_T),
        Scale: lambda: ops.scale(v[i.x], i.factor),
        RmsNorm: lambda: ops.rms_norm(v[i.x], i.weight, i.eps),
        HeadNorm: lambda: ops.rms_norm_heads(v[i.x], i.weight, i.eps),
        AddBias: lambda: ops.add_bias(v[i.x], i.bias),
        Linear: lambda: ops.linear(v[i.x], i.weight),
        Rotation: lambda: ops.rotation(step.positions_T, i.table),
        Rope: lambda: ops.rope(v[i.x], v[i.rotation]),
        Attend: lambda: ops.attend(v[i.q], v[i.k], v[i.v], layer=i.layer, step=step),
        Swiglu: lambda: ops.swiglu(v[i.gate], v[i.up]),
        AddScaled: lambda: ops.add_scaled(v[i.x], v[i.y], i.factor),
        Take: lambda: ops.take(v[i.x], step.logit_rows_R),
    }[type(i)]()


@pytest.mark.parametrize("config", [CONFIG, toy_config(biases=frozenset("qkv"), has_head_norms=True)], ids=["plain", "biases and norms"])
def test_instructions_compute_what_the_forward_pass_does(config) -> None:
    weights = toy_weights(config)
    model = assemble(config, lambda name: Weight(dequantize(weights[name]), False), context_length=config.context_length)
    step = make_step([Segment(tokens=[5, 6, 7, 8], start=0, pages=[1], num_logits=2), Segment(tokens=[9], start=0, pages=[0])])
    replayed, direct = (
        ReferenceOps(config, ReferenceCache.empty(config, 2, "f32"), activations="f32", sparse=None, is_bf16_T=np.zeros(5, bool))
        for _ in range(2)
    )
    recorded, values = trace(model), {}
    for instruction in recorded.instructions:
        assert set(instruction.inputs) <= values.keys()
        values[instruction.out] = replay(instruction, values, replayed, step)
        rows = len(step.logit_rows_R) if instruction.has_logit_rows else len(step.tokens_T)
        if not isinstance(instruction, Rotation):
            assert values[instruction.out].shape == (rows, instruction.out.columns)
    for symbol, expected in zip((recorded.logits, recorded.hidden), forward(direct, model, step), strict=True):
        np.testing.assert_array_equal(values[symbol], expected)


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (2, 8), (8, 8), (9, 64), (65, 100)])
def test_padded_steps_begin_as_they_were(rows: int, size: int) -> None:
    step = plan_step([(range(rows), 0, [3, 2]), ([4], 70, [0, 1])][: 1 if rows in (1, 8) else 2], wants_all=False)
    padded = Padder(max_rows=100, max_pages=4, num_pages=5).pad(step)
    assert padded.size[0] == size
    for name in INPUTS:
        assert getattr(padded, name).dtype == np.int32
    for name in ("tokens_T", "positions_T", "slots_T", "sequences_T", "logit_rows_R"):
        original = getattr(step, name)
        np.testing.assert_array_equal(getattr(padded, name)[: len(original)], original)
    assert (padded.slots_T[len(step.tokens_T) :] == 5 * PAGE_TOKENS).all()
    assert (padded.starts_T1[len(step.lengths_S) :] == len(step.tokens_T)).all()
    assert padded.pages_TW.shape == (size, 4)


PARENTS = [-1, 0, 0, 2, -1, 1]
TREES = [
    Segment(tokens=[1, 2, 3, 4, 5, 6], start=130, pages=[7, 2, 9], num_logits=4, parents=PARENTS),
    Segment(tokens=[11, 12, 13], start=3, pages=[5], num_logits=3, parents=[-1, -1, -1]),
    Segment(tokens=[8, 9], start=0, pages=[6], num_logits=1),
]


def test_paths_of_trees_are_steps_of_their_own() -> None:
    step = make_step(TREES)
    steps = path_steps(step)
    assert [part.tokens_T.tolist() for part, _ in steps] == [[1, 3, 4, 11, 8, 9], [5, 12], [1, 2, 6, 13]]
    assert sorted(np.concatenate([places for _, places in steps]).tolist()) == list(range(8)), "every row's logits once"
    for part, places in steps:
        assert part.ancestors_T is None
        np.testing.assert_array_equal(part.tokens_T[part.logit_rows_R], step.tokens_T[step.logit_rows_R[places]])


def test_paths_one_by_one_compute_what_a_tree_does() -> None:
    sparse = SparseConfig(topk=1, init_blocks=1, window_size=64, dense_len=64)
    runner = toy_executor("reference", CONFIG, toy_weights(CONFIG), sparse=sparse)
    runner.run(plan_step([(np.random.default_rng(0).integers(0, 96, 130).tolist(), 0, [7, 2, 9]), ([1, 2, 3], 0, [5])], wants_all=False))
    step = make_step(TREES)
    wanted = logits_of(runner, step)
    for part, places in path_steps(step):
        np.testing.assert_allclose(logits_of(runner, part), wanted[places], rtol=0, atol=2e-5)


def test_a_path_is_kept_of_a_tree_that_was_run() -> None:
    step, pages = make_step(TREES), np.array([7, 2, 9, 1], np.int32)
    kept = kept_path_step(step, pages, start=130, rows=np.array([0, 2, 3], np.int32))
    assert (kept.tokens_T.tolist(), kept.indices_T.tolist(), kept.logit_rows_R.tolist()) == ([1, 3, 4], [130, 131, 132], [])
    for rows in ([0, 3], [2, 3], [], [0, 6]):
        with pytest.raises(ValueError, match=r"are no path of the draft tree that was run at 130"):
            kept_path_step(step, pages, start=130, rows=np.array(rows, np.int32))
    for other, start in ((pages[1:], 130), (pages, 131), (np.array([6], np.int32), 0)):
        with pytest.raises(ValueError, match=r"no draft tree was run at \d+ of a sequence with pages"):
            kept_path_step(step, other, start=start, rows=np.array([0], np.int32))
    with pytest.raises(ValueError, match="no draft tree was run"):
        kept_path_step(None, pages, start=130, rows=np.array([0], np.int32))
