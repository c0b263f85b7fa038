"""Tokens that end a text or a turn, known by their text: GGUF files often name only one of them as `eos`.

The list is llama.cpp's, found by asking its library about a vocabulary of candidates (tests/text/test_turn_ends.py asks again).
"""

from __future__ import annotations

from collections.abc import Mapping

END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<end_of_turn>", "<|endoftext|>", "</s>",
    "<eos>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<turn|>", "<|tool_response>",
    "[e~[",
)  # fmt: skip
ONLY_WITHOUT_ANOTHER = "<｜end▁of▁sentence｜>"  # ends a text where nothing else is recognised as the end of a turn
TURN_TEXTS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]",
              "<end_of_utterance>")  # fmt: skip
FILL_TEXTS = (  # of code between two others: the first of each line that there is
    ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    ("<|file_sep|>",),
)
CONVERSATION_PARTS = ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"})  # with either pair, <|end|> ends only a part of a turn


def ends_by_text(ids: Mapping[str, int]) -> dict[int, str]:
    """Which tokens of a vocabulary end an answer, with their texts. ids: of all tokens, by text."""
    texts = [text for text in END_TEXTS if text in ids]
    if ONLY_WITHOUT_ANOTHER in ids and not any(text in ids for text in TURN_TEXTS):
        texts.append(ONLY_WITHOUT_ANOTHER)
    for group in FILL_TEXTS:
        texts += [text for text in group if text in ids][:1]
    if any(pair <= ids.keys() for pair in CONVERSATION_PARTS):
        texts = [text for text in texts if text != "<|end|>"]
    return {ids[text]: text for text in texts}
