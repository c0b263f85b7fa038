"""The native executor: packs the weights, builds the program from the traced forward pass, and replays it in C++.

Knows the C++ module's calls; the kernels, their layouts and their instruction sets are in native/.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from minicpm4 import _native
from minicpm4.errors import CapacityError
from minicpm4.executors.base import BlockMaxima, CacheSize, StepResult, WeightLoader
from minicpm4.executors.cpu_kernels import USABLE_ISAS, choose_isa, native_rule
from minicpm4.executors.native.instructions import PlacedWeight, lower
from minicpm4.executors.native.options import CODE_BYTES, NativeOptions
from minicpm4.executors.native.program import write_program
from minicpm4.executors.native.schedule import group_phases
from minicpm4.executors.native.tile_cache import Packed, TileCacheError, read_tiles, write_tiles
from minicpm4.executors.tracing import Linear, trace
from minicpm4.hardware import Choice
from minicpm4.model import Model, ModelConfig, Step, assemble
from minicpm4.model.linear_step import linearize
from minicpm4.model.parameters import parameter_shapes
from minicpm4.model.step import StepLimits, check_step
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import dequantize
from minicpm4.quant.activations import meets_bf16

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
        """Loads every parameter, traces the forward pass, writes the program; returns the bytes that decoding a token reads."""
        matrices, arena = dict[str, Packed](), _native.Arena()
        kept = self._read_kept(options.tile_cache)

        def load(name: str) -> PlacedWeight:
            matrix = kept.get(name)
            if matrix is None:
                tensor = weights(name)
                if len(tensor.shape) == 1:
                    return PlacedWeight(self._program.add_vector(dequantize(tensor)), tensor.shape)
                rows, columns = tensor.shape
                packed = _native.pack(tensor.format.name, rows, columns, tensor.data, self._pool, arena)
                matrix = Packed(tensor.format.name, (rows, columns), packed)
            matrices[name] = matrix
            form = STORAGE_FORMATS[matrix.format_name]
            return PlacedWeight(
                self._program.add_weight(matrix.weight),
                matrix.shape,
                reads_codes=not form.is_dense and CODE_BYTES[options.activations] > 0,
                reads_bf16=options.prompt_activations == "bf16" and meets_bf16(form, matrix.shape[1]),
                nbytes=matrix.weight.nbytes,
            )

        model: Model[PlacedWeight] = assemble(self.config, load, context_length=cache.context_length)
        traced = trace(model)
        instructions, maxima = lower(traced, is_sparse=cache.sparse is not None, task_columns=self._program.task_columns)
        phases = group_phases(instructions, head_dim=self.config.head_dim)
        write_program(self._program, phases, logits=traced.logits, maxima=maxima.out, hidden=traced.hidden)
        if options.tile_cache is not None and not kept:
            self._keep(options.tile_cache, matrices)
        return sum(each.weight.nbytes for each in instructions if isinstance(each, Linear))

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
