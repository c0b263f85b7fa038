"""A small random model with a tokenizer of 400 byte pairs and a chat template, on which evaluations run in seconds."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from minicpm4.engine import LLM, LoadOptions
from minicpm4.model.hf_config import config_from_hf
from tests.checkpoint.checkpoint_files import TINY_JSON, tiny_weights, write_folder
from tests.text.tiny_tokenizers import write_tokenizer_folder

TEMPLATE = "<|im_start|>user\n{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant{{ '\\n' }}"


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    write_tokenizer_folder(folder, chat_template=TEMPLATE, bos_token="<|endoftext|>", eos_token="<|im_end|>")
    values = TINY_JSON | {"vocab_size": 400, "max_position_embeddings": 4096, "eos_token_id": 2}
    return write_folder(folder, config=values, weights=tiny_weights(config_from_hf(values)[0]))


@pytest.fixture(scope="session")
def toy_load(toy_folder: Path) -> LoadOptions:
    return LoadOptions(model=str(toy_folder), threads=1)


@pytest.fixture(scope="session")
def toy_llm(toy_load: LoadOptions) -> Iterator[LLM]:
    with LLM.from_options(toy_load) as llm:
        yield llm
