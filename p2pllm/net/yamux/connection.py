"""A yamux connection: streams over one encrypted link, steps before bulk, silence noticed.

Invariants: records are sealed in the order in which they are sent, by ``_transmit`` alone, which never waits; so no
cancellation can cut a record. A record that the socket did not take whole stays in ``_rest``, and nothing else is
sealed before it has gone. Whatever goes wrong ends in ``_die``, once: all streams are lost with the reason, all waiters
wake. The reader never waits for a consumer: windows bound what one stream may hold, and a pool bounds their sum.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from libp2p.abc import IMuxedConn
from libp2p.connection_types import ConnectionType
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from multiaddr import Multiaddr

from p2pllm.config import NetConfig
from p2pllm.errors import PeerLost, RemoteProtocolError
from p2pllm.net.noise import RECORD_BYTES_MAX, NoiseSession
from p2pllm.net.pacing import BulkPacer
from p2pllm.net.yamux.frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER_BYTES,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    Body,
    Frame,
    FrameParser,
    header,
)
from p2pllm.net.yamux.heartbeat import Heartbeat
from p2pllm.net.yamux.outbox import Outbox, Waiting
from p2pllm.net.yamux.stream import YamuxStream
from p2pllm.types import PeerId, Priority

WINDOW_POOL_BYTES = 16 * 1024 * 1024
"""How much all streams of a connection may grow beyond their initial windows."""
SEND_WINDOW_MAX = 1 << 31
CLOSED_STREAM_LINGER_S = 30.0
"""A stream that we closed and the peer did not is reset after so long."""


class YamuxConnection(IMuxedConn):
    """See the module. ``start`` runs until the connection ends."""

    def __init__(
        self,
        session: NoiseSession,
        peer_id: ID,
        config: NetConfig,
        on_lost: Callable[[YamuxConnection], None] | None = None,
    ) -> None:
        self.secured_conn = session
        self.peer_id = peer_id
        self.peer = PeerId(str(peer_id))
        self.config = config
        self.on_close: Callable[[], Awaitable[None]] | None = None
        self.event_started = trio.Event()
        self._on_lost = on_lost
        self._session = session
        self._link = session.link
        self._streams: dict[int, YamuxStream] = {}
        self._next_id = 1 if session.is_initiator else 2
        self._accepted_send, self._accepted = trio.open_memory_channel[YamuxStream](config.streams_per_peer_max)
        self._parser = FrameParser()
        self._body_left = 0
        self._body_fin = False
        self._outbox = Outbox()
        self._rest: memoryview | None = None
        self._sent = 0
        self._pacer = BulkPacer(config.bulk_in_flight_s)
        self._wake = trio.Event()
        self._drained = trio.Event()
        self._window_pool = WINDOW_POOL_BYTES
        self._lost: str | None = None
        self._closed = trio.Event()
        self._scope: trio.CancelScope | None = None
        self._heartbeat = Heartbeat(self)

    # --- life ---

    async def start(self) -> None:
        """Read, write and listen for silence until the connection ends."""
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                if self._lost is not None:
                    nursery.cancel_scope.cancel()
                nursery.start_soon(self._read)
                nursery.start_soon(self._write)
                nursery.start_soon(self._listen_for_silence)
                self.event_started.set()
        finally:
            self._die("the connection was closed here")
            with trio.CancelScope(shield=True, deadline=trio.current_time() + self.config.close_timeout_s):
                await self._link.close()
            self._closed.set()
            if self.on_close is not None:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + self.config.close_timeout_s):
                    await self.on_close()

    async def close(self) -> None:
        """Say goodbye, give what is queued a moment to leave, and end."""
        if self._lost is None:
            self.control(GO_AWAY, 0, 0, 0)
            with trio.CancelScope(shield=True):
                await self.flush()
        self._die("the connection was closed here")
        if not self.event_started.is_set():
            await self._link.close()
            self._closed.set()
        await trio.lowlevel.checkpoint_if_cancelled()

    def _die(self, why: str) -> None:
        if self._lost is not None:
            return
        self._lost = why
        for stream in list(self._streams.values()):
            stream.lose(why)
        for waiting in self._outbox.clear():
            waiting.refuse(why)
        self._accepted_send.close()
        self._wake.set()
        self._drained.set()
        if self._scope is not None:
            self._scope.cancel()
        if self._on_lost is not None:
            self._on_lost(self)

    @property
    def lost(self) -> str | None:
        """Why the connection is over; None while it lives."""
        return self._lost

    @property
    def is_initiator(self) -> bool:
        return self._session.is_initiator

    @property
    def is_established(self) -> bool:
        return self.event_started.is_set() and self._lost is None

    @property
    def is_closed(self) -> bool:
        return self._lost is not None

    def rtt(self) -> float:
        """Smoothed round trip in seconds; 0.0 while unknown."""
        return self._heartbeat.rtt_s

    # --- streams ---

    def open_nowait(self) -> YamuxStream:
        """A new stream; no round trip.

        Raises:
            PeerLost: the connection is over.
        """
        if self._lost is not None:
            raise PeerLost(self._lost)
        stream = YamuxStream(self, self._next_id)
        self._next_id += 2
        self._streams[stream.stream_id] = stream
        self.control(WINDOW_UPDATE, SYN, stream.stream_id, 0)
        return stream

    async def open_stream(self) -> YamuxStream:
        await trio.lowlevel.checkpoint()
        try:
            return self.open_nowait()
        except PeerLost as exc:
            raise MuxedConnUnavailable(str(exc)) from exc

    async def accept_stream(self) -> YamuxStream:
        try:
            return await self._accepted.receive()
        except trio.EndOfChannel as exc:
            raise MuxedConnUnavailable(self._lost or "the connection is over") from exc

    def forget(self, stream: YamuxStream) -> None:
        """Both sides are done with it."""
        if self._streams.pop(stream.stream_id, None) is not None:
            self._window_pool += stream.borrowed_window

    def lend_window(self, wanted: int) -> int:
        """Window from the connection's pool, as far as there is any."""
        lent = min(wanted, self._window_pool)
        self._window_pool -= lent
        return lent

    # --- sending ---

    def control(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        """A frame without body: sent at once if the link is free, else before anything else that waits."""
        if self._lost is not None:
            return
        frame = header(kind, flags, stream_id, length)
        if self._rest is None and not self._outbox.before(Priority.STEP):
            self._transmit(frame)
        elif not self._outbox.put_control(frame):
            self._die("the peer asks for more answers than it takes")
        else:
            self._wake.set()

    @property
    def bulk_frame_bytes(self) -> int:
        """How large a frame of bulk should be, so that a step behind it waits little."""
        return self._pacer.frame_bytes

    def send_now(self, stream_id: int, body: memoryview, priority: Priority) -> bool:
        """Send one DATA frame without waiting; False when something else has to go first."""
        if self._rest is not None or self._outbox.before(priority) or self._lost is not None:
            return False
        if priority is Priority.BULK and self._hold_s(len(body)) > 0:
            return False
        self._transmit(header(DATA, 0, stream_id, len(body)) + body)
        return True

    async def send_later(self, stream: YamuxStream, body: memoryview, priority: Priority) -> None:
        """Wait in line; returns when the frame is part of the connection's stream of bytes."""
        if self._lost is not None:
            raise PeerLost(self._lost)
        waiting = Waiting(stream.stream_id, body, trio.lowlevel.current_task())
        self._outbox.put(waiting, priority)
        self._wake.set()

        def give_up(_: object) -> trio.lowlevel.Abort:
            self._outbox.remove(waiting, priority)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(give_up)

    async def flush(self) -> None:
        """Until everything queued has been handed to the system, or the close deadline."""
        with trio.move_on_after(self.config.close_timeout_s):
            while self._lost is None and (self._rest is not None or self._outbox):
                self._drained = trio.Event()
                await self._drained.wait()

    def _transmit(self, plain: bytes) -> None:
        """Seal and send; what does not fit stays in ``_rest`` for the writer."""
        record = self._session.seal(plain)
        self._sent += len(record)
        try:
            taken = self._link.try_send(record)
        except OSError as exc:
            self._die(f"the connection broke: {exc}")
            return
        if taken < len(record):
            self._rest = memoryview(record)[taken:]
            self._wake.set()

    def _hold_s(self, size: int) -> float:
        queued = self._link.queued()
        if queued is None:
            return 0.0
        self._pacer.observe(trio.current_time(), self._sent, queued)
        return self._pacer.hold_s(queued, size, self._link.min_rtt_s() or self._heartbeat.min_rtt_s)

    async def _write(self) -> None:
        while True:
            if self._rest is not None:
                with trio.move_on_after(self.config.send_timeout_s) as scope:
                    try:
                        await self._link.send(self._rest)
                    except OSError as exc:
                        return self._die(f"the connection broke: {exc}")
                if scope.cancelled_caught:
                    return self._die(f"the peer took no data for {self.config.send_timeout_s:g} s")
                self._rest = None
            hold_s = self._hold_s(self._outbox.bulk_size) if self._outbox.only_bulk else 0.0
            if self._outbox and hold_s <= 0:
                self._transmit(self._outbox.take(RECORD_BYTES_MAX))
                await trio.lowlevel.checkpoint()
                continue
            if not self._outbox:
                self._drained.set()
            self._wake = trio.Event()
            with trio.move_on_after(hold_s if hold_s > 0 else float("inf")):
                await self._wake.wait()

    # --- receiving ---

    async def _read(self) -> None:
        try:
            self._handle([self._session.read_ahead()])
            while True:
                data = await self._link.receive()
                if not data:
                    return self._die("the peer closed the connection")
                self._heartbeat.heard()
                self._handle(self._session.open(data))
        except RemoteProtocolError as exc:
            self._die(f"the peer broke the protocol: {exc}")
        except (OSError, trio.ClosedResourceError) as exc:
            self._die(f"the connection broke: {exc}")

    def _handle(self, plains: list[bytes]) -> None:
        for plain in plains:
            whole = self._parser.whole(plain)
            stream = None if whole is None else self._streams.get(whole[0])
            if whole is not None and stream is not None and stream.recv_window >= whole[1]:
                stream.recv_window -= whole[1]
                stream.deliver(plain[HEADER_BYTES:])
                continue
            for event in self._parser.feed(plain):
                if isinstance(event, Body):
                    self._on_body(event)
                elif event.kind <= WINDOW_UPDATE:
                    self._on_stream_frame(event)
                elif event.kind == PING:
                    self._heartbeat.on_ping(event)
                else:
                    self._die("the peer closed the connection")

    def _on_body(self, body: Body) -> None:
        stream = self._streams.get(body.stream_id)
        self._body_left -= len(body.data)
        if stream is None:
            return
        stream.deliver(body.data)
        if self._body_left == 0 and self._body_fin:
            stream.end()

    def _on_stream_frame(self, frame: Frame) -> None:
        if frame.flags & SYN:
            self._on_open(frame.stream_id)
        stream = self._streams.get(frame.stream_id)
        if frame.kind == DATA:
            self._body_left, self._body_fin = frame.length, bool(frame.flags & FIN)
        if stream is None:
            return
        if frame.kind == WINDOW_UPDATE:
            stream.credit(frame.length)
            if stream.send_window > SEND_WINDOW_MAX:
                raise RemoteProtocolError("a send window beyond all bounds")
        else:
            stream.recv_window -= frame.length
            if stream.recv_window < 0:
                raise RemoteProtocolError("more data than the window allows")
        if frame.flags & RST:
            stream.lose("the peer reset the stream")
        elif frame.flags & FIN and (frame.kind == WINDOW_UPDATE or frame.length == 0):
            stream.end()

    def _on_open(self, stream_id: int) -> None:
        if stream_id in self._streams or stream_id == 0 or stream_id % 2 == self._next_id % 2:
            raise RemoteProtocolError(f"the peer cannot open stream {stream_id}")
        theirs = sum(1 for other in self._streams if other % 2 == stream_id % 2)
        if theirs >= self.config.streams_per_peer_max:
            return self.control(WINDOW_UPDATE, RST, stream_id, 0)
        stream = YamuxStream(self, stream_id)
        try:
            self._accepted_send.send_nowait(stream)
        except (trio.WouldBlock, trio.ClosedResourceError, trio.BrokenResourceError):
            return self.control(WINDOW_UPDATE, RST, stream_id, 0)
        self._streams[stream_id] = stream
        self.control(WINDOW_UPDATE, ACK, stream_id, 0)

    async def _listen_for_silence(self) -> None:
        self._die(await self._heartbeat.run())

    def sweep(self) -> None:
        """Reset streams that we closed long ago and the peer did not."""
        late = trio.current_time() - CLOSED_STREAM_LINGER_S
        for stream in list(self._streams.values()):
            if stream.idle and stream.touched_at < late:
                stream.abort()

    # --- what libp2p asks ---

    def get_transport_addresses(self) -> list[Multiaddr]:
        return self._session.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        return self._session.get_connection_type()

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._link.get_remote_address()
