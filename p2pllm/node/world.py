"""The real world as ports: libp2p network, compute threads, disk, clock, chance.

Invariants: everything is opened in order and closed in reverse, within bounds; nothing here knows a server or a client.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from p2pllm.config import Config
from p2pllm.errors import UserError
from p2pllm.local.clock import new_rng, token_bytes, wall_time
from p2pllm.local.compute import open_compute
from p2pllm.local.models import default_cache_dir
from p2pllm.local.storage import DiskStorage
from p2pllm.node.members import MembersFile
from p2pllm.ports import Ports

BOOTSTRAP_ENV = "P2PLLM_BOOTSTRAP"
MEMBERS_FILE = "members.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldOptions:
    """How this process appears in the network.

    Attributes:
        bootstrap: multiaddrs with ``/p2p/<id>``; empty: from the environment variable P2PLLM_BOOTSTRAP.
        listen: multiaddrs to listen on; empty for one that only dials.
        identity: key file, made when missing; None: a fresh identity that ends with this process.
        cache_dir: downloads, measurements, remembered members; None: the user's cache folder.
        devices: one compute thread each.
        threads: torch threads; None: physical cores minus one.
        member: answers others' DHT questions; off for short-lived clients.
    """

    bootstrap: Sequence[str] = ()
    listen: Sequence[str] = ()
    identity: str | None = None
    cache_dir: str | None = None
    devices: Sequence[str] = ("cpu",)
    threads: int | None = None
    member: bool = False


@dataclass(frozen=True, slots=True)
class World:
    """The ports, and what was remembered from last time."""

    ports: Ports
    files: DiskStorage
    members: MembersFile
    cache_dir: str
    bootstrap: tuple[str, ...]


def bootstrap_addresses(given: Sequence[str]) -> tuple[str, ...]:
    """What was given, or what the environment says."""
    return tuple(given) or tuple(os.environ.get(BOOTSTRAP_ENV, "").split())


def compute_threads(wanted: int | None) -> int:
    """Physical cores minus one (the loop needs some time too), at least one; or what is wanted."""
    import torch

    return wanted or max(1, torch.get_num_threads() - 1)


@asynccontextmanager
async def open_world(config: Config, options: WorldOptions) -> AsyncIterator[World]:
    """Open the real ports.

    Raises:
        UserError: an address, the key file or the cache folder cannot be used.
    """
    import torch

    from p2pllm.net import Identity, load_or_create, open_network  # libp2p takes a second to import

    threads = compute_threads(options.threads)
    cache = trio.Path(os.path.expanduser(options.cache_dir or default_cache_dir()))  # noqa: ASYNC240 - reads no disk
    try:
        await cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache folder {cache} cannot be made: {error.strerror}; choose another --cache-dir"
        ) from error
    storage = DiskStorage()
    members = MembersFile(storage, str(cache / MEMBERS_FILE))
    await members.load()
    bootstrap = bootstrap_addresses(options.bootstrap)
    async with AsyncExitStack() as stack:
        identity = stack.enter_context(
            Identity.ephemeral(token_bytes)
            if options.identity is None
            else load_or_create(options.identity, token_bytes)
        )
        compute = await stack.enter_async_context(
            open_compute(options.devices, setup=lambda _: torch.set_num_threads(threads))
        )
        network = await stack.enter_async_context(
            open_network(
                config.net,
                identity=identity,
                wall_time=wall_time,
                listen=options.listen,
                bootstrap=bootstrap,
                remembered=members.addresses,
                serve_dht=options.member,
            )
        )
        ports = Ports(network, compute, storage, wall_time, new_rng(), token_bytes)
        yield World(ports, storage, members, str(cache), bootstrap)
