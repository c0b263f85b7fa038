"""The kernels of every instruction set against plain arithmetic: native/tests/kernels_test.cc, linked with the kernels that the install
built, and with those of other machines.

Foreign instruction sets run under an emulator: AArch64 NEON, also its i8mm, through qemu-user, AVX-512 and AMX, where the
machine lacks AMX, through portable intrinsics.
"""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minicpm4 import _native

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "native"
INSTALLED = next((ROOT / "build").glob(f"cp3{sys.version_info.minor}-*/libkernels.a"), None)
EMULATED = ("-DMINICPM4_EMULATED", "-mavx2", "-mfma", "-mf16c", "-Wno-psabi")
PACKING = {"packing": ("-O1",)}
NEON = {
    "kernels_neon": ("-march=armv8.2-a+dotprod+fp16", "-O1"),
    "kernels_neon_i8mm": ("-march=armv8.2-a+dotprod+fp16+i8mm", "-O1"),
}


def build_kernel_tests(folder: Path, compiler: str, units: dict[str, tuple[str, ...]], *linked: str) -> str:
    """Builds the test program with these units, each with its own flags, and with what is linked; returns where it is."""
    builds = []
    is_emulated = EMULATED in units.values()
    for unit, flags in {**units, "tests/kernels_test": ("-O1", *(EMULATED[:1] if is_emulated else ()))}.items():
        target = folder / f"{Path(unit).name}.o"
        command = [compiler, "-std=c++20", *flags, "-c", str(NATIVE / f"{unit}.cc"), "-o", str(target)]
        builds.append((target, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
    for target, build in builds:
        assert build.wait() == 0, f"{target.name}: {build.stderr.read() if build.stderr else ''}"
    program = folder / "kernels_test"
    subprocess.run([compiler, "-static", *(str(target) for target, _ in builds), *linked, "-o", str(program)], check=True)
    return str(program)


def run_kernel_tests(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ (apt install g++)")
@pytest.mark.skipif(INSTALLED is None, reason="the kernels were not built in this checkout (make test, or pip install -e .)")
def test_kernels_of_this_machine(tmp_path):
    """Weak names alone would take nothing out of the library."""
    output = run_kernel_tests(build_kernel_tests(tmp_path, "g++", {}, "-Wl,--whole-archive", str(INSTALLED), "-Wl,--no-whole-archive"))
    for isa in _native.usable_isas():
        assert f"{isa}: passed" in output


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64") is None,
    reason="apt install g++-aarch64-linux-gnu qemu-user",
)
def test_neon_kernels_under_an_emulator(tmp_path):
    program = build_kernel_tests(tmp_path, "aarch64-linux-gnu-g++", NEON | PACKING)
    output = run_kernel_tests("qemu-aarch64", "-cpu", "max", program)
    assert "neon: passed" in output
    assert "neon_i8mm: passed" in output
    assert "neon_i8mm: the same products as neon" in output
    for cpu, usable in {"max": ["neon", "neon_i8mm"], "neoverse-n1": ["neon"], "cortex-a72": []}.items():
        assert run_kernel_tests("qemu-aarch64", "-cpu", cpu, program, "names").split() == usable


@pytest.mark.skipif("amx" in _native.usable_isas(), reason="this machine runs these kernels themselves, and compiling them takes long")
@pytest.mark.skipif(
    not Path("/usr/include/simde").exists() or platform.machine() != "x86_64", reason="apt install libsimde-dev (on x86-64)"
)
def test_avx512_kernels_as_portable_intrinsics(tmp_path):
    output = run_kernel_tests(build_kernel_tests(tmp_path, "g++", {"kernels_avx512": EMULATED, "kernels_amx": EMULATED} | PACKING))
    assert "avx512: passed" in output
    assert "amx: passed" in output
    assert "amx: the same attention as avx512" in output
