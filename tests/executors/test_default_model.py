"""The default model's real weights: the executors say the same, word for word, and as well.

Float executors are compared with each other; the native executor as users run it, its activations rounded to whole numbers and
its cache to half precision, with floats, where a difference must be a near-tie: two best tokens closer than that rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from minicpm4.checkpoint import open_checkpoint
from minicpm4.executors import Executor, create_executor
from minicpm4.model import ModelConfig, pages_for
from minicpm4.model.step import single_step
from minicpm4.text import load_gguf_tokenizer
from tests.toy import executor_options, plan_step

NUM_TOKENS = 64
PROMPTS = (
    "The capital of France is", "Water boils at", "A triangle has", "My grandmother used to say that", "To make bread you need",
    "The first person on the moon was", "In the year 1789", "Photosynthesis is the process by which", "def fibonacci(n):",
    "The opposite of hot is", "Dear Sir or Madam,", "Once upon a time there was a", "The three primary colours are",
    "Bees are important because", "If it rains tomorrow, we", "The square root of 81 is", "Shakespeare wrote", "An atom consists of",
    "The best way to learn a language is", "Ingredients: two eggs,",
)  # fmt: skip
TEXT = (
    "The library by the harbour lends out more than books. On Tuesdays the fishermen borrow charts and a brass barometer; on rainy "
    "afternoons the children take home a microscope, two at a time, and bring it back with pond water still on the glass. Nobody "
    "has ever paid a fine. The librarian says that a thing which is trusted to people tends to come back, sometimes mended, and "
    "once, in the case of the barometer, more accurate than before.\n\n"
    "It was not always so. When the town council bought the building in 1962 it had been a salt store for two hundred years, and "
    "the walls were white and damp. Paper curled on the shelves. The first librarian, a retired ship's cook, kept a stove burning "
    "in every room from October to May, and he wrote down the humidity each morning in a blue notebook. Those notebooks are now "
    "the longest record of the weather on this part of the coast. A student from the university came to copy them last summer, "
    "and she found that the winters have become wetter, that the first frost arrives about three weeks later than it used to, and "
    "that the cook had been drawing small boats in the margins.\n\n"
    "There are plans to move everything into a new building beside the station, with wide windows, lifts and a room for concerts. "
    "Most people are in favour. The old place has steep stairs and a single bathroom, and water comes in under the door when the "
    "tide and the wind agree. But the children have asked what will happen to the stoves, and nobody on the council has yet given "
    "them an answer that they were willing to write down."
)

# Float32 sums of up to 1536 products in another order, 6e-8 each, through thirty layers: measured, 1e-4 on text like this.
FLOAT_GAP = 1e-3
# Rounding activations to int8 costs half a percent of a product (see test_agreement), to int16 255 times less, where the cache's
# half precision, 2**-12 of a key or value, costs more. The errors of seven products in each of L layers add like a random walk,
# to share * sqrt(7 L) of the logits' own deviation. Two logits differ by up to twice that, so a choice between nearer ones is open.
SHARES = {"int8": 0.005, "int16": 2**-12}
EXPECTED_BITS = 1.20235  # a byte of TEXT, by the reference in float32
# Relative. int8 costs 1.2 to 2.5 thousandths, by instruction set and cache format: 336 tokens are a small sample.
INT8_CACHE_BITS = 2e-3  # measured: see docs/lab_notes.md
BITS_TOLERANCE = {"int8": 3e-3, "int16": 1e-4, "f32": 1e-5}


def open_choice(config: ModelConfig, logits_RV: np.ndarray, activations: str) -> np.ndarray:
    """For each row, how close two logits must be for the native executor's rounding to exchange them."""
    return 2 * SHARES[activations] * (7 * config.num_layers) ** 0.5 * logits_RV.std(axis=1)


class RealModel:
    """The checkpoint, its tokenizer, and executors of it, loaded one at a time."""

    def __init__(self, path: Path) -> None:
        self.checkpoint = open_checkpoint(path)
        self.config = self.checkpoint.config
        assert self.checkpoint.metadata is not None
        self.tokenizer = load_gguf_tokenizer(self.checkpoint.metadata, vocab_size=self.config.vocab_size)

    def tokens(self, text: str) -> list[int]:
        return [self.config.bos_id or 0, *self.tokenizer.encode(text)]

    @contextmanager
    def runner(self, name: str, *, activations: str = "f32", kv_format: str = "f32") -> Iterator[Executor]:
        wished = {"activations": activations} if name in ("native", "reference") else {}
        options, cache = executor_options(
            name, context_length=2048, num_pages=64, max_step_tokens=1024, threads=2, kv_format=kv_format, **wished
        )
        executor = create_executor(name, self.config, self.checkpoint.load, options=options, cache=cache, formats=self.checkpoint.formats)
        yield executor
        executor.close()


@pytest.fixture(scope="module")
def model(default_gguf: Path) -> Iterator[RealModel]:
    real = RealModel(default_gguf)
    yield real
    real.checkpoint.close()


