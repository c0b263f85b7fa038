"""Chat templates: the same text as transformers renders, bounds on hostile ones, and where a model keeps its own."""

import json
import subprocess
import sys
import time
from collections import UserDict
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from chat_cases import CHATS, TEMPLATES, message
from tiny_tokenizers import byte_pair_metadata
from tokenizers import Tokenizer as Library
from tokenizers import models

from minicpm4.checkpoint import read_gguf
from minicpm4.errors import CapacityError, CheckpointError, RequestError, UnsupportedError
from minicpm4.text import ChatTemplate, chat_template, template_of_folder, template_of_gguf, template_process

USER = [message("user", "Hello")]


@pytest.fixture(scope="module")
def transformers_tokenizer() -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Library(models.BPE()), bos_token="<s>", eos_token="<|im_end|>")


def published(tokenizer: Any, source: str, chat: dict[str, Any], **options: Any) -> str | None:
    """What transformers makes of it; None where it fails."""
    variables = chat.get("variables", {})
    try:
        return tokenizer.apply_chat_template(
            chat["messages"], tools=chat.get("tools"), chat_template=source, tokenize=False, **options, **variables
        )
    except Exception:  # of Jinja, or what Jinja runs into
        return None


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("chat", CHATS)
def test_same_text_as_transformers(transformers_tokenizer: Any, name: str, chat: str) -> None:
    template = ChatTemplate(TEMPLATES[name], bos="<s>", eos="<|im_end|>")
    expected = published(transformers_tokenizer, TEMPLATES[name], CHATS[chat], add_generation_prompt=True)
    if expected is None:
        with pytest.raises((RequestError, CheckpointError)):
            template.render(**CHATS[chat])
    else:
        assert template.render(**CHATS[chat]) == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_without_generation_prompt(transformers_tokenizer: Any, name: str) -> None:
    template = ChatTemplate(TEMPLATES[name], bos="<s>", eos="<|im_end|>")
    expected = published(transformers_tokenizer, TEMPLATES[name], CHATS["one"], add_generation_prompt=False)
    assert template.render(**CHATS["one"], add_generation_prompt=False) == expected


def test_most_cases_are_compared(transformers_tokenizer: Any) -> None:
    """That transformers fails may not be the rule above."""
    made = [published(transformers_tokenizer, source, chat) for source in TEMPLATES.values() for chat in CHATS.values()]
    assert sum(text is not None for text in made) >= 40


def render(source: str, **options: Any) -> str:
    return ChatTemplate(source, bos="<s>", eos="</s>").render(USER, **options)


def test_a_refusal_is_the_requests_fault() -> None:
    with pytest.raises(RequestError, match=r"the chat template refuses the messages: no such role; change them as it says"):
        render("{{ raise_exception('no such role') }}")


