"""Forward and backward requests to one server, several under way on one stream, matched to their answers by id.

Invariants: a request ends with its answer, a fault of its own, or with the stream. The deadline is one of progress: it
runs from the last answer (or the last request that went out whole), so a long line of requests may take its time as
long as answers keep coming. Every answer is checked against what was asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import trio

from p2pllm.client.edge import Packed
from p2pllm.client.link import Link
from p2pllm.config import WireLimits
from p2pllm.errors import (
    ClientFault,
    Overloaded,
    P2PLLMError,
    PeerLost,
    RemoteFault,
    RemoteProtocolError,
    ServerFault,
    SessionGone,
)
from p2pllm.ports import Buffer
from p2pllm.types import ModelId, Span
from p2pllm.wire.frame import Payload
from p2pllm.wire.messages import Backward, Backwarded, Fault, FaultKind, Forward, Forwarded, Message

Asked = Forward | Backward


@dataclass(eq=False, slots=True)
class _Request:
    asked: Asked
    done: trio.Event = field(default_factory=trio.Event)
    answer: Packed | None = None
    error: P2PLLMError | None = None
    sent: bool = False


class Requests:
    """Forwards or backwards over ``link``; ``serve`` has to run beside those who ask."""

    def __init__(self, link: Link, model: ModelId, limits: WireLimits, timeout_s: float) -> None:
        self.link = link
        self._model = model
        self._limits = limits
        self._timeout_s = timeout_s
        self._requests: dict[int, _Request] = {}
        self._next = 0
        self._sending = trio.Lock()
        self._work = trio.Event()
        self._over: P2PLLMError | None = None

    async def ask(
        self, span: Span, counts: tuple[int, ...], packed: Packed, codec: str, points: tuple[int, ...]
    ) -> Packed:
        """Whole sequences of ``counts`` tokens through ``span`` of the server's blocks.

        Raises:
            PeerLost, RemoteProtocolError, RemoteFault: the server failed, or refused.
        """
        asked = Forward(self._number(), self._model, span, counts, codec, packed.tensor, codec_points=points)
        return await self._ask(asked, packed.payload)

    async def ask_back(
        self,
        span: Span,
        counts: tuple[int, ...],
        packed: Packed,
        gradient: Packed,
        codec: str,
        points: tuple[int, ...],
    ) -> Packed:
        """The gradient at the inputs ``packed`` of ``span``, in the codec of ``gradient``, that at its outputs.

        Raises:
            PeerLost, RemoteProtocolError, RemoteFault: the server failed, or refused.
        """
        asked = Backward(
            self._number(), self._model, span, counts, codec, packed.tensor, gradient.tensor, codec_points=points
        )
        return await self._ask(asked, b"".join((packed.payload, gradient.payload)))

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    async def _ask(self, asked: Asked, payload: Buffer) -> Packed:
        if self._over is not None:
            raise self._over
        request = self._requests[asked.request] = _Request(asked)
        try:
            async with self._sending:
                await self.link.send(asked, payload)
            request.sent = True
            self._work.set()
            await request.done.wait()
        except PeerLost as exc:
            self._end(exc)
            raise
        finally:
            self._requests.pop(request.asked.request, None)
        if request.error is not None:
            raise request.error
        assert request.answer is not None
        return request.answer

    async def serve(self) -> None:
        """Take answers until the stream fails; for ever otherwise."""
        while self._over is None:
            if not any(request.sent for request in self._requests.values()):
                self._work = trio.Event()
                await self._work.wait()
                continue
            try:
                self._take(*await self.link.receive(self._timeout_s))
            except (PeerLost, RemoteProtocolError) as exc:
                self._end(exc)

    @property
    def idle(self) -> bool:
        """Whether the link may go back to its pool."""
        return self._over is None and not self._requests

    def _end(self, error: P2PLLMError) -> None:
        self._over = self._over or error
        self.link.abort()
        self._work.set()
        for request in self._requests.values():
            if not request.done.is_set():
                request.error = request.error or error
                request.done.set()

    def _take(self, message: Message, payload: Payload) -> None:
        match message:
            case Forwarded() | Backwarded():
                request = self._asked(message.request)
                tensor, asked = message.tensor, request.asked
                back = isinstance(asked, Backward)
                codec = asked.gradient.codec if isinstance(asked, Backward) else asked.activations
                if back != isinstance(message, Backwarded):
                    raise RemoteProtocolError(f"{type(message).__name__} answers a {type(asked).__name__}")
                if tensor.shape != asked.tensor.shape or tensor.codec != codec:
                    raise RemoteProtocolError(f"{tensor.codec} {list(tensor.shape)} answers a {type(asked).__name__}")
                request.answer = Packed(tensor, payload)
            case Fault():
                request = self._asked(message.step)
                request.error = _error_of(message, self._limits)
            case _:
                raise RemoteProtocolError(f"{type(message).__name__} as an answer to a request")
        del self._requests[request.asked.request]
        request.done.set()

    def _asked(self, number: int) -> _Request:
        request = self._requests.get(number)
        if request is None:
            raise RemoteProtocolError(f"answer to request {number}, which is not under way")
        return request


def _error_of(fault: Fault, limits: WireLimits) -> RemoteFault:
    match fault.kind:
        case FaultKind.CLIENT:
            return ClientFault(fault.reason)
        case FaultKind.BUSY:
            wait_s = fault.retry_after_s if math.isfinite(fault.retry_after_s) else limits.retry_after_s_max
            return Overloaded(fault.reason, min(max(0.0, wait_s), limits.retry_after_s_max))
        case FaultKind.GONE:
            return SessionGone(fault.reason)
        case FaultKind.INTERNAL:
            return ServerFault(fault.reason)
