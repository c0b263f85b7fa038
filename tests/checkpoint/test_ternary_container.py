"""Our ternary container: what is written is read back, through shards too; every wrong file is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from checkpoint_files import TINY_JSON, write_index

from minicpm4.checkpoint import Checkpoint, open_checkpoint, read_safetensors
from minicpm4.checkpoint.write_folder import write_folder
from minicpm4.errors import CheckpointError, ConfigError
from minicpm4.model import PackedTensor
from minicpm4.model.hf_config import config_from_hf
from minicpm4.model.parameters import EMBEDDING, NORM, layer_parameter, parameter_shapes
from minicpm4.quant import dequantize, quantize
from tests.toy import plan_step, toy_executor

CONFIG = TINY_JSON | {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2}
QUERY = layer_parameter(0, "q")


def wide_weights(format_name: str) -> dict[str, PackedTensor]:
    random, weights = np.random.default_rng(5), {}
    shapes = parameter_shapes(config_from_hf(CONFIG)[0])
    for name, shape in shapes.items():
        kind = "f32" if len(shape) == 1 else "f16" if name == EMBEDDING else format_name
        values = random.standard_normal(shape, dtype=np.float32) * np.float32(shape[-1] ** -0.5)
        weights[name] = quantize(values, kind, name=name)
    return weights


def written(folder: Path, format_name: str = "ternary_g64") -> dict[str, PackedTensor]:
    weights = wide_weights(format_name)
    write_folder(folder, config=CONFIG, names=weights, load=weights.__getitem__)
    return weights


@pytest.mark.parametrize("group", [32, 64, 128, 256])
def test_a_folder_comes_back_and_every_executor_runs_it(tmp_path: Path, group: int) -> None:
    weights = written(tmp_path / "model", f"ternary_g{group}")
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.warnings == ()
        assert checkpoint.formats == {"f32", "f16", f"ternary_g{group}"}
        assert list(checkpoint.tensors) == list(weights)
        loaded = {name: checkpoint.load(name) for name in checkpoint.tensors}
        config = checkpoint.config
    for name, tensor in weights.items():
        assert (loaded[name].format, loaded[name].shape) == (tensor.format, tensor.shape)
        np.testing.assert_array_equal(loaded[name].data, tensor.data)
    step = plan_step([([1, 2, 3, 4, 5], 0, [0])])
    wanted = toy_executor("reference", config, weights).run(step).logits
    for executor in ("reference", "torch", "native"):
        np.testing.assert_allclose(toy_executor(executor, config, loaded).run(step).logits, wanted, rtol=0, atol=1e-5)


def test_other_libraries_read_the_parts(tmp_path: Path) -> None:
    """By the specification read aloud."""
    weights = written(tmp_path / "model")
    parts = safetensors.numpy.load_file(tmp_path / "model" / "model.safetensors")
    codes, scales = parts[f"{QUERY}.codes"], parts[f"{QUERY}.scales"]
    assert (codes.dtype, codes.shape, scales.dtype, scales.shape) == (np.uint8, (256, 64), np.float16, (256, 4))
    values = [[(int(codes[n, k // 4]) >> 2 * (k % 4) & 3) - 1 for k in range(256)] for n in range(256)] * np.repeat(scales, 64, axis=1)
    np.testing.assert_array_equal(values.astype(np.float32), dequantize(weights[QUERY]))
    assert parts[NORM].dtype == np.float32
    assert json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"] == {"quant_method": "minicpm4_ternary"}
    assert read_safetensors(tmp_path / "model" / "model.safetensors").metadata == {"format": "pt", "ternary_container": "1"}


def test_codes_and_scales_may_lie_in_different_shards(tmp_path: Path) -> None:
    weights = written(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    parts = safetensors.numpy.load_file(file)
    shards = {"a.safetensors": {n: p for n, p in parts.items() if n.endswith(".codes")}}
    shards["b.safetensors"] = {n: p for n, p in parts.items() if not n.endswith(".codes")}
    for shard, held in shards.items():
        safetensors.numpy.save_file(held, tmp_path / "model" / shard, {"ternary_container": "1"})
    write_index(tmp_path / "model", {name: shard for shard, held in shards.items() for name in held})
    file.unlink()
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert len(checkpoint.files) == 2
        np.testing.assert_array_equal(checkpoint.load(QUERY).data, weights[QUERY].data)


def rewritten(folder: Path, change: Callable[[dict[str, np.ndarray]], None], version: str = "1") -> Checkpoint:
    written(folder)
    parts = dict(safetensors.numpy.load_file(folder / "model.safetensors"))
    change(parts)
    safetensors.numpy.save_file(parts, folder / "model.safetensors", {"ternary_container": version})
    return open_checkpoint(folder)


def put(name: str, value: np.ndarray) -> Callable[[dict[str, np.ndarray]], None]:
    return lambda parts: parts.update({name: value})


def test_the_reserved_code_is_refused_wherever_it_is(tmp_path: Path) -> None:
    for row, byte, place in ((0, 0, 0), (255, 63, 3), (100, 17, 1)):

        def spoil(parts: dict[str, np.ndarray], row: int = row, byte: int = byte, place: int = place) -> None:
            parts[f"{QUERY}.codes"] = parts[f"{QUERY}.codes"].copy()
            parts[f"{QUERY}.codes"][row, byte] |= 3 << 2 * place

        with (
            rewritten(tmp_path / "model", spoil) as checkpoint,
            pytest.raises(CheckpointError, match=r"q_proj.* holds the reserved code 3"),
        ):
            checkpoint.load(QUERY)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (put(f"{QUERY}.scales", np.ones((256, 3), np.float16)), "do not make groups of 32, 64, 128, 256 columns"),
        (put(f"{QUERY}.scales", np.ones((256, 16), np.float16)), "do not make groups of"),
        (put(f"{QUERY}.scales", np.ones((255, 4), np.float16)), "do not have the same rows"),
        (put(f"{QUERY}.scales", np.ones((256, 4), np.float32)), "expected u8 and f16 matrices"),
        (put(f"{QUERY}.scales", np.ones(1024, np.float16)), "expected u8 and f16 matrices"),
        (put(f"{QUERY}.codes", np.zeros((256, 4, 16), np.uint8)), "expected u8 and f16 matrices"),
        (put(f"{QUERY}.codes", np.zeros((256, 64), np.int8)), "expected u8 and f16 matrices"),
        (lambda parts: parts.pop(f"{QUERY}.scales"), "lacks tensors: model.layers.0.self_attn.q_proj.weight"),
        (lambda parts: parts.pop(f"{QUERY}.codes"), "lacks tensors: model.layers.0.self_attn.q_proj.weight"),
        (put(QUERY, np.zeros((256, 256), np.float32)), "is stored as codes and scales, and as itself"),
        (
            lambda parts: parts.update({f"{QUERY}.codes": np.zeros((256, 0), np.uint8), f"{QUERY}.scales": np.zeros((256, 0), np.float16)}),
            "it has no columns",
        ),
        (put(NORM, np.zeros(256, np.uint8)), "tensor model.norm.weight is stored as u8"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        rewritten(tmp_path / "model", change)


def test_another_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="metadata does not say"):
        rewritten(tmp_path / "model", lambda parts: None, version="2")


def test_what_the_writer_refuses(tmp_path: Path) -> None:
    weights = wide_weights("q8_0")
    with pytest.raises(ConfigError, match="is q8_0, which safetensors has no dtype for; choose f32, f16, bf16 or ternary"):
        write_folder(tmp_path / "model", config=CONFIG, names=weights, load=weights.__getitem__)
    assert not list((tmp_path / "model").iterdir())  # nothing unfinished is left
    (tmp_path / "model" / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds a model in shards"):
        written(tmp_path / "model")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"cannot write .*file"):
        written(tmp_path / "file")


def test_a_dense_folder_is_a_plain_one(tmp_path: Path) -> None:
    weights = wide_weights("bf16")
    write_folder(tmp_path / "model", config=CONFIG, names=weights, load=weights.__getitem__)
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())
    with open_checkpoint(tmp_path / "model") as checkpoint:
        assert checkpoint.formats == {"f32", "f16", "bf16"}
        np.testing.assert_array_equal(checkpoint.load(QUERY).data, weights[QUERY].data)
