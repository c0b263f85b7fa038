"""A chat as token ids. Control tokens that the template writes are tokens; the same text in a message stays text.

Before rendering, control tokens' text in the messages is disguised: its first character becomes a noncharacter, a code point
that Unicode reserves for such private use. After the rendered text is split at its control tokens, the character is put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from minicpm4.errors import CheckpointError, RequestError
from minicpm4.text.chat_template import ChatTemplate, check_messages
from minicpm4.text.tokenizer import Tokenizer, any_of

NONCHARACTERS = [*map(chr, range(0xFDD0, 0xFDF0)), *(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))]
MAX_DEPTH = 64  # of lists and objects in a message


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
    add_bos: bool | None = None,
) -> list[int]:
    """The ids of a chat; the arguments are those of `ChatTemplate.render` and `Tokenizer.encode`, and so are the errors.

    No string in messages, tools or variables becomes a control token. CheckpointError for a model without a template,
    RequestError for a message without text (see `with_plain_content`).
    """
    if template is None:
        raise CheckpointError("this model has no chat template", hint="complete plain text with generate, or name a model that has one")
    check_messages(messages, variables)
    disguise = Disguise(tokenizer.special_tokens, strings_in([messages, tools, variables]))
    text = template.render(
        [disguise.put_on(with_plain_content(message)) for message in messages],
        tools=disguise.put_on(tools),
        add_generation_prompt=add_generation_prompt,
        variables=disguise.put_on(variables),
    )
    parts = tokenizer.split(text, parses_special=True)
    return tokenizer.encode_parts([disguise.take_off(part) if isinstance(part, str) else part for part in parts], add_bos=add_bos)


def with_plain_content(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message with its content as one text, which is all that most templates can print; parts of type text are joined.

    Content may be missing, or None, beside tool calls. RequestError for other content.
    """
    content = message.get("content")
    if isinstance(content, list | tuple) and all(is_text_part(part) for part in content):
        return {**message, "content": "".join(part["text"] for part in content)}
    if not isinstance(content, str) and not (content is None and message.get("tool_calls")):
        raise RequestError(
            f"the content of a message is {content!r:.80}, expected text",
            hint='give {"role": ..., "content": "..."}; parts of content must be {"type": "text", "text": "..."}',
        )
    return message


def is_text_part(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)


class Disguise:
    """Hides the text of control tokens from whoever looks for it.

    control: the tokens' texts. strings: every string to be disguised; the noncharacters are ones that none of them holds.
    """

    def __init__(self, control: Iterable[str], strings: Iterable[str]) -> None:
        texts = [text for text in control if text]
        self._pattern = any_of(texts)
        self._beginnings = {text[:size] for text in texts if not text[0].isalnum() for size in range(1, len(text))}
        self._longest = max(map(len, self._beginnings), default=0)
        self._mask = dict(zip(dict.fromkeys(text[0] for text in texts), free_noncharacters(strings), strict=False))
        if len(self._mask) < len({text[0] for text in texts}):
            raise RequestError("the messages hold almost every noncharacter of Unicode", hint="leave them out; they are no text")
        self._unmask = {ord(mask): character for character, mask in self._mask.items()}

    def put_on(self, value: Any) -> Any:
        """The JSON value with every string in it disguised, keys of objects too."""
        if isinstance(value, str):
            return self._hide(value)
        if isinstance(value, Mapping):
            return {self.put_on(key): self.put_on(item) for key, item in value.items()}
        return [self.put_on(item) for item in value] if isinstance(value, Sequence) else value

    def take_off(self, text: str) -> str:
        return text.translate(self._unmask)

    def _hide(self, text: str) -> str:
        """Also hides the beginning of a token at the end of the text, which the next text may complete.

        Not one that begins with a letter: such an end is likelier a role's, which the template compares.
        """
        ends = [size for size in range(1, self._longest + 1) if text[-size:] in self._beginnings and size <= len(text)]
        for size in ends:
            start = len(text) - size
            text = text[:start] + self._mask[text[start]] + text[start + 1 :]
        while self._pattern and self._pattern.search(text):  # again, because tokens may overlap
            text = self._pattern.sub(lambda match: self._mask[match[0][0]] + match[0][1:], text)
        return text


def free_noncharacters(strings: Iterable[str]) -> list[str]:
    used = {character for text in strings for character in NONCHARACTERS if character in text}
    return [character for character in NONCHARACTERS if character not in used]


def strings_in(value: Any, depth: int = 0) -> Iterator[str]:
    """Every string in a JSON value, keys of objects among them. RequestError where it is nested too deep."""
    if depth > MAX_DEPTH:
        raise RequestError(f"the messages are nested more than {MAX_DEPTH} deep", hint="flatten them")
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | Sequence):
        for item in [*value.keys(), *value.values()] if isinstance(value, Mapping) else value:
            yield from strings_in(item, depth + 1)
