"""A process that renders one chat template, kept for the next chat: 1 ms a chat after the first, which takes some 100.

The process is confined (`rendering.confine`) and may run out of time, memory or stack without harm to this one; the next chat gets a new
one then. It ends with its template, with this process, or when its input is closed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minicpm4.errors import CapacityError, CheckpointError, UnsupportedError
from minicpm4.hardware import child_environment

COMMAND = ("-S", "-s", "-P", "-m", "rendering")
PATIENCE = 30  # seconds, on a machine that is busy with other work


class TemplateWorker:
    """setting: what the process is told first (see `rendering.__main__`). Safe to use from several threads; a forked process starts
    its own."""

    def __init__(self, setting: Mapping[str, Any]) -> None:
        self._setting = setting
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: bytes) -> dict[str, Any]:
        """The answer to one request, a line of JSON without its end. CheckpointError where the process broke down over it."""
        with self._lock:
            process = self._running()
            try:
                return self._answer(process, request)
            except BaseException:  # interrupted too: an answer that nobody read would be taken for the next one's
                self._stop(process)
                raise

    def close(self) -> None:
        with self._lock:
            if self._process is not None:
                self._stop(self._process)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._owner != os.getpid():
            self._process, self._owner = None, os.getpid()
        if self._process is None:
            self._process = start_process()
            weakref.finalize(self, end_process, self._process, self._owner)
            write_line(self._process, json.dumps(self._setting).encode())
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], request: bytes) -> dict[str, Any]:
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(PATIENCE, give_up)
        timer.daemon = True
        timer.start()
        try:
            assert process.stdout is not None, "the process was started with pipes"
            write_line(process, request)
            line = process.stdout.readline()
        finally:
            timer.cancel()
        if is_late.is_set():
            raise CheckpointError(f"the chat template took more than {PATIENCE} s", hint="it does not end; get the model's files again")
        if not line.endswith(b"\n"):
            raise CheckpointError(
                f"the chat template ran out of time, memory or stack (status {process.wait()})", hint="get the model's files again"
            )
        return dict(json.loads(line))

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        self._process = None
        end_process(process, self._owner)


def write_line(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdin is not None, "the process was started with pipes"
    try:
        process.stdin.write(line + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        return  # it has ended; that there is no answer says so


def start_process() -> subprocess.Popen[bytes]:
    """CapacityError where the system gives none, UnsupportedError without Jinja2."""
    search = os.pathsep.join((str(Path(__file__).parent), *engine_folders()))
    try:
        return subprocess.Popen(
            [sys.executable, *COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=child_environment(PYTHONPATH=search),
        )
    except OSError as error:
        raise CapacityError(f"cannot start the chat template's process: {error.strerror}", hint="free some memory or processes") from error


def engine_folders() -> list[str]:
    """Where Jinja2 and the one library that it needs are installed: all that the process can import."""
    specs = [importlib.util.find_spec(name) for name in ("jinja2", "markupsafe")]
    if any(spec is None or spec.origin is None for spec in specs):
        raise UnsupportedError("chat templates need Jinja2, which is not installed", hint="pip install jinja2")
    return list(dict.fromkeys(str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin))


def end_process(process: subprocess.Popen[bytes], owner: int) -> None:
    """Ends it and waits for it; only in the process that started it, since a forked one has nothing to end."""
    if os.getpid() != owner:
        return
    process.kill()
    for pipe in (process.stdin, process.stdout):
        try:
            if pipe is not None:
                pipe.close()
        except OSError:  # what was not written yet is not wanted any more
            continue
    process.wait()
