"""Info: the current announcement, and nothing of other models."""

from __future__ import annotations

import pytest
import trio

from p2pllm.config import Config
from p2pllm.errors import PeerLost
from p2pllm.server.infos import Infos
from p2pllm.types import ModelId
from p2pllm.wire import INFO
from p2pllm.wire.messages import Close, Info, InfoRequest
from sim.network import SimWorld
from tests.server.support import MODEL, Caller, sid


async def test_answers_with_the_record():
    async with SimWorld() as world:
        server = world.host("server")
        server.serve(INFO, Infos(lambda model: b"record" if model == MODEL else b"", Config()).handle)
        caller = await Caller.dial(world.host("client"), server, INFO)
        assert await caller.ask(InfoRequest(7, MODEL)) == Info(7, b"record")
        assert await caller.ask(InfoRequest(8, ModelId("other"))) == Info(8, b"")
        await caller.channel.send(Close(sid(1)))
        with pytest.raises(PeerLost):
            await caller.next()
        await trio.sleep(1)
