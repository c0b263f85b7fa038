"""What every executor is: it runs steps of one model on one device. Knows no framework; `backend` says how one comes about."""

# R rows that give logits, V vocabulary, H hidden size

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from minicpm4.errors import ConfigError, UnsupportedError
from minicpm4.hardware import Choice
from minicpm4.model import PackedTensor, Step
from minicpm4.model.config import SparseConfig

AS_CACHE = "as the cache"  # of Capabilities.compressed_format
EXECUTORS = ("native", "reference", "torch", "mindspore")
HALF_CACHE = Choice("kv cache", "f16", "half the memory of float32 at negligible loss")
WeightLoader = Callable[[str], PackedTensor]


@dataclass(frozen=True)
class CacheSize:
    """What an executor makes room for. ConfigError for sizes that cannot be.

    context_length: the most tokens of one sequence. num_pages: pages of the KV cache, shared by all sequences. max_step_tokens: the most
    rows of one step. sparse: the rule by which rows attend to some blocks only (`model.sparse`); None where all attention is dense.
    """

    context_length: int
    num_pages: int
    max_step_tokens: int = 512
    sparse: SparseConfig | None = None

    def __post_init__(self) -> None:
        for name in ("context_length", "num_pages", "max_step_tokens"):
            check_size(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class BackendOptions:
    """What every executor is told of its arithmetic; each adds its own. All concrete: "auto" was resolved before.

    kv_format: how keys and values are stored, one of quant.KV_FORMATS. device: "cpu", or another that the executor offers.
    """

    kv_format: str = "f16"
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True)
class ThreadedOptions(BackendOptions):
    """Of an executor that has CPU threads of its own. ConfigError for a number that cannot be."""

    threads: int = 1

    def __post_init__(self) -> None:
        check_size("threads", self.threads)


@dataclass(frozen=True)
class Capabilities:
    """What an executor can do; asking for more is an UnsupportedError, raised by `check`.

    bf16_isas: the instruction sets with which prompts may be in bfloat16. compressed_format: how it keeps compressed keys beside their
    pages, one of quant.KV_FORMATS or AS_CACHE; None where it makes them anew, or not at all. cache: "pages", or "sequences" where it keeps
    a cache for each `Segment.sequence` itself: then no page is shared or copied, and pages only count memory.
    """

    weight_formats: frozenset[str]
    kv_formats: frozenset[str]
    devices: frozenset[str] = frozenset(("cpu",))
    activations: frozenset[str] = frozenset(("f32",))
    isas: frozenset[str | None] = frozenset((None,))
    bf16_isas: frozenset[str | None] = frozenset()
    dtypes: frozenset[str] = frozenset(("f32",))
    compressed_format: str | None = None
    cache: Literal["pages", "sequences"] = "pages"

    def check(self, name: str, weight_formats: Iterable[str], options: BackendOptions) -> None:
        """name: the executor's. Options that it does not have are not looked at."""
        offered: dict[str, tuple[str, Set[str | None]]] = {
            "kv_format": ("KV formats", self.kv_formats),
            "activations": ("activations", self.activations),
            "device": ("devices", self.devices),
            "isa": ("instruction sets", self.isas),
            "dtype": ("dtypes", self.dtypes),
            "prompt_activations": (
                "prompt activations",
                {"same", *(["bf16"] if getattr(options, "isa", None) in self.bf16_isas else [])},
            ),
        }
        asked: list[tuple[str, Set[str | None], Set[str | None]]] = [("weight formats", set(weight_formats), self.weight_formats)]
        asked += [(what, {getattr(options, field)}, values) for field, (what, values) in offered.items() if hasattr(options, field)]
        for what, wanted, available in asked:
            if wanted - available:
                listed = ", ".join(sorted(value for value in available if value is not None))
                remedy = f"it offers {listed}" if listed else "none can be chosen"
                raise UnsupportedError(
                    f"executor {name} cannot do {what}: {', '.join(sorted(str(w) for w in wanted - available))}",
                    hint=f"{remedy}; or choose another executor of {', '.join(EXECUTORS)}",
                )


@dataclass(frozen=True)
class BlockMaxima:
    """The largest of each `width` consecutive logits of a row; NaN where one of them is NaN. values: float32 [R, blocks] or [blocks]."""

    width: int
    values: np.ndarray

    def __getitem__(self, row: int) -> BlockMaxima:
        return BlockMaxima(self.width, self.values[row])


@dataclass(frozen=True)
class StepResult:
    """What a step gives, valid until the executor's next run.

    logits: float32 [R, V]. block_maxima: of the logits; None where the executor does not make them. hidden: float32 [R, H], what the head
    multiplies: hidden states after the final norm; None unless the step wants them.
    """

    logits: np.ndarray
    block_maxima: BlockMaxima | None = None
    hidden: np.ndarray | None = None


class Executor(Protocol):
    """Runs steps of one model on one device. Owns the weights in its own form and the KV cache's storage; keeps no request state.

    choices: what was decided at load, with reasons. warnings: sentences for the user. weight_bytes: bytes that decoding one token reads.
    prompt_numerics: the tag (`Segment.numerics`) of rows of prompts where it computes those otherwise than generated tokens, else 0.
    """

    name: str
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]
    weight_bytes: int
    kv_bytes: int
    prompt_numerics: int

    def run(self, step: Step) -> StepResult:
        """Computes the step. ValueError for one that would read or write where it must not (`model.step.check_step`)."""

    def copy_pages(self, sources: np.ndarray, targets: np.ndarray) -> None:
        """Page targets[i] becomes what page sources[i] is: keys, values and compressed keys of all layers. int32, no target twice or
        a source of another copy; done when this returns."""

    def copy_slots(self, pages: np.ndarray, *, start: int, rows: np.ndarray) -> None:
        """Keeps one path of a draft tree that was run at `start` of a sequence with these pages, int32.

        rows: of the tree, ascending, from one without a parent on. rows[i] becomes the sequence's cached token start + i: its keys and
        values, and the compressed keys that it completes.
        """

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        """Fills pages with unit-normal keys and values, for measuring at a depth without computing it."""

    def close(self) -> None:
        """Frees weights, cache and threads; the executor cannot be used after."""


def check_size(name: str, value: int) -> None:
    if not 1 <= value < 1 << 31:
        raise ConfigError(f"{name} is {value}, expected a positive number", hint="raise it, or leave it out")


def asked_or(asked: str | None, default: Choice) -> Choice:
    """What was asked for, else the default."""
    return default if asked is None else Choice(default.what, asked, "asked for")
