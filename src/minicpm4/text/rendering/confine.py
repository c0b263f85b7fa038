"""Takes from this process what rendering text does not need, so that not even an escape from the sandbox reaches anything.

On Linux (x86-64, AArch64) a seccomp filter leaves it reading and writing of open files, memory, clocks and its own end: no file can be
opened, no socket or process made. Elsewhere on Unix, limits on open files and on written bytes remain, and everywhere the parent's
patience, after which it ends this process.
"""

from __future__ import annotations

import ctypes
import platform
import struct
import sys

# By machine: the audit architecture, then the numbers of read, write, readv, writev, close, fstat, lseek, mmap, mprotect, munmap, brk,
# mremap, madvise, rt_sigaction, rt_sigprocmask, rt_sigreturn, sigaltstack, restart_syscall, futex, sched_yield, getpid, gettid, tgkill,
# clock_gettime, gettimeofday, getrusage, getitimer, setitimer, getrandom, exit, exit_group.
SYSTEM_CALLS = {
    "x86_64": (0xC000003E, (0, 1, 19, 20, 3, 5, 8, 9, 10, 11, 12, 25, 28, 13, 14, 15, 131, 219, 202, 24, 39, 186, 234, 228, 96, 98, 36, 38,
                            318, 60, 231)),
    "aarch64": (0xC00000B7, (63, 64, 65, 66, 57, 80, 62, 222, 226, 215, 214, 216, 233, 134, 135, 139, 132, 128, 98, 124, 172, 178, 131, 113,
                             169, 165, 102, 103, 278, 93, 94)),
}  # fmt: skip
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER_MODE = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # of the filter's machine
ALLOW, FAIL, KILL = 0x7FFF0000, 0x00050001, 0x80000000  # FAIL: with EPERM
NUMBER_AT, ARCHITECTURE_AT = 0, 4  # of what the filter looks at


def instruction(code: int, value: int, *, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def filter_program(architecture: int, allowed: tuple[int, ...]) -> bytes:
    head = [
        instruction(LOAD, ARCHITECTURE_AT),
        instruction(JUMP_IF_EQUAL, architecture, if_true=1),
        instruction(RETURN, KILL),
        instruction(LOAD, NUMBER_AT),
    ]
    tests = [instruction(JUMP_IF_EQUAL, number, if_true=len(allowed) - place) for place, number in enumerate(allowed)]
    return b"".join([*head, *tests, instruction(RETURN, FAIL), instruction(RETURN, ALLOW)])


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def forbid_system_calls() -> bool:
    """Whether the system took the filter."""
    if sys.platform != "linux" or platform.machine() not in SYSTEM_CALLS:
        return False
    code = filter_program(*SYSTEM_CALLS[platform.machine()])
    program = Program(len(code) // 8, code)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    return prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0 and prctl(SET_SECCOMP, FILTER_MODE, ctypes.byref(program), 0, 0) == 0


def limit_resources(*, memory: int) -> None:
    """memory: bytes of address space."""
    try:
        import resource  # Unix only
    except ImportError:
        return
    for name, value in (("CORE", 0), ("FSIZE", 0), ("NOFILE", 0), ("AS", memory)):
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
        except (ValueError, OSError):  # a lower limit is set already
            continue


def allow_seconds(seconds: float) -> None:
    """Ends this process once it has used so much processor time from now on; 0 for no limit."""
    try:
        import signal

        signal.setitimer(signal.ITIMER_PROF, seconds)
    except (ImportError, AttributeError):  # not on this system
        return
