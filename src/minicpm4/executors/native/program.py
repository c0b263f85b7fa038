"""Writes phases as a program of the C++ module: the only place that knows which op an instruction becomes, and of which operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from minicpm4._native import Op, PhaseKind, Program
from minicpm4.executors.native.instructions import (
    AttendPages,
    CompressKeys,
    FindBlockMaxima,
    MergeSplits,
    Quantize,
    ScaledEmbed,
    SelectBlocks,
    StoreKeys,
    StoreValues,
)
from minicpm4.executors.native.schedule import Phase, assign_buffers
from minicpm4.executors.tracing import (
    AddBias,
    AddScaled,
    HeadNorm,
    Instruction,
    Linear,
    RmsNorm,
    Rope,
    Rotation,
    Scale,
    Swiglu,
    Symbol,
    Take,
)
from minicpm4.model.rope import RopeTable


def write_program(program: Program, phases: Sequence[Phase], *, logits: Symbol, maxima: Symbol, hidden: Symbol) -> None:
    """logits, maxima, hidden: the results; the first two are made by the last phase."""
    buffer_of, buffers = assign_buffers(phases, results=(logits, maxima, hidden))
    for buffer in buffers:
        program.add_buffer(buffer.columns, buffer.is_local)
    writer = ProgramWriter(program, buffer_of)
    for phase in phases:
        program.begin_phase(phase.kind, phase.has_logit_rows)
        for job in phase.jobs:
            if phase.kind == PhaseKind.products:
                program.begin_job()
            for instruction in job.instructions:
                writer.write(instruction)
    program.keep_hidden(buffer_of[hidden])


class ProgramWriter:
    """Adds instructions to the newest phase."""

    def __init__(self, program: Program, buffer_of: Mapping[Symbol, int]) -> None:
        self.program, self.buffer_of = program, buffer_of

    def write(self, instruction: Instruction) -> None:
        match instruction:
            case ScaledEmbed(out, table, factor):
                self.add(Op.embed, out, weight=table.place, factor=factor)
            case Scale(out, x, factor):
                self.add(Op.scale, out, a=x, factor=factor)
            case RmsNorm(out, x, weight, eps):
                self.add(Op.rms_norm, out, a=x, vector=weight.place, factor=eps)
            case HeadNorm(out, x, weight, eps):
                self.add(Op.rms_norm_heads, out, a=x, vector=weight.place, factor=eps)
            case AddBias(out, x, bias):
                self.add(Op.add_bias, out, a=x, vector=bias.place)
            case Linear(out, x, weight):
                self.add(Op.linear, out, a=x, weight=weight.place)
            case Rotation(out, table):
                self.add(Op.rotation, out, vector=self.add_table(table), factor=table.magnitude)
            case Rope(out, x, rotation):
                self.add(Op.rope, out, a=x, b=rotation)
            case StoreKeys(k=k, layer=layer):
                self.add(Op.store_keys, a=k, layer=layer)
            case StoreValues(v=v, layer=layer):
                self.add(Op.store_values, a=v, layer=layer)
            case CompressKeys(k=k, layer=layer):
                self.add(Op.compress_keys, a=k, layer=layer)
            case SelectBlocks(q=q, layer=layer):
                self.add(Op.select_blocks, a=q, layer=layer)
            case AttendPages(out, q, layer):
                self.add(Op.attend, out, a=q, layer=layer)
            case MergeSplits(out, attended):
                self.add(Op.merge, out, a=attended)
            case Swiglu(out, gate, up):
                self.add(Op.swiglu, out, a=gate, b=up)
            case AddScaled(out, x, y, factor):
                self.add(Op.add_scaled, out, a=x, b=y, factor=factor)
            case Take(out, x):
                self.add(Op.take, out, a=x)
            case Quantize(x=x):
                self.add(Op.quantize, a=x)
            case FindBlockMaxima(out, logits):
                self.add(Op.block_maxima, out, a=logits)
            case _:
                raise AssertionError(f"the program has no op for {type(instruction).__name__}")

    def add(
        self,
        op: Op,
        out: Symbol | None = None,
        *,
        a: Symbol | None = None,
        b: Symbol | None = None,
        weight: int = -1,
        vector: int = -1,
        layer: int = -1,
        factor: float = 0.0,
    ) -> None:
        """See Instruction of native/program.h."""
        out_at, a_at, b_at = (-1 if symbol is None else self.buffer_of[symbol] for symbol in (out, a, b))
        self.program.add(op, out=out_at, a=a_at, b=b_at, weight=weight, vector=vector, layer=layer, factor=factor)

    def add_table(self, table: RopeTable) -> int:
        return self.program.add_vector(np.concatenate((table.inverse_factors_F, table.inverse_frequencies_F)))
