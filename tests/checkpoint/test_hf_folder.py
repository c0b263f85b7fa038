"""Hugging Face folders: configs, shards and their index, generation settings, and code that is never run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_files import TINY_JSON, tiny_weights, write_folder, write_index, write_safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from minicpm4.checkpoint import Checkpoint, open_checkpoint
from minicpm4.checkpoint.hf_folder import read_config, read_generation
from minicpm4.errors import CheckpointError, ConfigError, MiniCPMError

INDEX = "model.safetensors.index.json"
FIRST = "model.embed_tokens.weight"


@pytest.mark.parametrize("shards", [1, 3])
def test_every_parameter_comes_back_in_the_order_of_the_forward_pass(tmp_path: Path, shards: int) -> None:
    folder, weights = write_folder(tmp_path / "tiny", shards=shards), tiny_weights()
    with open_checkpoint(folder) as checkpoint:
        assert (checkpoint.name, checkpoint.folder, checkpoint.metadata, checkpoint.formats) == ("tiny", folder, None, {"f32"})
        assert list(checkpoint.tensors) == list(weights)
        assert checkpoint.config.eos_ids == (2, 3)
        for name, weight in weights.items():
            assert checkpoint.load(name).data.tobytes() == weight.tobytes()
        assert checkpoint.file_bytes == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        assert len(checkpoint.files) == shards


@pytest.mark.parametrize(
    ("size", "layers", "hidden", "is_tied", "context"), [("0.5B", 24, 1024, True, 32768), ("8B", 32, 4096, False, 32768)]
)
def test_official_configs(official: Path, size: str, layers: int, hidden: int, is_tied: bool, context: int) -> None:
    config, warnings = read_config(official / size)
    assert (config.num_layers, config.hidden_size, config.has_tied_head, config.context_length) == (layers, hidden, is_tied, context)
    assert (config.vocab_size, config.num_kv_heads, config.intermediate_size, config.eos_ids) == (73448, 2, 4 * hidden, (2, 73440))
    assert config.embedding_scale == 12
    assert config.logit_divisor == hidden / 256
    assert config.residual_scale == pytest.approx(1.4 / layers**0.5)
    assert config.rope.long_factors is not None
    assert len(config.rope.long_factors) == config.head_dim // 2
    assert warnings == ("auto_map names custom code; it is ignored, this package has its own",)
    generation, _ = read_generation(official / size)
    assert (generation["temperature"], generation["top_p"], generation["eos_token_id"]) == (0.8, 0.8, [2, 73440])


def test_custom_code_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TINY_JSON | {"auto_map": {"AutoModelForCausalLM": "modeling_canary.Canary", "AutoConfig": "modeling_canary.Canary"}}
    folder = write_folder(tmp_path / "tiny", config=config)
    (folder / "modeling_canary.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (folder / "__init__.py").write_text("import modeling_canary\n")
    monkeypatch.chdir(folder)
    checkpoint = open_checkpoint(folder)
    assert "custom code; it is ignored" in checkpoint.warnings[0]
    assert "modeling_canary" not in sys.modules
    assert not (tmp_path / "ran").exists()


def test_unknown_config_keys_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny", config=TINY_JSON | {"mystery": 1})
    assert open_checkpoint(folder).warnings == ("config.json: ignored keys mystery",)


def test_a_quantized_folder_says_so(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny", config=TINY_JSON | {"quantization_config": {"quant_method": "gptq", "bits": 4}})
    with pytest.raises(ConfigError, match="quantized with 'gptq'; get the unquantized model"):
        open_checkpoint(folder)


def test_generation_settings_keep_plain_values(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    assert open_checkpoint(folder).generation == {}
    plain = {"temperature": 0.8, "eos_token_id": [2, 3], "do_sample": True, "name": "x", "pad_token_id": None}
    (folder / "generation_config.json").write_text(json.dumps(plain | {"watermark": {"a": 1}, "lists": [[1]]}))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.generation == plain
    assert checkpoint.warnings == ("generation_config.json: ignored keys lists, watermark",)


@pytest.mark.parametrize(
    ("text", "word"),
    [("[1]", "expected an object"), ("{", "not valid JSON"), ('{"a": 1, "a": 2}', "'a' twice"), ("[" * 100_000, "not valid JSON")],
)
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", INDEX])
def test_json_that_is_none_is_refused(tmp_path: Path, file: str, text: str, word: str) -> None:
    folder = write_folder(tmp_path / "tiny", shards=2)
    (folder / file).write_text(text)
    with pytest.raises(CheckpointError, match=word) as refusal:
        open_checkpoint(folder)
    assert file in str(refusal.value)


def test_json_that_is_a_folder_or_too_large_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    (folder / "generation_config.json").mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        open_checkpoint(folder)
    (folder / "generation_config.json").rmdir()
    with open(folder / "config.json", "r+") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(CheckpointError, match="at most 16777216 bytes"):
        open_checkpoint(folder)


def test_a_byte_order_mark_is_no_harm(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    (folder / "config.json").write_text(json.dumps(TINY_JSON), encoding="utf-8-sig")
    assert open_checkpoint(folder).config.hidden_size == 32


def edit_map(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    change(weight_map)
    write_index(folder, weight_map)


def other_shard(folder: Path, weight_map: dict[str, Any]) -> None:
    """Puts a copy of the first tensor into the second shard as well."""
    shard = next(s for s in sorted(set(weight_map.values())) if s != weight_map[FIRST])
    names = [name for name in weight_map if weight_map[name] == shard]
    write_safetensors(folder / shard, {name: tiny_weights()[name] for name in [*names, FIRST]})


BAD_INDEX: dict[str, tuple[Callable[[Path, dict[str, Any]], object], str]] = {
    "missing-shard": (lambda folder, m: m.update({FIRST: "model-9.safetensors"}), "'model-9.safetensors' that .* is missing"),
    "outside": (lambda folder, m: m.update({FIRST: "../secret.safetensors"}), "'../secret.safetensors' outside the folder"),
    "absolute": (lambda folder, m: m.update({FIRST: str(folder.parent / "secret.safetensors")}), "outside the folder"),
    "folder-itself": (lambda folder, m: m.update({FIRST: "."}), "is missing"),
    "nul": (lambda folder, m: m.update({FIRST: "a\0b"}), "cannot be a file"),
    "long": (lambda folder, m: m.update({FIRST: "a" * 5000}), "cannot be a file|is missing"),
    "not-text": (lambda folder, m: m.update({FIRST: 7}), "no weight_map"),
    "empty": (lambda folder, m: m.clear(), "no weight_map"),
    "many": (lambda folder, m: m.update({f"t{i}": f"s{i}" for i in range(600)}), "at most 512"),
    "unnamed-twice": (lambda folder, m: (other_shard(folder, m), m.pop(FIRST)), "is in 2 shards, and .* does not say in which"),
}


@pytest.mark.parametrize("case", BAD_INDEX)
def test_an_index_that_lies_is_refused(tmp_path: Path, case: str) -> None:
    folder = write_folder(tmp_path / "tiny", shards=2)
    write_safetensors(tmp_path / "secret.safetensors", {FIRST: tiny_weights()[FIRST]})
    change, word = BAD_INDEX[case]
    edit_map(folder, lambda weight_map: change(folder, weight_map))
    with pytest.raises(CheckpointError, match=word) as refusal:
        open_checkpoint(folder)
    assert refusal.value.hint
    assert len(str(refusal.value)) < 700


@pytest.mark.parametrize(
    "change",
    [lambda folder, m: m.update({"lm_head.weight": m[FIRST]}), lambda folder, m: m.pop(FIRST), other_shard],
    ids=["names-a-tied-head", "leaves-a-tensor-out", "tensor-twice"],
)
def test_an_index_and_shards_that_do_not_name_the_same(tmp_path: Path, change: Callable[[Path, dict[str, Any]], object]) -> None:
    """As `transformers` loads them: vLLM pull request 54230, torchtitan pull request 3764."""
    folder = write_folder(tmp_path / "tiny", shards=2)
    edit_map(folder, lambda weight_map: change(folder, weight_map))
    with open_checkpoint(folder) as checkpoint:
        assert_same_weights(checkpoint)


def assert_same_weights(checkpoint: Checkpoint) -> None:
    for name, values in tiny_weights().items():
        np.testing.assert_array_equal(checkpoint.load(name).data.view("<f4").reshape(values.shape), values)


def weights_file(folder: Path, tensors: dict[str, np.ndarray]) -> Path:
    write_folder(folder)
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OTHER_NAMES: dict[str, Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]] = {
    "without-model": lambda w: {name.removeprefix("model."): values for name, values in w.items()},
    "only-the-head": lambda w: {HEAD if name == EMBEDDING else name: values for name, values in w.items()},
    "head-twice": lambda w: w | {HEAD: w[EMBEDDING]},
    "rotary-buffers": lambda w: w | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for i in range(2)},
    "rotary-buffer-of-all": lambda w: w | {"model.rotary_emb.inv_freq": np.ones(4, np.float32)},
}


@pytest.mark.parametrize("case", OTHER_NAMES)
def test_names_that_others_write(tmp_path: Path, case: str) -> None:
    """transformers issue 34759, text-generation-inference issue 501, safetensors' save_model, a base model saved alone."""
    with open_checkpoint(weights_file(tmp_path / "tiny", OTHER_NAMES[case](tiny_weights()))) as checkpoint:
        assert not checkpoint.warnings
        assert_same_weights(checkpoint)


