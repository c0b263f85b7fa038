"""The Ascend's entry of the table: bfloat16 and MindSpore's fused operations. Written from their documentation; run with stand-ins for
them alone (tests/executors/test_mindspore_ascend.py): see docs/mindspore.md for what to check on a device.
"""

# T rows, K features, N out features, H query heads, G kv heads, D head dim

from __future__ import annotations

from functools import cached_property

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops
from mindspore.ops.operations.nn_ops import FlashAttentionScore

from minicpm4.errors import UnsupportedError
from minicpm4.executors.base import CacheSize, WeightLoader
from minicpm4.executors.mindspore.options import MindSporeOptions
from minicpm4.executors.mindspore.portable import ADD, GATHER, JOIN, RESHAPE, PortableGraph
from minicpm4.executors.tracing import Attend, Embed, Linear, Swiglu
from minicpm4.hardware import Choice
from minicpm4.model import PAGE_TOKENS, ModelConfig, Step
from minicpm4.quant import dequantize

DTYPE = ms.bfloat16
PRODUCT, STORE, SWIGLU = ops.MatMul(transpose_b=True), ops.ReshapeAndCache(), ops.auto_generate.Swiglu()
DIFFERS, IS_LESS, IS_AT_LEAST, EITHER = ops.NotEqual(), ops.Less(), ops.GreaterEqual(), ops.LogicalOr()


class AscendGraph(PortableGraph):
    """has_past: whether rows attend to tokens of earlier steps. Then every row attends as a sequence of its own with its sequence's pages,
    up to its own position: decoding and a prompt's later chunks alike. Otherwise rows attend to each other, without the cache."""

    def __init__(
        self, config: ModelConfig, size: tuple[int, int], *, has_past: bool, keys: tuple[Parameter, ...], values: tuple[Parameter, ...]
    ) -> None:
        super().__init__(config, size, DTYPE)
        self.keys, self.values, self.has_past = keys, values, has_past
        scale = config.head_dim**-0.5
        self.paged = ops.PagedAttention(config.num_heads, scale, config.num_kv_heads)
        self.flash = FlashAttentionScore(head_num=config.num_heads, scale_value=scale, input_layout="BSH")
        self.one = Tensor(1, ms.int32)
        self.methods |= {Embed: self.embed, Linear: self.linear, Attend: self.attend, Swiglu: self.swiglu}

    def embed(self, embed: Embed) -> str:
        return self.writer.call(GATHER, self.writer.name_of(embed.table), "tokens_T", "0")

    def normed(self, name: str, weight: Parameter, eps: float) -> str:
        return self.writer.call(ops.RmsNorm(eps), name, self.writer.name_of(weight), outputs=2).split(", ")[0]

    def linear(self, linear: Linear) -> str:
        return self.writer.call(PRODUCT, self.names[linear.x], self.writer.name_of(linear.weight))

    def attend(self, attend: Attend) -> str:
        w, keys, values = self.writer, *(self.writer.name_of(part[attend.layer]) for part in (self.keys, self.values))
        w.call(STORE, self.heads(attend.k), self.heads(attend.v), keys, values, "slots_T")
        if self.has_past:
            pages = w.call(GATHER, "pages_TW", "sequences_T", "0")
            lengths = w.call(ADD, "positions_T", w.name_of(self.one))
            out = w.call(self.paged, self.heads(attend.q), keys, values, pages, lengths, "None", "None", "None", "None")
        else:
            batch = [w.call(RESHAPE, self.names[x], f"(1, {self.num_rows}, {x.columns})") for x in (attend.q, attend.k, attend.v)]
            *_, out = w.call(self.flash, *batch, "None", "None", "None", self.masked_pairs, outputs=4).split(", ")
        return self.flat(out, attend.out)

    @cached_property
    def masked_pairs(self) -> str:
        """[T, T], whether a row does not attend to another: one of another sequence, a later one, or one of padding."""
        w, rows = self.writer, self.num_rows

        def both_ways(name: str) -> tuple[str, str]:
            return w.call(RESHAPE, name, f"({rows}, 1)"), w.call(RESHAPE, name, f"(1, {rows})")

        is_of_another = w.call(DIFFERS, *both_ways("sequences_T"))
        is_later = w.call(IS_LESS, *both_ways("positions_T"))
        is_padding = w.call(IS_AT_LEAST, w.name_of(Tensor(np.arange(rows, dtype=np.int32)[None])), "num_tokens")
        return w.call(EITHER, w.call(EITHER, is_of_another, is_later), is_padding)

    def swiglu(self, swiglu: Swiglu) -> str:
        joined = self.writer.call(JOIN, f"({self.names[swiglu.gate]}, {self.names[swiglu.up]})")
        return self.writer.call(SWIGLU, joined, "-1")


class AscendDevice:
    """Owns nothing that the graph does not see: weights and cache are its parameters."""

    def __init__(self, config: ModelConfig, options: MindSporeOptions, cache: CacheSize) -> None:
        check_options(options, cache)
        use_ascend()
        self.config = config
        shape = (cache.num_pages + 1, PAGE_TOKENS, config.num_kv_heads, config.head_dim)  # the last page is for padding rows
        self.keys, self.values = (
            tuple(zeros(f"{name}.{layer}", shape) for layer in range(config.num_layers)) for name in ("keys", "values")
        )
        self.kv_bytes = sum(int(parameter.nbytes) for parameter in (*self.keys, *self.values))
        self.choices = (
            Choice(
                "operations",
                "bf16 on ascend",
                "ReshapeAndCache, PagedAttention, flash attention, rms_norm, swiglu; never tested on a device",
            ),
        )

    def graph(self, size: tuple[int, int], *, has_past: bool) -> AscendGraph:
        return AscendGraph(self.config, size, has_past=has_past, keys=self.keys, values=self.values)

    def load(self, weights: WeightLoader, name: str) -> Parameter:
        return Parameter(Tensor(dequantize(weights(name))).astype(DTYPE), name=name, requires_grad=False)

    def has_past(self, step: Step) -> bool:
        """Whether there are tokens that the cache alone has; of a single one nobody asks, that decoding needs one graph."""
        return len(step.tokens_T) == 1 or bool((step.lengths_S != np.diff(step.starts_S1)).any())

    def copy_pages(self, sources: np.ndarray, targets: np.ndarray) -> None:
        for parameter in (*self.keys, *self.values):
            parameter[Tensor(targets)] = parameter[Tensor(sources)]

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        random = np.random.default_rng(seed)
        for parameter in (*self.keys, *self.values):
            values = parameter.astype(ms.float32).asnumpy()
            values[pages] = random.standard_normal(values[pages].shape, dtype=np.float32)
            parameter.set_data(Tensor(values).astype(DTYPE))


def zeros(name: str, shape: tuple[int, ...]) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)).astype(DTYPE), name=name, requires_grad=False)


def check_options(options: MindSporeOptions, cache: CacheSize) -> None:
    if cache.sparse is not None:
        raise UnsupportedError("on Ascend the MindSpore executor attends densely", hint="add --no-sparse, or use --device cpu")
    if options.kv_format != "bf16":
        raise UnsupportedError(f"on Ascend keys and values are kept in bf16, not {options.kv_format}", hint="add --kv-format bf16")
    if options.isa is not None:
        raise UnsupportedError("an instruction set is the CPU's", hint="leave out --isa, or use --device cpu")


def use_ascend() -> None:
    """UnsupportedError where MindSpore finds no such device."""
    try:
        ms.set_device("Ascend")
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedError(
            f"MindSpore finds no Ascend device: {reason}", hint="use --device cpu, or install CANN and its drivers"
        ) from error
