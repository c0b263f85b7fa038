"""Reads requests, a line of JSON each, and answers each with one.

The first names the template and the limits: {"source", "max_output", "max_memory", "max_seconds"}. Each after it holds the values to
render with: {"messages", "own"}: text in the former is marked, the latter are the model's own (its special tokens). Answers:
{"text", "foreign": [[start, end], ...]} with the stretches that came from the messages, {"refusal"} or {"failure"}.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import time
import traceback
from typing import Any

import jinja2
import jinja2.debug  # which Jinja2 imports when a template fails

from .confine import allow_seconds, forbid_system_calls, limit_resources
from .environment import Refusal, make_environment
from .marked import concat, mark_all, marks_of, plain

EVERYTHING = """{{ 'a <b>c</b> http://d.e' | urlize | striptags | wordwrap(3) | title | truncate(9) | urlencode }}{{ {'a': 1} | xmlattr }}
{{ [1, {'a': 2}] | pprint }}{{ strftime_now('%c %Z') }}{{ [1, 2] | random }}{{ lipsum(n=1, html=false) }}{{ 1000 | filesizeformat }}
{{ 'é'.encode('utf-16') }}{{ 'é'.encode('idna') }}{{ '&amp;' | e | striptags }}
{{ [{'a': 1}] | groupby('a') }}{{ 'x' | escape | forceescape }}"""
FOREIGN_RUN = re.compile(b"\x01+")


def answer(template: jinja2.Template, request: dict[str, Any], *, max_output: int) -> dict[str, Any]:
    text = concat([template.render({**request["own"], **mark_all(request["messages"])})])
    if len(plain(text)) > max_output or len(plain(text).encode()) > max_output:
        return {"failure": f"it writes more than {max_output} bytes"}
    return {"text": plain(text), "foreign": [run.span() for run in FOREIGN_RUN.finditer(marks_of(text))]}


def failure(error: BaseException) -> dict[str, str]:
    """What went wrong, and on which line of the template."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == "<template>"]
    line = error.lineno if isinstance(error, jinja2.TemplateSyntaxError) else lines[-1] if lines else None
    kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
    said = (str(error) or type(error).__name__).splitlines()[0][:500]
    return {"failure": f"{kind}{said}" + (f" (line {line})" if line else "")}


def prepare() -> None:
    """Has everything imported that a template can make Jinja2 or Python import later, when no file can be opened any more."""
    time.localtime()
    make_environment().from_string(EVERYTHING).render()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the parent's
    prepare()
    setting = json.loads(sys.stdin.buffer.readline())
    limit_resources(memory=setting["max_memory"])
    forbid_system_calls()
    template: jinja2.Template | None = None
    for line in sys.stdin.buffer:
        allow_seconds(setting["max_seconds"])
        try:
            template = make_environment().from_string(setting["source"]) if template is None else template
            reply = answer(template, json.loads(line), max_output=setting["max_output"])
        except Refusal as refusal:
            reply = {"refusal": str(refusal)[:1000]}
        except Exception as error:
            reply = failure(error)
        allow_seconds(0)
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
