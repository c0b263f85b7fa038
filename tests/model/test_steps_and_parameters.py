"""A step is complete and consistent when made; parameters have one name and one shape each."""

from dataclasses import replace
from itertools import pairwise
from math import prod

import numpy as np
import pytest

from minicpm4.errors import CheckpointError
from minicpm4.model import PAGE_TOKENS, Segment, assemble, make_step, pages_for
from minicpm4.model.linear_step import linearize
from minicpm4.model.parameters import EMBEDDING, HEAD, NORM, bias_parameter, check_parameters, layer_parameter, parameter_shapes
from minicpm4.model.step import StepLimits, check_step, single_step
from tests.toy import toy_config


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (64, 1), (65, 2), (128, 2)])
def test_pages_for(tokens: int, pages: int) -> None:
    assert PAGE_TOKENS == 64
    assert pages_for(tokens) == pages


def test_a_single_step() -> None:
    step = single_step([7, 8, 9], start=63)
    assert step.positions_T.tolist() == step.slots_T.tolist() == step.indices_T.tolist() == [63, 64, 65]
    assert step.pages_SP.tolist() == [[0, 1]]
    assert (step.starts_S1.tolist(), step.lengths_S.tolist(), step.logit_rows_R.tolist()) == ([0, 3], [66], [2])
    assert single_step([7, 8, 9], num_logits=3).logit_rows_R.tolist() == [0, 1, 2]


def test_a_step_of_several_segments() -> None:
    tree = Segment(tokens=[1, 2, 3, 4], start=62, pages=[5, 3], num_logits=4, parents=[-1, 0, 0, 2], numerics=1, adapter=2, sequence=9)
    step = make_step(
        [Segment(tokens=np.array([7, 8]), start=0, pages=(4,), num_logits=0), tree, Segment(tokens=[6], start=64, pages=[0, 1])]
    )
    assert step.tokens_T.tolist() == [7, 8, 1, 2, 3, 4, 6]
    assert step.sequences_T.tolist() == [0, 0, 1, 1, 1, 1, 2]
    assert step.indices_T.tolist() == [0, 1, 62, 63, 64, 65, 64]
    assert step.positions_T.tolist() == [0, 1, 62, 63, 63, 64, 64]
    assert step.slots_T.tolist() == [256, 257, 5 * 64 + 62, 5 * 64 + 63, 192, 193, 64]
    assert step.logit_rows_R.tolist() == [2, 3, 4, 5, 6]
    assert step.pages_SP.tolist() == [[4, -1], [5, 3], [0, 1]]
    assert [array.tolist() for array in (step.numerics_S, step.adapters_S, step.ids_S)] == [[0, 1, 0], [0, 2, 0], [0, 9, 0]]
    assert step.ancestors_T is not None
    assert step.ancestors_T.tolist() == [0, 0, 1, 3, 5, 13, 0]
    assert step.path_of(5).tolist() == [2, 4, 5]
    assert [step.is_tree(sequence) for sequence in range(3)] == [False, True, False]
    for array in (step.tokens_T, step.positions_T, step.slots_T, step.starts_S1, step.lengths_S, step.pages_SP, step.logit_rows_R):
        assert array.dtype == np.int32
        assert array.flags.c_contiguous


@pytest.mark.parametrize("parents", [[0, 0], [-1, 1], [-1, -2], [-1], list(range(-1, 64))], ids=str)
def test_a_tree_that_is_none(parents: list[int]) -> None:
    count = len(parents) if len(parents) > 2 else 2
    with pytest.raises(ValueError, match="draft tree"):
        make_step([Segment(tokens=[1] * count, start=0, pages=[0, 1], parents=parents)])


def test_no_segments_make_an_empty_step() -> None:
    step = make_step([])
    assert (len(step.tokens_T), step.starts_S1.tolist(), step.pages_SP.shape) == (0, [0], (0, 0))


GOOD = [Segment(tokens=[1, 2], start=0, pages=[0], num_logits=2), Segment(tokens=[3, 4, 5], start=63, pages=[1, 2], parents=[-1, 0, 0])]
WRONG = {
    "the step has 5 rows, the executor takes 4": {"max_rows": 4},
    "a token is not in the vocabulary": {"vocab_size": 5},
    "a page is not in the cache": {"num_pages": 2},
    "starts of sequences do not cover": {"starts_S1": [0, 2, 4]},
    "arrays of sequences differ in length": {"lengths_S": [2]},
    "shorter than its rows, or longer than its pages": {"lengths_S": [1, 66]},
    "or longer than its pages": {"lengths_S": [65 + 64, 66]},
    "a row of logits is not in the step": {"logit_rows_R": [0, 5]},
    "rows of logits do not ascend": {"logit_rows_R": [1, 0]},
    "the executor has no numerics": {"numerics_S": [0, 3]},
    "the executor has no adapters": {"adapters_S": [1, 0]},
    "two sequences write into one page": {"pages_SP": [[0, -1], [1, 0]]},
    "mask of ancestors that is no path": {"ancestors_T": [0, 0, 1, 3, 6]},
}


