"""The Ascend's entry of the table: bfloat16 and MindSpore's fused operations. Written from their documentation; run with stand-ins for
them alone (tests/executors/test_mindspore_ascend.py): see docs/mindspore.md for what to check on a device.
"""

# T rows, K features, N out features, H query heads, G kv heads, D head dim

from __future__ import annotations

from dataclasses import replace

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops
from mindspore.ops.operations.nn_ops import FlashAttentionScore

from minicpm4.errors import UnsupportedError
from minicpm4.executors.base import CacheSize, WeightLoader
from minicpm4.executors.mindspore.graph import GraphWriter, Rows
from minicpm4.executors.mindspore.ops import ADD, GATHER, JOIN, RESHAPE, PortableOps
from minicpm4.executors.mindspore.options import MindSporeOptions
from minicpm4.executors.mindspore.rows import NamedStep
from minicpm4.hardware import Choice
from minicpm4.model import PAGE_TOKENS, ModelConfig, Step
from minicpm4.quant import dequantize

DTYPE = ms.bfloat16
PRODUCT, STORE, SWIGLU = ops.MatMul(transpose_b=True), ops.ReshapeAndCache(), ops.auto_generate.Swiglu()
DIFFERS, IS_LESS, IS_AT_LEAST, EITHER = ops.NotEqual(), ops.Less(), ops.GreaterEqual(), ops.LogicalOr()


class AscendOps(PortableOps):
    """Rows of sequences that begin in the step attend to each other, without the cache. Otherwise every row attends as a sequence of its
    own with its sequence's pages, up to its own position: decoding and a prompt's later chunks alike."""

    def __init__(self, config: ModelConfig, writer: GraphWriter, *, keys: tuple[Parameter, ...], values: tuple[Parameter, ...]) -> None:
        super().__init__(config, writer, DTYPE)
        self.keys, self.values, self.one, self.hidden = keys, values, Tensor(1, ms.int32), ""
        scale = config.head_dim**-0.5
        self.paged = ops.PagedAttention(config.num_heads, scale, config.num_kv_heads)
        self.flash = FlashAttentionScore(head_num=config.num_heads, scale_value=scale, input_layout="BSH")

    def embed(self, table: Parameter, tokens_T: Rows) -> Rows:
        name = self.writer.call(GATHER, self.writer.name_of(table), tokens_T.name, "0")
        return replace(tokens_T, name=name, columns=table.shape[1])

    def rms_norm(self, x_TK: Rows, weight_K: Parameter, eps: float) -> Rows:
        normed, _ = self.writer.call(ops.RmsNorm(eps), x_TK.name, self.writer.name_of(weight_K), outputs=2).split(", ")
        return replace(x_TK, name=normed)

    def linear(self, x_TK: Rows, weight_NK: Parameter) -> Rows:
        return replace(x_TK, name=self.writer.call(PRODUCT, x_TK.name, self.writer.name_of(weight_NK)), columns=weight_NK.shape[0])

    def attend(self, q_THD: Rows, k_TGD: Rows, v_TGD: Rows, *, layer: int, step: NamedStep) -> Rows:
        w, keys, values = self.writer, self.writer.name_of(self.keys[layer]), self.writer.name_of(self.values[layer])
        w.call(STORE, self.heads(k_TGD), self.heads(v_TGD), keys, values, "slots_T")
        if step.has_past:
            pages = w.call(GATHER, "pages_TW", "sequences_T", "0")
            lengths = w.call(ADD, step.positions_T.name, w.name_of(self.one))
            out = w.call(self.paged, self.heads(q_THD), keys, values, pages, lengths, "None", "None", "None", "None")
        else:
            self.hidden = self.hidden or self.hidden_pairs(step)
            batch = [w.call(RESHAPE, x.name, f"(1, {x.num_rows}, {x.columns})") for x in (q_THD, k_TGD, v_TGD)]
            *_, out = w.call(self.flash, *batch, "None", "None", "None", self.hidden, outputs=4).split(", ")
        return replace(q_THD, name=w.call(RESHAPE, out, f"({q_THD.num_rows}, {q_THD.columns})"))

    def hidden_pairs(self, step: NamedStep) -> str:
        """[T, T], whether a row does not attend to another: one of another sequence, a later one, or one of padding."""
        w, rows = self.writer, step.tokens_T.num_rows

        def both_ways(name: str) -> tuple[str, str]:
            return w.call(RESHAPE, name, f"({rows}, 1)"), w.call(RESHAPE, name, f"(1, {rows})")

        is_of_another = w.call(DIFFERS, *both_ways("sequences_T"))
        is_later = w.call(IS_LESS, *both_ways(step.positions_T.name))
        is_padding = w.call(IS_AT_LEAST, w.name_of(Tensor(np.arange(rows, dtype=np.int32)[None])), step.tokens_T.count)
        return w.call(EITHER, w.call(EITHER, is_of_another, is_later), is_padding)

    def heads(self, x: Rows) -> str:
        return self.writer.call(RESHAPE, x.name, f"({x.num_rows}, {x.columns // self.head_dim}, {self.head_dim})")

    def swiglu(self, gate_TK: Rows, up_TK: Rows) -> Rows:
        joined = self.writer.call(JOIN, f"({gate_TK.name}, {up_TK.name})")
        return replace(gate_TK, name=self.writer.call(SWIGLU, joined, "-1"))


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

    def operations(self, writer: GraphWriter) -> AscendOps:
        return AscendOps(self.config, writer, keys=self.keys, values=self.values)

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
