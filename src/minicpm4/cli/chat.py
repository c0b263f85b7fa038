"""minicpm4 chat: answers one question, or holds a conversation where there is none."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from minicpm4.cli import options as o
from minicpm4.cli.answering import answer, changed_params, exit_if_interrupted, loaded_llm
from minicpm4.cli.grouped import grouped
from minicpm4.cli.terminal import read_line, say, warn
from minicpm4.engine import LLM, Completion, LoadOptions, SamplingParams
from minicpm4.errors import MiniCPMError, RequestError

System = Annotated[
    str | None, o.option("--system", help="The system prompt; by default whatever the model's template has.", metavar="TEXT")
]
Thinking = Annotated[
    bool | None, o.option("--thinking/--no-thinking", help="For models whose template can switch thinking (enable_thinking).")
]
HELP = """\
/reset          forget the conversation
/system TEXT    set the system prompt and forget the conversation; without TEXT, have none
/help           this
/quit           leave (or Ctrl-D)
Ctrl-C stops an answer."""


@grouped(load=o.load_options, changes=o.sampling_changes)
def chat(
    prompt: o.Prompt = None,
    system: System = None,
    thinking: Thinking = None,
    json: o.AsJson = False,
    *,
    load: LoadOptions,
    changes: dict[str, Any],
) -> None:
    """Ask a question with -p, or talk: without a prompt it is a conversation."""
    is_conversation = prompt is None and sys.stdin.isatty()
    if is_conversation and json:
        raise RequestError("--json needs a prompt", hint="give -p TEXT, or -p - to read standard input")
    question = "" if is_conversation else o.read_prompt(prompt)
    with loaded_llm(load) as llm:
        variables = {} if thinking is None else {"enable_thinking": thinking}
        conversation = Conversation(llm, changed_params(llm.default_params, changes), system, variables, as_json=json)
        if is_conversation:
            talk(conversation)
        else:
            exit_if_interrupted(conversation.ask(question))


@dataclass
class Conversation:
    """What was said so far, beginning with the system prompt, if there is one."""

    llm: LLM
    params: SamplingParams
    system: str | None
    variables: Mapping[str, object]
    as_json: bool = False
    turns: list[Mapping[str, str]] = field(default_factory=list)

    def ask(self, question: str) -> Completion:
        """Answers on standard output; the question is forgotten again where it cannot be answered."""
        head = [] if self.system is None else [{"role": "system", "content": self.system}]
        asked = [*self.turns, {"role": "user", "content": question}]
        completion = answer(self.llm, self.llm.stream([*head, *asked], self.params, variables=self.variables), as_json=self.as_json)
        self.turns = [*asked, {"role": "assistant", "content": completion.text}]
        return completion

    def reset(self) -> None:
        self.turns = []


def talk(conversation: Conversation) -> None:
    """Reads lines until the end; a line that begins with / is a command."""
    say("type a message, or /help")
    while (line := read_line("> ")) is not None:
        command, _, rest = line.strip().partition(" ")
        if command == "/quit":
            return
        if command == "/help":
            say(HELP)
        elif command == "/reset":
            conversation.reset()
            say("the conversation is forgotten")
        elif command == "/system":
            conversation.system = rest.strip() or None
            conversation.reset()
            say(f"the system prompt is now {conversation.system!r}" if conversation.system else "there is no system prompt now")
        elif command.startswith("/"):
            warn(f"there is no command {command}; /help lists them")
        elif command:
            try:
                conversation.ask(line)
            except MiniCPMError as error:
                warn(str(error))
