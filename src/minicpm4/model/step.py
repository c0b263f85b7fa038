"""One step of the engine: everything that a forward pass needs to know about its tokens, complete when made.

Planned by the engine, read by executors. Knows pages and rows; does not know tensors, requests or text.
"""

# T tokens in the step, S sequences in the step, P pages of the longest sequence, R rows whose logits are wanted

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PAGE_TOKENS = 64  # a page of the KV cache is a block of InfLLM v2


def pages_for(num_tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-num_tokens // PAGE_TOKENS)


@dataclass(frozen=True)
class Step:
    """Tokens of several sequences in one ragged batch; all arrays are contiguous int32.

    tokens_T: token ids; the rows of one sequence are consecutive and in order of position.
    positions_T: position of each token in its sequence, from 0.
    slots_T: where a token's key and value are written: page id * PAGE_TOKENS + offset in the page.
    starts_S1: rows [starts[s], starts[s + 1]) belong to sequence s.
    lengths_S: tokens of sequence s in the cache once this step is written.
    pages_SP: page ids of each sequence in order of position; entries past its length are -1.
    wanted_R: the rows whose logits are wanted, ascending.
    is_prompt_S: 1 where the tokens of sequence s are of its prompt, 0 where they were generated; an executor may round them differently.
    """

    tokens_T: np.ndarray
    positions_T: np.ndarray
    slots_T: np.ndarray
    starts_S1: np.ndarray
    lengths_S: np.ndarray
    pages_SP: np.ndarray
    wanted_R: np.ndarray
    is_prompt_S: np.ndarray

    def __post_init__(self) -> None:
        num_tokens, num_sequences = len(self.tokens_T), len(self.lengths_S)
        assert len(self.positions_T) == len(self.slots_T) == num_tokens, "one position and one slot a token"
        assert len(self.starts_S1) == num_sequences + 1, "one start a sequence, and the end"
        assert self.starts_S1[-1] == num_tokens, "starts cover all rows"
        assert self.pages_SP.shape[:-1] == self.is_prompt_S.shape == (num_sequences,), (
            "one row of pages and one mark of a prompt a sequence"
        )
        assert all(a.dtype == np.int32 and a.flags.c_contiguous for a in vars(self).values()), "step arrays are contiguous int32"


def single_step(tokens: np.ndarray, *, start: int = 0, are_all_wanted: bool = False, is_prompt: bool = True) -> Step:
    """A step of one sequence that owns pages 0, 1, 2 ...: tokens at positions start and after; logits of the last or of all."""
    count = len(tokens)
    positions = np.arange(start, start + count, dtype=np.int32)
    return Step(
        tokens_T=np.ascontiguousarray(tokens, np.int32),
        positions_T=positions,
        slots_T=positions,
        starts_S1=np.array([0, count], np.int32),
        lengths_S=np.array([start + count], np.int32),
        pages_SP=np.arange(pages_for(start + count), dtype=np.int32)[None],
        wanted_R=np.arange(count, dtype=np.int32) if are_all_wanted else np.array([count - 1], np.int32),
        is_prompt_S=np.array([is_prompt], np.int32),
    )


def whole_pages_step(pages: np.ndarray) -> Step:
    """A step of one sequence that fills these pages, in their order, from position 0; no logits are wanted, tokens are 0."""
    count = len(pages) * PAGE_TOKENS
    positions = np.arange(count, dtype=np.int32)
    return Step(
        tokens_T=np.zeros(count, np.int32),
        positions_T=positions,
        slots_T=(pages[positions // PAGE_TOKENS] * PAGE_TOKENS + positions % PAGE_TOKENS).astype(np.int32),
        starts_S1=np.array([0, count], np.int32),
        lengths_S=np.array([count], np.int32),
        pages_SP=np.ascontiguousarray(pages, np.int32)[None],
        wanted_R=np.zeros(0, np.int32),
        is_prompt_S=np.ones(1, np.int32),
    )
