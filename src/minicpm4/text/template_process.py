"""Renders one chat template in a process of its own, which may run out of time, memory or stack without harm to its parent.

Started by `chat_template`: reads a JSON object from standard input (source, variables, fuel, max_output, max_memory,
max_seconds) and writes one with `text`, `refusal` or `failure`. Knows nothing else of this package and imports none of it.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import minijinja

# Marks an assistant's words for training and prints nothing; the engine does not know it.
GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


class Refusal(Exception):
    """The template called raise_exception."""


def limit(*, memory: int, seconds: int) -> None:
    """Bounds this process where the system can; elsewhere its parent's patience and the fuel remain."""
    try:
        import resource  # Unix only

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    except (ImportError, ValueError, OSError):
        return


def raise_exception(message: object) -> None:
    raise Refusal(str(message))


def strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def to_json(value: Any, **options: Any) -> str:
    """As Hugging Face's templates expect it: not escaped for HTML, and not ASCII only, unless they ask for it."""
    return json.dumps(value, **{"ensure_ascii": False, **options})


def is_iterable(value: object) -> bool:
    """As Jinja has it; the engine would say so of none, too."""
    return isinstance(value, Iterable)


def is_sequence(value: object) -> bool:
    """As Jinja has it: strings and objects are."""
    return isinstance(value, Sequence | Mapping)


def make_environment(fuel: int) -> minijinja.Environment:
    environment = minijinja.Environment(
        fuel=fuel, trim_blocks=True, lstrip_blocks=True, auto_escape_callback=lambda name: False, debug=False
    )
    environment.add_global("raise_exception", raise_exception)
    environment.add_global("strftime_now", strftime_now)
    environment.add_filter("tojson", to_json)
    environment.add_test("iterable", is_iterable)
    environment.add_test("sequence", is_sequence)
    return environment


def render(request: dict[str, Any]) -> dict[str, str]:
    """The text, the template's refusal of the messages, or how it failed."""
    source = GENERATION.sub(lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}", request["source"])
    try:
        text = make_environment(request["fuel"]).render_str(source, **request["variables"])
    except Refusal as refusal:
        return {"refusal": str(refusal)[:1000]}
    except Exception as error:
        return {"failure": str(error).splitlines()[0][:1000]}
    if len(text.encode()) > request["max_output"]:
        return {"failure": f"it writes more than {request['max_output']} bytes"}
    return {"text": text}


def main() -> None:
    request = json.load(sys.stdin.buffer)
    limit(memory=request["max_memory"], seconds=request["max_seconds"])
    sys.stdout.buffer.write(json.dumps(render(request)).encode())


if __name__ == "__main__":
    main()
