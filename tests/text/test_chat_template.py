"""Chat templates: the same text as transformers renders, bounds on hostile ones, and where a model keeps its own."""

import gc
import json
import os
import subprocess
import sys
import time
from collections import UserDict
from concurrent.futures import ThreadPoolExecutor
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
from minicpm4.text import ChatTemplates, chat_template, template_worker, templates_of_folder, templates_of_gguf
from minicpm4.text.chat_template import ChatTemplate

USER = [message("user", "Hello")]
TOKENS = {"bos_token": "<s>", "eos_token": "<|im_end|>"}


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
    template = ChatTemplate(TEMPLATES[name], TOKENS)
    expected = published(transformers_tokenizer, TEMPLATES[name], CHATS[chat], add_generation_prompt=True)
    if expected is None:
        with pytest.raises((RequestError, CheckpointError)):
            template.render(**CHATS[chat])
    else:
        assert template.render(**CHATS[chat]).text == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_without_generation_prompt(transformers_tokenizer: Any, name: str) -> None:
    template = ChatTemplate(TEMPLATES[name], TOKENS)
    expected = published(transformers_tokenizer, TEMPLATES[name], CHATS["one"], add_generation_prompt=False)
    assert template.render(**CHATS["one"], add_generation_prompt=False).text == expected


def test_most_cases_are_compared(transformers_tokenizer: Any) -> None:
    """That transformers fails may not be the rule above."""
    made = [published(transformers_tokenizer, source, chat) for source in TEMPLATES.values() for chat in CHATS.values()]
    assert sum(text is not None for text in made) >= 40


def render(source: str, **options: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(USER, **options).text


def test_a_refusal_is_the_requests_fault() -> None:
    with pytest.raises(RequestError, match=r"the chat template refuses the messages: no such role; change them as it says"):
        render("{{ raise_exception('no such role') }}")


FAILURES = {
    "syntax": ("a\n{% for %}", r"Expected an expression, got 'end of statement block' \(line 2\)"),
    "unknown-function": ("{{ open('/etc/passwd') }}", r"'open' is undefined \(line 1\)"),
    "unknown-filter": ("{{ 'a' | nothing }}", "No filter named 'nothing'"),
    "unknown-tag": ("{% nothing %}", "Encountered unknown tag 'nothing'"),
    "undefined-field": ("a\n\n{{ nothing.at_all }}", r"'nothing' is undefined \(line 3\)"),
    "wrong-types": ("{{ 'a' + 1 }}", "TypeError: .* \\(line 1\\)"),
    "include": ("{% include '/etc/passwd' %}", "TypeError: no loader for this environment"),
    "dunder": ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'Marked' object is unsafe"),
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
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "format-map": "{{ '{x.__class__.__mro__}'.format_map({'x': 1}) }}",
    "format-of-a-message": "{{ (messages[0].content ~ '{0.__class__.__mro__}').format(1) }}",
    "percent": "{{ '%(__class__)s' % messages[0].__class__ }}",
    "init": "{{ messages.__init__.__globals__.__builtins__ }}",
    "self": "{{ self.__init__.__globals__ }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('touch canary').read() }}",
    "import": "{% import 'os' as os %}{{ os.system('touch canary') }}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "long-string": "{{ 'x' * 1000000000 }}",
    "doubled-string": "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "huge-power": "{{ 10 ** (10 ** 10) }}",
    "huge-format": "{{ '{:99999999999}'.format(1) }}",
    "large-format": "{{ '{:900000000}'.format(1) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "deep-source": "{{ " + "(" * 5000 + ")" * 5000 + " }}",
    "long-sum": "{{ 1" + "+1" * 100_000 + " }}",
    "long-negation": "{{ " + "not " * 100_000 + "1 }}",
    "shared-lists": DOUBLE + "{{ ns.x }}",
    "shared-lists-json": DOUBLE + "{{ ns.x | tojson }}",
    "deep-lists": "{% set ns = namespace(x=1) %}{% for i in range(100000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "underscore": "{% set ns = namespace() %}{% set ns._x = 1 %}",
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
    monkeypatch.setattr(template_worker, "COMMAND", (str(sleeper),))
    monkeypatch.setattr(template_worker, "PATIENCE", 0.2)
    with pytest.raises(CheckpointError, match=r"took more than 0\.2 s"):
        render("x")


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(CapacityError, match="cannot start the chat template's process"):
        render("x")


def test_without_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_worker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match="chat templates need Jinja2, which is not installed"):
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
    assert render("{{ documents[0] }}", documents=["d"]) == "d"
    assert render("{{ messages[0].content }}", variables=MappingProxyType({"x": UserDict(a=1)})) == "Hello"
    with pytest.raises(RequestError, match="the template variable tools is set by its own argument"):
        render("x", variables={"tools": []})


@pytest.mark.parametrize("messages", [[], "Hello", ["Hello"], {"role": "user"}], ids=str)
def test_messages_that_are_none(messages: Any) -> None:
    with pytest.raises(RequestError, match="a chat needs messages; give a list of objects"):
        ChatTemplate("x").render(messages)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("content", "reason"),
    [("\ud83d", "surrogates not allowed"), (b"Hello", "type bytes"), ({1, 2}, "type set"), (nested(100), "")],
    ids=["surrogate", "bytes", "set", "deep"],
)
def test_values_that_json_cannot_hold(content: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=f"no JSON or no Unicode: .*{reason}" if reason else "nested more than 64 deep"):
        ChatTemplate("x").render([message("user", content)])


