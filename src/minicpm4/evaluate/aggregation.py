"""Tasks whose answer is spread over the text: a chain of variables, the most common words of a list, the most frequent coded words.

The words of questions, and the numbers, are those of RULER (arXiv 2404.06654; NVIDIA, Apache-2.0).
"""

from __future__ import annotations

import math
import string
from itertools import pairwise
from random import Random

from minicpm4.evaluate.needles import NOISE
from minicpm4.evaluate.puzzle import Puzzle, Setting, Task
from minicpm4.evaluate.words import word_list

CHAIN = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {value} in the text above.",
    "Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned the value {value}, "
    "they are:",
)
HOPS = 4
EXAMPLE_NOISES, EXAMPLE_NAME = 10, 3  # lines and letters of a name, in the example that goes before a chain
COMMON = (
    "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones that appear most often.\n"
    "{context}\nQuestion: What are the 10 most common words in the above list?",
    "Answer: The top 10 words that appear most often in the list are:",
)
NUM_COMMON = 10
SHORT_LENGTH = 4096  # below it, words are repeated less
FREQUENT = (
    "Read the following coded text and track the frequency of each coded word. Find the three most frequently appeared coded words. "
    "{context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared "
    "words in the above coded text?",
    "Answer: According to the coded text above, the three most frequently appeared words are:",
)
CODE_LETTERS = 6
TOKENS_PER_CODE = 50  # so many tokens of length bring one more word to the vocabulary


def make_chain(random: Random, size: int, setting: Setting) -> Puzzle:
    """size: lines of noise. An example with its answer goes before."""
    example, answer = chain(random, EXAMPLE_NOISES, name_letters=EXAMPLE_NAME), " ".join
    asked = chain(random, size, name_letters=5)
    shown = f"{example.question} {example.answer_start} {answer(example.answers)}"
    return Puzzle(f"{shown}\n\n\n{asked.question}", asked.answer_start, asked.answers)


def chain(random: Random, size: int, *, name_letters: int) -> Puzzle:
    """One variable with a number, and HOPS others that are assigned it through each other, in order among the noise."""
    names = distinct_names(random, HOPS + 1, letters=name_letters, alphabet=string.ascii_uppercase)
    value = str(random.randrange(10000, 99999))
    lines = [f"VAR {names[0]} = {value}", *(f"VAR {after} = VAR {before} " for before, after in pairwise(names))]
    sentences = [NOISE + "\n"] * size
    for index, (place, line) in enumerate(zip(sorted(random.sample(range(size), len(lines))), lines, strict=True)):
        sentences.insert(place + index, line)
    context = " ".join(sentences).replace(". \n", ".\n")
    question, answer_start = CHAIN
    return Puzzle(question.format(context=context, value=value), answer_start.format(count=len(names), value=value), tuple(names))


def make_common(random: Random, size: int, setting: Setting) -> Puzzle:
    """size: different words. An example with its answer goes before."""
    is_short = setting.length < SHORT_LENGTH
    example, common = common_words(random, 20, repeats=(3, 1)) if is_short else common_words(random, 40, repeats=(10, 3))
    asked, answers = common_words(random, size, repeats=(6, 1) if is_short else (30, 3))
    question, answer_start = COMMON
    shown = f"{question.format(context=example)} {answer_start} {numbered(common)}"
    return Puzzle(f"{shown}\n{question.format(context=asked)}", answer_start, answers)


def common_words(random: Random, count: int, *, repeats: tuple[int, int]) -> tuple[str, tuple[str, ...]]:
    """A numbered list of so many different words, the first ten of them more often than the others; and those ten."""
    chosen = random.sample(word_list().all, min(count, len(word_list().all)))
    common, others = chosen[:NUM_COMMON], chosen[NUM_COMMON:]
    entries = common * repeats[0] + others * repeats[1]
    random.shuffle(entries)
    return numbered(entries), tuple(common)


def numbered(words: list[str] | tuple[str, ...]) -> str:
    return " ".join(f"{index}. {word}" for index, word in enumerate(words, start=1))


def make_frequent(random: Random, size: int, setting: Setting) -> Puzzle:
    """size: words of a text without end, of which the k-th most frequent has a share of 1 / (zeta(2) k^2); the first is dots."""
    count = max(4, setting.length // TOKENS_PER_CODE)
    codes = ["...", *distinct_names(random, count - 1, letters=CODE_LETTERS, alphabet=string.ascii_lowercase)]
    shares = [6 / math.pi**2 / rank**2 for rank in range(1, count + 1)]
    entries = [code for code, share in zip(codes, shares, strict=True) for _ in range(int(size * share))]
    random.shuffle(entries)
    question, answer_start = FREQUENT
    return Puzzle(question.format(context=" ".join(entries)), answer_start, tuple(codes[1:4]))


def distinct_names(random: Random, count: int, *, letters: int, alphabet: str) -> list[str]:
    names = dict[str, None]()
    while len(names) < count:
        names["".join(random.choices(alphabet, k=letters))] = None
    return list(names)


AGGREGATION_TASKS = (
    Task("vt", 30, make_chain, min_size=HOPS + 1),
    Task("cwe", 120, make_common, min_size=NUM_COMMON + 1),
    Task("fwe", 50, make_frequent, min_size=60),  # the fourth most frequent is there twice, the fifth once
)
