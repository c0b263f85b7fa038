"""A chat as token ids. Control tokens that the template writes are tokens; the same text in a message stays text.

The template computes on the messages as they are. Its text says which characters came from them (`chat_template.Rendered`), and a control
token is one whose first and last characters the template wrote: `'<|' + role + '|>'` is its own, whoever gave the role.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from minicpm4.errors import CheckpointError, RequestError
from minicpm4.text.chat_template import ChatTemplate, ChatTemplates, check_messages
from minicpm4.text.tokenizer import Tokenizer


class ChatOptions(TypedDict, total=False):
    """What a chat has beside its messages: the keyword arguments of `encode_chat`, as `LLM` takes them."""

    tools: Sequence[Mapping[str, Any]] | None
    documents: Sequence[Mapping[str, Any]] | None
    chat_template: str | None
    add_generation_prompt: bool
    continue_final_message: bool
    variables: Mapping[str, Any] | None


def encode_chat(
    tokenizer: Tokenizer,
    templates: ChatTemplates | None,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    chat_template: str | None = None,
    add_generation_prompt: bool | None = None,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] | None = None,
    add_bos: bool | None = None,
) -> list[int]:
    """The ids of a chat; the arguments are those of `ChatTemplate.render` and `Tokenizer.encode`, and so are the errors.

    chat_template: the name of one of the model's templates (see `ChatTemplates.choose`). add_generation_prompt is off where the final
    message continues. No string in messages, tools, documents or variables becomes a control token. CheckpointError for a model without a
    template, RequestError for a message without text.
    """
    if templates is None:
        raise CheckpointError("this model has no chat template", hint="complete plain text with generate, or name a model that has one")
    check_messages(messages, variables)
    template = templates.choose(chat_template, has_tools=bool(tools))
    rendered = template.render(
        [with_fitting_content(message, template) for message in messages],
        tools=tools,
        documents=documents,
        add_generation_prompt=not continue_final_message if add_generation_prompt is None else add_generation_prompt,
        continue_final_message=continue_final_message,
        variables=variables,
    )
    parts = tokenizer.split(rendered.text, parses_special=True, foreign=rendered.foreign)
    return tokenizer.encode_parts(parts, add_bos=add_bos)


def with_fitting_content(message: Mapping[str, Any], template: ChatTemplate) -> Mapping[str, Any]:
    """The message with its content as the template reads it: parts of text, or one text.

    Content may be missing, or None, beside tool calls or reasoning. RequestError for other content, such as an image.
    """
    content = message.get("content")
    if isinstance(content, list | tuple):
        strange = next((part for part in content if not is_text_part(part)), None)
        if strange is None:
            return message if template.reads_parts else {**message, "content": "".join(part["text"] for part in content)}
        kind = strange.get("type") if isinstance(strange, Mapping) else None
        content = f"a part of type {kind}" if isinstance(kind, str) and kind != "text" else content
    elif isinstance(content, str):
        return message if template.reads_text else {**message, "content": [{"type": "text", "text": content}]}
    elif content is None and any(message.get(name) for name in ("tool_calls", "reasoning_content", "thinking", "reasoning")):
        return message
    raise RequestError(
        f"the content of a message is {content!r:.80}, expected text",
        hint='give {"role": ..., "content": "..."}; parts of content must be {"type": "text", "text": "..."}',
    )


def is_text_part(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