@pytest.mark.parametrize("problem", WRONG)
def test_wrong_steps_are_refused_by_name(problem: str) -> None:
    sizes = {"max_rows": 8, "num_pages": 4, "vocab_size": 97}
    step = make_step(GOOD)
    check_step(step, StepLimits(**sizes))
    changes = WRONG[problem]
    limits = StepLimits(**sizes | {name: value for name, value in changes.items() if name in sizes})  # type: ignore[arg-type]
    arrays = {name: np.array(v, np.uint64 if name == "ancestors_T" else np.int32) for name, v in changes.items() if name not in sizes}
    with pytest.raises(ValueError, match=problem):
        check_step(replace(step, **arrays), limits)  # type: ignore[arg-type]


def test_a_tree_as_sequences_of_its_paths() -> None:
    """Rows are computed once, in the first path that they are on, and written to the others' pages and to their own slots."""
    linear = linearize(make_step(GOOD), range(10, 20))
    step = linear.step
    assert step.ancestors_T is None
    assert step.tokens_T.tolist() == [1, 2, 3, 4, 5]
    assert step.starts_S1.tolist() == [0, 2, 4, 5]
    assert step.positions_T.tolist() == [0, 1, 63, 64, 64]
    assert [row[row >= 0].tolist() for row in step.pages_SP] == [[0], [10, 11], [12, 13]]
    assert (linear.sources.tolist(), linear.targets.tolist()) == ([1, 1], [10, 12])
    assert linear.fresh_S.tolist() == [0, 63, 63]
    assert step.logit_rows_R.tolist() == [0, 1, 4]
    more = [linear.more_slots_M[start:end].tolist() for start, end in pairwise(linear.more_starts_T1)]
    assert more == [[], [], [64 + 63, 12 * 64 + 63], [2 * 64], [2 * 64 + 1]]
    with pytest.raises(ValueError, match="branch more than 3 pages hold; draft less at once"):
        linearize(make_step(GOOD), range(10, 13))


@pytest.mark.parametrize("is_tied", [True, False])
def test_parameters_are_loaded_once_the_largest_first(is_tied: bool) -> None:
    config, loaded = toy_config(has_tied_head=is_tied), list[str]()

    def load(name: str) -> str:
        loaded.append(name)
        return name

    model = assemble(config, load, context_length=64)
    assert sorted(loaded) == sorted(parameter_shapes(config))
    sizes = [prod(parameter_shapes(config)[name]) for name in loaded]
    assert sizes == sorted(sizes, reverse=True)
    assert (model.embedding, model.norm, model.head) == (EMBEDDING, NORM, EMBEDDING if is_tied else HEAD)
    assert model.layers[2].gate == layer_parameter(2, "gate") == "model.layers.2.mlp.gate_proj.weight"


def test_shapes_by_hand() -> None:
    shapes = parameter_shapes(toy_config())
    assert shapes[EMBEDDING] == shapes[HEAD] == (97, 96)
    assert [shapes[layer_parameter(0, role)] for role in ("q", "k", "v", "o")] == [(192, 96), (24, 96), (24, 96), (96, 192)]
    assert [shapes[layer_parameter(1, role)] for role in ("gate", "up", "down")] == [(160, 96), (160, 96), (96, 160)]
    assert len(shapes) == 3 + 3 * 9


def test_missing_leftover_and_misshapen_parameters_are_named() -> None:
    config = toy_config()
    shapes = parameter_shapes(config)
    check_parameters(config, shapes)
    with pytest.raises(
        CheckpointError, match=r"the checkpoint lacks tensors: lm_head.weight, model.embed_tokens.weight, model.layers.0.* and 27 more"
    ):
        check_parameters(config, {})
    bias = bias_parameter(0, "q")
    with pytest.raises(CheckpointError, match=f"has unknown tensors: {bias}; check that the config belongs to these weights"):
        check_parameters(config, shapes | {bias: (3,)})
    assert check_parameters(config, shapes | {"bias": (3,)}) == ["bias"]
    assert check_parameters(config, shapes | {"bias": (3,)}, ignorable=["bias"]) == []
    with pytest.raises(CheckpointError, match=r"model.norm.weight has shape \(95,\), the config asks for \(96,\)"):
        check_parameters(config, shapes | {NORM: (95,)})
