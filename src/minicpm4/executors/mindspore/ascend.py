"""The Ascend's entry of the table: bfloat16 and MindSpore's fused operations. Written from their documentation; never run: see
docs/mindspore.md for what to check on a device.
"""

# T rows, K features, N out features, H query heads, G kv heads, D head dim

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from minicpm4.errors import UnsupportedError
from minicpm4.executors.base import ExecutorOptions, WeightLoader
from minicpm4.executors.mindspore.ops import PortableOps
from minicpm4.executors.mindspore.rows import GraphStep, Rows
from minicpm4.hardware import Choice
from minicpm4.model import PAGE_TOKENS, Model, ModelConfig, Step
from minicpm4.quant import dequantize


@ms.jit_class
class AscendOps(PortableOps):
    """Every row attends as a sequence of its own with its sequence's pages, up to its own position: prompts and decoding alike."""

    def __init__(self, config: ModelConfig, num_pages: int) -> None:
        super().__init__(config)
        self.eps, self.heads_shape = config.norm_eps, (-1, config.num_heads, config.head_dim)
        shape = (num_pages + 1, PAGE_TOKENS, config.num_kv_heads, config.head_dim)  # the last page is for padding rows
        self.keys, self.values = (
            tuple(zeros(f"{name}.{layer}", shape) for layer in range(config.num_layers)) for name in ("keys", "values")
        )
        self.multiply = ops.MatMul(transpose_b=True)
        self.store = ops.ReshapeAndCache()
        self.paged = ops.PagedAttention(config.num_heads, config.head_dim**-0.5, config.num_kv_heads)
        self.kv_shape = (-1, config.num_kv_heads, config.head_dim)

    def embed(self, table: Parameter, tokens_T: Rows) -> Rows:
        return ops.gather(table, tokens_T[0], 0), tokens_T[1]

    def rms_norm(self, x_TK: Rows, weight_K: Parameter, eps: Tensor) -> Rows:
        return ops.rms_norm(x_TK[0], weight_K, self.eps)[0], x_TK[1]

    def linear(self, x_TK: Rows, weight_NK: Parameter) -> Rows:
        return self.multiply(x_TK[0], weight_NK), x_TK[1]

    def attend(self, q_THD: Rows, k_TGD: Rows, v_TGD: Rows, *, layer: int, step: GraphStep) -> Rows:
        q, count = q_THD
        keys, values = self.keys[layer], self.values[layer]
        self.store(ops.reshape(k_TGD[0], self.kv_shape), ops.reshape(v_TGD[0], self.kv_shape), keys, values, step.slots_T)
        pages = ops.gather(step.pages_TW, step.sequences_T, 0)
        out = self.paged(ops.reshape(q, self.heads_shape), keys, values, pages, step.positions_T[0] + 1, None, None, None, None)
        return ops.reshape(out, q.shape), count

    def swiglu(self, gate_TK: Rows, up_TK: Rows) -> Rows:
        return ops.swiglu(ops.concat((gate_TK[0], up_TK[0]), -1), -1), gate_TK[1]


class AscendDevice:
    """Owns nothing that the graph does not see: weights and cache are its parameters."""

    def __init__(self, config: ModelConfig, options: ExecutorOptions) -> None:
        check_options(options)
        use_ascend()
        self.config, self.operations = config, AscendOps(config, options.num_pages)
        self.kv_bytes = sum(int(parameter.nbytes) for parameter in (*self.operations.keys, *self.operations.values))
        self.choices = (
            Choice("operations", "bf16 on ascend", "ReshapeAndCache, PagedAttention, rms_norm, swiglu; never tested on a device"),
        )

    def load(self, weights: WeightLoader, name: str) -> Parameter:
        return Parameter(Tensor(dequantize(weights(name))).astype(ms.bfloat16), name=name, requires_grad=False)

    def bytes_read(self, model: Model[Parameter]) -> int:
        read = [*(weight for layer in model.layers for weight in vars(layer).values()), model.head]
        return sum(int(weight.nbytes) for weight in read)

    def check(self, step: Step) -> None:
        """Nothing here reads past what it is given."""

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        random = np.random.default_rng(seed)
        for parameter in (*self.operations.keys, *self.operations.values):
            values = parameter.astype(ms.float32).asnumpy()
            values[pages] = random.standard_normal(values[pages].shape, dtype=np.float32)
            parameter.set_data(Tensor(values).astype(ms.bfloat16))


def zeros(name: str, shape: tuple[int, ...]) -> Parameter:
    return Parameter(Tensor(np.zeros(shape, np.float32)).astype(ms.bfloat16), name=name, requires_grad=False)


def check_options(options: ExecutorOptions) -> None:
    if options.sparse is not None:
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
