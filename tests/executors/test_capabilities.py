"""What executors cannot do is said before anything is loaded, with what would work."""

import builtins
import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from minicpm4 import _native
from minicpm4.errors import CapacityError, CheckpointError, ConfigError, UnsupportedError
from minicpm4.executors import CacheSize, Preferences, backend, create_executor, resolve_options
from minicpm4.executors.base import BackendOptions, Capabilities
from minicpm4.executors.cpu_kernels import choose_isa
from minicpm4.model.parameters import NORM
from minicpm4.model.tensors import STORAGE_FORMATS
from minicpm4.quant import quantize
from tests.toy import EXECUTORS, MINDSPORE, NAMES, toy_config, toy_executor, toy_weights

CONFIG = toy_config()
SMALL = CacheSize(context_length=64, num_pages=1)


def options_of(executor: str, **options: Any) -> Any:
    return backend(executor).options(**options)


def refuse_to_load(name: str) -> Any:
    raise AssertionError(f"{name} was loaded")


@pytest.mark.parametrize(
    ("executor", "formats", "options", "message"),
    [
        ("native", {"q8_0", "q3_k"}, {}, r"executor native cannot do weight formats: q3_k; it offers bf16, f16, .*torch"),
        ("torch", set(), {"kv_format": "int8"}, "executor torch cannot do KV formats: int8; it offers bf16, f16, f32"),
        ("native", set(), {"device": "cuda"}, "executor native cannot do devices: cuda; it offers cpu"),
        ("native", set(), {"isa": "sse2"}, "executor native cannot do instruction sets: sse2; it offers [^N]*generic; or"),
    ],
)
def test_what_cannot_be_done_is_said(executor: str, formats: set[str], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        create_executor(executor, CONFIG, refuse_to_load, options=options_of(executor, **options), cache=SMALL, formats=formats)


def test_an_executor_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="there is no executor 'onnx'; choose one of native, reference, torch, mindspore"):
        create_executor("onnx", CONFIG, refuse_to_load, options=BackendOptions(), cache=SMALL, formats=())


