"""Records the forward pass once, as instructions over symbols, for executors that replay it or build a graph of it.

Knows shapes, the order of operations, and how steps are padded to the few sizes that graphs have; knows no kernel, framework or device.
An executor translates each class of instruction, or rewrites the list first.
"""

# T rows of the step, R rows of logits, both padded; W pages of the longest sequence that there may be

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from minicpm4.model import PAGE_TOKENS, Model, Step, forward
from minicpm4.model.rope import RopeTable

SIZES = (1, 8, 64)  # padded numbers of rows, below the most that a step may have


@dataclass(frozen=True)
class Symbol:
    """An array [rows, columns] of the recorded pass. index: no other symbol's. has_logit_rows: its rows are the step's rows of logits, not
    all rows."""

    index: int
    columns: int
    has_logit_rows: bool = False


@dataclass(frozen=True)
class Instruction:
    """One operation of `model.ops`. out: what it makes, None where it makes no array. Other symbols among its fields are what it reads."""

    out: Symbol | None

    @property
    def inputs(self) -> tuple[Symbol, ...]:
        operands = (getattr(self, each.name) for each in fields(self))
        return tuple(operand for operand in operands if isinstance(operand, Symbol) and operand != self.out)

    @property
    def has_logit_rows(self) -> bool:
        """Whether it works on the step's rows of logits instead of all."""
        return all(symbol.has_logit_rows for symbol in ((self.out,) if self.out is not None else self.inputs))


@dataclass(frozen=True)
class Operation(Instruction):
    """An instruction that makes an array."""

    out: Symbol


@dataclass(frozen=True)
class Embed(Operation):
    """Of the step's tokens."""

    table: Any


@dataclass(frozen=True)
class Scale(Operation):
    x: Symbol
    factor: float


@dataclass(frozen=True)
class RmsNorm(Operation):
    x: Symbol
    weight: Any
    eps: float


@dataclass(frozen=True)
class HeadNorm(Operation):
    """Of every head on its own."""

    x: Symbol
    weight: Any
    eps: float


@dataclass(frozen=True)
class AddBias(Operation):
    x: Symbol
    bias: Any


@dataclass(frozen=True)
class Linear(Operation):
    x: Symbol
    weight: Any


@dataclass(frozen=True)
class Rotation(Operation):
    """Of the step's positions; has as many columns as a head."""

    table: RopeTable


@dataclass(frozen=True)
class Rope(Operation):
    x: Symbol
    rotation: Symbol


@dataclass(frozen=True)
class Attend(Operation):
    """Writes k and v to the step's slots first."""

    q: Symbol
    k: Symbol
    v: Symbol
    layer: int


@dataclass(frozen=True)
class Swiglu(Operation):
    gate: Symbol
    up: Symbol


@dataclass(frozen=True)
class AddScaled(Operation):
    x: Symbol
    y: Symbol
    factor: float


@dataclass(frozen=True)
class Take(Operation):
    """The step's rows of logits."""

    x: Symbol


@dataclass(frozen=True)
class Trace:
    """A recorded forward pass, and its results [R, columns]; `hidden` is what the head multiplies, before the division of logits."""

    instructions: tuple[Operation, ...]
    logits: Symbol
    hidden: Symbol


@dataclass(frozen=True)
class TracedStep:
    """What `forward` reads of a step, as symbols. Instructions that read one say so in their description, and have no field for it."""

    tokens_T: Symbol = Symbol(-1, 1)
    positions_T: Symbol = Symbol(-2, 1)
    logit_rows_R: Symbol = Symbol(-3, 1, True)


