"""Chat templates: messages to the text that a model was trained on, by the Jinja program that came with it.

The program is a stranger's. It is rendered by minijinja, which reaches neither files nor Python, with so much fuel, and in a
process of its own: some programs of fifty characters make any engine overflow its stack or its memory (20 to 40 ms a chat).
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minicpm4.errors import CapacityError, CheckpointError, RequestError, UnsupportedError
from minicpm4.hardware import child_environment

MAX_SOURCE = 1 << 20  # characters; published templates take up to 30 thousand
MAX_INPUT = 3 << 20  # bytes of messages
MAX_OUTPUT = 4 << 20
FUEL = 1_000_000
FUEL_PER_BYTE = 4  # of messages; the engine takes some for every byte that it copies
MAX_MEMORY = 1 << 30
MAX_SECONDS = 2  # of processor time
PATIENCE = 30  # seconds, on a machine that is busy with other work
PROCESS = Path(__file__).with_name("template_process.py")
OWN_NAMES = ("messages", "tools", "add_generation_prompt", "bos_token", "eos_token")


@dataclass(frozen=True)
class ChatTemplate:
    """source: the Jinja program. bos, eos: the texts that it may write as `bos_token` and `eos_token`."""

    source: str = field(repr=False)
    bos: str
    eos: str

    def __post_init__(self) -> None:
        if len(self.source) > MAX_SOURCE:
            raise CheckpointError(
                f"the chat template has {len(self.source)} characters, at most {MAX_SOURCE} are read", hint="get the model's files again"
            )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The chat as text. Control tokens in it may come from the messages: `encode_chat` tells them apart.

        messages, tools: JSON values, as the model's makers document them. add_generation_prompt: end where the assistant's
        turn begins. variables: others that the template reads, such as enable_thinking.
        Raises RequestError where the template refuses the messages, or they are no messages; CheckpointError where it fails.
        """
        check_messages(messages, variables)
        values = {"bos_token": self.bos, "eos_token": self.eos, "documents": None, **(variables or {})}
        values |= {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
        reply = run_process(make_request(self.source, values))
        if "refusal" in reply:
            raise RequestError(f"the chat template refuses the messages: {reply['refusal']:.300}", hint="change them as it says")
        if "failure" in reply:
            raise CheckpointError(
                f"the chat template failed: {reply['failure']:.300}", hint="it is damaged, or needs something that the messages lack"
            )
        return reply["text"]


def check_messages(messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None) -> None:
    is_list = isinstance(messages, Sequence) and not isinstance(messages, str)
    if not is_list or not messages or not all(isinstance(message, Mapping) for message in messages):
        raise RequestError("a chat needs messages", hint="give a list of objects such as {'role': 'user', 'content': 'Hello'}")
    taken = [name for name in variables or () if name in OWN_NAMES]
    if taken:
        raise RequestError(f"the template variable {taken[0]} is set by its own argument", hint="leave it out of the variables")


def make_request(source: str, variables: Mapping[str, Any]) -> bytes:
    """What the renderer's process reads. RequestError for values that JSON or Unicode cannot hold, and for too many of them."""
    try:
        size = len(json.dumps(variables, ensure_ascii=False, default=as_dict).encode())
        if size > MAX_INPUT:
            raise RequestError(f"the messages take {size} bytes, at most {MAX_INPUT} are rendered", hint="shorten the chat")
        limits = {"max_output": MAX_OUTPUT, "max_memory": MAX_MEMORY, "max_seconds": MAX_SECONDS}
        request = {"source": source, "variables": variables, "fuel": FUEL + FUEL_PER_BYTE * size, **limits}
        return json.dumps(request, default=as_dict).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(
            f"the messages hold something that is no JSON or no Unicode: {error!s:.200}",
            hint="give strings without lone surrogates, numbers, booleans, lists and objects",
        ) from error


def as_dict(value: object) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def minijinja_folder() -> str:
    """Where the engine is installed: all that the process is shown of it."""
    spec = importlib.util.find_spec("minijinja")
    if spec is None or spec.origin is None:
        raise UnsupportedError("chat templates need minijinja, which is not installed", hint="pip install minijinja")
    return str(Path(spec.origin).parents[1])


def run_process(request: bytes) -> dict[str, str]:
    """The renderer's reply; CheckpointError where it broke down instead."""
    command = [sys.executable, "-S", "-s", "-P", str(PROCESS)]
    try:
        done = subprocess.run(
            command,
            input=request,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE,
            env=child_environment(PYTHONPATH=minijinja_folder()),
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(
            f"the chat template took more than {PATIENCE} s", hint="it does not end; get the model's files again"
        ) from error
    except OSError as error:
        raise CapacityError(f"cannot start the chat template's process: {error.strerror}", hint="free some memory or processes") from error
    if done.returncode:
        raise CheckpointError(
            f"the chat template ran out of time, memory or stack (status {done.returncode})", hint="get the model's files again"
        )
    return dict(json.loads(done.stdout))
