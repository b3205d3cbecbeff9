"""p2pllm.cli.running: ready files and signals."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import trio

from p2pllm.cli.running import Signals, serve_until_signal, write_ready
from p2pllm.errors import UserError


def test_ready_files(tmp_path: Path) -> None:
    """The file is whole when it is there; a folder that does not exist is the user's mistake."""
    path = tmp_path / "ready.json"
    write_ready(str(path), "12D3", ("/ip4/127.0.0.1/tcp/1/p2p/12D3",), (0, 4))
    assert json.loads(path.read_text()) == {
        "peer_id": "12D3",
        "addrs": ["/ip4/127.0.0.1/tcp/1/p2p/12D3"],
        "span": [0, 4],
    }
    assert list(tmp_path.iterdir()) == [path]
    write_ready(None, "12D3", (), None)
    with pytest.raises(UserError, match="ready-file"):
        write_ready(str(tmp_path / "no" / "ready.json"), "12D3", (), None)


@pytest.mark.real_clock
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_signal_begins_an_orderly_leave(number: signal.Signals) -> None:
    """A server that waits is told, and leaves through its own clean-up."""
    log = []

    async def serve(signals: Signals) -> None:
        os.kill(os.getpid(), number)
        await signals.wait()
        await trio.lowlevel.checkpoint()
        log.append("left")

    await serve_until_signal(serve)
    assert log == ["left"]


@pytest.mark.real_clock
async def test_a_signal_while_starting_cancels_the_start() -> None:
    """Loading weights for minutes is no reason to ignore Ctrl-C."""
    log = []

    async def serve(_: Signals) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await trio.sleep_forever()
        finally:
            log.append("cancelled")

    await serve_until_signal(serve)
    assert log == ["cancelled"]
