"""The native executor: packs the weights, builds the program from the recorded forward pass, and replays it in C++.

Knows the C++ module's calls; the kernels, their layouts and their instruction sets are in native/.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from pathlib import Path

import numpy as np

from minicpm4 import _native
from minicpm4.errors import CapacityError
from minicpm4.executors.base import BlockMaxima, CacheSize, StepResult, WeightLoader
from minicpm4.executors.cpu_kernels import USABLE_ISAS, choose_isa, native_rule
from minicpm4.executors.native.options import CODE_BYTES, NativeOptions
from minicpm4.executors.native.record import Call, Named, Value, record
from minicpm4.executors.native.schedule import (
    Phase,
    add_block_maxima,
    add_quantization,
    add_scale_to_embedding,
    assign_buffers,
    group_phases,
)
from minicpm4.executors.native.tile_cache import Packed, TileCacheError, read_tiles, write_tiles
from minicpm4.hardware import Choice
from minicpm4.model import Model, ModelConfig, Step, assemble
from minicpm4.model.linear_step import linearize
from minicpm4.model.parameters import parameter_shapes
from minicpm4.model.step import StepLimits, check_step
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import dequantize
from minicpm4.quant.activations import meets_bf16

VECTOR_OPS = ("rms_norm", "rms_norm_heads", "add_bias")  # whose weight is a vector
BF16_ROWS = 1  # the tag of rows that are multiplied in bfloat16


def read_bandwidth(threads: int) -> float:
    """Bytes a second that so many threads read from memory: the best of several passes over 256 MB."""
    return float(_native.read_bandwidth(USABLE_ISAS[0], _native.ThreadPool(threads), 256 << 20, 5))


class NativeExecutor:
    """See `executors.base.Executor`."""

    name = "native"

    def __init__(self, config: ModelConfig, weights: WeightLoader, *, options: NativeOptions, cache: CacheSize) -> None:
        self.config = config
        isa = choose_isa(options.isa)
        self.choices: tuple[Choice, ...] = (isa,)
        self.warnings: tuple[str, ...] = ()
        self.prompt_numerics = BF16_ROWS if options.prompt_activations == "bf16" else 0
        try:
            self._pool = _native.ThreadPool(options.threads)
        except RuntimeError as error:
            raise CapacityError(f"the system gives no {options.threads} threads: {error}", hint="lower the number of threads") from error
        self._program = _native.Program(
            isa.value,
            self._pool,
            max_rows=cache.max_step_tokens,
            code_bytes=CODE_BYTES[options.activations],
            has_bf16_prompts=options.prompt_activations == "bf16",
            num_pages=cache.num_pages,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            kv_format=options.kv_format,
            sparse=None if cache.sparse is None else native_rule(cache.sparse),
        )
        self._limits = StepLimits(
            max_rows=cache.max_step_tokens,
            num_pages=cache.num_pages,
            vocab_size=config.vocab_size,
            numerics={0, self.prompt_numerics},
        )
        self.weight_bytes = self._build(weights, options, cache)
        self.kv_bytes = int(self._program.kv_bytes)

    def _build(self, weights: WeightLoader, options: NativeOptions, cache: CacheSize) -> int:
        """Loads every parameter, records the forward pass, writes the program; returns the bytes that decoding a token reads."""
        places, matrices, arena = dict[str, int](), dict[str, Packed](), _native.Arena()
        kept = self._read_kept(options.tile_cache)

        def load(name: str) -> Named:
            matrix = kept.get(name)
            if matrix is None:
                tensor = weights(name)
                if len(tensor.shape) == 1:
                    places[name] = self._program.add_vector(dequantize(tensor))
                    return Named(name, tensor.shape)
                rows, columns = tensor.shape
                packed = _native.pack(tensor.format.name, rows, columns, tensor.data, self._pool, arena)
                matrix = Packed(tensor.format.name, (rows, columns), packed)
            matrices[name] = matrix
            places[name] = self._program.add_weight(matrix.weight)
            return Named(name, matrix.shape)

        model: Model[Named] = assemble(self.config, load, context_length=cache.context_length)
        calls, hidden = record(model, is_sparse=cache.sparse is not None)
        calls = add_scale_to_embedding(calls)
        forms = {name: STORAGE_FORMATS[m.format_name] for name, m in matrices.items()}
        in_codes = {name for name, form in forms.items() if not form.is_dense and CODE_BYTES[options.activations] > 0}
        has_bf16 = options.prompt_activations == "bf16"
        in_bf16 = {name for name, form in forms.items() if has_bf16 and meets_bf16(form, matrices[name].shape[1])}
        calls = add_quantization(calls, in_codes | in_bf16)
        calls = add_block_maxima(calls, task_columns=self._program.task_columns)
        phases = group_phases(calls, head_dim=self.config.head_dim)
        self._write_program(phases, places, encoded=in_codes, hidden=hidden)
        if options.tile_cache is not None and not kept:
            self._keep(options.tile_cache, matrices)
        return sum(matrices[call.weight].weight.nbytes for call in calls if call.op == "linear" and call.weight)

    def _read_kept(self, path: Path | None) -> Mapping[str, Packed]:
        """The matrices that an earlier load has kept; nothing where there are none, or none that can be trusted."""
        if path is None:
            return {}
        shapes = {name: shape for name, shape in parameter_shapes(self.config).items() if len(shape) == 2}
        try:
            kept = read_tiles(path, shapes, self._pool)
        except TileCacheError as error:
            self.warnings += (f"the packed weights in {path} are made again: {error}",)
            return {}
        if kept is not None:
            self.choices += (Choice("packed weights", "kept ones", str(path)),)
        return kept or {}

    def _keep(self, path: Path, matrices: Mapping[str, Packed]) -> None:
        try:
            write_tiles(path, matrices, self._pool)
            self.choices += (Choice("packed weights", "made and kept", str(path)),)
        except OSError as error:
            self.warnings += (f"the packed weights cannot be kept in {path}: {error.strerror}",)

    def _write_program(self, phases: list[Phase], places: dict[str, int], *, encoded: Set[str], hidden: Value) -> None:
        """places: of each parameter, among the program's weights if it is a matrix, among its vectors if it is a vector. encoded: weights
        that meet encoded activations alone. hidden: the value that results show beside logits."""
        program = self._program
        buffer_of, buffers = assign_buffers(phases, encoded=encoded, kept=hidden)
        for buffer in buffers:
            program.add_buffer(buffer.columns, buffer.is_local)
        for phase in phases:
            program.begin_phase(getattr(_native.PhaseKind, phase.kind), phase.has_logit_rows)
            for job in phase.jobs:
                if phase.kind == "products":
                    program.begin_job()
                for call in (*job.products, *job.tail):
                    self._write_call(call, buffer_of, places)
        program.keep_hidden(buffer_of[hidden.index])

    def _write_call(self, call: Call, buffer_of: dict[int, int], places: dict[str, int]) -> None:
        def place(value: Value | None) -> int:
            return -1 if value is None else buffer_of[value.index]

        a, b = (*call.inputs, None, None)[:2]
        weight = vector = -1
        if call.table is not None:
            table = np.concatenate((call.table.inverse_factors_F, call.table.inverse_frequencies_F))
            vector = self._program.add_vector(table)
        elif call.weight is not None and call.op in VECTOR_OPS:
            vector = places[call.weight]
        elif call.weight is not None:
            weight = places[call.weight]
        self._program.add(
            getattr(_native.Op, call.op),
            out=place(call.out),
            a=place(a),
            b=place(b),
            weight=weight,
            vector=vector,
            layer=call.layer,
            factor=call.factor,
        )

    def run(self, step: Step) -> StepResult:
        s, branches = step, None
        if step.ancestors_T is not None:
            check_step(step, self._limits)
            linear = linearize(step, range(*self._program.tree_pages))
            s, branches = linear.step, linear.branches
        arrays = (s.tokens_T, s.starts_S1, s.lengths_S, s.pages_SP, s.logit_rows_R, s.numerics_S, s.adapters_S)
        logits, maxima, hidden = self._program.run(*arrays, branches)
        return StepResult(logits, BlockMaxima(self._program.task_columns, maxima), hidden if step.wants_hidden else None)

    def chosen_blocks(self) -> np.ndarray:
        """What the newest step's sparse rows chose in the last layer: blocks, ascending, int32 [sparse rows, kv heads, max_blocks]; -1
        where there were fewer. For looking at; nothing else depends on it."""
        return self._program.chosen_blocks()

    def copy_pages(self, sources: np.ndarray, targets: np.ndarray) -> None:
        self._program.copy_pages(sources, targets)

    def copy_slots(self, pages: np.ndarray, *, start: int, rows: np.ndarray) -> None:
        self._program.copy_slots(pages, start, rows)

    def randomize_pages(self, pages: np.ndarray, *, seed: int) -> None:
        self._program.randomize(np.ascontiguousarray(pages, np.int32), seed)

    def close(self) -> None:
        del self._program, self._pool
