"""A random ternary folder is a whole model: its shape, its format, a tokenizer that spells any text."""

import json
from pathlib import Path

import pytest

from benchmarks.write_folder import FORMATS, write_random_folder
from minicpm4.checkpoint import open_checkpoint
from minicpm4.engine import read_text_side
from minicpm4.model.parameters import EMBEDDING, layer_parameter
from tests.checkpoint.checkpoint_files import TINY_JSON

SHAPE = TINY_JSON | {
    "architectures": ["MiniCPMForCausalLM"], "vocab_size": 600, "hidden_size": 256, "intermediate_size": 512, "scale_emb": 12,
    "scale_depth": 1.4, "dim_model_base": 64,
}  # fmt: skip


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_folder_holds_the_shape_in_the_format(tmp_path: Path, format_name: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SHAPE))
    write_random_folder(str(path), format_name, tmp_path / "model")
    with open_checkpoint(tmp_path / "model") as checkpoint:
        config, formats = checkpoint.config, {name: info.format for name, info in checkpoint.tensors.items()}
        tokenizer, _ = read_text_side(checkpoint, None)
    assert (config.vocab_size, config.num_kv_heads, config.has_tied_head) == (600, 2, True)
    assert (config.embedding_scale, config.logit_divisor) == (12, 4)
    assert config.residual_scale == pytest.approx(1.4 / 2**0.5)
    assert (formats[layer_parameter(0, "q")], formats[EMBEDDING]) == (format_name, "f16")
    assert tokenizer.decode(tokenizer.encode("naïve 詞\n!")) == "naïve 詞\n!"
