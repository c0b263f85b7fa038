"""One turn of a conversation on MindSpore: python -m examples.mindspore.chat --prompt "..." --model_name default"""

from examples.mindspore.options import parse_flags
from minicpm4 import LLM


def main() -> None:
    flags = parse_flags("Take one turn of a conversation.", model="openbmb/MiniCPM4-0.5B")
    with LLM(flags.model_name, executor="mindspore") as llm:
        response, _history = llm.chat_turn(flags.prompt, do_sample=flags.do_sample)
    print(response)


if __name__ == "__main__":
    main()
