"""``p2pllm chat``: the turns of a conversation share one session of the swarm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import p2pllm.sync
from p2pllm.api import Piece
from p2pllm.cli import main as cli


class Tokenizer:
    has_chat_template = False

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


class Model:
    """Answers every turn with ``ok!``; a turn that says ``stop`` is interrupted after its first piece."""

    tokenizer = Tokenizer()
    max_positions = 4096

    def __init__(self) -> None:
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.turns: list[tuple[int, int]] = []

    @contextmanager
    def session(self, max_length: int) -> Iterator[int]:
        self.opened.append(max_length)
        number = len(self.opened)
        yield number
        self.closed.append(number)

    def stream(self, ids: list[int], session: int, **options: Any) -> Iterator[Piece]:
        self.turns.append((session, len(ids)))
        yield Piece("ok", ())
        if bytes(ids).endswith(b"stop"):
            raise KeyboardInterrupt
        yield Piece("!", ())


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has a conversation; gives the model that it was had with."""

    def have(*said: str) -> Model:
        model, lines = Model(), iter(said)

        @contextmanager
        def connect(*_: object, **__: object) -> Iterator[Model]:
            yield model

        def ask(_: str) -> str:
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(p2pllm.sync, "connect", connect)
        monkeypatch.setattr("builtins.input", ask)
        assert cli.main(["chat", "demo", "--max-new-tokens", "100"]) == 0
        return model

    return have


def test_turns_go_on_in_one_session(talk: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Each turn is the whole conversation; what is new in it is for the session to find out."""
    model = talk("hello", "and now?")
    assert model.turns == [(1, 5), (1, len("hello\nok!\nand now?"))]
    assert model.opened == [2048]
    assert model.closed == [1]
    assert capsys.readouterr().out == "ok!\nok!\n\n"


def test_a_conversation_that_grows_gets_a_larger_session(talk: Any) -> None:
    """Twice what it needs, as far as the model's context goes."""
    model = talk("a" * 1000, "b" * 1500, "c" * 3000)
    assert model.opened == [2 * (1000 + 100), 4096]
    assert [session for session, _ in model.turns] == [1, 2, 2]
    assert model.closed == [1, 2]


def test_an_answer_that_was_stopped_costs_its_session(talk: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What it had said counts; the next turn begins a session anew."""
    model = talk("please stop", "go on")
    assert model.turns == [(1, 11), (2, len("please stop\nok\ngo on"))]
    assert model.closed == [1, 2]
    assert capsys.readouterr().out == "ok\nok!\n\n"
