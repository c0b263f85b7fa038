"""Options that commands share, each declared once, and how groups of them become the configs of the layers below.

Every option but --version and --help can be set by an environment variable, MINICPM4_ and its long name; a flag wins over it.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from minicpm4.engine import LoadOptions, SamplingParams
from minicpm4.errors import RequestError
from minicpm4.hardware import setting

PREFIX = "MINICPM4_"


def option(*names: str, help: str, metavar: str | None = None) -> Any:
    """An option that also reads MINICPM4_<LONG NAME>."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    return typer.Option(*names, help=help, metavar=metavar, envvar=PREFIX + long[2:].replace("-", "_").upper())


Model = Annotated[str, option("-m", "--model", help="A folder, a .gguf file, a hub id (owner/name), or 'default'.")]
ModelArgument = Annotated[str, typer.Argument(help="'default', or a hub id (owner/name).", envvar=f"{PREFIX}MODEL")]
Revision = Annotated[str | None, option("--revision", help="Branch, tag or commit of a hub model.")]
Offline = Annotated[bool, option("--offline", help="Use what is on disk; never the network.")]
ExecutorName = Annotated[str, option("--executor", help="native, reference, torch or mindspore.")]
Context = Annotated[int | None, option("-c", "--ctx-size", help="Tokens of context; the model's own by default.")]
Threads = Annotated[int | None, option("-t", "--threads", help="CPU threads; one a core by default.")]
Isa = Annotated[str | None, option("--isa", help="Instruction set of the native executor; the best one by default.")]
Activations = Annotated[str, option("--activations", help="What quantized weights are multiplied with: int8, int16, f32 or auto.")]
PromptActivations = Annotated[
    str,
    option(
        "--prompt-activations",
        help="Those of a prompt's tokens: same (as --activations), bf16 (native, on a CPU with AMX) or auto.",
    ),
]
KvFormat = Annotated[str, option("--kv-format", help="How keys and values are stored: f16, bf16, f32, int8 (not in torch), auto.")]
Device = Annotated[str, option("--device", help="cpu, cuda (torch) or ascend (mindspore).")]
RepackCache = Annotated[
    bool,
    option(
        "--repack-cache/--no-repack-cache",
        help="Keep the weights as the native executor packs them on the disk (packed/ in the cache folder, which may be deleted).",
    ),
]
Sparse = Annotated[
    bool | None, option("--sparse/--no-sparse", help="Sparse attention (InfLLM v2) past --dense-len; by default as the model is made.")
]
SparseTopk = Annotated[int | None, option("--topk", help="Blocks of 64 tokens that a token attends to beside its window.")]
Window = Annotated[int | None, option("--window", help="Tokens of the local window of sparse attention.")]
DenseLen = Annotated[int | None, option("--dense-len", help="Attention is dense up to so many tokens; 0 makes all of it sparse.")]
CoarseLse = Annotated[
    bool | None, option("--coarse-lse/--exact-lse", help="Score blocks with the coarse shortcut of InfLLM v2; exact by default.")
]
PrefixCache = Annotated[
    bool, option("--prefix-cache/--no-prefix-cache", help="Keep what was computed of a text for others that begin alike; bench never does.")
]
AsJson = Annotated[bool, option("--json", help="Print one JSON object instead of text.")]

Prompt = Annotated[str | None, option("-p", "--prompt", help="The text; '-' reads standard input.", metavar="TEXT")]
MaxTokens = Annotated[int | None, option("-n", "--max-tokens", help="The most tokens to answer with.")]
Temperature = Annotated[float | None, option("--temp", help="0 always takes the likeliest token.")]
TopK = Annotated[int | None, option("--top-k", help="Sample among so many likeliest tokens; 0 for all.")]
TopP = Annotated[float | None, option("--top-p", help="Sample among the likeliest tokens of so much probability.")]
MinP = Annotated[float | None, option("--min-p", help="Drop tokens less likely than this share of the likeliest.")]
Seed = Annotated[int | None, option("--seed", help="The same seed gives the same text.")]
RepeatPenalty = Annotated[float | None, option("--repeat-penalty", help="More than 1 makes tokens seen before less likely.")]
PresencePenalty = Annotated[float | None, option("--presence-penalty", help="Subtracted from tokens that the answer holds.")]
FrequencyPenalty = Annotated[float | None, option("--frequency-penalty", help="Subtracted for each time that the answer holds a token.")]
Stop = Annotated[
    list[str] | None,  # the variable is read here, line by line: typer would split it at every space
    typer.Option("--stop", help=f"Stop before this text; may be given several times, or one a line in {PREFIX}STOP.", metavar="TEXT"),
]
AddBos = Annotated[
    bool | None, option("--add-bos/--no-add-bos", help="Start with the BOS token; by default as the model's tokenizer does.")
]


def load_options(
    model: Model = "default",
    revision: Revision = None,
    offline: Offline = False,
    ctx_size: Context = None,
    threads: Threads = None,
    executor: ExecutorName = "native",
    isa: Isa = None,
    activations: Activations = "auto",
    prompt_activations: PromptActivations = "auto",
    kv_format: KvFormat = "auto",
    device: Device = "cpu",
    repack_cache: RepackCache = False,
    sparse: Sparse = None,
    topk: SparseTopk = None,
    window: Window = None,
    dense_len: DenseLen = None,
    coarse_lse: CoarseLse = None,
    prefix_cache: PrefixCache = True,
) -> LoadOptions:
    """The group of options that say what is loaded and how it runs."""
    return LoadOptions(
        model=model,
        revision=revision,
        offline=offline,
        context_length=ctx_size,
        threads=threads,
        executor=executor,
        isa=isa,
        activations=activations,
        prompt_activations=prompt_activations,
        kv_format=kv_format,
        device=device,
        repack_cache=repack_cache,
        sparse=sparse,
        topk=topk,
        window=window,
        dense_len=dense_len,
        coarse_lse=coarse_lse,
        prefix_cache=prefix_cache,
    )


def sampling_changes(
    max_tokens: MaxTokens = None,
    temp: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = None,
    repeat_penalty: RepeatPenalty = None,
    presence_penalty: PresencePenalty = None,
    frequency_penalty: FrequencyPenalty = None,
    stop: Stop = None,
) -> dict[str, Any]:
    """The group of options that change the model's own SamplingParams: the fields that were given. Wrong usage where one cannot be."""
    given: dict[str, dict[str, Any]] = {
        "--max-tokens": {"max_tokens": max_tokens},
        "--temp": {"temperature": temp},
        "--top-k": {"top_k": top_k},
        "--top-p": {"top_p": top_p},
        "--min-p": {"min_p": min_p},
        "--seed": {"seed": seed},
        "--repeat-penalty": {"repetition_penalty": repeat_penalty},
        "--presence-penalty": {"presence_penalty": presence_penalty},
        "--frequency-penalty": {"frequency_penalty": frequency_penalty},
        "--stop": {"stop": stop or [line for line in (setting("stop") or "").splitlines() if line] or None},
    }
    changes: dict[str, Any] = {}
    for flag, change in given.items():
        known = {field: value for field, value in change.items() if value is not None}
        try:
            SamplingParams(**known)
        except RequestError as error:
            raise typer.BadParameter(error.message, param_hint=flag) from error
        changes |= known
    return changes


def read_prompt(prompt: str | None) -> str:
    """The prompt's text: `-`, or none where standard input is not a terminal, reads standard input."""
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        return sys.stdin.buffer.read().decode(errors="replace")
    if prompt is None:
        raise RequestError("there is no prompt", hint="give -p TEXT, or -p - to read standard input")
    return prompt
