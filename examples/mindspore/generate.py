"""Answers a prompt on MindSpore: python -m examples.mindspore.generate --prompt "..." --model_name default"""

from examples.mindspore.options import parse_flags
from minicpm4 import LLM, SamplingParams


def main() -> None:
    flags = parse_flags("Answer a prompt.", model="openbmb/MiniCPM4-8B")
    sampling = {"temperature": 0.7, "top_p": 0.7} if flags.do_sample else {"temperature": 0.0}
    with LLM(flags.model_name, executor="mindspore") as llm:
        print(llm.chat([{"role": "user", "content": flags.prompt}], SamplingParams(max_tokens=1024, **sampling)).text)


if __name__ == "__main__":
    main()
