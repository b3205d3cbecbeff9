"""``p2pllm chat``: talk with a model, turn by turn. An empty line or Ctrl-D ends it; Ctrl-C stops an answer."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import p2pllm.sync
from p2pllm.cli.running import Loading, client_options, errors, sampling_options
from p2pllm.errors import UserError

ROOM_TOKENS = 2048
"""Cache that a conversation reserves on the servers at first; twice what it needs when it outgrows that."""


def run(args: argparse.Namespace) -> int:
    """Read, answer, repeat; the servers keep the conversation, so a turn feeds them only what is new."""
    with (
        Loading(f"Loading {args.model}") as loading,
        p2pllm.sync.connect(args.model, progress=loading, **client_options(args)) as model,
        _Conversation(model, args) as conversation,
    ):
        loading.stop()
        turns: list[dict[str, str]] = []
        encode = _encoder(model)
        while question := _ask():
            turns.append({"role": "user", "content": question})
            turns.append({"role": "assistant", "content": conversation.answer(encode(turns))})
    return 0


class _Conversation:
    """The session that all turns share; made anew when it is outgrown, and after an answer was stopped half-way."""

    def __init__(self, model: p2pllm.sync.Model, args: argparse.Namespace) -> None:
        self._model = model
        self._options = sampling_options(args)
        self._opened = ExitStack()
        self._session: p2pllm.sync.SyncSession | None = None
        self._room = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def answer(self, ids: list[int]) -> str:
        """What the model says to the conversation so far."""
        said = []
        pieces = self._model.stream(ids, **self._options, session=self._fitting(ids))
        try:
            for piece in pieces:
                said.append(piece.text)
                print(piece.text, end="", flush=True)
        except KeyboardInterrupt:
            errors.print("[dim] (stopped)[/dim]", end="")
            self._session = None
        print(flush=True)
        return "".join(said)

    def _fitting(self, ids: list[int]) -> p2pllm.sync.SyncSession:
        """A session with room for the conversation so far, an answer, and at first some more turns."""
        needed = min(len(ids) + self._options["max_new_tokens"], self._model.max_positions)
        if self._session is None or needed > self._room:
            self._opened.close()
            self._room = min(max(ROOM_TOKENS, 2 * needed), self._model.max_positions)
            self._session = self._opened.enter_context(self._model.session(max_length=self._room))
        return self._session


def _encoder(model: p2pllm.sync.Model) -> Callable[[list[dict[str, str]]], list[int]]:
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise UserError("this checkpoint has no tokenizer: chat needs one")
    if tokenizer.has_chat_template:
        return tokenizer.encode_chat
    errors.print("[dim]This model has no chat template; it continues the plain text.[/dim]")
    return lambda turns: tokenizer.encode("\n".join(turn["content"] for turn in turns))


def _ask() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        print()
        return ""