def test_tensors_that_are_no_part_of_the_model_are_said_and_not_used(tmp_path: Path) -> None:
    extra = {name: np.ones(3, np.float32) for name in ("score.weight", "model.layers.2.mlp.gate_proj.weight", "mtp.fc.weight", "draft.fc")}
    with open_checkpoint(weights_file(tmp_path / "tiny", tiny_weights() | extra)) as checkpoint:
        assert checkpoint.warnings == ("tensors that are no part of the model are not used: score.weight",)
        names = {group: sorted(tensors) for group, tensors in checkpoint.groups.items()}
        assert names == {"mtp": ["model.layers.2.mlp.gate_proj.weight", "mtp.fc.weight"], "draft": ["draft.fc"]}
        np.testing.assert_array_equal(checkpoint.groups["draft"]["draft.fc"].load("draft.fc").data.view(np.float32).ravel(), np.ones(3))
        assert_same_weights(checkpoint)


@pytest.mark.parametrize("name", ["self_attn.q_proj.bias", "self_attn.q_norm.weight", "mlp.up_proj.weight_scale", "mlp.experts.0.w1"])
def test_tensors_that_would_change_the_numbers_are_refused(tmp_path: Path, name: str) -> None:
    weights_file(tmp_path / "tiny", tiny_weights() | {f"model.layers.1.{name}": np.ones(32, np.float32)})
    with pytest.raises(CheckpointError, match=f"has unknown tensors: model.layers.1.{name}"):
        open_checkpoint(tmp_path / "tiny")


