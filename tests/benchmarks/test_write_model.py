"""Model files for benchmarks are whole models: their shape, formats and tokenizer, and what requantizing keeps."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.write_model import FORMATS, model_file, write_model
from minicpm4.checkpoint import open_checkpoint
from minicpm4.engine import read_text_side
from minicpm4.errors import ConfigError
from minicpm4.model.parameters import EMBEDDING, layer_parameter
from minicpm4.quant import dequantize
from tests.checkpoint.checkpoint_files import TINY_JSON, write_gguf_model

MINICPM_JSON = TINY_JSON | {
    "architectures": ["MiniCPMForCausalLM"], "vocab_size": 600, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8,
    "scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 64,
}  # fmt: skip


@pytest.fixture
def shape(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(MINICPM_JSON))
    return str(path)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_file_holds_the_shape_in_the_format(shape: str, tmp_path: Path, format_name: str) -> None:
    path = tmp_path / "model.gguf"
    write_model(shape, format_name, path)
    with open_checkpoint(path) as checkpoint:
        config, formats = checkpoint.config, {name: info.format for name, info in checkpoint.tensors.items()}
    assert (config.vocab_size, config.num_layers, config.num_kv_heads, config.has_tied_head) == (600, 8, 2, True)
    assert (config.embedding_scale, config.logit_divisor) == (12, 4)
    assert config.residual_scale == pytest.approx(1.4 / 8**0.5)
    assert formats[layer_parameter(0, "q")] == format_name.removesuffix("_m")


def test_the_mixed_format_is_finer_where_published_files_are(shape: str, tmp_path: Path) -> None:
    write_model(shape, "q4_k_m", tmp_path / "model.gguf")
    with open_checkpoint(tmp_path / "model.gguf") as checkpoint:
        formats = {name: info.format for name, info in checkpoint.tensors.items()}
    finer = [index for index in range(8) if formats[layer_parameter(index, "down")] == "q6_k"]
    assert finer == [index for index in range(8) if formats[layer_parameter(index, "v")] == "q6_k"] == [0, 3, 6, 7]
    assert formats[EMBEDDING] == "q6_k"


def test_another_architecture_has_no_scales(shape: str, tmp_path: Path) -> None:
    write_model(shape, "q8_0", tmp_path / "model.gguf", architecture="llama")
    with open_checkpoint(tmp_path / "model.gguf") as checkpoint:
        assert (checkpoint.config.embedding_scale, checkpoint.config.residual_scale, checkpoint.config.logit_divisor) == (1, 1, 1)
    with pytest.raises(ConfigError, match="there is no architecture 'gpt'; choose minicpm or llama"):
        write_model(shape, "q8_0", tmp_path / "other.gguf", architecture="gpt")


def test_the_tokenizer_spells_any_text(shape: str, tmp_path: Path) -> None:
    write_model(shape, "q8_0", tmp_path / "model.gguf")
    with open_checkpoint(tmp_path / "model.gguf") as checkpoint:
        tokenizer, _ = read_text_side(checkpoint, None)
    assert tokenizer.decode(tokenizer.encode("naïve 詞\n!")) == "naïve 詞\n!"
    assert len(tokenizer.encode("\0\0")) == 1  # the first merge


def test_requantizing_changes_the_projections_alone(tmp_path: Path) -> None:
    source, target = tmp_path / "source.gguf", tmp_path / "target.gguf"
    write_gguf_model(source)
    write_model(str(source), "q4_0", target)
    with open_checkpoint(source) as before, open_checkpoint(target) as after:
        assert before.config == after.config
        assert list(before.metadata or ()) != []
        for name in before.tensors:
            old, new = before.load(name), after.load(name)
            is_projection = "_proj" in name
            assert new.format.name == ("q4_0" if is_projection else "f32")
            step = np.abs(dequantize(old)).max() / 8 if is_projection else 0  # a code's width at most
            assert np.abs(dequantize(old) - dequantize(new)).max() <= step


def test_a_file_is_written_once(shape: str, tmp_path: Path) -> None:
    path = model_file(shape, "q4_0", tmp_path / "models", seed=3)
    assert path.name == "config-minicpm-3-q4_0.gguf"
    path.write_bytes(b"as it was")
    assert model_file(shape, "q4_0", tmp_path / "models", seed=3).read_bytes() == b"as it was"
    assert [other.name for other in path.parent.iterdir()] == [path.name]  # nothing unfinished is left


def test_a_model_without_a_format_is_the_file_itself(shape: str, tmp_path: Path) -> None:
    source = tmp_path / "source.gguf"
    write_gguf_model(source)
    assert model_file(str(source), None, tmp_path / "models") == source
    with pytest.raises(ConfigError, match=r"random weights of shape .* need a format; choose one of f32, f16"):
        model_file(shape, None, tmp_path / "models")
    with pytest.raises(ConfigError, match="a file cannot be requantized to 'q4_k_m'; choose one of f32"):
        model_file(str(source), "q4_k_m", tmp_path / "models")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    write_gguf_model(tmp_path / "source.gguf")
    with pytest.raises(ConfigError, match="q4_k stores blocks of 256"):
        write_model(str(tmp_path / "source.gguf"), "q4_k", tmp_path / "out" / "model.gguf")
    assert not list(tmp_path.glob("out/*"))
