"""Instructions that only the native program has (native/program.h), and a trace rewritten into them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from minicpm4.executors.tracing import Attend, Embed, Instruction, Linear, Operation, Scale, Symbol, Trace


@dataclass(frozen=True)
class PlacedWeight:
    """A parameter while recording. place: among the program's weights if it is a matrix, among its vectors if it is a vector.

    reads_codes: it multiplies what activations were quantized to, and nothing else. reads_bf16: of rows of prompts it multiplies what they
    were rounded to. nbytes: of a matrix.
    """

    place: int
    shape: tuple[int, ...]
    reads_codes: bool = False
    reads_bf16: bool = False
    nbytes: int = 0


@dataclass(frozen=True)
class Effect(Instruction):
    """An instruction that makes no array."""

    out: None = field(default=None, init=False)


@dataclass(frozen=True)
class ScaledEmbed(Operation):
    """The scale is applied as rows are looked up."""

    table: PlacedWeight
    factor: float


@dataclass(frozen=True)
class StoreKeys(Effect):
    k: Symbol
    layer: int


@dataclass(frozen=True)
class StoreValues(Effect):
    v: Symbol
    layer: int


@dataclass(frozen=True)
class CompressKeys(Effect):
    k: Symbol
    layer: int


@dataclass(frozen=True)
class SelectBlocks(Effect):
    q: Symbol
    layer: int


@dataclass(frozen=True)
class AttendPages(Operation):
    q: Symbol
    layer: int


@dataclass(frozen=True)
class MergeSplits(Operation):
    """Puts together what rows got from several splits of the cache."""

    attended: Symbol


@dataclass(frozen=True)
class Quantize(Effect):
    """Codes of x, kept beside it; of rows of prompts bfloat16 instead, where the program has that."""

    x: Symbol


@dataclass(frozen=True)
class FindBlockMaxima(Operation):
    """The largest logits of each task of the head, so that who samples need not look at all of them."""

    logits: Symbol


def lower(trace: Trace, *, is_sparse: bool, task_columns: int) -> tuple[list[Instruction], FindBlockMaxima]:
    """The trace as instructions of the program, and the last of them. is_sparse: whether rows may attend to some blocks only."""
    instructions = with_quantization(with_attention(with_scaled_embedding(trace.instructions), is_sparse=is_sparse))
    index = 1 + max(each.out.index for each in instructions if each.out is not None)
    maxima = FindBlockMaxima(Symbol(index, -(-trace.logits.columns // task_columns), has_logit_rows=True), trace.logits)
    return [*instructions, maxima], maxima


def with_scaled_embedding(instructions: Iterable[Instruction]) -> list[Instruction]:
    """Embeddings take the factor of the scale that follows them."""
    result: list[Instruction] = []
    for each in instructions:
        before = result[-1] if result else None
        if isinstance(each, Embed):
            result.append(ScaledEmbed(each.out, each.table, 1.0))
        elif isinstance(each, Scale) and isinstance(before, ScaledEmbed) and before.out == each.x:
            result[-1] = ScaledEmbed(each.out, before.table, before.factor * each.factor)
        else:
            result.append(each)
    return result


def with_attention(instructions: Sequence[Instruction], *, is_sparse: bool) -> list[Instruction]:
    """Attention in the parts that threads wait for each other between."""
    result: list[Instruction] = []
    new = 1 + max(each.out.index for each in instructions if each.out is not None)
    for each in instructions:
        if not isinstance(each, Attend):
            result.append(each)
            continue
        result += [StoreKeys(each.k, each.layer), StoreValues(each.v, each.layer)]
        if is_sparse:
            result += [CompressKeys(each.k, each.layer), SelectBlocks(each.q, each.layer)]
        attended = Symbol(new + each.layer, each.out.columns)
        result += [AttendPages(attended, each.q, each.layer), MergeSplits(each.out, attended)]
    return result


def with_quantization(instructions: Sequence[Instruction]) -> list[Instruction]:
    """`Quantize` after the maker of each array that weights multiply in such a form."""
    read = {each.x for each in instructions if isinstance(each, Linear) and (each.weight.reads_codes or each.weight.reads_bf16)}
    result: list[Instruction] = []
    for each in instructions:
        result.append(each)
        if each.out in read:
            result.append(Quantize(each.out))
    return result
