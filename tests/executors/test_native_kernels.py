"""The kernels of every instruction set against plain arithmetic: native/tests/kernels_test.cc, built for this machine and for others.

Foreign instruction sets run under an emulator: AArch64 NEON, also its i8mm, through qemu-user, AVX-512 and AMX through portable intrinsics.
"""

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).resolve().parents[2] / "native"
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c")
AMX = (*AVX512, "-mamx-tile", "-mamx-int8")
EMULATED = ("-DMINICPM4_EMULATED", *AVX2, "-Wno-psabi")
NEON = {
    "kernels_neon": ("-march=armv8.2-a+dotprod+fp16", "-O1"),
    "kernels_neon_i8mm": ("-march=armv8.2-a+dotprod+fp16+i8mm", "-O1"),
}


def build_kernel_tests(folder: Path, compiler: str, units: dict[str, tuple[str, ...]]) -> str:
    """Builds the test program with these units, each with its own flags, and returns where it is."""
    builds = []
    is_emulated = EMULATED in units.values()
    for unit, flags in {**units, "packing": ("-O1",), "tests/kernels_test": ("-O1", *(EMULATED[:1] if is_emulated else ()))}.items():
        target = folder / f"{Path(unit).name}.o"
        command = [compiler, "-std=c++20", *flags, "-c", str(NATIVE / f"{unit}.cc"), "-o", str(target)]
        builds.append((target, subprocess.Popen(command, stderr=subprocess.PIPE, text=True)))
    for target, build in builds:
        assert build.wait() == 0, f"{target.name}: {build.stderr.read() if build.stderr else ''}"
    program = folder / "kernels_test"
    subprocess.run([compiler, "-static", *(str(target) for target, _ in builds), "-o", str(program)], check=True)
    return str(program)


def run_kernel_tests(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ (apt install g++)")
def test_kernels_of_this_machine(tmp_path):
    is_x86 = platform.machine() in ("x86_64", "AMD64")
    vector_units = {"kernels_avx2": AVX2, "kernels_avx512": AVX512, "kernels_amx": AMX} if is_x86 else NEON
    program = build_kernel_tests(tmp_path, "g++", {"kernels_generic": (), **vector_units})
    assert "generic: passed" in run_kernel_tests(program)


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64") is None,
    reason="apt install g++-aarch64-linux-gnu qemu-user",
)
def test_neon_kernels_under_an_emulator(tmp_path):
    program = build_kernel_tests(tmp_path, "aarch64-linux-gnu-g++", NEON)
    output = run_kernel_tests("qemu-aarch64", "-cpu", "max", program)
    assert "neon: passed" in output
    assert "neon_i8mm: passed" in output
    assert "neon_i8mm: the same products as neon" in output
    for cpu, usable in {"max": ["neon", "neon_i8mm"], "neoverse-n1": ["neon"], "cortex-a72": []}.items():
        assert run_kernel_tests("qemu-aarch64", "-cpu", cpu, program, "names").split() == usable


@pytest.mark.skipif(
    not Path("/usr/include/simde").exists() or platform.machine() != "x86_64", reason="apt install libsimde-dev (on x86-64)"
)
def test_avx512_kernels_as_portable_intrinsics(tmp_path):
    output = run_kernel_tests(build_kernel_tests(tmp_path, "g++", {"kernels_avx512": EMULATED, "kernels_amx": EMULATED}))
    assert "avx512: passed" in output
    assert "amx: passed" in output
    assert "amx: the same attention as avx512" in output
