"""Made-up weights have the shapes and formats that were asked for, and numbers that no kernel stumbles over."""

import json
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest

from minicpm4.checkpoint.hf_folder import read_config
from minicpm4.deploy.random_weights import random_weights, shape_config
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.model.config import RopeConfig
from minicpm4.model.parameters import EMBEDDING, HEAD, NORM, layer_parameter, parameter_shapes
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import dequantize
from tests.checkpoint.checkpoint_files import TINY_JSON
from tests.toy import plan_step, toy_config, toy_executor

WIDE = toy_config(hidden_size=256, intermediate_size=512, num_heads=16, head_dim=16)


@pytest.mark.parametrize(("shape", "parameters"), [("0.5B", 433_873_920), ("8B", 8_185_253_888)])
def test_published_shapes(official: Path, shape: str, parameters: int) -> None:
    """Their sums of parameters are those of the published weights; rope and tokens, which cost no time, are left out."""
    config = shape_config(shape, context_length=32768)
    assert sum(prod(size) for size in parameter_shapes(config).values()) == parameters
    published, _ = read_config(official / shape)
    assert config == replace(published, rope=RopeConfig(), bos_id=None, eos_ids=())


def test_a_shape_of_a_config_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY_JSON))
    config = shape_config(str(path), context_length=77)
    assert (config.hidden_size, config.num_layers, config.context_length) == (32, 2, 77)


def test_shapes_that_there_are_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no shape '7B'; choose 0.5B or 8B, or give a config.json"):
        shape_config("7B", context_length=1)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        shape_config(str(tmp_path / "config.json"), context_length=1)
    with pytest.raises(ConfigError, match="there is no format 'q3_k'; choose one of f32, f16"):
        random_weights(WIDE, "q3_k", seed=0)


@pytest.mark.parametrize("name", STORAGE_FORMATS)
def test_every_format(name: str) -> None:
    load, formats = random_weights(WIDE, name, seed=0)
    tensors = {parameter: load(parameter) for parameter in parameter_shapes(WIDE)}
    head = name if STORAGE_FORMATS[name].bits_per_weight >= 6 else "q6_k"
    assert tensors[layer_parameter(1, "down")].format.name == name
    assert tensors[EMBEDDING].format.name == tensors[HEAD].format.name == head
    assert tensors[NORM].format.name == "f32"
    assert formats == {"f32", name, head} == {tensor.format.name for tensor in tensors.values()}
    assert {parameter: tensor.shape for parameter, tensor in tensors.items()} == parameter_shapes(WIDE)
    logits = toy_executor("native", WIDE, tensors).run(plan_step([([1, 2, 3], 0, [0])])).logits
    assert 0.1 < logits.std() < 3


def test_rows_that_are_not_whole_blocks_take_smaller_ones() -> None:
    config = toy_config(hidden_size=96, intermediate_size=40, num_heads=16, head_dim=16)
    load, formats = random_weights(config, "q4_k", seed=0)
    assert [load(layer_parameter(0, role)).format.name for role in ("q", "o", "down")] == ["q8_0", "q4_k", "f16"]
    assert formats == {"f32", "f16", "q8_0", "q4_k"}


def test_the_seed_decides_everything() -> None:
    (first, _), (again, _), (other, _) = (random_weights(WIDE, "q8_0", seed=seed) for seed in (1, 1, 2))
    name = layer_parameter(0, "gate")
    np.testing.assert_array_equal(first(name).data, again(name).data)
    assert not np.array_equal(first(name).data, other(name).data)
    assert not np.array_equal(first(name).data, first(layer_parameter(0, "up")).data)


def test_spread_keeps_activations_near_one() -> None:
    load, _ = random_weights(WIDE, "f32", seed=0)
    assert dequantize(load(layer_parameter(0, "down"))).std() == pytest.approx(512**-0.5, rel=0.05)
