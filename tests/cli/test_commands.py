"""The program as a person runs it: real processes, the default model, standard output and error told apart."""

import inspect
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minicpm4.cli import app
from minicpm4.cli.grouped import grouped
from minicpm4.cli.options import load_options
from minicpm4.engine import LoadOptions
from minicpm4.fields import words_of
from minicpm4.hardware import child_environment
from tests.checkpoint.checkpoint_files import TINY_JSON

PROGRAM = [str(Path(sys.executable).parent / "minicpm4")]
QUESTION = "What is the capital of France?"


def run(*arguments, text="", **environment):
    done = subprocess.run(
        [*PROGRAM, *arguments], input=text, capture_output=True, text=True, env=child_environment(**environment), timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def test_chat_answers_on_standard_output_alone(default_gguf):
    code, out, notes = run("chat", "-p", QUESTION)
    assert (code, out) == (0, "The capital of France is Paris.\n")
    assert "37 prompt + 7 answer tokens · first token" in notes
    for what in ("prefill", "decode", "tok/s", "executor native (the default on a CPU)", "isa ", "cache 189 MB for 8192 tokens"):
        assert what in notes


@pytest.mark.parametrize("arguments", [("-p", "-"), ()], ids=str)
def test_a_question_from_standard_input(default_gguf, arguments):
    assert run("chat", "-c", "256", *arguments, text=QUESTION)[:2] == (0, "The capital of France is Paris.\n")


def test_generate_as_json_and_by_environment(default_gguf):
    code, out, _ = run("generate", "-p", "The capital of France is", "--json", "--temp", "0", "-c", "256", MINICPM4_MAX_TOKENS="5")
    result = json.loads(out)
    assert (code, len(result["token_ids"]), result["finish_reason"], result["prompt_tokens"]) == (0, 5, "length", 5)
    assert result["text"].startswith(" Paris")
    assert result["choices"]["executor"]["value"] == "native"
    _, out, _ = run("generate", "-p", "The capital of France is", "--json", "-n", "2", "-c", "256", MINICPM4_MAX_TOKENS="5")
    assert len(json.loads(out)["token_ids"]) == 2  # a flag wins over the environment


@pytest.mark.parametrize(
    "flags",
    [
        ("--seed", "1"), ("--top-k", "1"), ("--top-p", "0.01"), ("--min-p", "1"), ("--repeat-penalty", "1.8"), ("--presence-penalty", "2"),
        ("--frequency-penalty", "2"), ("--stop", "a"), ("--add-bos",), ("-n", "3"),
    ],
    ids=lambda flags: flags[0],
)  # fmt: skip
def test_every_sampling_option_has_an_effect(default_gguf, flags):
    common = ("generate", "-p", "One day a cat", "-n", "24", "--temp", "1.5", "--seed", "0", "-c", "128")
    assert run(*common, *flags)[1] != run(*common)[1]


def test_show_and_pull_and_doctor(default_gguf):
    code, out, _ = run("show", "--json")
    facts = json.loads(out)
    assert (code, facts["config"]["num_layers"], facts["formats"]["q4_1"]["tensors"], len(facts["tensors"])) == (0, 30, 210, 272)
    assert facts["memory"]["kv_bytes"] == 8192 * 30 * 2 * 3 * 64 * 2
    code, out, _ = run("show", "--tensors", "-c", "1000")
    assert code == 0
    assert re.search(r"model.layers.29.mlp.down_proj.weight +q4_1 \(576, 1536\)", out)
    assert "context 1000 (asked for)" in out
    assert run("pull", "--offline")[:2] == (0, f"{default_gguf}\n")
    code, out, _ = run("doctor", "-m", "default", "--json")
    checks = {check["what"]: check for check in json.loads(out)}
    assert code == 0
    assert checks["weights"]["found"] == "all 272 tensors hold finite numbers"
    assert checks[f"sum of {default_gguf.name}"]["state"] == "ok"


@pytest.mark.parametrize("executor", ["native", "torch", pytest.param("mindspore", marks=pytest.mark.mindspore)])
def test_doctor_tries_an_executor(executor):
    code, out, _ = run("doctor", "--executor", executor, "--json")
    checks = {check["what"]: check for check in json.loads(out)}
    assert (code, checks[f"executor {executor}: a trial"]["state"]) == (0, "ok")
    assert "(" in checks[f"executor {executor}: {'isa' if executor == 'native' else 'device'}"]["found"]


def test_doctor_says_why_an_executor_cannot_be_tried():
    code, out, _ = run("doctor", "--executor", "native", "--device", "cuda")
    assert code == 1
    assert "executor native: executor native cannot do devices: cuda" in out


def test_doctor_finds_one_wrong_byte(default_gguf, tmp_path):
    data = bytearray(default_gguf.read_bytes())
    data[-31:-29] = b"\xff\x7f"  # a scale of the last block becomes NaN
    broken = tmp_path / default_gguf.name
    broken.write_bytes(data)
    code, out, _ = run("doctor", "-m", str(broken))
    assert code == 1
    assert "wrong  sum of" in out
    code, _, notes = run("chat", "-m", str(tmp_path / "nothing.gguf"), "-p", "hi")
    assert code == 1
    assert notes.startswith("error: there is no model")


def test_bench_prints_a_row_and_an_object(default_gguf):
    flags = ("bench", "--prefill", "16", "--decode", "4", "--repeats", "1")
    code, out, _ = run(*flags)
    assert code == 0
    assert "| prefill 16, tok/s | decode 4 at 0, tok/s |" in out
    names, _, values = ([cell.strip() for cell in line.split("|")] for line in out.splitlines()[:3])
    assert dict(zip(names, values, strict=True))["cards"] == "0 (cpu)"
    code, out, _ = run(*flags, "--json", "--context", "100", "-t", "1")
    result = json.loads(out)
    assert (result["context"], result["threads"], result["new_tokens"]) == (100, 1, 4)
    assert result["recipe"]["flags"]["context"] == 100
    again = json.loads(run(*shlex.split(result["recipe"]["command"])[1:], "--json")[1])
    assert again["recipe"] == result["recipe"]
    assert str(default_gguf) in again["recipe"]["command"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("chat", "--temp", "-1", "-p", "hi"), 2, "Invalid value for --temp: temperature is -1.0"),
        (("chat", "--temp", "nan", "-p", "hi", "-m", "nowhere"), 2, "Invalid value for --temp: temperature is nan"),
        (("generate", "-n", "0", "-p", "hi", "-m", "nowhere"), 2, "Invalid value for --max-tokens: max_tokens is 0"),
        (("chat", "--executor", "abacus", "-p", "hi"), 1, "error: there is no executor 'abacus'"),
        (("chat", "-c", "99999", "-p", "hi"), 1, "error: a context of 99999 tokens was asked for"),
        (("bench", "--prefill", "9000"), 1, "error: the run needs 9000 tokens of context, there are 8192"),
        (("chat", "--sparse-topk", "3", "-p", "hi"), 1, "hint: this model is not made for sparse attention; add --sparse"),
        (("bench", "--random", "3B"), 1, "error: there is no shape '3B'"),
        (("generate", "--threads", "many"), 2, "Try 'minicpm4 generate --help'"),
        (("sing",), 2, "No such command"),
        (("chat", "-p", "word " * 9000), 1, "hint: shorten the prompt, or raise the context"),
    ],
    ids=str,
)
def test_wrong_usage(default_gguf, arguments, code, message):
    found, out, notes = run(*arguments)
    assert found == code
    assert message in notes
    assert out == ""


