"""The operations of `model.ops` in numpy, close to the paper."""

# T rows, K features, H query heads, G kv heads, J query heads of a kv head, D head dim, P pages

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minicpm4.executors.reference.attention import attend_mixed
from minicpm4.model import PAGE_TOKENS, ModelConfig, Step, pages_for
from minicpm4.model.config import SparseConfig
from minicpm4.model.rope import RopeTable, rope_angles
from minicpm4.quant import round_activations, round_bf16, round_cache, round_queries

Rotation = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class ReferenceWeight:
    """values: float32. is_low_bit: stored in blocks, so that its inputs may be rounded as integer kernels round them. bf16_values: those
    that rows in bfloat16 meet."""

    values: np.ndarray
    is_low_bit: bool
    bf16_values: np.ndarray | None = None


@dataclass(frozen=True)
class ReferenceCache:
    """keys, values: [layers, P, PAGE_TOKENS, G, D], rounded to kv_format; what was never written is NaN."""

    kv_format: str
    keys: np.ndarray
    values: np.ndarray

    @classmethod
    def empty(cls, config: ModelConfig, num_pages: int, kv_format: str) -> ReferenceCache:
        shape = (config.num_layers, num_pages, PAGE_TOKENS, config.num_kv_heads, config.head_dim)
        dtype = np.float16 if kv_format == "f16" else np.float32
        return cls(kv_format, np.full(shape, np.nan, dtype), np.full(shape, np.nan, dtype))


@dataclass(frozen=True)
class ReferenceOps:
    """See `model.ops.Ops`; made for each step. activations: what low-bit weights are multiplied with. sparse: the rule for rows that attend
    to some blocks only, None where all attention is dense. is_bf16_T: which rows of the step meet weights in bfloat16."""

    config: ModelConfig
    cache: ReferenceCache
    activations: str
    sparse: SparseConfig | None
    is_bf16_T: np.ndarray

    def embed(self, table: ReferenceWeight, tokens_T: np.ndarray) -> np.ndarray:
        return table.values[tokens_T]

    def scale(self, x_TK: np.ndarray, factor: float) -> np.ndarray:
        return x_TK * np.float32(factor)

    def rms_norm(self, x_TK: np.ndarray, weight_K: ReferenceWeight, eps: float) -> np.ndarray:
        mean_square = np.mean(x_TK * x_TK, axis=-1, keepdims=True)
        return x_TK / np.sqrt(mean_square + np.float32(eps)) * weight_K.values

    def rms_norm_heads(self, x_TK: np.ndarray, weight_D: ReferenceWeight, eps: float) -> np.ndarray:
        return self.rms_norm(x_TK.reshape(len(x_TK), -1, self.config.head_dim), weight_D, eps).reshape(x_TK.shape)

    def add_bias(self, x_TK: np.ndarray, bias_K: ReferenceWeight) -> np.ndarray:
        return x_TK + bias_K.values

    def linear(self, x_TK: np.ndarray, weight_NK: ReferenceWeight) -> np.ndarray:
        x = round_activations(x_TK, self.activations) if weight_NK.is_low_bit else x_TK
        out = x @ weight_NK.values.T
        if weight_NK.bf16_values is not None:
            out[self.is_bf16_T] = round_bf16(x_TK[self.is_bf16_T]) @ weight_NK.bf16_values.T
        return out

    def rotation(self, positions_T: np.ndarray, table: RopeTable) -> Rotation:
        return rope_angles(table, positions_T)

    def rope(self, x_TK: np.ndarray, rotation: Rotation) -> np.ndarray:
        cosines, sines = (part[:, None, :] for part in rotation)
        first, second = np.split(x_TK.reshape(len(x_TK), -1, self.config.head_dim), 2, axis=-1)
        turned = np.concatenate((first * cosines - second * sines, second * cosines + first * sines), axis=-1)
        return turned.reshape(x_TK.shape)

    def attend(self, q_THD: np.ndarray, k_TGD: np.ndarray, v_TGD: np.ndarray, *, layer: int, step: Step) -> np.ndarray:
        c = self.config
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        pages, offsets = np.divmod(step.slots_T, PAGE_TOKENS)
        for stored, new in ((keys, k_TGD), (values, v_TGD)):
            stored[pages, offsets] = round_cache(new.reshape(-1, c.num_kv_heads, c.head_dim), self.cache.kv_format)
        q_TGJD = round_queries(q_THD.reshape(len(q_THD), c.num_kv_heads, -1, c.head_dim), self.cache.kv_format, self.activations)
        out = np.empty_like(q_TGJD)
        for sequence, length in enumerate(step.lengths_S):
            rows, pages_P = step.rows_of(sequence), step.pages_SP[sequence, : pages_for(length)]
            cached = tuple(stored[pages_P].reshape(-1, *stored.shape[2:])[:length].astype(np.float32) for stored in (keys, values))
            if step.is_tree(sequence):
                start = length - (rows.stop - rows.start)
                for row in range(rows.start, rows.stop):
                    seen = np.concatenate((np.arange(start), start + step.path_of(row) - rows.start))
                    path, one = (cached[0][seen], cached[1][seen]), slice(row, row + 1)
                    out[one] = attend_mixed(self.sparse, q_TGJD[one], path, positions_T=step.positions_T[one])
            else:
                out[rows] = attend_mixed(self.sparse, q_TGJD[rows], cached, positions_T=step.positions_T[rows])
        return out.reshape(q_THD.shape)

    def swiglu(self, gate_TK: np.ndarray, up_TK: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # exp of a large number is infinite, and its reciprocal the right 0
            return gate_TK / (1 + np.exp(-gate_TK)) * up_TK

    def add_scaled(self, x_TK: np.ndarray, y_TK: np.ndarray, factor: float) -> np.ndarray:
        return x_TK + y_TK * np.float32(factor)

    def take(self, x_TK: np.ndarray, rows_R: np.ndarray) -> np.ndarray:
        return x_TK[rows_R]
