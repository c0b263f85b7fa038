"""Whether attention is sparse: who decides, what is said of it, what memory it takes, and what an answer reports."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from minicpm4.checkpoint import open_checkpoint
from minicpm4.engine import LLM, LoadOptions, SamplingParams
from minicpm4.engine.load import plan_load
from minicpm4.engine.sparse import SparseOverrides, choose_sparse
from minicpm4.errors import CapacityError, ConfigError
from minicpm4.model.config import SparseConfig
from minicpm4.model.hf_config import config_from_hf
from tests.checkpoint.checkpoint_files import tiny_weights, write_folder
from tests.toy import TOY, toy_config

MINICPM = toy_config(sparse=SparseConfig(dense_len=100))
SHORTCUT = SparseConfig(dense_len=100, has_coarse_lse=True)
PAPER, FROM_THERE = "96 blocks of 64 a token", "from where on it could be sparse"


def choose(config: Any, *, context_length: int = 512, **preferences: Any) -> tuple[SparseConfig | None, str]:
    sparse, choices = choose_sparse(SparseOverrides(**preferences), config, context_length=context_length)
    return sparse, "; ".join(map(str, choices))


@pytest.mark.parametrize(
    ("config", "options", "sparse", "said"),
    [
        (MINICPM, {}, MINICPM.sparse, f"attention sparse beyond 100 tokens, {PAPER} (the model is made for it)"),
        (TOY, {}, None, ""),
        (TOY, {"is_on": False}, None, ""),
        (TOY, {"is_on": True, "context_length": 9000}, SparseConfig(), f"attention sparse beyond 8192 tokens, {PAPER} (asked for)"),
        (
            MINICPM,
            {"topk": 3, "window_size": 128, "dense_len": -1},
            SparseConfig(topk=3, window_size=128, dense_len=-1),
            "attention sparse beyond 0 tokens, 5 blocks of 64 a token (asked for)",
        ),
        (MINICPM, {"is_on": False}, None, "attention dense (asked for)"),
        (MINICPM, {"context_length": 100}, None, f"attention dense (no sequence is longer than 100 tokens, {FROM_THERE})"),
        (MINICPM, {"has_coarse_lse": True}, SHORTCUT, f"attention sparse beyond 100 tokens, {PAPER} (asked for)"),
    ],
)  # fmt: skip
def test_the_choice_and_its_reason(config: Any, options: dict[str, Any], sparse: SparseConfig | None, said: str) -> None:
    assert choose(config, **options) == (sparse, said)


@pytest.mark.parametrize(
    ("config", "options", "error", "message"),
    [
        (MINICPM, {"is_on": False, "topk": 3}, ConfigError, "topk of sparse attention was asked for, but attention is dense; leave out"),
        (TOY, {"topk": 3, "dense_len": 5}, ConfigError, "topk, dense_len of sparse attention was asked for, but .*; .* add --sparse"),
        (MINICPM, {"window_size": 100}, ConfigError, "sparse window_size is 100, expected a multiple of the block, 64"),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(config: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        choose(config, **options)


@pytest.fixture(scope="module")
def folder(official: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random MiniCPM4 with the published tokenizer, whose rows are sparse past 128 tokens: three blocks of 64."""
    folder = tmp_path_factory.mktemp("sparse")
    for path in (official / "0.5B").iterdir():
        shutil.copy(path, folder)
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    block = {"sparse_config": {"dense_len": 128, "topk": 2, "window_size": 64}}
    values = json.loads((folder / "config.json").read_text()) | small | {"rope_scaling": None} | block
    (folder / "config.json").write_text(json.dumps(values))
    return write_folder(folder, config=values, weights=tiny_weights(config_from_hf(values)[0]))


GREEDY = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)


@pytest.mark.parametrize("executor", ["native", "reference", "torch"])
def test_an_answer_says_what_its_rows_attended_to(folder: Path, executor: str) -> None:
    with LLM(str(folder), executor=executor, context_length=640) as llm:
        assert any(str(choice).startswith("attention sparse beyond 128 tokens, 3 blocks") for choice in llm.loaded.choices)
        tokens = llm.loaded.tokenizer.encode("1", add_bos=False)
        assert len(tokens) == 1
        long, short = llm.generate(["1" * 510, "1" * 60], GREEDY, add_bos=False)
        assert (long.prompt_tokens, short.prompt_tokens) == (510, 60)
        assert (long.blocks_selected, long.blocks_total) == (3, 8.25)  # its rows are at positions 509 to 512
        assert long.attended_share == pytest.approx((4 * (64 + 64) + 62 + 63 + 64 + 1) / (510 + 511 + 512 + 513))
        assert (short.blocks_selected, short.blocks_total, short.attended_share) == (1, 1, 1.0)
        alone = llm.generate("1" * 510, GREEDY, add_bos=False)
        assert alone.token_ids == long.token_ids
    with LLM(str(folder), executor=executor, context_length=640, sparse=False) as llm:
        dense = llm.generate("1" * 510, GREEDY, add_bos=False)
        assert (dense.blocks_selected, dense.blocks_total, dense.attended_share) == (8.25, 8.25, 1.0)


@pytest.mark.parametrize(
    ("executor", "changes", "compressed_bytes"),
    [
        ("torch", {}, 4 * 4),
        ("torch", {"coarse_lse": True}, 5 * 4),
        ("torch", {"sparse": False}, 0),
        ("torch", {"context_length": 128}, 0),
        ("native", {}, 4 * 2),
        ("native", {"coarse_lse": True}, 5 * 2),
        ("native", {"sparse": False}, 0),
    ],
    ids=str,
)
def test_the_plan_counts_the_compressed_keys_that_are_kept(
    folder: Path, executor: str, changes: dict[str, Any], compressed_bytes: int
) -> None:
    """Beside a page: kernels of 32 numbers a layer, in torch of float32; the page itself 64 keys and values of as many f16 ones."""
    options = {"model": str(folder), "executor": executor, "context_length": 640} | changes
    with open_checkpoint(folder) as checkpoint:
        plan = plan_load(LoadOptions(**options), checkpoint).memory
    assert plan.kv_bytes == plan.num_pages * 2 * 32 * (64 * 2 * 2 + compressed_bytes)
    with LLM(**options) as llm:
        assert llm.loaded.executor.kv_bytes == plan.kv_bytes


def test_more_context_than_a_model_reaches_is_refused(folder: Path) -> None:
    with (
        open_checkpoint(folder) as checkpoint,
        pytest.raises(CapacityError, match="131072 tokens was asked for, the model is made for 32768"),
    ):
        plan_load(LoadOptions(model=str(folder), context_length=131072), checkpoint)
