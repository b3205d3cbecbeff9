"""A server's life: choose blocks, load, measure, announce, serve, drain, leave.

Invariants: what it announces is what it does: JOINING while it loads, ONLINE once every protocol answers, DRAINING from
the moment that it takes no new session, OFFLINE as its last word, also when it is cancelled. Leaving is bounded. The
constructor starts nothing.

    server = Server(ports, config, directory, CheckpointWeights(checkpoint), plan)
    await nursery.start(server.run)     # returns when it serves
    server.stop()                       # and ``run`` returns when it has left
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

import torch
import trio

from p2pllm.config import Config
from p2pllm.dht.record import Announcement, Throughput
from p2pllm.dht.service import Directory
from p2pllm.errors import P2PLLMError, StorageError, UserError
from p2pllm.model.span import SpanModel
from p2pllm.ports import Ports
from p2pllm.server.backend import SpanBackend
from p2pllm.server.infos import Infos
from p2pllm.server.offer import Offer
from p2pllm.server.pings import NextHopPings
from p2pllm.server.placement import block_throughputs, blocks_that_fit, join_window
from p2pllm.server.serving import Serving
from p2pllm.server.sizing import CACHE_TOKENS_MIN, block_bytes, cache_budget, token_bytes
from p2pllm.server.throughput import Speed, measure, remember, remembered
from p2pllm.server.weights import Weights
from p2pllm.types import Cost, ModelId, Numerics, ServerState, Span, WorkKind
from p2pllm.wire import BACKWARD, FORWARD, INFO, PUSH, SESSION

if TYPE_CHECKING:
    from trio_typing import TaskStatus  # its stubs, which libp2p installs, shadow trio's own types

LOOK_AROUND_S = 5.0
"""How long a joiner waits for the swarm to say who serves what."""
LEAVE_TIMEOUT_S = 5.0
NOMINAL_TOKENS_PER_S = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What one server is to serve, and how.

    Attributes:
        model: digest of the checkpoint.
        span: these blocks; None: the weakest ones of the swarm, ``num_blocks`` of them.
        num_blocks: None: as many as fit into ``memory_bytes``, all where that is not known.
        memory_bytes: what weights and cache may take.
        throughput: tokens per second to announce; None or 0: measure.
        throughput_path: file in the storage that remembers measurements.
        name: what the owner calls the server; shown, never trusted.
        model_name: what people call the model; the same.
        progress: hears (bytes so far, bytes in all) while weights are loaded, in a storage thread.
    """

    model: ModelId
    span: Span | None = None
    num_blocks: int | None = None
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    memory_bytes: int | None = None
    throughput: float | None = None
    throughput_path: str | None = None
    name: str = ""
    model_name: str = ""
    version: str = ""
    progress: Callable[[int, int], None] | None = None


