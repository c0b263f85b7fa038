"""MindONE's MiniCPM4 on a CPU, decoding in rounds that `benchmarks.mindspore` asks for: its other end of two pipes.

Runs in an interpreter with mindone 0.4.0 and MindSpore 2.7, which has nothing of this project. Such a release asks for two functions that
MindSpore lacks on a CPU; they are replaced here, and nothing else. Each call of its `generate` compiles anew, so there is one call,
which waits between rounds. One line of JSON a message: first what is said when ready, then, for a number of tokens on the input,
{"seconds": the processor's, a token, "tokens": all since the prompt}.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import mint, ops

WARM_TOKENS = 4  # the first is the prompt's, the second compiles, and those after it still run slower
MODES = {"graph": {}, "graph-O1": {"jit_level": "O1"}, "graph-no-cache": {}}  # PyNative ends at the next function that a CPU lacks


def replace_missing() -> None:
    """What MindONE calls and MindSpore 2.7 has on Ascend alone."""
    mint.ones_like = lambda x, dtype=None: ops.ones_like(x).astype(dtype or x.dtype)

    def arange(start: int, end: int | None = None, step: int = 1, dtype: Any = None) -> ms.Tensor:
        first, last = (0, start) if end is None else (start, end)
        return ms.Tensor(np.arange(first, last, step), dtype or ms.int64)

    mint.arange = arange


def use_mode(mode: str) -> None:
    """Threads as few as can be asked for; MindSpore's own kernels take one each then."""
    ms.set_context(mode=ms.GRAPH_MODE)
    if MODES[mode]:
        ms.set_context(jit_config=MODES[mode])
    ms.runtime.dispatch_threads_num(1)
    ms.device_context.cpu.op_tuning.threads_num(1)


def load(folder: Path) -> Any:
    """The model of the folder's config.json (its class's own fields) with each parameter from the .npy file of its name."""
    from mindone.transformers.models.minicpm4.configuration_minicpm import MiniCPMConfig
    from mindone.transformers.models.minicpm4.modeling_minicpm import MiniCPMForCausalLM

    config = MiniCPMConfig(**json.loads((folder / "config.json").read_text()), attn_implementation="eager")
    model = MiniCPMForCausalLM(config)
    for parameter in model.get_parameters():
        path = folder / f"{parameter.name}.npy"
        parameter.set_data(ms.Tensor(np.load(path)))
    model.set_train(False)
    model.generation_config.eos_token_id = None
    return model


class Rounds:
    """A streamer of `generate`: answers a round when its last token has come, and waits for the next one inside the call."""

    def __init__(self, answers: Any) -> None:
        self.answers = answers
        self.tokens: list[int] = []
        self.start, self.wanted, self.left = 0.0, 0, WARM_TOKENS
        self.has_seen_prompt = False

    def put(self, tokens: np.ndarray) -> None:
        if not self.has_seen_prompt:
            self.has_seen_prompt = True
            return
        self.tokens.append(int(tokens[0]))
        self.left -= 1
        if self.left:
            return
        if self.wanted:
            self.answer({"seconds": (time.process_time() - self.start) / self.wanted, "tokens": self.tokens})
        else:
            versions = {name: version(name) for name in ("mindone", "mindspore", "transformers", "numpy")}
            self.answer({"versions": versions, "seconds_until_ready": time.process_time()})
        self.wait()

    def wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            os._exit(0)  # from inside its loop, which has no other end
        self.wanted = self.left = int(line)
        self.start = time.process_time()

    def end(self) -> None:
        raise RuntimeError("the rounds asked for more tokens than --tokens")

    def answer(self, message: dict[str, Any]) -> None:
        print(json.dumps(message), file=self.answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="config.json, prompt.npy and a .npy file a parameter")
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--tokens", type=int, required=True, help="of all rounds together")
    flags = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # MindONE prints each step
    replace_missing()
    use_mode(flags.mode)
    model, prompt = load(flags.folder), ms.Tensor(np.load(flags.folder / "prompt.npy")[None], ms.int32)
    model.generate(
        prompt,
        max_new_tokens=WARM_TOKENS + flags.tokens + 1,
        use_cache=flags.mode != "graph-no-cache",
        do_sample=False,
        streamer=Rounds(answers),
    )


if __name__ == "__main__":
    main()