def test_an_executor_whose_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_torch(name: str, *arguments: Any, **details: Any) -> Any:
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return real_import(name, *arguments, **details)

    for module in [name for name in sys.modules if name.startswith("minicpm4.executors.torch")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(
        UnsupportedError, match=r"executor torch cannot be loaded: No module named 'torch'; pip install 'minicpm4\[torch\]'"
    ):
        backend("torch")


def test_torch_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = importlib.import_module("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match="torch finds no CUDA device; use --device cpu, or install a CUDA build of torch"):
        create_executor("torch", CONFIG, refuse_to_load, options=options_of("torch", device="cuda"), cache=SMALL, formats=())


@pytest.mark.parametrize("name", ["context_length", "num_pages", "max_step_tokens"])
def test_sizes_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 0, expected a positive number"):
        CacheSize(**{"context_length": 64, "num_pages": 1, name: 0})


@pytest.mark.parametrize("executor", ["native", "torch", MINDSPORE])
def test_no_threads_cannot_be(executor: str) -> None:
    with pytest.raises(ConfigError, match="threads is 0, expected a positive number"):
        options_of(executor, threads=0)


@pytest.mark.parametrize(
    ("executor", "preferences", "message"),
    [
        ("torch", {"activations": "int8"}, "executor torch has no activations to set to int8; leave out --activations"),
        ("torch", {"isa": "avx2"}, "executor torch has no isa to set to avx2; leave out --isa, or choose another executor"),
        ("reference", {"threads": 2}, "executor reference has no threads to set to 2"),
        ("native", {"dtype": "bf16"}, "executor native has no dtype to set to bf16"),
        ("native", {"device": "cuda"}, "executor native cannot do devices: cuda; it offers cpu"),
    ],
)
def test_a_wish_that_an_executor_has_no_option_for_is_refused(executor: str, preferences: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        resolve_options(executor, Preferences(**preferences), CONFIG)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_weight_of_another_shape_is_refused(executor: str) -> None:
    weights = toy_weights(CONFIG) | {NORM: quantize(np.ones(95, np.float32), "f32", name=NORM)}
    with pytest.raises(CheckpointError, match=r"model.norm.weight has shape \(95,\), the config asks for \(96,\)"):
        toy_executor(executor, CONFIG, weights)


def test_a_cache_larger_than_the_address_space() -> None:
    with pytest.raises(CapacityError, match=r"cannot get the memory for the weights and 2000000000 pages of cache: .*; lower the context"):
        create_executor(
            "native",
            toy_config(num_layers=1024),
            refuse_to_load,
            options=options_of("native"),
            cache=CacheSize(64, 2_000_000_000),
            formats=(),
        )


@pytest.mark.parametrize("executor", NAMES)
def test_memory_that_runs_out_while_loading(executor: str) -> None:
    def exhausted(name: str) -> Any:
        raise MemoryError("Unable to allocate 90 GiB")

    reason = f"executor {executor} cannot get the memory for the weights and 1 pages of cache: Unable to allocate 90 GiB; lower the"
    with pytest.raises(CapacityError, match=reason):
        create_executor(executor, CONFIG, exhausted, options=options_of(executor), cache=SMALL, formats=())


def test_torch_tells_its_own_errors_of_memory_from_others() -> None:
    def failing(message: str) -> Callable[[str], Any]:
        def load(name: str) -> Any:
            raise RuntimeError(message)

        return load

    for message in ("CUDA out of memory. Tried to allocate 2 GiB", "DefaultCPUAllocator: can't allocate memory: you tried to"):
        with pytest.raises(CapacityError, match="executor torch cannot get the memory for"):
            create_executor("torch", CONFIG, failing(message), options=options_of("torch"), cache=SMALL, formats=())
    with pytest.raises(RuntimeError, match="a bug"):
        create_executor("torch", CONFIG, failing("a bug"), options=options_of("torch"), cache=SMALL, formats=())


@pytest.mark.parametrize("rows", [1, 16, 50])
@pytest.mark.parametrize("name", STORAGE_FORMATS)
def test_a_weight_takes_what_was_planned(name: str, rows: int) -> None:
    pool, storage = _native.ThreadPool(1), STORAGE_FORMATS[name]
    for columns in (1, 7, 40) if storage.is_dense else (storage.block_elements, 9 * storage.block_elements):
        data = np.zeros((rows, storage.row_bytes(columns)), np.uint8)
        packed = _native.pack(name, rows, columns, data, pool, _native.Arena())
        assert backend("native").weight_bytes(name, (rows, columns), None) == packed.nbytes
        assert backend("reference").weight_bytes(name, (rows, columns), None) == 4 * rows * columns
        for dtype, size in (("f32", 4), ("bf16", 2)):
            assert backend("torch").weight_bytes(name, (rows, columns), options_of("torch", dtype=dtype)) == size * rows * columns
    assert backend("native").weight_bytes(name, (96,), None) == 384


def test_free_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = importlib.import_module("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (123, 456))
    assert backend("torch").free_memory(options_of("torch", device="cuda")) == 123
    for executor in ("native", "reference", "torch"):
        assert (backend(executor).free_memory(options_of(executor)) or 1 << 30) > 1 << 20
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UnsupportedError, match="torch finds no CUDA device"):
        backend("torch").free_memory(options_of("torch", device="cuda"))


@pytest.mark.parametrize("executor", NAMES)
def test_every_executor_reads_every_format(executor: str) -> None:
    assert backend(executor).capabilities.weight_formats == frozenset(STORAGE_FORMATS)


def test_all_that_is_asked_at_once_may_be_had() -> None:
    able = Capabilities(frozenset(("f32",)), frozenset(("f16",)))
    able.check("toy", ["f32"], BackendOptions())


def test_the_choice_of_an_instruction_set_keeps_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(choose_isa("generic")) == "isa generic (asked for)"
    best = choose_isa(None)
    assert best.value == _native.usable_isas()[0]
    module = sys.modules[choose_isa.__module__]
    for (machine, *isas), text in {
        ("x86_64", "amx", "avx512", "avx2", "generic"): "isa amx (the best that this CPU has)",
        ("x86_64", "avx512", "avx2", "generic"): "isa avx512 (no AMX with bfloat16 on this CPU)",
        ("x86_64", "avx2", "generic"): "isa avx2 (no AVX-512 VNNI on this CPU)",
        ("AMD64", "generic"): "isa generic (no AVX2 on this CPU)",
        ("aarch64", "neon_i8mm", "neon", "generic"): "isa neon_i8mm (the best that this CPU has)",
        ("aarch64", "neon", "generic"): "isa neon (no i8mm on this CPU)",
        ("arm64", "generic"): "isa generic (no dot products on this CPU)",
        ("riscv64", "generic"): "isa generic (the best that this CPU has)",
    }.items():
        monkeypatch.setattr(module.platform, "machine", lambda machine=machine: machine)
        monkeypatch.setattr(module, "USABLE_ISAS", isas)
        assert str(choose_isa(None)) == text


@pytest.mark.parametrize("executor", EXECUTORS)
def test_closing_frees_the_weights(executor: str) -> None:
    runner = toy_executor(executor, CONFIG, toy_weights(CONFIG))
    kept = set(vars(runner))
    runner.close()
    assert len(kept - set(vars(runner))) >= 2
