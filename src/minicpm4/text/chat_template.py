"""Chat templates: messages to the text that a model was trained on, by the Jinja program that came with it.

The program is a stranger's. Jinja2's own sandbox renders it, so that it computes what it computes for its makers, in a confined process
(`template_worker`). Every character of the text is known to be the template's or the messages'.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from minicpm4.errors import CheckpointError, RequestError
from minicpm4.text.messages import check_depth, cut_at_end, plain_json, prepare_messages
from minicpm4.text.template_worker import TemplateWorker

MAX_SOURCE = 1 << 20  # characters; published templates take up to 30 thousand
MAX_INPUT = 3 << 20  # bytes of messages
MAX_OUTPUT = 4 << 20
MAX_MEMORY = 1 << 30
MAX_SECONDS = 2  # of processor time
DEFAULT, TOOL_USE = "default", "tool_use"
OWN_NAMES = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token")
NEEDLE = "needle-3f1c"


@dataclass(frozen=True)
class Rendered:
    """A chat as text. foreign: the stretches, from and to, that came from the messages; all else the template wrote."""

    text: str
    foreign: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class ChatTemplate:
    """One template. source: the Jinja program. tokens: the model's special tokens by the names that templates read, such as bos_token."""

    source: str = field(repr=False)
    tokens: Mapping[str, str] = field(default_factory=dict)

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
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> Rendered:
        """The chat as text.

        messages, tools, documents: JSON values, as the model's makers document them; keys of a message whose value is None are left out.
        add_generation_prompt: end where the assistant's turn begins. continue_final_message: end with the last message's content instead,
        so that the model goes on with it. variables: others that the template reads, such as enable_thinking.
        Raises RequestError where the template refuses the messages, or they are no messages; CheckpointError where it fails.
        """
        check_messages(messages, variables)
        if continue_final_message and add_generation_prompt:
            raise RequestError(
                "a chat cannot end with a message that goes on and with the beginning of an answer",
                hint="give continue_final_message=True and add_generation_prompt=False, or neither",
            )
        prepared, final = prepare_messages(messages, continues=continue_final_message)
        values = {**plain_json(variables or {}), "messages": prepared, "tools": check_tools(tools), "documents": plain_json(documents)}
        rendered = self._ask({**values, "add_generation_prompt": add_generation_prompt})
        return rendered if final is None else Rendered(*cut_at_end(rendered.text, rendered.foreign, final=final))

    @cached_property
    def reads_parts(self) -> bool:
        """Whether it prints the text of typed parts; most templates print content as it is, and want text."""
        return self._shows([{"type": "text", "text": NEEDLE}])

    @cached_property
    def reads_text(self) -> bool:
        """Whether it prints content that is text; a few go through parts and find none in it."""
        return not self.reads_parts or self._shows(NEEDLE)

    def _shows(self, content: Any) -> bool:
        try:
            text = self.render([{"role": "user", "content": content}]).text
        except (RequestError, CheckpointError):
            return False
        return NEEDLE in text and f"'{NEEDLE}" not in text and f'"{NEEDLE}' not in text

    def _ask(self, values: Mapping[str, Any]) -> Rendered:
        reply = self._worker.ask(make_request(values, self.tokens))
        if "refusal" in reply:
            raise RequestError(f"the chat template refuses the messages: {reply['refusal']:.300}", hint="change them as it says")
        if "failure" in reply:
            raise CheckpointError(
                f"the chat template failed: {reply['failure']:.300}", hint="it is damaged, or needs something that the messages lack"
            )
        return Rendered(reply["text"], tuple((start, stop) for start, stop in reply["foreign"]))

    def close(self) -> None:
        """Ends its process, which another chat would start anew."""
        self._worker.close()

    @cached_property
    def _worker(self) -> TemplateWorker:
        limits = {"max_output": MAX_OUTPUT, "max_memory": MAX_MEMORY, "max_seconds": MAX_SECONDS}
        return TemplateWorker({"source": self.source, **limits})


@dataclass(frozen=True)
class ChatTemplates:
    """A model's templates by name; one that has a single template calls it `default`."""

    named: Mapping[str, ChatTemplate]

    def choose(self, name: str | None = None, *, has_tools: bool = False) -> ChatTemplate:
        """The template of that name; else the one for tools where tools are given and there is one; else the default.

        RequestError where there is none of that name, or no default.
        """
        wanted = name or (TOOL_USE if has_tools and TOOL_USE in self.named else DEFAULT)
        if wanted not in self.named:
            problem = f"there is no chat template {name!r:.80}" if name else "none of the model's chat templates is the default"
            raise RequestError(problem, hint=f"choose one by chat_template: {', '.join(sorted(self.named))}")
        return self.named[wanted]

    def close(self) -> None:
        for template in self.named.values():
            template.close()


def check_messages(messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None) -> None:
    is_list = isinstance(messages, Sequence) and not isinstance(messages, str)
    if not is_list or not messages or not all(isinstance(message, Mapping) for message in messages):
        raise RequestError("a chat needs messages", hint="give a list of objects such as {'role': 'user', 'content': 'Hello'}")
    taken = [name for name in variables or () if name in OWN_NAMES]
    if taken:
        raise RequestError(f"the template variable {taken[0]} is set by its own argument", hint="leave it out of the variables")


def check_tools(tools: Sequence[Mapping[str, Any]] | None) -> Any:
    if tools is not None and (isinstance(tools, str | Mapping) or not all(isinstance(tool, Mapping) for tool in tools)):
        raise RequestError("tools are no list of objects", hint='give JSON schemas, such as {"type": "function", "function": {...}}')
    return plain_json(tools)


def make_request(values: Mapping[str, Any], own: Mapping[str, str]) -> bytes:
    """What the renderer's process reads. RequestError for values that JSON or Unicode cannot hold, and for too many of them."""
    check_depth(values)
    try:
        size = len(json.dumps(values, ensure_ascii=False).encode())
        if size > MAX_INPUT:
            raise RequestError(f"the messages take {size} bytes, at most {MAX_INPUT} are rendered", hint="shorten the chat")
        return json.dumps({"messages": values, "own": own}).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(
            f"the messages hold something that is no JSON or no Unicode: {error!s:.200}",
            hint="give strings without lone surrogates, numbers, booleans, lists and objects",
        ) from error