@dataclass
class Tracer:
    """Implements `model.ops.Ops`; see there for what each operation means. A weight is whatever the executor keeps, if it has a shape."""

    head_dim: int
    instructions: list[Operation] = field(default_factory=list)

    def like(self, symbol: Symbol, *, columns: int | None = None) -> Symbol:
        """A new symbol with the same rows, and with these columns instead of its own."""
        return Symbol(len(self.instructions), symbol.columns if columns is None else columns, symbol.has_logit_rows)

    def add(self, operation: Operation) -> Symbol:
        self.instructions.append(operation)
        return operation.out

    def embed(self, table: Any, tokens_T: Symbol) -> Symbol:
        return self.add(Embed(self.like(tokens_T, columns=table.shape[1]), table))

    def scale(self, x_TK: Symbol, factor: float) -> Symbol:
        return x_TK if factor == 1.0 else self.add(Scale(self.like(x_TK), x_TK, factor))

    def rms_norm(self, x_TK: Symbol, weight_K: Any, eps: float) -> Symbol:
        return self.add(RmsNorm(self.like(x_TK), x_TK, weight_K, eps))

    def rms_norm_heads(self, x_TK: Symbol, weight_D: Any, eps: float) -> Symbol:
        return self.add(HeadNorm(self.like(x_TK), x_TK, weight_D, eps))

    def add_bias(self, x_TK: Symbol, bias_K: Any) -> Symbol:
        return self.add(AddBias(self.like(x_TK), x_TK, bias_K))

    def linear(self, x_TK: Symbol, weight_NK: Any) -> Symbol:
        return self.add(Linear(self.like(x_TK, columns=weight_NK.shape[0]), x_TK, weight_NK))

    def rotation(self, positions_T: Symbol, table: RopeTable) -> Symbol:
        return self.add(Rotation(self.like(positions_T, columns=self.head_dim), table))

    def rope(self, x_TK: Symbol, rotation: Symbol) -> Symbol:
        return self.add(Rope(self.like(x_TK), x_TK, rotation))

    def attend(self, q_THD: Symbol, k_TGD: Symbol, v_TGD: Symbol, *, layer: int, step: TracedStep) -> Symbol:
        return self.add(Attend(self.like(q_THD), q_THD, k_TGD, v_TGD, layer))

    def swiglu(self, gate_TK: Symbol, up_TK: Symbol) -> Symbol:
        return self.add(Swiglu(self.like(gate_TK), gate_TK, up_TK))

    def add_scaled(self, x_TK: Symbol, y_TK: Symbol, factor: float) -> Symbol:
        return self.add(AddScaled(self.like(x_TK), x_TK, y_TK, factor))

    def take(self, x_TK: Symbol, rows_R: Symbol) -> Symbol:
        return self.add(Take(self.like(rows_R, columns=x_TK.columns), x_TK))


def trace(model: Model[Any]) -> Trace:
    """The forward pass of a model whose weights have shapes."""
    tracer = Tracer(model.config.head_dim)
    logits, hidden = forward(tracer, model, TracedStep())
    return Trace(tuple(tracer.instructions), logits, hidden)


@dataclass(frozen=True)
class PaddedStep:
    """A step's arrays, int32, and how many of them are real; see `model.step.Step`. A graph's inputs have these names, in this order.

    num_tokens, num_logits: how many are real, [1] each. There are as many sequences as rows: those past the step's have no tokens.
    slots_T: of padding rows, the first of the page after the cache's last. sequences_T: the sequence that a row belongs to.
    """

    tokens_T: np.ndarray
    positions_T: np.ndarray
    logit_rows_R: np.ndarray
    num_tokens: np.ndarray
    num_logits: np.ndarray
    slots_T: np.ndarray
    starts_T1: np.ndarray
    lengths_T: np.ndarray
    pages_TW: np.ndarray
    sequences_T: np.ndarray

    @property
    def arrays(self) -> list[np.ndarray]:
        return [getattr(self, name) for name in INPUTS]

    @property
    def size(self) -> tuple[int, int]:
        """Padded rows, and padded rows of logits."""
        return len(self.tokens_T), len(self.logit_rows_R)


INPUTS = tuple(each.name for each in fields(PaddedStep))


@dataclass(frozen=True)
class Padder:
    """What steps are padded to. max_rows: the most that a step may have. max_pages: of a sequence, W. num_pages: of the cache."""

    max_rows: int
    max_pages: int
    num_pages: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """All padded numbers of rows."""
        return (*(size for size in SIZES if size < self.max_rows), self.max_rows)

    def size(self, count: int) -> int:
        """The smallest size that holds so many rows."""
        return next(size for size in self.sizes if count <= size)

    def pad(self, step: Step) -> PaddedStep:
        """Of a step without draft trees."""
        rows = self.size(len(step.tokens_T))
        pages_TW = np.zeros((rows, self.max_pages), np.int32)
        width = min(self.max_pages, step.pages_SP.shape[1])
        pages_TW[: len(step.pages_SP), :width] = np.maximum(step.pages_SP[:, :width], 0)
        return PaddedStep(
            tokens_T=padded(step.tokens_T, rows),
            positions_T=padded(step.positions_T, rows),
            logit_rows_R=padded(step.logit_rows_R, self.size(len(step.logit_rows_R))),
            num_tokens=np.array([len(step.tokens_T)], np.int32),
            num_logits=np.array([len(step.logit_rows_R)], np.int32),
            slots_T=padded(step.slots_T, rows, fill=self.num_pages * PAGE_TOKENS),
            starts_T1=padded(step.starts_S1, rows + 1, fill=len(step.tokens_T)),
            lengths_T=padded(step.lengths_S, rows),
            pages_TW=pages_TW,
            sequences_T=padded(step.sequences_T, rows),
        )


def padded(values: np.ndarray, size: int, *, fill: int = 0) -> np.ndarray:
    out = np.full(size, fill, np.int32)
    out[: len(values)] = values
    return out
