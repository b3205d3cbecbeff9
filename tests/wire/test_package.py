"""What importing the wire costs, and that relays and codec agree on sizes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from p2pllm.wire import FORWARD, INFO, PUSH, RECORDS, SESSION, tensor
from p2pllm.wire.fields import CODECS
from p2pllm.wire.messages import plain_size

HEAVY = "torch", "libp2p", "trio", "asyncio", "socket", "transformers"


@pytest.mark.parametrize(
    "module", ["p2pllm.wire", "p2pllm.wire.frame", "p2pllm.wire.session_server", "p2pllm.wire.session_client"]
)
def test_the_wire_imports_nothing_heavy(module: str) -> None:
    """msgpack's dependents and the standard library only: a codec test must not wait for torch."""
    code = f"import {module}, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_protocol_names() -> None:
    names = [SESSION, PUSH, FORWARD, INFO, RECORDS]
    assert names == [f"/p2pllm/1/{name}" for name in ("session", "push", "forward", "info", "records")]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("tokens", [0, 1, 7])
def test_the_size_that_a_relay_checks_is_the_codecs(codec: str, tokens: int) -> None:
    for hidden in (1, 2, 63, 64, 65, 127, 128, 512, 1023, 1024, 4096, 65536):
        assert tensor.payload_size(codec, tokens, hidden) == plain_size(codec, tokens, hidden)