def test_long_messages() -> None:
    template = ChatTemplate(TEMPLATES["thinking"])
    text = "word " * 200_000
    assert text.strip() in template.render([message("user", text)]).text
    with pytest.raises(RequestError, match="at most 3145728 are rendered"):
        template.render([message("user", text * 4)])


def test_a_program_out_of_bounds() -> None:
    with pytest.raises(CheckpointError, match="has 1048577 characters, at most 1048576 are read"):
        ChatTemplate("x" * ((1 << 20) + 1))


def test_the_process_is_kept_and_started_anew_where_it_broke_down() -> None:
    template = ChatTemplate("{% if x is defined %}{{ 10 ** (10 ** x) }}{% endif %}{{ messages[0].content }}")
    assert template.render(USER).text == "Hello"
    process = template._worker._process
    assert template.render(USER).text == "Hello"
    assert template._worker._process is process
    with pytest.raises(CheckpointError, match="ran out of time, memory or stack"):
        template.render(USER, variables={"x": 10})
    assert template.render(USER).text == "Hello"
    assert process is not None
    assert process.poll() is not None
    template.close()
    template.close()


def test_the_process_ends_with_its_template_and_is_not_shared_with_a_fork() -> None:
    template = ChatTemplate("{{ messages[0].content }}")
    template.render(USER)
    process = template._worker._process
    child = os.fork()
    if child == 0:
        is_right = template.render(USER).text == "Hello" and template._worker._process is not process
        template.close()
        os._exit(0 if is_right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert template.render(USER).text == "Hello"
    assert process is not None
    del template
    gc.collect()
    assert process.poll() is not None


def test_threads_take_turns() -> None:
    template = ChatTemplate("{{ messages[0].content * 3 }}")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda index: template.render([message("user", str(index))]).text, range(64)))
    assert made == [str(index) * 3 for index in range(64)]