def greedy(runner: Executor, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """Each prompt with its continuation; all run as one ragged batch."""
    sequences, done = [list(prompt) for prompt in prompts], [0] * len(prompts)
    width = max(pages_for(len(prompt) + num_tokens) for prompt in prompts)
    pages = [range(i * width, (i + 1) * width) for i in range(len(prompts))]
    for _ in range(num_tokens):
        parts = [(sequence[start:], start, own) for sequence, start, own in zip(sequences, done, pages, strict=True)]
        best = runner.run(plan_step(parts, wants_all=False)).logits.argmax(axis=1)
        done = [len(sequence) for sequence in sequences]
        for sequence, token in zip(sequences, best.tolist(), strict=True):
            sequence.append(token)
    return sequences


def logits_before(runner: Executor, sequence: list[int], first: int) -> np.ndarray:
    """What the executor would choose the tokens from `first` on by, given the sequence itself."""
    return runner.run(single_step(sequence[:-1], num_logits=len(sequence) - 1)).logits[first - 1 :].copy()


def gap_to_best(logits_RV: np.ndarray, chosen_R: np.ndarray) -> np.ndarray:
    """How far below the best token the chosen one is, in each row; 0 where it is the best."""
    return logits_RV.max(axis=1) - np.take_along_axis(logits_RV, chosen_R[:, None], axis=1)[:, 0]


@pytest.mark.parametrize("activations", SHARES)
def test_other_executors_choose_what_the_native_one_chose(model: RealModel, activations: str) -> None:
    """Four prompts, continued by the default executor as users run it; then each of the others reads the whole and is asked at
    every token what it would have said. (`-m slow` lets all of them speak for themselves, on twenty prompts.)"""
    prompts = [model.tokens(text) for text in PROMPTS[:4]]
    with model.runner("native", activations=activations, kv_format="f16") as runner:
        sequences = greedy(runner, prompts, NUM_TOKENS)
    num_differences, seen = 0, dict[int, np.ndarray]()
    for name in ("reference", "torch", "native"):
        with model.runner(name) as runner:
            for i, (prompt, sequence) in enumerate(zip(prompts, sequences, strict=True)):
                logits, chosen = logits_before(runner, sequence, len(prompt)), np.array(sequence[len(prompt) :])
                gaps = gap_to_best(logits, chosen)
                assert (gaps <= open_choice(model.config, logits, activations)).all()
                num_differences += np.count_nonzero(gaps)
                first = seen.setdefault(i, logits)
                np.testing.assert_allclose(logits, first, rtol=0, atol=FLOAT_GAP)
                assert (gap_to_best(first, logits.argmax(axis=1)) <= FLOAT_GAP).all()
    assert num_differences < {"int8": 0.1, "int16": 0.01}[activations] * 3 * len(prompts) * NUM_TOKENS


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_executors_say_the_same_token_by_token(model: RealModel, capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty prompts, 64 greedy tokens, every executor on its own; a first difference must be a near-tie of the reference's."""
    prompts = [model.tokens(text) for text in PROMPTS]
    answers = {}
    runs = (("reference", "f32"), ("torch", "f32"), ("native", "f32"), ("native", "int16"), ("native", "int8"))
    for name, activations in runs:
        kv_format = "f32" if activations == "f32" else "f16"
        with model.runner(name, activations=activations, kv_format=kv_format) as runner:
            answers[f"{name} {activations}"] = greedy(runner, prompts, NUM_TOKENS)
    wanted = answers.pop("reference f32")
    with model.runner("reference") as runner, capsys.disabled():
        for name, sequences in answers.items():
            ties = []
            for prompt, own, other in zip(prompts, wanted, sequences, strict=True):
                if own == other:
                    continue
                first = next(i for i, pair in enumerate(zip(own, other, strict=True)) if pair[0] != pair[1])
                logits = logits_before(runner, other[: first + 1], first)
                gap, activations = gap_to_best(logits, np.array([other[first]]))[0], name.split()[1]
                ties.append((first - len(prompt), round(float(gap), 4)))
                assert gap <= (FLOAT_GAP if activations == "f32" else open_choice(model.config, logits, activations)[0])
            print(f"\n{name}: {len(prompts) - len(ties)} of {len(prompts)} answers are the reference's; others part at (token, gap) {ties}")


def bits_per_byte(runner: Executor, tokens: list[int]) -> float:
    logits = runner.run(single_step(tokens, num_logits=len(tokens))).logits[:-1].astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    chosen = np.take_along_axis(logits, np.array(tokens[1:])[:, None], axis=1)[:, 0]
    return float((np.log(np.exp(logits).sum(axis=1)) - chosen).sum() / np.log(2) / len(TEXT.encode()))


@pytest.fixture(scope="module")
def reference_bits(model: RealModel) -> float:
    with model.runner("reference") as runner:
        return bits_per_byte(runner, model.tokens(TEXT))


def test_bits_per_byte_are_what_they_were(reference_bits: float) -> None:
    """A change of a thousandth would be a change of the model, the tokenizer or the arithmetic."""
    assert reference_bits == pytest.approx(EXPECTED_BITS, rel=1e-4)


@pytest.mark.parametrize(("activations", "kv_format"), [("int8", "f16"), ("int16", "f16"), ("f32", "f32"), ("int16", "int8")])
def test_bits_per_byte_of_the_native_executor(model: RealModel, reference_bits: float, activations: str, kv_format: str) -> None:
    with model.runner("native", activations=activations, kv_format=kv_format) as runner:
        found = bits_per_byte(runner, model.tokens(TEXT))
    tolerance = INT8_CACHE_BITS if kv_format == "int8" else BITS_TOLERANCE[activations]
    assert found == pytest.approx(reference_bits, rel=tolerance), found / reference_bits - 1
