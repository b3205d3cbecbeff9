"""p2pllm for plain code: the names of ``p2pllm`` without ``await``, safe from any thread, Ctrl-C included.

    with p2pllm.sync.connect("demo", bootstrap=[addr]) as model:
        for piece in model.stream("Once upon a time"):
            print(piece.text, end="", flush=True)

Invariants: a thin facade, no logic; each connection runs its own loop in its own thread, which ends with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from p2pllm import api
from p2pllm.client.facade import ModelFacade, SessionFacade, inner
from p2pllm.client.portal import Portal

if TYPE_CHECKING:
    import torch

    from p2pllm.api import GenerateResult, Inputs, Piece

__all__ = ["Model", "Node", "SyncSession", "connect"]


class SyncSession(SessionFacade):
    """A session, step by step; made by ``Model.session``."""

    def step(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Feed new tokens [B, n] (int64); returns logits [B, n, vocab] (float32)."""
        return self._portal.call(self._session.step, input_ids)


class Model(ModelFacade):
    """A model of the swarm; made by ``connect``."""

    def generate(self, inputs: Inputs, **options: Any) -> GenerateResult:
        """As ``RemoteModel.generate``."""
        return self._portal.call(self._model.generate, inputs, **inner(options))

    def stream(self, inputs: Inputs, **options: Any) -> Iterator[Piece]:
        """As ``RemoteModel.stream``; leaving the loop early stops the generation."""
        return self._portal.iterate(lambda: self._model.stream(inputs, **inner(options)))

    def forward(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        """Token ids [B, S] (int64) to logits [B, S, vocab] (float32)."""
        return self._portal.call(self._model.forward, input_ids, **options)

    @contextmanager
    def session(self, **options: Any) -> Iterator[SyncSession]:
        """As ``RemoteModel.session``."""
        held = self._portal.open(self._model.session(**options))
        try:
            yield SyncSession(self._portal, held.value)
        finally:
            held.close()


@contextmanager
def connect(model: str, **options: Any) -> Iterator[Model]:
    """As ``p2pllm.connect``."""
    with Portal() as portal:
        held = portal.open(api.connect(model, **options))
        try:
            yield Model(portal, held.value)
        finally:
            held.close()


class Node:
    """As ``p2pllm.Node``; serves until the ``with`` block is left."""

    def __init__(self, model: str, **options: Any) -> None:
        self._node = api.Node(model, **options)
        self._portal = Portal()

    def __enter__(self) -> api.Node:
        self._portal.__enter__()
        try:
            self._held = self._portal.open(self._node)
        except BaseException as error:
            self._portal.__exit__(type(error), error, error.__traceback__)
            raise
        return self._held.value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._held.close()
        finally:
            self._portal.__exit__(kind, error, trace)
