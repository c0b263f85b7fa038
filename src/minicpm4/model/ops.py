"""The operations that a forward pass is written in. Every executor implements them; nothing else runs a model.

Knows shapes and meanings only. An `Array` is whatever the executor computes with (numpy, torch, a name in a recorded
program); a `Weight` is a parameter in whatever form the executor keeps it.
"""

# T rows (tokens), R rows that give logits, K in features, N out features, H query heads, G kv heads, D head dim, V vocabulary

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from minicpm4.model.rope import RopeTable

Array = TypeVar("Array")
Read = TypeVar("Read", covariant=True)
Kept = TypeVar("Kept", contravariant=True)
Weight = TypeVar("Weight")


class StepInputs(Protocol[Read]):
    """The fields of `model.step.Step` that a forward pass touches; a recording executor passes names for them."""

    @property
    def tokens_T(self) -> Read: ...

    @property
    def positions_T(self) -> Read: ...

    @property
    def logit_rows_R(self) -> Read: ...


class Ops(Protocol[Array, Kept]):
    """Operations on float arrays [rows, features]. The dtype of activations is the executor's; logits are float32.

    Implementations may assume that shapes agree, since `executors.create_executor` compares every weight with the config.
    """

    def embed(self, table: Kept, tokens_T: Array) -> Array:
        """Rows of the table [V, K] -> [T, K]."""

    def scale(self, x_TK: Array, factor: float) -> Array:
        """x * factor."""

    def rms_norm(self, x_TK: Array, weight_K: Kept, eps: float) -> Array:
        """x / sqrt(mean(x^2) + eps) * weight, the mean in float32 over the last axis."""

    def rms_norm_heads(self, x_TK: Array, weight_D: Kept, eps: float) -> Array:
        """`rms_norm` of every head of x [T, heads * D] on its own, with one weight for all."""

    def linear(self, x_TK: Array, weight_NK: Kept) -> Array:
        """x @ weight.T -> [T, N]."""

    def add_bias(self, x_TK: Array, bias_K: Kept) -> Array:
        """x + bias, the same for every row."""

    def rotation(self, positions_T: Array, table: RopeTable) -> Any:
        """Cosines and sines of every row's angles, made once a step, in a form that only the same executor's `rope` reads."""

    def rope(self, x_TK: Array, rotation: Any) -> Array:
        """Rotates every head of x [T, heads * D]: dimension i pairs with i + D/2 (the half-split, "NeoX", layout)."""

    def attend(self, q_THD: Array, k_TGD: Array, v_TGD: Array, *, layer: int, step: Any) -> Array:
        """Writes k and v to the step's slots of this layer's cache, then attends causally to the step's pages.

        q [T, H*D], k and v [T, G*D] -> [T, H*D]; scores are divided by sqrt(D); softmax in float32. Query head h
        reads kv head h // (H // G). A row sees its own sequence's tokens up to its own position. step: what `forward` was given,
        in the form that the executor made.
        """

    def swiglu(self, gate_TK: Array, up_TK: Array) -> Array:
        """silu(gate) * up."""

    def add_scaled(self, x_TK: Array, y_TK: Array, factor: float) -> Array:
        """x + y * factor."""

    def take(self, x_TK: Array, rows_R: Array) -> Array:
        """The given rows of x -> [R, K]."""
