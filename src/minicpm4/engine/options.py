"""What is loaded, and how it runs: one frozen value, checked when it is made. The command line's flags are its fields."""

from __future__ import annotations

from dataclasses import dataclass

from minicpm4.engine.sparse import SparseOverrides
from minicpm4.executors.base import EXECUTORS
from minicpm4.fields import check_options, option
from minicpm4.model.config import SIZE_LIMIT
from minicpm4.quant import KV_FORMATS

AUTO = "auto"
SIZES = (1, SIZE_LIMIT - 1)


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Each field's documentation is its help; `minicpm4 generate --help` lists them. None leaves a choice to the model or the executor.

    ConfigError for values that cannot be.
    """

    model: str = option("default", "A folder, a .gguf file, a hub id (owner/name), or 'default'.", flags=("-m", "--model"))
    revision: str | None = option(None, "Branch, tag or commit of a hub model.")
    offline: bool = option(False, "Use what is on disk; never the network.", flags=("--offline",))
    context_length: int | None = option(
        None, "Tokens of context; the model's own by default, or what fits the memory.", within=(1, 1 << 31), flags=("-c", "--ctx-size")
    )
    cache_tokens: int | None = option(
        None, "Tokens that all sequences together may hold; one context by default.", within=(1, 1 << 40), flags=("--cache-tokens",)
    )
    threads: int | None = option(None, "CPU threads; one a core by default.", within=(1, 1024), flags=("-t", "--threads"))
    executor: str = option("native", f"What runs the model: {', '.join(EXECUTORS)}.")
    isa: str | None = option(None, "Instruction set of the native executor; the best one by default.")
    activations: str = option(AUTO, "What quantized weights are multiplied with: int8, int16, f32 or auto.")
    prompt_activations: str = option(
        AUTO,
        "Those of a prompt's tokens: same (as --activations), bf16 (native, on a CPU with AMX) or auto.",
        choices=(AUTO, "same", "bf16"),
    )
    kv_format: str = option(
        AUTO,
        "How keys and values are stored: f16, bf16, f32, int8 (half the memory of f16; not in torch), auto.",
        choices=(AUTO, *KV_FORMATS),
    )
    dtype: str = option(AUTO, "Of torch's weights and activations: f32, bf16 or auto.", choices=(AUTO, "f32", "bf16"))
    device: str = option("cpu", "cpu, cuda (torch) or ascend (mindspore).")
    space_prefix: bool | None = option(
        None, "Put a space before each piece of text, as a GGUF file's SentencePiece tokenizer may; by default what the file says."
    )
    tile_cache: bool = option(
        False, "Keep the weights as the native executor packs them on the disk (packed/ in the cache folder, which may be deleted)."
    )
    sparse: bool | None = option(None, "Sparse attention (InfLLM v2) past --dense-len; by default as the model is made.")
    sparse_topk: int | None = option(None, "Blocks of 64 tokens that a token attends to beside its window.", within=SIZES)
    sparse_window: int | None = option(None, "Tokens of the local window of sparse attention.", within=SIZES)
    dense_len: int | None = option(
        None, "Attention is dense up to so many tokens; 0 makes all of it sparse.", within=(-1, 1 << 31), flags=("--dense-len",)
    )
    coarse_lse: bool | None = option(
        None, "Score blocks with the coarse shortcut of InfLLM v2; exact by default.", flags=("--coarse-lse/--exact-lse",)
    )
    prefix_cache: bool = option(True, "Keep what was computed of a text for others that begin alike; bench never does.")

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def sparse_overrides(self) -> SparseOverrides:
        return SparseOverrides(
            is_on=self.sparse,
            topk=self.sparse_topk,
            window_size=self.sparse_window,
            dense_len=self.dense_len,
            has_coarse_lse=self.coarse_lse,
        )
