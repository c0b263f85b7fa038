"""From recorded calls to phases: between two phases all threads wait for each other, so fewer is faster.

Three rewrites, each small: inputs of quantized products get codes as soon as they are made; neighbours that work row by
row share a phase, as do neighbouring products; values that are dead lend their buffer to the next of the same shape.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from minicpm4.executors.native.record import Call, Value

TASK_OPS = ("multiply", "attend")  # cut into tasks instead of rows
IN_PLACE_OPS = ("scale", "add_scaled", "swiglu", "rope", "rms_norm")  # may write over an input: each row reads before it writes


@dataclass(frozen=True)
class Phase:
    calls: tuple[Call, ...]
    is_wanted: bool


def add_codes(calls: list[Call], quantized: Collection[str]) -> list[Call]:
    """Inserts `quantize` after the maker of each value that a quantized weight multiplies."""
    wanted = {call.inputs[0].index for call in calls if call.op == "multiply" and call.weight in quantized}
    result = []
    for call in calls:
        result.append(call)
        if call.out is not None and call.out.index in wanted:
            result.append(Call("quantize", None, (call.out,)))
    return result


def add_scale_to_embedding(calls: list[Call]) -> list[Call]:
    """The embedding's scale is applied as rows are looked up."""
    if calls[1].op != "scale" or calls[0].op != "embed":
        return calls
    return [replace(calls[0], out=calls[1].out, factor=calls[1].factor), *calls[2:]]


def group_phases(calls: list[Call]) -> list[Phase]:
    """Consecutive calls of the same kind and the same rows; products share a phase only while they do not read each other."""
    phases: list[Phase] = []
    for call in calls:
        is_wanted = call.out.is_wanted if call.out is not None else call.inputs[0].is_wanted
        last = phases[-1] if phases else None
        if last and last.is_wanted == is_wanted and can_join(last.calls, call):
            phases[-1] = replace(last, calls=(*last.calls, call))
        else:
            phases.append(Phase((call,), is_wanted))
    return phases


def can_join(calls: tuple[Call, ...], call: Call) -> bool:
    first = calls[0].op
    if first == "multiply" and call.op == "multiply":
        return not {c.out for c in calls} & set(call.inputs)
    return first not in TASK_OPS and call.op not in TASK_OPS


def assign_buffers(phases: list[Phase]) -> tuple[dict[int, int], list[int]]:
    """Buffer of each value, and the columns of each buffer.

    A buffer is free again after the phase that reads its value last, or at once for an operation that may work in place.
    Values with codes keep their buffer's codes, so a buffer is shared only by values of equal columns.
    """
    last_phase = {value.index: number for number, phase in enumerate(phases) for call in phase.calls for value in call.inputs}
    last_phase[final_value(phases).index] = len(phases)
    buffers: dict[int, int] = {}
    columns: list[int] = []
    free: dict[int, list[int]] = {}
    for number, phase in enumerate(phases):
        for position, call in enumerate(phase.calls):
            if call.out is None:
                continue
            reusable = in_place_source(call, phase, position=position, last_phase=last_phase, number=number)
            if reusable is not None:
                buffers[call.out.index] = buffers[reusable.index]
                last_phase[reusable.index] = -1
            elif free.get(call.out.columns):
                buffers[call.out.index] = free[call.out.columns].pop()
            else:
                buffers[call.out.index] = len(columns)
                columns.append(call.out.columns)
        for value in {v.index: v for call in phase.calls for v in (*call.inputs, *([call.out] if call.out else []))}.values():
            if last_phase.get(value.index, number) == number:
                free.setdefault(value.columns, []).append(buffers[value.index])
    return buffers, columns


def in_place_source(call: Call, phase: Phase, *, position: int, last_phase: dict[int, int], number: int) -> Value | None:
    """The input that dies with this call and has the shape of its output, if the operation may work in place."""
    if call.op not in IN_PLACE_OPS or call.out is None:
        return None
    later = {value.index for other in phase.calls[position + 1 :] for value in other.inputs}
    for value in call.inputs:
        if (
            value.columns == call.out.columns
            and value.is_wanted == call.out.is_wanted
            and last_phase[value.index] == number
            and value.index not in later
        ):
            return value
    return None


def final_value(phases: list[Phase]) -> Value:
    value = phases[-1].calls[-1].out
    assert value is not None, "a forward pass ends with logits"
    return value
