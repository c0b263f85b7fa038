"""Models in GGUF files beside llama.cpp: the logits of both, to the rounding of the format and of llama.cpp's eight-bit activations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minicpm4 import LLM, SamplingParams
from minicpm4.checkpoint import open_checkpoint
from minicpm4.errors import CheckpointError
from minicpm4.model import ModelConfig
from minicpm4.model.parameters import parameter_shapes
from minicpm4.model.step import single_step
from minicpm4.quant import dequantize
from minicpm4.text.token_text import BYTE_OF
from tests.checkpoint.checkpoint_files import write_gguf_model
from tests.toy import toy_executor

llama_cpp = pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.whole

CONFIG = ModelConfig(
    vocab_size=320, hidden_size=256, intermediate_size=512, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=64, context_length=256,
    has_tied_head=True,
)  # fmt: skip
TEXTS = ["<|endoftext|>", *BYTE_OF, *(f"<filler{i}>" for i in range(320 - 257))]
VOCABULARY = {
    "tokenizer.ggml.tokens": TEXTS, "tokenizer.ggml.token_type": [3] + [1] * 319, "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.eos_token_id": 0,
}  # fmt: skip
TOKENS = np.random.default_rng(5).integers(1, 257, 70).astype(np.int32)
SHORT, LONG = (np.float32([1 + step * i for i in range(32)]) for step in (0.02, 0.3))
ALL = frozenset(("q", "k", "v", "o"))
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
MODELS: dict[str, tuple[str, ModelConfig, dict[str, Any], dict[str, np.ndarray]]] = {
    "llama": ("llama", CONFIG, {}, {}),
    "llama-untied": ("llama", replace(CONFIG, has_tied_head=False), {}, {}),
    "llama-biases": ("llama", replace(CONFIG, biases=ALL), {}, {}),
    "llama-linear": ("llama", CONFIG, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {}),
    "llama-factors": ("llama", CONFIG, {"rope.freq_base": 5e5}, {"rope_freqs.weight": LONG}),
    "llama-yarn": ("llama", CONFIG, YARN, {}),
    "minicpm": ("minicpm", CONFIG, {"embedding_scale": 12.0, "residual_scale": 0.5, "logit_scale": 2.0}, {}),
    "minicpm-longrope": (
        "minicpm", CONFIG,
        {"embedding_scale": 12.0, "residual_scale": 0.5, "logit_scale": 2.0, "rope.scaling.type": "longrope",
         "rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.0},
        {"rope_factors_long.weight": LONG, "rope_factors_short.weight": SHORT},
    ),
    "qwen2": ("qwen2", replace(CONFIG, biases=ALL - {"o"}), {}, {}),
    "qwen3": ("qwen3", replace(CONFIG, has_head_norms=True), {"attention.key_length": 64, "attention.value_length": 64}, {}),
}  # fmt: skip


def weights_of(config: ModelConfig, *, is_ternary: bool = False) -> dict[str, np.ndarray]:
    random = np.random.default_rng(2)
    found = {}
    for name, shape in parameter_shapes(config).items():
        values = random.standard_normal(shape)
        if is_ternary and len(shape) == 2:
            values = np.sign(values) * (np.abs(values) > 0.5)
        spread = 1.0 if "norm" in name else shape[-1] ** -0.5 if len(shape) == 2 else 0.3
        found[name] = np.float32(np.float16(values * spread + (1.0 if "norm" in name else 0.0)))
    return found


def write(path: Path, name: str, *, is_ternary: bool = False, **options: Any) -> dict[str, np.ndarray]:
    architecture, config, keys, extra = MODELS[name]
    metadata = VOCABULARY | {f"{architecture}.{key}": value for key, value in keys.items()}
    weights = weights_of(config, is_ternary=is_ternary)
    return write_gguf_model(path, architecture=architecture, config=config, keys=metadata, extra=extra, weights=weights, **options)


def own_logits(path: Path, executor: str, *, activations: str = "f32") -> np.ndarray:
    with open_checkpoint(path) as checkpoint:
        weights = {name: checkpoint.load(name) for name in parameter_shapes(checkpoint.config)}
        runner = toy_executor(executor, checkpoint.config, weights, num_pages=2, activations=activations, context_length=256)
        return runner.run(single_step(TOKENS, num_logits=len(TOKENS))).logits.copy()


def difference(got: np.ndarray, wanted: np.ndarray) -> float:
    """The root mean square of the difference over that of the logits."""
    return float(np.sqrt(np.mean((got - wanted) ** 2) / np.mean(wanted**2)))


@pytest.mark.parametrize("executor", ["reference", "native"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_float_files(tmp_path: Path, name: str, executor: str) -> None:
    from tests.llama_peer import logits_of

    write(tmp_path / "m.gguf", name)
    assert difference(own_logits(tmp_path / "m.gguf", executor), logits_of(tmp_path / "m.gguf", TOKENS.tolist())) < 2e-4


# Its activations have 8 bits, in groups of 32 or of 256, which alone moves these logits by 0.035 and 0.057; a wrong format by some 1.
EIGHT_BITS = 0.1
TYPES = {
    "F16": 2e-3,
    "BF16": 0.015,
    **dict.fromkeys(("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K"), EIGHT_BITS),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_0"), EIGHT_BITS),
}  # fmt: skip


@pytest.mark.parametrize("executor", ["reference", "native"])
@pytest.mark.parametrize("kind", TYPES)
def test_logits_of_files_that_llama_cpp_quantized(tmp_path: Path, kind: str, executor: str) -> None:
    from tests.llama_peer import logits_of, quantize_file

    weights = write(tmp_path / "m.gguf", "llama-untied", is_ternary=kind in ("TQ1_0", "TQ2_0", "Q2_0"))
    prefix = "LLAMA_FTYPE_MOSTLY_"
    quantize_file(tmp_path / "m.gguf", tmp_path / "q.gguf", getattr(llama_cpp, prefix + kind))
    got, wanted = own_logits(tmp_path / "q.gguf", executor), logits_of(tmp_path / "q.gguf", TOKENS.tolist())
    assert difference(got, wanted) < TYPES[kind]
    if kind in ("TQ1_0", "TQ2_0", "Q2_0"):
        with open_checkpoint(tmp_path / "q.gguf") as checkpoint:
            name = "model.layers.1.mlp.up_proj.weight"
            assert checkpoint.tensors[name].format == kind.lower()
            np.testing.assert_array_equal(dequantize(checkpoint.load(name)), weights[name])


@pytest.mark.parametrize("kind", ["IQ4_NL", "IQ4_XS", "Q3_K_M", "Q2_K", "NVFP4", "Q1_0"])
def test_types_that_are_not_read_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    from tests.llama_peer import quantize_file

    write(tmp_path / "m.gguf", "llama-untied")
    try:
        quantize_file(tmp_path / "m.gguf", tmp_path / "q.gguf", getattr(llama_cpp, "LLAMA_FTYPE_MOSTLY_" + kind))
    except AssertionError:
        pytest.skip("llama.cpp does not make such a file of this model")
    with pytest.raises(CheckpointError, match=rf"has type \d+, {kind[:4]}.*: not supported"):
        open_checkpoint(tmp_path / "q.gguf")


def test_a_split_file_is_the_whole_one(tmp_path: Path) -> None:
    from tests.llama_peer import logits_of

    write(tmp_path / "m.gguf", "llama")
    write(tmp_path / "s", "llama", max_tensors=7)
    first = min(tmp_path.glob("s-*.gguf"))
    assert len(list(tmp_path.glob("s-*.gguf"))) == 3
    np.testing.assert_array_equal(own_logits(first, "reference"), own_logits(tmp_path / "m.gguf", "reference"))
    np.testing.assert_allclose(own_logits(first, "reference"), logits_of(first, TOKENS.tolist()), atol=5e-3)


def test_a_quantized_file_answers(tmp_path: Path) -> None:
    """From a file that llama.cpp wrote to text, by the default executor."""
    from tests.llama_peer import quantize_file

    write(tmp_path / "m.gguf", "qwen2")
    quantize_file(tmp_path / "m.gguf", tmp_path / "q.gguf", llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M)
    with LLM(str(tmp_path / "q.gguf"), threads=1) as llm:
        assert llm.generate("Hello", SamplingParams(max_tokens=5, ignore_eos=True)).finish_reason == "length"
