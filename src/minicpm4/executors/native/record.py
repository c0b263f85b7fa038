"""Records the forward pass once: `Recorder` is an `Ops` whose arrays are names, and what it writes down is a list of calls.

Knows shapes and the order of operations; how calls become phases of the native program is `schedule`'s.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minicpm4.model import Model, ModelConfig, forward
from minicpm4.model.ops import StepInputs
from minicpm4.model.rope import RopeTable


@dataclass(frozen=True)
class Value:
    """An array of the recorded program: [rows of the step, or its wanted rows; columns]."""

    index: int
    columns: int
    has_logit_rows: bool


@dataclass(frozen=True)
class Call:
    """One operation. out is None where it only writes the cache; weight names the parameter that it reads."""

    op: str
    out: Value | None
    inputs: tuple[Value, ...] = ()
    weight: str | None = None
    factor: float = 0.0
    layer: int = -1
    table: RopeTable | None = None


@dataclass(frozen=True)
class Named:
    """A weight while recording: its name and its rows, which are the columns of what it produces."""

    name: str
    shape: tuple[int, ...]


TOKENS, POSITIONS, WANTED = (Value(index, 0, False) for index in (-1, -2, -3))


@dataclass(frozen=True)
class RecordedInputs:
    """Stands for a step: each of its arrays is a name."""

    tokens_T: Value = TOKENS
    positions_T: Value = POSITIONS
    logit_rows_R: Value = WANTED


@dataclass
class Recorder:
    """Implements `model.ops.Ops`; see there for what each operation means. is_sparse: whether rows may attend sparsely."""

    config: ModelConfig
    is_sparse: bool = False
    calls: list[Call] = field(default_factory=list)
    num_values: int = 0

    def emit(self, op: str, inputs: tuple[Value, ...], columns: int, *, has_logit_rows: bool = False, **details: object) -> Value:
        out = Value(self.num_values, columns, has_logit_rows or any(v.has_logit_rows for v in inputs))
        self.num_values += 1
        self.calls.append(Call(op, out, inputs, **details))  # type: ignore[arg-type]
        return out

    def embed(self, table: Named, tokens_T: Value) -> Value:
        return self.emit("embed", (), table.shape[1], weight=table.name, factor=1.0)

    def scale(self, x_TK: Value, factor: float) -> Value:
        return x_TK if factor == 1.0 else self.emit("scale", (x_TK,), x_TK.columns, factor=factor)

    def rms_norm(self, x_TK: Value, weight_K: Named, eps: float) -> Value:
        return self.emit("rms_norm", (x_TK,), x_TK.columns, weight=weight_K.name, factor=eps)

    def rms_norm_heads(self, x_TK: Value, weight_D: Named, eps: float) -> Value:
        return self.emit("rms_norm_heads", (x_TK,), x_TK.columns, weight=weight_D.name, factor=eps)

    def add_bias(self, x_TK: Value, bias_K: Named) -> Value:
        return self.emit("add_bias", (x_TK,), x_TK.columns, weight=bias_K.name)

    def linear(self, x_TK: Value, weight_NK: Named) -> Value:
        return self.emit("linear", (x_TK,), weight_NK.shape[0], weight=weight_NK.name)

    def rotation(self, positions_T: Value, table: RopeTable) -> Value:
        return self.emit("rotation", (), self.config.head_dim, table=table, factor=table.magnitude)

    def rope(self, x_TK: Value, rotation: Value) -> Value:
        return self.emit("rope", (x_TK, rotation), x_TK.columns)

    def attend(self, q_THD: Value, k_TGD: Value, v_TGD: Value, *, layer: int, step: StepInputs[Value]) -> Value:
        self.calls += [Call("store_keys", None, (k_TGD,), layer=layer), Call("store_values", None, (v_TGD,), layer=layer)]
        if self.is_sparse:
            self.calls += [Call("compress_keys", None, (k_TGD,), layer=layer), Call("select_blocks", None, (q_THD,), layer=layer)]
        attended = self.emit("attend", (q_THD,), q_THD.columns, layer=layer)
        return self.emit("merge", (attended,), q_THD.columns)

    def swiglu(self, gate_TK: Value, up_TK: Value) -> Value:
        return self.emit("swiglu", (gate_TK, up_TK), gate_TK.columns)

    def add_scaled(self, x_TK: Value, y_TK: Value, factor: float) -> Value:
        return self.emit("add_scaled", (x_TK, y_TK), x_TK.columns, factor=factor)

    def take(self, x_TK: Value, rows_R: Value) -> Value:
        return self.emit("take", (x_TK,), x_TK.columns, has_logit_rows=True)


def record(model: Model[Named], *, is_sparse: bool = False) -> tuple[list[Call], Value]:
    """The forward pass of this model as calls in order, of which the last one makes the logits; and the hidden states that these are of."""
    recorder = Recorder(model.config, is_sparse)
    _, hidden = forward(recorder, model, RecordedInputs())
    return recorder.calls, hidden