def test_what_other_programs_leave_beside_the_weights(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    write_safetensors(folder / "consolidated.safetensors", {"x": np.ones(3, np.float32)})
    write_safetensors(folder / "adapter_model.safetensors", {"x": np.ones(3, np.float32)})
    with open_checkpoint(folder) as checkpoint:
        assert_same_weights(checkpoint)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds adapter_model\.safetensors, which is not a whole model"):
        open_checkpoint(folder)


def test_a_shard_that_links_outside_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny", shards=2)
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="outside the folder; copy the file into the folder"):
        open_checkpoint(folder)


def test_a_ring_of_links_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny", shards=2)
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.unlink()
    shard.symlink_to(shard.name)
    with pytest.raises(CheckpointError, match=r"cannot be a file|is missing"):
        open_checkpoint(folder)


def test_a_snapshot_of_the_hub_links_to_its_blobs(tmp_path: Path) -> None:
    root = tmp_path / "models--openbmb--tiny"
    folder = write_folder(root / "snapshots" / ("a" * 40), shards=2)
    (root / "blobs").mkdir()
    for shard in folder.glob("*.safetensors"):
        shard.rename(root / "blobs" / shard.name)
        shard.symlink_to(root / "blobs" / shard.name)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.name == "openbmb/tiny"
    assert checkpoint.load(FIRST).data.tobytes() == tiny_weights()[FIRST].tobytes()


