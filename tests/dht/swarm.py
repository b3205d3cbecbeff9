"""What the tests of this folder share: signed announcements, and directories on simulated hosts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pllm.config import Config
from p2pllm.dht.keys import peer_id_of
from p2pllm.dht.record import Announcement, sign_announcement
from p2pllm.dht.service import Directory
from p2pllm.types import ModelId, Numerics, PeerId, ServerState, Span
from sim.network import EPOCH_S, SimWorld
from sim.ports import sim_ports

MODEL = ModelId("model-a")
SPAN = Span(0, 4)
NUMERICS = Numerics("float32", "none", "torch", "avx2", False)


def announcement(span: Span = SPAN, **fields: Any) -> Announcement:
    base = Announcement(MODEL, span, 8, ServerState.ONLINE, NUMERICS)
    return replace(base, **fields)


@cache
def key(name: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


@cache
def peer(name: str) -> PeerId:
    return peer_id_of(key(name).public_key().public_bytes_raw())


def record(name: str, *, at: float = 0.0, sequence: int | None = None, ttl_s: float = 180.0, **fields: Any) -> bytes:
    """A record of ``name``, issued at ``at`` by a right clock."""
    issued_ms = int((EPOCH_S + at) * 1000)
    ann = announcement(**fields)
    stamped = replace(
        ann, peer=peer(name), sequence=sequence or issued_ms, issued_ms=issued_ms, ttl_ms=int(ttl_s * 1000)
    )
    return sign_announcement(stamped, key(name).sign)


class Node:
    """One directory on one simulated host."""

    def __init__(
        self,
        world: SimWorld,
        name: str,
        models: Sequence[ModelId] | None = (MODEL,),
        *,
        config: Config | None = None,
        **options: Any,
    ) -> None:
        self.world = world
        self.name = name
        storage = options.pop("storage", None)
        self.ports = sim_ports(world, name, storage=storage)
        self.me = self.ports.network.me
        self.directory = Directory(self.ports, config or Config(), models, **options)
        self.ports.network.spawn(self.directory.run)  # type: ignore[attr-defined]

    @property
    def view(self):
        return self.directory.view

    def serve(self, span: Span = SPAN, **fields: Any) -> Node:
        self.directory.announce(announcement(span, **fields))
        return self

    def sees(self, model: ModelId = MODEL) -> set[str]:
        """Names of the servers in this node's view."""
        names = {host.me: host.name for host in self.world.hosts.values()}
        return {names.get(ann.peer, ann.peer) for ann in self.view.servers(model)}


def bootstrap_node(world: SimWorld, name: str = "boot") -> Node:
    return Node(world, name, None)


async def until(condition: Callable[[], bool], node: Node, timeout_s: float) -> float:
    """Wait until a node's view satisfies a condition; the seconds that it took."""
    import trio

    begun = trio.current_time()
    with trio.fail_after(timeout_s):
        while not condition():
            await node.directory.wait_changed()
    return trio.current_time() - begun
