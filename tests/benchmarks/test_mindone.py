"""MindONE's process: what is written for it, and how rounds are asked of it. A script stands for its interpreter."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.mindone_process import mindone, write_folder
from tests.toy import toy_config, toy_weights

ANSWERS = """#!/bin/sh
echo "a step" >&2
echo '{"versions": {"mindone": "1"}}'
while read count; do echo "{\\"seconds\\": $count.5, \\"tokens\\": [7, $count]}"; done
touch "$4.ended"
"""


def interpreter(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def test_rounds_are_asked_for_and_the_end_of_input_ends_it(tmp_path: Path) -> None:
    with mindone(interpreter(tmp_path, ANSWERS), tmp_path / "model", mode="graph", num_tokens=8) as peer:
        assert peer.facts == {"versions": {"mindone": "1"}}
        assert (peer.decode(3), peer.tokens) == (3.5, [7, 3])
        assert (peer.decode(5), peer.tokens) == (5.5, [7, 5])
        assert not (tmp_path / "model.ended").exists()
    assert (tmp_path / "model.ended").exists()


def test_one_that_ends_says_why(tmp_path: Path) -> None:
    broken = interpreter(tmp_path, "#!/bin/sh\necho 'No module named mindone' >&2\nexit 3\n")
    with (
        pytest.raises(RuntimeError, match="MindONE ended with status 3: No module named mindone"),
        mindone(broken, tmp_path, mode="graph", num_tokens=1),
    ):
        pass


def test_the_model_is_written_in_its_names(tmp_path: Path) -> None:
    config = toy_config(hidden_size=32)
    weights = toy_weights(config)
    write_folder(tmp_path, config, weights.__getitem__, prompt=np.array([3, 4], np.int32))
    numbers = json.loads((tmp_path / "config.json").read_text())
    assert (numbers["hidden_size"], numbers["num_key_value_heads"], numbers["scale_depth"]) == (
        32,
        config.num_kv_heads,
        config.num_layers**0.5,
    )
    assert np.load(tmp_path / "prompt.npy").tolist() == [3, 4]
    down = np.load(tmp_path / "model.layers.1.mlp.down_proj.weight.npy")
    assert (down.shape, down.dtype) == ((32, config.intermediate_size), np.float32)
