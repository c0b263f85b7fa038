"""The Python interface: text and messages in, text out. Everything below deals in token ids."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Unpack, overload

from minicpm4.engine.answer import Answer, Completion, check_numbers
from minicpm4.engine.engine import Engine
from minicpm4.engine.load import LoadedModel, LoadProgress, load_model
from minicpm4.engine.options import LoadOptions
from minicpm4.engine.params import SamplingParams
from minicpm4.engine.score import Scores
from minicpm4.engine.session import Session
from minicpm4.engine.stream import Call, Stream
from minicpm4.errors import RequestError
from minicpm4.text import ChatOptions, encode_chat

Message = Mapping[str, Any]
Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A loaded model. Close it, or use it in a `with`. Several threads may use it at once: their requests run in one batch.

        with LLM("default") as llm:
            print(llm.chat([{"role": "user", "content": "What is the capital of France?"}]).text)

    loaded: what the name led to: config, tokenizer, chat template, executor, memory plan, choices with their reasons.
    default_params: what the model's own generation_config.json asks for, used where a call gives no params.
    session: what runs the requests; another program, such as a server, may push its own into it.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "default",
        *,
        progress: LoadProgress | None = None,
        **options: Any,
    ) -> None:
        """model, options: the fields of `LoadOptions`. progress: told (what, bytes done, bytes in all) of downloads and loads."""
        self._adopt(load_model(LoadOptions(model=os.fspath(model), **options), progress))

    @classmethod
    def from_options(cls, options: LoadOptions, *, progress: LoadProgress | None = None) -> LLM:
        """The same from options that were made elsewhere."""
        llm = cls.__new__(cls)
        llm._adopt(load_model(options, progress))
        return llm

    def _adopt(self, loaded: LoadedModel) -> None:
        self.loaded, self.default_params = loaded, loaded.default_params
        self.session = Session(Engine(loaded.executor, loaded.limits), on_close=partial(close_model, loaded))

    @overload
    def generate(self, prompts: str, params: SamplingParams | None = None, *, add_bos: bool | None = None) -> Completion: ...
    @overload
    def generate(self, prompts: list[str] | tuple[str, ...], params: Params = None, *, add_bos: bool | None = None) -> list[Completion]: ...
    def generate(
        self, prompts: str | list[str] | tuple[str, ...], params: Params = None, *, add_bos: bool | None = None
    ) -> Completion | list[Completion]:
        """Continues raw text; a list runs as one batch.

        params: for all prompts, or one for each; where they ask for n samples, each result has n `choices`.
        add_bos: whether the BOS token goes first; None for the tokenizer's own habit.
        Where the model computes what is not a number, a single prompt is a CheckpointError, and one of a list has the
        finish_reason "error".
        """
        if not isinstance(prompts, list | tuple):
            return self._complete_one(self.encode(prompts, add_bos=add_bos), params, is_continuation=True)
        return self._complete([self.encode(prompt, add_bos=add_bos) for prompt in prompts], params, is_continuation=True)

    @overload
    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None, **options: Unpack[ChatOptions]) -> Completion: ...
    @overload
    def chat(self, messages: Sequence[Sequence[Message]], params: Params = None, **options: Unpack[ChatOptions]) -> list[Completion]: ...
    def chat(
        self, messages: Sequence[Message] | Sequence[Sequence[Message]], params: Params = None, **options: Unpack[ChatOptions]
    ) -> Completion | list[Completion]:
        """Answers a conversation, or a list of them as one batch, through the checkpoint's chat template.

        A message is {"role": ..., "content": ...}. options: tools, documents, the name of one of several templates, whether to continue
        the final message, and variables, which are what else the template reads, such as enable_thinking (see `text.encode_chat`).
        Errors are those of `generate`.
        """
        if not messages:
            raise RequestError("there are no messages", hint='give at least [{"role": "user", "content": "..."}]')
        if not isinstance(messages, list | tuple) or isinstance(messages[0], Mapping):
            ids = self.encode_messages(messages, **options)  # type: ignore[arg-type]
            return self._complete_one(ids, params, is_continuation=options.get("continue_final_message", False))
        prompts = [self.encode_messages(one, **options) for one in messages]
        return self._complete(prompts, params, is_continuation=options.get("continue_final_message", False))

    def stream(
        self,
        prompt: str | Sequence[Message],
        params: SamplingParams | None = None,
        *,
        add_bos: bool | None = None,
        **options: Unpack[ChatOptions],
    ) -> Stream:
        """One answer piece by piece: of raw text where prompt is a str, of a conversation where it is messages. options: of `chat`.

        RequestError where params asks for several samples.
        """
        ids = self.encode(prompt, add_bos=add_bos) if isinstance(prompt, str) else self.encode_messages(prompt, **options)
        [chosen] = self._params_for(1, params)
        if chosen.n > 1:
            raise RequestError(
                f"a stream is one answer, n is {chosen.n}", hint="use generate or chat, or a stream for each of params.samples"
            )
        goes_on = isinstance(prompt, str) or options.get("continue_final_message", False)
        call = self._call(ids, chosen, is_continuation=goes_on)
        stream = Stream(call)  # before it starts, so that what starts is always somebody's
        call.start()
        return stream

    def chat_turn(
        self,
        query: str,
        history: Sequence[Message] | None = None,
        *,
        role: str = "user",
        max_length: int = 4096,
        do_sample: bool = True,
        top_p: float = 0.8,
        temperature: float = 0.3,
        seed: int | None = None,
    ) -> tuple[str, list[Message]]:
        """One turn as the checkpoints' own `model.chat` takes it: (response, history with this turn and the response).

        max_length: the most tokens of prompt and answer together. The names and defaults are theirs.
        """
        turns = [*(history or ()), {"role": role, "content": query}]
        ids = self.encode_messages(turns)
        room = min(max_length, self.loaded.limits.sequence_tokens) - len(ids)
        if room < 1:
            raise RequestError(
                f"the conversation has {len(ids)} tokens, max_length is {max_length}", hint="raise max_length, or start anew"
            )
        params = SamplingParams(max_tokens=room, temperature=temperature if do_sample else 0.0, top_p=top_p, seed=seed)
        response = self._complete_one(ids, params).text
        return response, [*turns, {"role": "assistant", "content": response}]

    def score(self, tokens: Sequence[int], *, first: int = 1) -> Scores:
        """Log-probabilities of tokens[first:], each given all tokens before it; computed at once, as a prompt is, beside whatever runs.

        RequestError, CapacityError where that cannot be: see `Engine.score`.
        """
        return self.session.score(tokens, first=first)

    def encode(self, text: str, *, add_bos: bool | None = None) -> list[int]:
        """Token ids of raw text, in which a control token's text stands for the token."""
        if not isinstance(text, str):
            raise RequestError(f"the prompt is {text!r:.80}, expected text", hint="give a str, or a list of them; chat takes messages")
        return self.loaded.tokenizer.encode(text, add_bos=add_bos, parses_special=True)

    def encode_messages(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> list[int]:
        """Token ids of a conversation up to where the answer begins; a control token's text in a message stays text. options: of `chat`."""
        return encode_chat(self.loaded.tokenizer, self.loaded.templates, messages, **options)

    def close(self) -> None:
        """Frees the weights, the cache and the threads, after the step that another thread may be computing."""
        self.session.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _call(self, prompt: Sequence[int], params: SamplingParams, *, is_continuation: bool) -> Call:
        loaded = self.loaded
        answer = partial(Answer, loaded.tokenizer, params, prompt_tokens=len(prompt), is_continuation=is_continuation, sparse=loaded.sparse)
        return Call(self.session, prompt, params, answers=[answer() for _ in range(params.n)])

    def _complete_one(self, prompt: Sequence[int], params: Params, *, is_continuation: bool = False) -> Completion:
        [completion] = self._complete([prompt], params, is_continuation=is_continuation)
        check_numbers(completion)
        return completion

    def _params_for(self, num_prompts: int, params: Params) -> list[SamplingParams]:
        """Those of each prompt. RequestError for what is none, or for another number of them."""
        chosen = self.default_params if params is None else params
        all_params = [chosen] * num_prompts if isinstance(chosen, SamplingParams) else chosen
        if not isinstance(all_params, list | tuple) or not all(isinstance(one, SamplingParams) for one in all_params):
            raise RequestError(f"params is {params!r:.80}, expected SamplingParams", hint="write SamplingParams(max_tokens=100)")
        if len(all_params) != num_prompts:
            raise RequestError(f"there are {num_prompts} prompts and {len(all_params)} params", hint="give one for all, or one for each")
        return list(all_params)

    def _complete(self, prompts: Sequence[Sequence[int]], params: Params, *, is_continuation: bool = False) -> list[Completion]:
        """Runs prompts together to their ends."""
        all_params = self._params_for(len(prompts), params)
        calls = [self._call(prompt, one, is_continuation=is_continuation) for prompt, one in zip(prompts, all_params, strict=True)]
        try:
            for call in calls:
                call.start()
            self.session.run_until(lambda: all(call.is_over for call in calls))
            return [call.completion() for call in calls]
        finally:
            for call in calls:
                call.drop()


def close_model(loaded: LoadedModel) -> None:
    if loaded.templates is not None:
        loaded.templates.close()
    loaded.executor.close()
