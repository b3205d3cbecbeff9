"""What programs call: ``connect`` to generate, ``Node`` to serve, ``open_bootstrap`` to start a swarm.

Invariants: keyword arguments have the names of the command's flags; a user's mistake is a ``UserError`` in one line.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

from p2pllm.client.inputs import Inputs as Inputs
from p2pllm.client.model import RemoteModel as RemoteModel
from p2pllm.client.options import GenerateResult as GenerateResult
from p2pllm.client.options import Piece as Piece
from p2pllm.client.route import Hop as Hop
from p2pllm.client.session import Session as Session
from p2pllm.config import Config, preset
from p2pllm.dht.service import Directory
from p2pllm.errors import SwarmError, UserError
from p2pllm.node.opening import OpenedModel, open_model, pick_device, pick_dtype
from p2pllm.node.serving import open_directory, open_server
from p2pllm.node.using import load_share, open_client, unwrapped
from p2pllm.node.world import World, WorldOptions, open_world
from p2pllm.server.service import Plan
from p2pllm.server.weights import CheckpointWeights
from p2pllm.types import PeerId, Span
from p2pllm.wire.tensor import CODECS

Progress = Callable[[int, int], None]
"""Hears (bytes so far, bytes in all) while weights are read or downloaded; called from another thread."""

NOBODY_KNOWN = (
    "no member of a swarm is known: give the address of one as --bootstrap ADDR (bootstrap=[ADDR]) or in "
    "P2PLLM_BOOTSTRAP; p2pllm bootstrap starts a swarm and prints its address"
)
ANYWHERE = ("/ip4/0.0.0.0/tcp/0",)


@asynccontextmanager
async def connect(
    model: str,
    *,
    bootstrap: Sequence[str] = (),
    activations: str = "int8",
    exact: bool = False,
    push: str = "auto",
    patience: float = 60.0,
    allow_servers: Sequence[str] = (),
    identity: str | None = None,
    cache_dir: str | None = None,
    threads: int | None = None,
    config: Config | str = "wan",
    progress: Progress | None = None,
) -> AsyncIterator[RemoteModel]:
    """Join a swarm as a client.

    Args:
        model: folder in Hugging Face layout, hub id, or ``demo``.
        bootstrap: multiaddrs of members, with ``/p2p/<id>``; without any, P2PLLM_BOOTSTRAP and members remembered from
            last time are tried.
        activations: how hidden states travel: ``int8``, ``bf16``, ``fp16`` or ``fp32``.
        exact: use only servers of one exact numerics class.
        push: servers send outputs straight to the next hop: ``on``, ``off`` (through us), or ``auto``.
        patience: seconds to wait for blocks that nobody serves.
        allow_servers: only these peer ids may serve; empty: anybody.
        identity: key file of this peer, made when missing; None: a fresh identity.
        cache_dir: downloads and remembered members; None: the user's cache folder.
        threads: torch threads for the model's ends; None: physical cores minus one.
        config: ``wan``, ``lan``, ``local``, or all settings.
        progress: hears of bytes read.

    Raises:
        UserError: an argument is wrong; CheckpointError among them.
        StorageError: the disk or a download failed.
        SwarmError: no member of any swarm is known.
    """
    base = preset(config)
    if activations not in CODECS:
        raise UserError(f"activations {activations!r} do not exist; choose one of {', '.join(CODECS)}")
    if push not in ("auto", "on", "off"):
        raise UserError(f"push {push!r}: choose auto, on or off")
    client = replace(
        base.client,
        activations=activations,
        exact=exact,
        push=push,
        patience_s=patience,
        allow_servers=tuple(allow_servers),
    )
    settings = replace(base, client=client)
    options = WorldOptions(bootstrap=bootstrap, identity=identity, cache_dir=cache_dir, threads=threads)
    async with unwrapped(), open_world(settings, options) as world:
        if not world.bootstrap and not world.members.current:
            raise SwarmError(NOBODY_KNOWN)
        opened = await _opened(world, model, progress)
        share = await world.ports.storage.run(lambda: load_share(opened.checkpoint, exact, progress))
        async with (
            open_directory(world.ports, settings, [opened.id], members=world.members) as directory,
            open_client(world.ports, settings, directory, opened.id, share) as remote,
        ):
            yield remote


class Node:
    """Serve blocks from your own program: ``async with p2pllm.Node("demo", bootstrap=[addr], blocks=(0, 4)) as node``.

    Args:
        model: folder in Hugging Face layout, hub id, or ``demo``.
        blocks: (start, end); None: those that the swarm needs most.
        num_blocks: how many of those; None: as many as memory holds.
        listen: multiaddrs to listen on; the default takes any free port.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        dtype: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
        cache_tokens: attention cache over all sessions; None: from memory.
        memory: bytes for weights and cache; None: no bound, and the default cache.
        throughput: tokens per second to announce; None: measured.
        exact: results that depend neither on batching nor on cuts (fp32 on CPU).
        identity: key file, made when missing; None: a fresh identity.
        public_name: shown in ``p2pllm status``.

    The other arguments are those of ``connect``. Raises as ``connect`` does.
    """

    def __init__(
        self,
        model: str,
        *,
        bootstrap: Sequence[str] = (),
        blocks: tuple[int, int] | None = None,
        num_blocks: int | None = None,
        listen: Sequence[str] = ANYWHERE,
        device: str = "auto",
        dtype: str = "auto",
        cache_tokens: int | None = None,
        memory: int | None = None,
        throughput: float | None = None,
        exact: bool = False,
        identity: str | None = None,
        cache_dir: str | None = None,
        public_name: str = "",
        threads: int | None = None,
        config: Config | str = "wan",
        progress: Progress | None = None,
    ) -> None:
        base = preset(config)
        server = replace(base.server, cache_tokens=cache_tokens, exact=exact)
        self._settings = replace(base, server=server)
        self._model = model
        self._blocks = _span(blocks)
        self._num_blocks = num_blocks
        self._device = device
        self._dtype = dtype
        self._memory = memory
        self._throughput = throughput
        self._name = public_name
        self._progress = progress
        self._world = (tuple(bootstrap), tuple(listen), identity, cache_dir, threads)
        self._stack = AsyncExitStack()
        self.peer_id = PeerId("")
        self.addrs: tuple[str, ...] = ()
        self.span: Span | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(unwrapped())
            await self._enter(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def _enter(self, stack: AsyncExitStack) -> None:
        bootstrap, listen, identity, cache_dir, threads = self._world
        device = pick_device(self._device)
        options = WorldOptions(
            bootstrap=bootstrap,
            listen=listen,
            identity=identity,
            cache_dir=cache_dir,
            devices=(device,) if device == "cpu" else ("cpu", device),
            threads=threads,
            member=True,
        )
        world = await stack.enter_async_context(open_world(self._settings, options))
        opened = await _opened(world, self._model, self._progress)
        me = world.ports.network.me
        state = f"{world.cache_dir}/sequence-{me}" if identity is not None else None
        directory = await stack.enter_async_context(
            open_directory(world.ports, self._settings, [opened.id], members=world.members, state_path=state)
        )
        plan = Plan(
            opened.id,
            span=self._blocks,
            num_blocks=self._num_blocks,
            dtype=pick_dtype(self._dtype, opened.checkpoint.config.dtype or "", device),
            device=device,
            memory_bytes=self._memory,
            throughput=self._throughput,
            throughput_path=f"{world.cache_dir}/throughput.json",
            name=self._name,
            model_name=opened.name,
            version=version(),
            progress=self._progress,
        )
        server = await stack.enter_async_context(
            open_server(world.ports, self._settings, directory, CheckpointWeights(opened.checkpoint), plan)
        )
        self.peer_id, self.addrs, self.span = me, world.ports.network.addrs, server.span


@asynccontextmanager
async def open_bootstrap(
    *,
    listen: Sequence[str],
    bootstrap: Sequence[str] = (),
    identity: str | None = None,
    cache_dir: str | None = None,
    config: Config | str = "wan",
) -> AsyncIterator[World]:
    """A member without blocks, by whose address others join; it helps with the records of every model."""
    settings = preset(config)
    options = WorldOptions(bootstrap=bootstrap, listen=listen, identity=identity, cache_dir=cache_dir, member=True)
    async with (
        unwrapped(),
        open_world(settings, options) as world,
        open_directory(world.ports, settings, None, members=world.members),
    ):
        yield world


@asynccontextmanager
async def look(
    model: str, *, bootstrap: Sequence[str] = (), cache_dir: str | None = None, config: Config | str = "wan"
) -> AsyncIterator[tuple[World, OpenedModel, Directory]]:
    """Join as a reader of one model's announcements: what ``p2pllm status`` and ``doctor`` stand on."""
    settings = preset(config)
    async with unwrapped(), open_world(settings, WorldOptions(bootstrap=bootstrap, cache_dir=cache_dir)) as world:
        opened = await _opened(world, model, None)
        async with open_directory(world.ports, settings, [opened.id], members=world.members) as directory:
            yield world, opened, directory


def version() -> str:
    """The installed version of p2pllm."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("p2pllm")
    except PackageNotFoundError:
        return "0 (not installed)"


async def _opened(world: World, model: str, progress: Progress | None) -> OpenedModel:
    return await open_model(model, world.ports.storage, world.cache_dir, files=world.files, progress=progress)


def _span(blocks: tuple[int, int] | None) -> Span | None:
    if blocks is None:
        return None
    try:
        return Span(*blocks)
    except (ValueError, TypeError):
        raise UserError(f"blocks {blocks!r}: give (start, end) with 0 <= start < end") from None