def test_a_tied_head_may_be_stored_but_must_be_the_same(tmp_path: Path) -> None:
    weights = tiny_weights()
    folder = write_folder(tmp_path / "tiny", weights=weights | {"lm_head.weight": weights[FIRST]})
    assert "lm_head.weight" not in open_checkpoint(folder).tensors
    write_folder(folder, weights=weights | {"lm_head.weight": weights[FIRST] + 1})
    with pytest.raises(CheckpointError, match="differs from it; set tie_word_embeddings to false"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model.layers.0.self_attn.q_proj.bias": np.ones(32, np.float32)}, "unknown tensors: model.layers.0.self_attn.q_proj.bias"),
        ({"model.norm.weight": None}, "lacks tensors: model.norm.weight"),
        ({"model.norm.weight": np.ones(31, np.float32)}, r"has shape \(31,\)"),
        ({"model.norm.weight": np.ones(32, np.int64)}, "model.norm.weight is stored as dtype 'I64'"),
        ({"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}, ""),
    ],
    ids=["leftover", "missing", "shape", "dtype", "rope-buffer"],
)
def test_weights_must_be_those_of_the_config(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    weights = {name: weight for name, weight in (tiny_weights() | change).items() if weight is not None}
    folder = write_folder(tmp_path / "tiny", weights=weights)
    if word:
        with pytest.raises(CheckpointError, match=word):
            open_checkpoint(folder)
    else:
        assert len(open_checkpoint(folder).tensors) == len(tiny_weights())


HOSTILE_VALUES = st.sampled_from(
    [
        0,
        -1,
        1,
        3,
        10**9,
        10**30,
        10**400,
        1e308,
        1e-308,
        -1.5,
        float("nan"),
        float("inf"),
        "",
        "x",
        [],
        [1],
        ["a"],
        [[1]],
        {},
        {"a": 1},
        True,
        None,
        1 << 23,
    ]
)
ROPE = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
SPARSE = {"kernel_size": 32, "block_size": 64, "topk": 64, "use_nope": False, "dense_len": 8192}
FULL_JSON = TINY_JSON | {
    "rope_scaling": ROPE,
    "sparse_config": SPARSE,
    "dim_model_base": 8,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "head_dim": 8,
    "rope_theta": 1e4,
}


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("fuzzed"))


@settings(max_examples=120, deadline=None)
@given(
    top=st.dictionaries(st.sampled_from([*sorted(FULL_JSON), "rope_parameters", "sliding_window", "auto_map"]), HOSTILE_VALUES, max_size=3),
    rope=st.dictionaries(
        st.sampled_from([*sorted(ROPE), "short_factor", "long_factor"]),
        HOSTILE_VALUES | st.sampled_from(["longrope", "linear"]),
        max_size=3,
    ),
    sparse=st.dictionaries(st.sampled_from(sorted(SPARSE)), HOSTILE_VALUES, max_size=2),
)
def test_hostile_configs(fuzzed: Path, top: dict[str, Any], rope: dict[str, Any], sparse: dict[str, Any]) -> None:
    config = FULL_JSON | {"rope_scaling": ROPE | rope, "sparse_config": SPARSE | sparse} | top
    (fuzzed / "config.json").write_text(json.dumps(config))
    try:
        open_checkpoint(fuzzed)
    except MiniCPMError:
        return


@settings(max_examples=50, deadline=None)
@given(text=st.binary(max_size=60), file=st.sampled_from(["config.json", "generation_config.json", INDEX]))
def test_random_json(fuzzed: Path, text: bytes, file: str) -> None:
    folder = write_folder(fuzzed / "inner", shards=2)
    (folder / file).write_bytes(text)
    try:
        open_checkpoint(folder)
    except MiniCPMError:
        return
    finally:
        (folder / "generation_config.json").unlink(missing_ok=True)
