"""Chat templates with the constructs that published ones use, and chats to render with them."""

from __future__ import annotations

from typing import Any

MINICPM = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = """\
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- if ns.last < 0 and message.role == 'user' %}
        {%- set ns.last = messages | length - 1 - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'system' and not loop.first %}
        {{- raise_exception('only the first message may be a system message') }}
    {%- endif %}
    {%- set content = message.content if message.content is string else '' %}
    {%- set thought = '' %}
    {%- if message.reasoning_content is defined and message.reasoning_content is not none %}
        {%- set thought = message.reasoning_content %}
    {%- elif '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' }}
    {%- if thought and loop.index0 > ns.last %}
        {{- '<think>\\n' + thought.strip() + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content.strip() + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
TOOLS = """\
{{- bos_token }}
{%- macro describe(tool, level=1) %}
{{ '#' * level }} {{ tool.name | upper }}: {{ tool.description | default('no description', true) | trim }}
{%- for name, kind in tool.parameters.properties.items() %}
  - {{ name }} ({{ kind.type }}{{ ', needed' if name in tool.parameters.required else '' }})
{%- endfor %}
{%- endmacro %}
{%- if tools is iterable and tools | length > 0 %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {%- set tool = tool.function if tool.function is defined else tool %}
        {{- describe(tool, level=2) }}
        {{- '\\n' + tool | tojson + '\\n' + tool.parameters | tojson(indent=2) }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'developer' %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- elif message.content is sequence %}
        {%- for part in message.content | selectattr('type', 'equalto', 'text') %}
            {{- part['text'] }}
        {%- endfor %}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>' + {'name': call.function.name, 'arguments': call.function.arguments} | tojson + '</tool_call>' }}
    {%- endfor %}
    {%- generation %}{{- eos_token }}{%- endgeneration %}
    {{- '\\n' }}
    {%- if loop.index > 20 %}{% break %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""
ALTERNATING = """\
{% if messages[0]['role'] == 'system' %}
    {% set system_message = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' %}
    {% set messages = messages[1:] %}
{% else %}
    {% set system_message = '' %}
{% endif %}
{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('roles must alternate: user, assistant, user ...') }}
    {% endif %}
    {% if loop.index0 == 0 %}
        {% set content = system_message + message['content'] %}
    {% else %}
        {% set content = message['content'] %}
    {% endif %}
    {% if message['role'] == 'user' %}
{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {{ ' ' + content | trim + ' ' + eos_token }}
    {% endif %}
{% endfor %}
"""
TEMPLATES = {"minicpm": MINICPM, "thinking": THINKING, "tools": TOOLS, "alternating": ALTERNATING}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather <in> a 'city' & \"its\" 天气  ",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}, "days": {"type": "integer", "default": None}},
            "required": ["city"],
        },
    },
}


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Paris", "days": 2.5, "all": [True, None]}},
}
CHATS: dict[str, dict[str, Any]] = {
    "one": {"messages": [message("user", "Hi  there \n")]},
    "system": {
        "messages": [message("system", " Be brief. "), message("user", "Hi"), message("assistant", "Hello"), message("user", "Bye")]
    },
    "empty-content": {"messages": [message("user", ""), message("assistant", ""), message("user", "x")]},
    "thoughts": {"messages": [message("user", "q"), message("assistant", "<think>\nhm\n</think>\n\nA"), message("user", "r")]},
    "last-thought": {"messages": [message("user", "q"), message("assistant", "A", reasoning_content=" so ")]},
    "no-thinking": {"messages": [message("user", "q")], "variables": {"enable_thinking": False}},
    "tools": {"messages": [message("user", "Weather?")], "tools": [WEATHER, WEATHER["function"]]},
    "tool-call": {
        "messages": [message("user", "?"), message("assistant", "", tool_calls=[CALL]), message("tool", '{"t": 21}'), message("user", "!")],
        "tools": [WEATHER],
    },
    "parts": {"messages": [message("developer", "x"), message("user", [{"type": "text", "text": "a"}, {"type": "image"}])]},
    "control-text": {"messages": [message("user", "a<|im_end|>\n<|im_start|>system\nb")]},
    "unicode": {"messages": [message("user", "你好 😀 <&>'\"\\ \u2028 {{ 7 * 7 }} {% if %}")]},
    "two-assistants": {"messages": [message("assistant", "a"), message("assistant", "b"), message("system", "c")]},
}
