"""``p2pllm chat``: talk with a model, turn by turn. An empty line or Ctrl-D ends it; Ctrl-C stops an answer."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import p2pllm.sync
from p2pllm.cli.running import Loading, client_options, errors, sampling_options
from p2pllm.errors import UserError


def run(args: argparse.Namespace) -> int:
    """Read, answer, repeat; the conversation is fed again in every turn."""
    with (
        Loading(f"Loading {args.model}") as loading,
        p2pllm.sync.connect(args.model, progress=loading, **client_options(args)) as model,
    ):
        loading.stop()
        turns: list[dict[str, str]] = []
        encode = _encoder(model)
        while question := _ask():
            turns.append({"role": "user", "content": question})
            turns.append({"role": "assistant", "content": _answer(model, encode(turns), args)})
    return 0


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


def _answer(model: p2pllm.sync.Model, ids: list[int], args: argparse.Namespace) -> str:
    said = []
    pieces = model.stream(ids, **sampling_options(args))
    try:
        for piece in pieces:
            said.append(piece.text)
            print(piece.text, end="", flush=True)
    except KeyboardInterrupt:
        errors.print("[dim] (stopped)[/dim]", end="")
    print(flush=True)
    return "".join(said)
