"""A step is complete and consistent when made; parameters have one name and one shape each."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest

from minicpm4.errors import CheckpointError
from minicpm4.model import PAGE_TOKENS, Step, assemble, pages_for
from minicpm4.model.parameters import EMBEDDING, HEAD, NORM, bias_parameter, check_parameters, layer_parameter, parameter_shapes
from minicpm4.model.step import single_step
from tests.toy import plan_step, toy_config


@pytest.mark.parametrize(("tokens", "pages"), [(0, 0), (1, 1), (64, 1), (65, 2), (128, 2)])
def test_pages_for(tokens: int, pages: int) -> None:
    assert PAGE_TOKENS == 64
    assert pages_for(tokens) == pages


def test_a_single_step() -> None:
    step = single_step(np.array([7, 8, 9]), start=63)
    assert step.positions_T.tolist() == step.slots_T.tolist() == [63, 64, 65]
    assert step.pages_SP.tolist() == [[0, 1]]
    assert (step.starts_S1.tolist(), step.lengths_S.tolist(), step.logit_rows_R.tolist()) == ([0, 3], [66], [2])
    assert single_step(np.array([7, 8, 9]), are_all_wanted=True).logit_rows_R.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions_T": [0]}, "one position and one slot a token"),
        ({"slots_T": [0, 1, 2]}, "one position and one slot a token"),
        ({"starts_S1": [0, 1]}, "starts cover all rows"),
        ({"starts_S1": [0, 1, 2]}, "one start a sequence, and the end"),
        ({"pages_SP": [0]}, "one row of pages and one mark of a prompt a sequence"),
        ({"pages_SP": [[0], [1]]}, "one row of pages and one mark of a prompt a sequence"),
        ({"is_prompt_S": [1, 1]}, "one row of pages and one mark of a prompt a sequence"),
    ],
)
def test_a_step_that_contradicts_itself_is_our_own_mistake(changes: dict[str, list[int]], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        replace(single_step(np.array([1, 2])), **{name: np.array(value, np.int32) for name, value in changes.items()})


@pytest.mark.parametrize("wrong", [np.array([1, 2]), np.array([1, 0, 2, 0], np.int32)[::2]], ids=["int64", "strided"])
def test_step_arrays_are_contiguous_int32(wrong: np.ndarray) -> None:
    with pytest.raises(AssertionError, match="step arrays are contiguous int32"):
        replace(single_step(np.array([1, 2])), tokens_T=wrong)


def test_the_tests_own_planner_makes_what_single_step_makes() -> None:
    planned, single = plan_step([([4, 5], 64, [0, 1])], wants_all=False, prompts=[0]), single_step(np.array([4, 5]), start=64)
    for name in Step.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(planned, name), getattr(single, name))


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
