"""Tokens that end a text or a turn, known by their text: GGUF files often name only one of them as `eos`.

The list is llama.cpp's, found by asking its library about a vocabulary of candidates (tests/text/test_turn_ends.py asks again).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

END_TEXTS = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|calls|>", "<|flush|>", "<end_of_turn>", "<|endoftext|>", "</s>",
    "<eos>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<turn|>", "<|tool_response>",
    "[e~[",
)  # fmt: skip
ONLY_WITHOUT_ANOTHER = "<｜end▁of▁sentence｜>"  # ends a text where nothing else is recognised as the end of a turn
TURN_TEXTS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>", "[EOT]",
              "<end_of_utterance>")  # fmt: skip
FILL_TEXTS = {  # of code between two others, by role: the first of each list that there is, unless a key gives the role
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
CONVERSATION_PARTS = tuple({call, other} for call in ("<|call|>", "<|calls|>") for other in ("<|return|>", "<|flush|>"))


def ends_by_text(ids: Mapping[str, int], *, given: Collection[str] = ()) -> dict[int, str]:
    """Which tokens of a vocabulary end an answer, with their texts. ids: of all tokens, by text; given: roles that keys give."""
    texts = [text for text in END_TEXTS if text in ids]
    if ONLY_WITHOUT_ANOTHER in ids and "eot" not in given and not any(text in ids for text in TURN_TEXTS):
        texts.append(ONLY_WITHOUT_ANOTHER)
    for role, group in FILL_TEXTS.items():
        texts += [text for text in group if text in ids and role not in given][:1]
    return {ids[text]: text for text in texts}


def without_parts(ends: Mapping[int, str], texts: Mapping[int, str]) -> dict[int, str]:
    """The ends that remain where some of them show that others are ordinary tokens. ends: what says so, by id; texts: of those ids."""
    found = {texts[i] for i in ends}
    ordinary = {"<|end|>"} if any(pair <= found for pair in CONVERSATION_PARTS) else set()  # it ends a part of a turn
    if "<|tool_response>" in found:
        ordinary.add("</s>")  # of a family of models in which it marks struck-out text
    return {i: source for i, source in ends.items() if texts[i] not in ordinary}