def test_sparse_attention_by_flags_is_said_in_the_line_after_the_answer(default_gguf):
    common = ("generate", "-p", "word " * 300, "-n", "2", "-c", "512")
    code, _, notes = run(*common, "--sparse", "--sparse-topk", "1", "--sparse-window", "64", "--dense-len", "0")
    assert code == 0
    assert "attention sparse beyond 0 tokens, 2 blocks of 64 a token (asked for)" in notes
    assert re.search(r"attended to 2 of 5 blocks \(\d\d\.\d % of the tokens\)", notes)
    _, out, notes = run(*common, "--json")
    assert json.loads(out)["attended_share"] == 1
    assert "attend" not in notes


def test_nothing_is_known_from_before_where_that_was_asked_for():
    assert load_options().prefix_cache
    assert not load_options(prefix_cache=False).prefix_cache
    assert words_of(LoadOptions(prefix_cache=False, dense_len=5)) == ["--dense-len", "5", "--no-prefix-cache"]


def test_stop_texts_by_environment_are_lines(default_gguf):
    common = ("generate", "-p", "The capital of France is", "-n", "12", "-c", "64", "--json")
    whole = json.loads(run(*common)[1])["text"]
    first, second = whole[:10].split(" ")[1], " ".join(whole.split(" ")[3:5])
    assert " " in second
    stopped = json.loads(run(*common, MINICPM4_STOP=f"never this\n{second}\n")[1])
    assert stopped["text"] == whole[: whole.index(second)]
    assert json.loads(run(*common, "--stop", first, MINICPM4_STOP=second)[1])["text"] == whole[: whole.index(first)]