FAILURES = {
    "syntax": ("{% for %}", "syntax error"),
    "unknown-function": ("{{ open('/etc/passwd') }}", "unknown function"),
    "undefined-field": ("{{ nothing.at_all }}", "undefined value"),
    "wrong-types": ("{{ 'a' + 1 }}", "invalid operation: tried to use"),
    "include": ("{% include '/etc/passwd' %}", "template not found"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_the_templates_fault(case: str) -> None:
    source, reason = FAILURES[case]
    with pytest.raises(CheckpointError, match=f"the chat template failed: {reason}") as failure:
        render(source)
    assert failure.value.hint
    assert "\n" not in str(failure.value)


DOUBLE = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
HOSTILE = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['sys'].modules['os'].system('touch canary') }}",
    "init": "{{ messages.__init__.__globals__.__builtins__ }}",
    "self": "{{ self.__init__.__globals__ }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('touch canary').read() }}",
    "import": "{% import 'os' as os %}{{ os.system('touch canary') }}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "long-string": "{{ 'x' * 1000000000 }}",
    "doubled-string": "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "huge-power": "{{ 10 ** 10 ** 10 }}",
    "huge-format": "{{ '{:99999999999}'.format(1) }}",
    "large-format": "{{ '{:900000000}'.format(1) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep-source": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "long-sum": "{{ 1" + "+1" * 100_000 + " }}",
    "long-negation": "{{ " + "not " * 100_000 + "1 }}",
    "shared-lists": DOUBLE + "{{ ns.x }}",
    "shared-lists-json": DOUBLE + "{{ ns.x | tojson }}",
    "deep-lists": "{% set ns = namespace(x=1) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "holds-itself": "{% set ns = namespace(x=1) %}{% set ns.x = ns %}{{ ns }}",
    "output": "{% for i in range(60000) %}{{ 'y' * 90 }}{% endfor %}",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_templates_end_soon_and_harm_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends with an error, and of the worst not even this process notices more."""
    monkeypatch.setattr(chat_template, "MAX_SECONDS", 1)
    monkeypatch.chdir(tmp_path)
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"the chat template (failed|ran out of)"):
        render(HOSTILE[case])
    assert time.perf_counter() - start < 10
    assert not list(tmp_path.iterdir())


def test_a_template_that_waits_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(chat_template, "PROCESS", sleeper)
    monkeypatch.setattr(chat_template, "PATIENCE", 0.2)
    with pytest.raises(CheckpointError, match=r"took more than 0\.2 s"):
        render("x")


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(CapacityError, match="cannot start the chat template's process"):
        render("x")


def test_without_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="chat templates need minijinja, which is not installed"):
        render("x")


def test_functions_and_filters() -> None:
    before = datetime.now()
    year = render("{{ strftime_now('%d %b %Y') }}")
    assert year in {moment.strftime("%d %b %Y") for moment in (before, datetime.now())}
    assert render("{{ x | tojson }}", variables={"x": {"b": "<é>", "a": None}}) == '{"b": "<é>", "a": null}'
    assert render("{{ x | tojson(sort_keys=true, ensure_ascii=true) }}", variables={"x": {"b": "é", "a": 1}}) == '{"a": 1, "b": "\\u00e9"}'
    assert render("{{ none is iterable }} {{ 'a' is sequence }} {{ {} is sequence }} {{ 1 is sequence }}") == "False True True False"
    assert render("a\n{% if true %}\n  b\n{% endif %}\nc\n") == "a\n  b\nc"


def test_variables() -> None:
    assert render("{{ bos_token }}{{ documents }}{{ x.y }}{{ eos_token }}", variables={"x": {"y": 1}}) == "<s>None1</s>"
    assert render("{{ documents[0] }}", variables={"documents": ["d"]}) == "d"
    assert render("{{ messages[0].content }}", variables=MappingProxyType({"x": UserDict(a=1)})) == "Hello"
    with pytest.raises(RequestError, match="the template variable tools is set by its own argument"):
        render("x", variables={"tools": []})


@pytest.mark.parametrize("messages", [[], "Hello", ["Hello"], {"role": "user"}], ids=str)
def test_messages_that_are_none(messages: Any) -> None:
    with pytest.raises(RequestError, match="a chat needs messages; give a list of objects"):
        ChatTemplate("x", bos="", eos="").render(messages)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("content", "reason"),
    [("\ud83d", "surrogates not allowed"), (b"Hello", "type bytes"), ({1, 2}, "type set"), (nested(100_000), "recursion")],
    ids=["surrogate", "bytes", "set", "deep"],
)
def test_values_that_json_cannot_hold(content: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=f"no JSON or no Unicode: .*{reason}"):
        ChatTemplate("x", bos="", eos="").render([message("user", content)])


def test_long_messages() -> None:
    template = ChatTemplate(TEMPLATES["thinking"], bos="", eos="")
    text = "word " * 200_000
    assert text.strip() in template.render([message("user", text)])
    with pytest.raises(RequestError, match="at most 3145728 are rendered"):
        template.render([message("user", text * 4)])


def test_a_program_out_of_bounds() -> None:
    with pytest.raises(CheckpointError, match="has 1048577 characters, at most 1048576 are read"):
        ChatTemplate("x" * ((1 << 20) + 1), bos="", eos="")


def test_the_process_can_be_run_by_hand() -> None:
    request = {"source": "{{ x }}", "variables": {"x": 1}, "fuel": 100, "max_output": 10, "max_memory": 1 << 30, "max_seconds": 1}
    done = subprocess.run(
        [sys.executable, template_process.__file__], input=json.dumps(request).encode(), stdout=subprocess.PIPE, check=True
    )
    assert json.loads(done.stdout) == {"text": "1"}
    assert template_process.render({**request, "max_output": 0}) == {"failure": "it writes more than 0 bytes"}
    assert "ran out of fuel" in template_process.render({**request, "fuel": 1})["failure"]
    assert template_process.render({**request, "source": "{{ raise_exception(x) }}"}) == {"refusal": "1"}


def test_the_file_goes_before_the_setting(tmp_path: Path) -> None:
    assert template_of_folder(tmp_path) is None
    config = {"chat_template": "setting", "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert template_of_folder(tmp_path) == ChatTemplate("setting", bos="<s>", eos="</s>")
    (tmp_path / "chat_template.jinja").write_text("file")
    assert template_of_folder(tmp_path) == ChatTemplate("file", bos="<s>", eos="</s>")


def test_named_templates(tmp_path: Path) -> None:
    def write(value: Any) -> None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))

    write([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}])
    assert template_of_folder(tmp_path) == ChatTemplate("d", bos="", eos="")
    write([{"name": "tool_use", "template": "t"}])
    with pytest.raises(CheckpointError, match="holds the chat templates 'tool_use', none of them the default"):
        template_of_folder(tmp_path)
    for value in (5, [5]):
        write(value)
        with pytest.raises(CheckpointError, match="expected text or a list"):
            template_of_folder(tmp_path)


def test_the_template_of_a_gguf_file(default_gguf: Path) -> None:
    template = template_of_gguf(read_gguf(default_gguf).metadata)
    assert template is not None
    assert (template.bos, template.eos) == ("<|im_start|>", "<|im_end|>")
    assert template.render(USER).endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_metadata_without_a_template_or_with_a_wrong_one() -> None:
    metadata = byte_pair_metadata(eos_token_id=None)
    assert template_of_gguf(metadata) is None
    assert template_of_gguf({**metadata, "tokenizer.chat_template": "x"}) == ChatTemplate("x", bos="<|im_start|>", eos="")
    with pytest.raises(CheckpointError, match=r"tokenizer\.chat_template is a int, expected text"):
        template_of_gguf({**metadata, "tokenizer.chat_template": 5})


def test_minicpm_keeps_its_template_in_the_setting(official: Path) -> None:
    template = template_of_folder(official / "8B")
    assert template == ChatTemplate(TEMPLATES["minicpm"], bos="<s>", eos="<|im_end|>")
