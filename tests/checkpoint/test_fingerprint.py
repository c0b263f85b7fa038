"""A fingerprint follows the weights, not their place; any change that a file can be told by changes it."""

import os
import shutil
from pathlib import Path

import numpy as np
import safetensors.numpy
from checkpoint_files import tiny_weights, write_folder, write_gguf_model

from minicpm4.checkpoint import open_checkpoint
from minicpm4.checkpoint.fingerprint import fingerprint

LATE = (2_000_000_000, 2_000_000_000)


def of(path: Path, times: tuple[int, int] = LATE) -> str:
    for file in [path, *path.glob("*.safetensors")]:
        os.utime(file, times)
    return fingerprint(open_checkpoint(path))


def test_the_place_does_not_count(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", shards=2)
    first = of(folder)
    shutil.copytree(folder, tmp_path / "b")
    assert of(tmp_path / "b") == first == of(folder)
    assert len(first) == 32


def test_what_counts(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a")
    seen = {of(folder), of(folder, (5, 5))}
    seen.add(of(write_folder(tmp_path / "b", shards=2)))
    weights = tiny_weights()
    for number, name in enumerate(weights):
        other = {**weights, name: weights[name].copy()}
        other[name].reshape(-1)[-1] += 1
        seen.add(of(write_folder(tmp_path / f"c{number}", weights=other)))
    write_gguf_model(tmp_path / "model.gguf")
    seen.add(of(tmp_path / "model.gguf"))
    assert len(seen) == 4 + len(weights)


def test_a_ternary_tensor_counts_with_its_scales(tmp_path: Path) -> None:
    weights: dict[str, np.ndarray] = {name: weight for name, weight in tiny_weights().items() if "q_proj" not in name}
    for layer in range(2):
        weights[f"model.layers.{layer}.self_attn.q_proj.weight.codes"] = np.zeros((32, 8), np.uint8)
        weights[f"model.layers.{layer}.self_attn.q_proj.weight.scales"] = np.ones((32, 1), np.float16)
    seen = set()
    for scale in (1, 2):
        folder = write_folder(tmp_path / f"{scale}", weights=weights)
        weights["model.layers.1.self_attn.q_proj.weight.scales"] = np.full((32, 1), scale, np.float16)
        safetensors.numpy.save_file(weights, folder / "model.safetensors", {"ternary_container": "1"})
        seen.add(of(folder))
    assert len(seen) == 2