def test_every_option_has_its_variable():
    """Of each command, as typer sees it: MINICPM4_ and the long name; --stop is read by its own rule."""
    found = {}
    groups = [group.typer_instance for group in app.registered_groups]
    assert len(groups) == 1
    for command in [*app.registered_commands, *groups[0].registered_commands]:
        for name, parameter in inspect.signature(command.callback, eval_str=True).parameters.items():
            [info] = parameter.annotation.__metadata__
            names = (str(info.default), *(info.param_decls or ()))  # typer takes the first name for a default until it parses
            long = next((flag for flag in names if flag.startswith("--")), f"--{name}").split("/")[0]
            found[long] = info.envvar
    assert len(found) > 25
    assert found.pop("--stop") is None
    assert found == {long: "MINICPM4_" + long[2:].replace("-", "_").upper() for long in found}


def test_a_group_may_not_repeat_an_option():
    def group(seed: int = 0) -> int:
        return seed

    with pytest.raises(AssertionError, match="command: an option is in two groups"):

        @grouped(one=group)
        def command(seed: int = 0, *, one: int) -> None: ...


BROKEN_BUILD = """
import sys
sys.modules["minicpm4._native"] = None  # importing it fails
from minicpm4.cli import main
main()
"""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--version",), 0, "(native: cannot be loaded, see minicpm4 doctor;"),
        (("doctor",), 1, "executor native: executor native cannot be loaded: import of minicpm4._native halted"),
        (("show",), 0, "memory plan        unknown"),
        (("show",), 0, "build this package again: make chat, or pip install -e . in its checkout"),
        (("show", "--executor", "reference"), 0, "context 8192"),
        (("pull", "--offline"), 0, "SmolLM2"),
        (("generate", "-p", "The capital of France is", "-n", "1", "-c", "64", "--executor", "reference"), 0, " Paris"),
        (
            ("bench", "--executor", "reference", "--prefill", "2", "--decode", "1", "--repeats", "1", "--random", "TINY"),
            0,
            "| of the memory |",
        ),
        (("chat", "-p", "hi"), 1, "error: executor native cannot be loaded"),
    ],
    ids=str,
)
def test_a_broken_build_leaves_what_does_not_need_it(default_gguf, tmp_path, arguments, code, message):
    (tmp_path / "config.json").write_text(json.dumps(TINY_JSON))
    words = [str(tmp_path / "config.json") if word == "TINY" else word for word in arguments]
    done = subprocess.run([sys.executable, "-c", BROKEN_BUILD, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_json_without_a_prompt(default_gguf):
    terminal = Terminal("chat", "--json")
    terminal.wait_for("--json needs a prompt")
    assert terminal.exit_code() == 1


class Terminal:
    """The program on a pseudo-terminal, typed at and read from."""

    def __init__(self, *arguments):
        self.process, self.seen = None, ""
        child, self.handle = pty.fork()
        if child == 0:
            os.environ["TERM"] = "dumb"
            os.execv(PROGRAM[0], [*PROGRAM, *arguments])
        self.child = child

    def type(self, text):
        os.write(self.handle, text.encode())

    def wait_for(self, text, seconds=60.0):
        """Everything up to and with the text."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            assert time.monotonic() < end, f"{text!r} did not come: {self.seen!r}"
            if select.select([self.handle], [], [], 0.2)[0]:
                self.seen += os.read(self.handle, 65536).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before + text

    def exit_code(self):
        _, status = os.waitpid(self.child, 0)
        os.close(self.handle)
        return os.waitstatus_to_exitcode(status)


def test_a_conversation(default_gguf):
    terminal = Terminal("chat", "-c", "1024")
    terminal.wait_for("/help\r\n")
    terminal.wait_for("> ")
    terminal.type(f"{QUESTION}\n")
    terminal.wait_for("Paris.")
    terminal.wait_for("> ")
    terminal.type("And of Italy?\n")
    terminal.wait_for("Rome")
    terminal.wait_for("> ")
    terminal.type("Tell me a very long story about a dragon and a knight.\n")
    terminal.wait_for(" the ")
    os.kill(terminal.child, signal.SIGINT)  # ends the answer, not the program
    assert "(64 known from before)" in terminal.wait_for("answer tokens")
    terminal.wait_for("> ")
    for command, reply in (
        ("/reset", "is forgotten"),
        ("/system Be brief.", "'Be brief.'"),
        ("/system", "no system prompt"),
        ("/dance", "no command /dance"),
    ):
        terminal.type(f"{command}\n")
        terminal.wait_for(reply)
        terminal.wait_for("> ")
    terminal.type("/quit\n")
    assert terminal.exit_code() == 0


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_interrupting_a_single_answer_ends_it(default_gguf, verb):
    command = [*PROGRAM, verb, "-p", "Tell a very long story about a dragon.", "-n", "4000", "--temp", "1", "--seed", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.read(10)
        process.send_signal(signal.SIGINT)
        out, notes = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "answer tokens" in notes
    assert "Traceback" not in notes
    assert len(out) < 15000
