"""Errors become faults by blame."""

from __future__ import annotations

import pytest

from p2pllm.errors import (
    ClientFault,
    Overloaded,
    P2PLLMError,
    PeerLost,
    RemoteProtocolError,
    ServerFault,
    SessionGone,
    StorageError,
)
from p2pllm.server.faults import fault_of
from p2pllm.types import SessionId
from p2pllm.wire.frame import encode_message
from p2pllm.wire.messages import Fault, FaultKind


@pytest.mark.parametrize(
    ("error", "kind", "retry_s"),
    [
        (ClientFault("x"), FaultKind.CLIENT, 0.0),
        (RemoteProtocolError("x"), FaultKind.CLIENT, 0.0),
        (Overloaded("x", 3.0), FaultKind.BUSY, 3.0),
        (SessionGone("x"), FaultKind.GONE, 0.0),
        (ServerFault("x"), FaultKind.INTERNAL, 0.0),
        (StorageError("x"), FaultKind.INTERNAL, 0.0),
        (PeerLost("x"), FaultKind.INTERNAL, 0.0),
    ],
)
def test_every_error_has_its_kind(error: P2PLLMError, kind: FaultKind, retry_s: float):
    session = SessionId(bytes(16))
    assert fault_of(error, session, 2, 5) == Fault(kind, "x", session, 2, 5, retry_s)


def test_long_reasons_still_fit_the_wire():
    assert encode_message(fault_of(ClientFault("ä" * 5000)))
