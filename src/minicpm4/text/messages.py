"""Messages as templates get them: plain JSON values, with the conventions that published templates rely on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minicpm4.errors import RequestError

MAX_DEPTH = 64  # of lists and objects in a message
REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")  # one thing under three names; the first is the usual one
CONTINUED = "CONTINUE_FINAL_MESSAGE_TAG "  # ends with a space, to see whether the template trims


def prepare_messages(messages: Sequence[Mapping[str, Any]], *, continues: bool) -> tuple[list[Any], str | None]:
    """The messages, and the text that the last of them is continued from, or None.

    Keys without a value are left out, and what was thought is under each of its names that templates read. continues: the last message's
    content gets a mark at its end, for `cut_at_end`. RequestError for a last message without text to continue.
    """
    check_depth(messages)
    prepared = [with_reasoning({key: plain_json(value) for key, value in message.items() if value is not None}) for message in messages]
    if not continues:
        return prepared, None
    last = prepared[-1]
    content, parts = last.get("content"), last.get("content")
    if isinstance(parts, list):
        texts = [part for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
        content = texts[-1]["text"] if texts else None
        if texts:
            texts[-1]["text"] += CONTINUED
    elif isinstance(content, str):
        last["content"] = content + CONTINUED
    if not isinstance(content, str):
        raise RequestError("the last message has no text to continue", hint="give it content, or leave continue_final_message out")
    return prepared, content


def with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    reasoning = next((message[name] for name in REASONING_NAMES if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def cut_at_end(text: str, foreign: Sequence[tuple[int, int]], *, final: str) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The text up to where the last message's content ends, and its stretches of message text. RequestError where it is not there."""
    place = text.rfind(CONTINUED.strip())
    if place < 0 or final.strip() not in text:
        raise RequestError(
            "the chat template leaves out some of the last message, which cannot be continued then",
            hint="leave continue_final_message out, or shorten the message to what the template keeps",
        )
    is_trimmed = not text.startswith(CONTINUED, place)
    kept = text[:place].rstrip() if is_trimmed else text[:place]
    return kept, tuple((start, min(stop, len(kept))) for start, stop in foreign if start < len(kept))


def check_depth(value: Any, depth: int = 0) -> None:
    """RequestError where lists and objects are nested too deep."""
    if depth > MAX_DEPTH:
        raise RequestError(f"the messages are nested more than {MAX_DEPTH} deep", hint="flatten them")
    if isinstance(value, Mapping) or (isinstance(value, Sequence) and not isinstance(value, str | bytes)):
        for item in value.values() if isinstance(value, Mapping) else value:
            check_depth(item, depth + 1)


def plain_json(value: Any) -> Any:
    """The value with mappings as dicts, sequences as lists, and strings and numbers of their plain types; others are left for JSON to
    refuse."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {plain_json(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(item) for item in value]
    return value