class Server:
    """Serves one span of one model."""

    def __init__(self, ports: Ports, config: Config, directory: Directory, weights: Weights, plan: Plan) -> None:
        self._ports = ports
        self._config = config
        self._directory = directory
        self._weights = weights
        self._plan = plan
        self._stop = trio.Event()
        self._serving: Serving | None = None
        self._announced: Announcement | None = None
        self._speed: Speed | None = None
        self._pings: NextHopPings | None = None
        self.span: Span | None = None
        """The blocks, once they are chosen."""

    def stop(self) -> None:
        """Begin to leave: drain, say goodbye; ``run`` then returns."""
        self._stop.set()

    async def run(self, *, task_status: TaskStatus[Span] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until ``stop``; started (with the span) once every protocol answers, never if ``stop`` came before.

        Raises:
            UserError: the blocks do not exist, or none fits into memory; CheckpointError among them.
            StorageError: the weights could not be read.
        """
        try:
            span = self.span = await self._choose()
            self._announce(ServerState.JOINING, Throughput(self._nominal()))
            try:
                backend, numbers = await self._load(span)
            except StorageError:
                if self._stop.is_set():
                    return
                raise
            self._speed = await self._measure(backend)
            ports, offer = self._ports, self._offer(span, numbers)
            serving = Serving(offer, backend, ports.network, ports.compute, self._config, self._plan.device)
            self._serving = serving
            async with trio.open_nursery() as nursery:
                await nursery.start(serving.run)
                self._serve(serving)
                self._announce(ServerState.ONLINE, self._speed.of(span), numbers)
                self._pings = NextHopPings(self._config.server, ports, self._servers, self._plan.model, span)
                nursery.start_soon(self._pings.run)
                task_status.started(span)
                nursery.start_soon(self._keep_announcing)
                await self._stop.wait()
                self._announce(ServerState.DRAINING)
                await serving.drain(self._config.server.drain_timeout_s)
                await self._leave()
                nursery.cancel_scope.cancel()
        finally:
            if self._announced is not None and self._announced.state is not ServerState.OFFLINE:
                with trio.CancelScope(deadline=trio.current_time() + LEAVE_TIMEOUT_S, shield=True):
                    await self._leave()

    @property
    def serving(self) -> Serving | None:
        """The engine room, once it runs: for metrics and tests."""
        return self._serving

    # -- before serving --------------------------------------------------------------------------------------------

    async def _choose(self) -> Span:
        """The user's blocks, or the swarm's weakest."""
        plan, total = self._plan, self._weights.config.num_blocks
        if plan.span is not None:
            if plan.span.end > total:
                raise UserError(f"blocks {plan.span}: the model has {total} blocks")
            return plan.span
        length = plan.num_blocks or self._fitting()
        if length < 1:
            raise UserError("no block of this model fits into the memory that this server may use")
        with trio.move_on_after(LOOK_AROUND_S):
            await self._directory.refresh()
        servers = [
            (ann.span, ann.throughput.inference or NOMINAL_TOKENS_PER_S)
            for ann in self._servers()
            if ann.peer != self._ports.network.me and ann.state is not ServerState.DRAINING
        ]
        return join_window(block_throughputs(servers, total), length)

    def _fitting(self) -> int:
        config, plan = self._weights.config, self._plan
        if plan.memory_bytes is None:
            return config.num_blocks
        tokens = self._config.server.cache_tokens or CACHE_TOKENS_MIN
        sizes = block_bytes(config, plan.dtype), token_bytes(config, plan.dtype)
        return blocks_that_fit(plan.memory_bytes, sizes[0], tokens, sizes[1], config.num_blocks)

    async def _load(self, span: Span) -> tuple[SpanBackend, Numerics]:
        plan, server = self._plan, self._config.server
        model = await self._load_blocks(span)

        def prepare() -> Numerics:
            return self._weights.settle(model, server.exact, plan.device)

        # In the device's thread: what holds depends on its number of torch threads.
        numbers, _ = await self._ports.compute.run(prepare, _CHECK, (plan.device,))
        tokens = cache_budget(server.cache_tokens, plan.memory_bytes, self._weights.config, plan.dtype, len(span))
        return SpanBackend(model, model.arena(tokens, server.page_tokens)), numbers

    async def _load_blocks(self, span: Span) -> SpanModel:
        """The blocks, in a storage thread; whoever stops or cancels us does not wait for the rest of a download."""
        plan, given_up = self._plan, [False]

        def progress(done: int, total: int) -> None:
            if given_up[0] or self._stop.is_set():
                raise StorageError("loading was given up")
            if plan.progress is not None:
                plan.progress(done, total)

        def load() -> SpanModel:
            return self._weights.load_span(span, plan.dtype, plan.device, progress)

        async def watch() -> None:
            try:
                await trio.sleep_forever()
            finally:
                given_up[0] = True

        model: SpanModel | None = None
        error: P2PLLMError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            try:
                model = await self._ports.storage.run(load)
            except P2PLLMError as exc:
                error = exc
            nursery.cancel_scope.cancel()
        await trio.lowlevel.checkpoint_if_cancelled()
        if error is not None:
            raise error
        assert model is not None
        return model

    async def _measure(self, backend: SpanBackend) -> Speed:
        plan = self._plan
        if plan.throughput:
            blocks = len(backend.model.span)
            return Speed(1 / (plan.throughput * blocks), plan.throughput * blocks)
        storage, key = self._ports.storage, _speed_key(backend, plan.device)
        speed = await remembered(storage, plan.throughput_path, key)
        if speed is None:
            speed = await measure(backend, self._ports.compute, plan.device)
            await remember(storage, plan.throughput_path, key, speed)
        return speed

    def _offer(self, span: Span, numbers: Numerics) -> Offer:
        config, longest = self._weights.config, self._config.server.forward_tokens_max
        return Offer(self._plan.model, span, config.hidden_size, config.max_positions, numbers, longest)

    def _serve(self, serving: Serving) -> None:
        network = self._ports.network
        network.serve(SESSION, serving.handle_session)
        network.serve(PUSH, serving.handle_push)
        network.serve(FORWARD, serving.forwards.handle)
        network.serve(BACKWARD, serving.forwards.handle)
        network.serve(INFO, Infos(self._directory.record, self._config).handle)

    # -- what the swarm hears --------------------------------------------------------------------------------------

    def _servers(self) -> Sequence[Announcement]:
        """All servers of the model that are known, ourselves among them."""
        return self._directory.view.servers(self._plan.model)

    def _nominal(self) -> float:
        """What a server that was not measured yet counts for: as much as others do, so that the next joiner spreads."""
        known = [ann.throughput.inference for ann in self._servers()]
        return median([speed for speed in known if speed > 0] or [NOMINAL_TOKENS_PER_S])

    def _announce(
        self, state: ServerState, throughput: Throughput | None = None, numbers: Numerics | None = None
    ) -> None:
        assert self.span is not None
        plan, config = self._plan, self._weights.config
        if self._announced is None:
            self._announced = Announcement(
                plan.model,
                self.span,
                config.num_blocks,
                state,
                Numerics(str(plan.dtype).removeprefix("torch."), "none", "", "", exact=False),
                name=plan.name,
                model_name=plan.model_name,
                version=plan.version,
            )
        serving = self._serving
        self._announced = replace(
            self._announced,
            state=state,
            throughput=throughput or self._announced.throughput,
            numerics=numbers or self._announced.numerics,
            cache_tokens_free=serving.room.cache.tokens_free if serving is not None else 0,
            queue=serving.engine.waiting if serving is not None else 0,
            pings=self._pings.pings if self._pings is not None else (),
        )
        self._directory.announce(self._announced)

    async def _keep_announcing(self) -> None:
        """Load and room change, and traffic shows how fast we really are: tell again now and then."""
        assert self.span is not None
        assert self._serving is not None
        assert self._speed is not None
        while not self._stop.is_set():
            await trio.sleep(self._directory.pace.announce_s)
            step_s = self._serving.engine.step_s
            if step_s and not self._plan.throughput:
                self._speed = replace(self._speed, step_s=step_s)
            if not self._stop.is_set():
                self._announce(ServerState.ONLINE, self._speed.of(self.span))

    async def _leave(self) -> None:
        assert self._announced is not None
        self._announced = replace(self._announced, state=ServerState.OFFLINE)
        await self._directory.withdraw()


_CHECK = Cost(WorkKind.FORWARD, tokens=1, blocks=1)


def _speed_key(backend: SpanBackend, device: str) -> str:
    """Everything that the speed of one block depends on."""
    model = backend.model
    shape = replace(model.config, num_blocks=1, windows=(), vocab_size=1, bos_id=None, eos_ids=())
    parts = (shape, model.dtype, model.exact, device, torch.get_num_threads(), torch.__version__)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