ESCAPED = """
import os, socket, sys
sys.path[:0] = {folders}
from rendering.confine import forbid_system_calls, limit_resources
limit_resources(memory=1 << 30)
is_confined = forbid_system_calls()
refused = 0
for attempt in (lambda: open("/etc/passwd"), lambda: open("canary", "w"), socket.socket, os.fork, lambda: os.execv("/bin/true", ["true"]),
                lambda: os.unlink("here"), lambda: os.kill(os.getppid(), 15)):
    try:
        attempt()
    except (PermissionError, OSError):
        refused += 1
print(is_confined, refused)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such filters")
def test_a_confined_process_reaches_nothing(tmp_path: Path) -> None:
    """What would be left to a program that got out of the sandbox."""
    (tmp_path / "here").touch()
    program = ESCAPED.format(folders=[str(Path(template_worker.__file__).parent), *template_worker.engine_folders()])
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "7"]
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_the_file_goes_before_the_setting(tmp_path: Path) -> None:
    assert templates_of_folder(tmp_path) is None
    config = {"chat_template": "setting", "bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    assert templates_of_folder(tmp_path) == ChatTemplates({"default": ChatTemplate("setting", tokens)})
    (tmp_path / "chat_template.jinja").write_text("file")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("more")
    found = templates_of_folder(tmp_path)
    assert found == ChatTemplates({"default": ChatTemplate("file", tokens), "rag": ChatTemplate("more", tokens)})


def test_special_tokens_are_variables(tmp_path: Path) -> None:
    config = {"chat_template": "{{ pad_token }}|{{ unk_token }}|{{ cls_token }}|", "pad_token": "<pad>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"unk_token": {"content": "<unk>"}}))
    found = templates_of_folder(tmp_path)
    assert found is not None
    assert found.choose().render(USER).text == "<pad>|<unk>||"


def test_named_templates(tmp_path: Path) -> None:
    def write(value: Any) -> None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))

    both = ChatTemplates({"tool_use": ChatTemplate("t"), "default": ChatTemplate("d")})
    for value in ([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}], {"tool_use": "t", "default": "d"}):
        write(value)
        assert templates_of_folder(tmp_path) == both
    for value in (5, [5], [{"name": "x"}], [{"name": "x", "template": 5}]):
        write(value)
        with pytest.raises(CheckpointError, match="expected text, or a list of objects with name and template"):
            templates_of_folder(tmp_path)


def test_new_lines_of_the_source_are_line_feeds(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"a\r\nb\r\n{% if true %}\r\nc\rd{% endif %}\r\n\r\n")
    found = templates_of_folder(tmp_path)
    assert found is not None
    assert found.choose().render([message("user", "x\r\n")]).text == "a\nb\nc\nd"
    assert ChatTemplate("{{ messages[0].content }}").render([message("user", "x\r\n")]).text == "x\r\n"


def test_the_template_of_a_gguf_file(default_gguf: Path) -> None:
    templates = templates_of_gguf(read_gguf(default_gguf).metadata)
    assert templates is not None
    template = templates.choose()
    assert (template.tokens["bos_token"], template.tokens["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert template.render(USER).text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_metadata_without_a_template_or_with_wrong_ones() -> None:
    metadata = byte_pair_metadata(eos_token_id=None, padding_token_id=0)
    assert templates_of_gguf(metadata) is None
    tokens = {"bos_token": "<|im_start|>", "pad_token": "<|endoftext|>"}
    found = templates_of_gguf({**metadata, "tokenizer.chat_template": "x", "tokenizer.chat_template.rag": "y"})
    assert found == ChatTemplates({"default": ChatTemplate("x", tokens), "rag": ChatTemplate("y", tokens)})
    with pytest.raises(CheckpointError, match=r"tokenizer\.chat_template is a int, expected text"):
        templates_of_gguf({**metadata, "tokenizer.chat_template": 5})


def test_minicpm_keeps_its_template_in_the_setting(official: Path) -> None:
    templates = templates_of_folder(official / "8B")
    assert templates is not None
    assert templates.choose().source == TEMPLATES["minicpm"]
    assert (templates.choose().tokens["bos_token"], templates.choose().tokens["eos_token"]) == ("<s>", "<|im_end|>")
