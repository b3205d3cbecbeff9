"""Settings and limits, each with its reason; presets instead of tuning advice.

Invariants: frozen values with unit-bearing names; no I/O. A limit exists for everything that a peer can make grow.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from p2pllm.errors import UserError

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class WireLimits:
    """What a peer may make us hold, checked before anything is allocated."""

    frame_bytes_max: int = 64 * KIB
    """One frame, its length field included: small enough that a step never waits long behind a bulk frame."""
    header_bytes_max: int = 16 * KIB
    """A frame's msgpack header: 256 rows and 256 codec points with room to spare."""
    payload_bytes_max: int = 64 * MIB
    """A message's raw bytes over all its frames: 4,096 tokens of hidden 4,096 in fp32."""
    rows_max: int = 256
    step_tokens_max: int = 4096
    """New tokens of one step or forward part, over all rows; longer ones are cut by the sender."""
    hidden_max: int = 65536
    blocks_max: int = 1024
    length_max: int = 1 << 20
    """Tokens of one row, cached and new."""
    steps_in_flight_max: int = 16
    """W: prefill chunks of a session that may be under way at once."""
    reason_chars_max: int = 500
    records_per_page_max: int = 256
    record_bytes_max: int = 8 * KIB
    digests_max: int = 1024
    """Records that an asker says it has: half of a header, and what a few minutes bring in the largest swarm."""
    retry_after_s_max: float = 60.0
    """A server's wish to be left alone is capped here."""


@dataclass(frozen=True, slots=True)
class NetConfig:
    """Deadlines and limits of the network adapter."""

    dial_timeout_s: float = 10.0
    stream_timeout_s: float = 10.0
    """Opening a stream on a live connection: two round trips."""
    send_timeout_s: float = 30.0
    """A peer that takes no byte for so long is lost."""
    close_timeout_s: float = 2.0
    heartbeat_interval_s: float = 3.0
    heartbeat_timeout_s: float = 5.0
    """A silent peer is noticed within interval + timeout; steps have tighter deadlines of their own."""
    connections_max: int = 512
    streams_per_peer_max: int = 128
    bulk_in_flight_s: float = 0.1
    """Bulk keeps at most so many seconds of the measured bandwidth in flight, so that a step finds a short queue."""
    dht_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True)
class RecordConfig:
    """Life of announcements."""

    ttl_s: float = 180.0
    """Minutes: a crashed server leaves every view soon, and one lost announcement does no harm."""
    announce_interval_s: float = 60.0
    exchange_interval_s: float = 3.0
    """How often a member asks a neighbour what is new: a short question on an open stream."""
    clock_tolerance_s: float = 600.0
    """``issued`` must lie within so much of swarm time."""
    ttl_max_s: float = 3600.0
    peers_per_model_max: int = 4096
    rebootstrap_interval_s: float = 15.0
    """Wait between attempts while no member answers; backs off to four times this."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """What one server offers and where it says no."""

    cache_tokens: int | None = None
    """KV cache budget in tokens over all sessions; None: from free memory."""
    page_tokens: int = 16
    sessions_max: int = 256
    sessions_per_peer_max: int = 32
    alloc_timeout_s: float = 30.0
    """How long an open may wait in line for cache room before BUSY (capped also by what the client asks)."""
    linger_s: float = 30.0
    """A session whose stream was lost waits so long for its opener to re-attach."""
    idle_timeout_s: float = 900.0
    """A session that nobody steps for so long is closed, and the next step hears GONE."""
    answer_bytes_max: int = 64 * MIB
    """A session's credit of answers kept until they are acknowledged."""
    answers_total_bytes: int = 1024 * MIB
    """Credits of all sessions together: the more are open, the less a new one gets, down to ``answer_bytes_min``."""
    answer_bytes_min: int = 4 * MIB
    prefill_chunk_tokens: int = 256
    """Longer steps are computed in such chunks, so that others' next tokens get in between."""
    pass_target_s: float = 0.25
    """Chunks shrink on slow devices until a pass takes about so long: somebody's next token waits for at most one."""
    batch_tokens_max: int = 512
    forward_tokens_max: int = 1024
    queue_max: int = 1024
    """Waiting steps over all sessions; one more hears BUSY."""
    queue_bytes_max: int = 512 * MIB
    """Their payloads; a step that would exceed it hears BUSY."""
    queue_per_peer_max: int = 256
    queue_bytes_per_peer_max: int = 128 * MIB
    """What one peer may fill of either, so that the others find room."""
    busy_retry_s: float = 2.0
    """What a server that is full suggests to wait."""
    stream_idle_s: float = 300.0
    """A stream without a session, or one that stops in the middle of a message, is dropped after so long."""
    forwards_per_stream_max: int = 4
    """Forwards of one stream that wait or run at once; more stay unread in the stream."""
    drain_timeout_s: float = 20.0
    next_hop_pings_max: int = 12
    """Servers that could come next in a chain whose round trips are measured and announced."""
    ping_interval_s: float = 60.0
    ping_timeout_s: float = 5.0
    exact: bool = False
    compute_threads: int | None = None
    """torch threads; None: physical cores minus one, at least one."""


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """How a client behaves."""

    activations: str = "int8"
    exact: bool = False
    patience_s: float = 60.0
    """How long to wait for somebody to serve blocks that nobody serves."""
    push: str = "auto"
    """Servers send their outputs straight to the next hop: ``on``, ``off`` (everything goes through us), or ``auto``:
    where that is not measured to be slower."""
    step_timeout_s: float = 30.0
    """Upper bound on the wait for one step's answer: for first steps, and where steps were seen to be slow."""
    step_timeout_min_s: float = 3.0
    """However fast a server was so far, a silence shorter than this is no failure: lost packets, somebody's prefill."""
    connect_timeout_s: float = 5.0
    """How long the first attempt to reach a server may take; each failure not yet forgiven doubles it, up to what the
    network allows: others serve the same blocks, and most who take longer are gone."""
    open_timeout_s: float = 20.0
    line_timeout_s: float = 30.0
    """How long to stand in line for cache room, where all servers are full, before another one is looked for."""
    prefill_chunk_tokens: int = 128
    """Chunks overlap across the hops: the next chunk enters hop 1 while hop 2 works on this one."""
    steps_in_flight: int = 4
    forward_chunk_tokens: int = 512
    """Parts of a batch overlap across the hops, too; as many tokens as a server computes in one pass."""
    forward_row_tokens_max: int = 1024
    """A longer sequence goes through a session instead: servers take none of them whole."""
    allow_servers: tuple[str, ...] = ()
    """Only these peers may serve us; empty: anybody."""
    refresh_interval_s: float = 10.0
    gap_grace_s: float = 5.0
    """At the start, how long an incomplete view may fill up before we speak of gaps."""
    reattach_timeout_s: float = 5.0
    """A stream that broke is opened again, to the same server and session, if that works so soon."""
    history_bytes_max: int = 256 * MIB
    """A session's history in memory: 3 hops of Llama-2-70B at 8,192 tokens take 203 MB. What is older goes to disk."""
    ban_s: float = 5.0
    """A server that failed is left alone for so long; every further failure doubles it."""
    ban_max_s: float = 300.0
    ban_heal_s: float = 60.0
    """So much quiet time after a ban takes one doubling back."""
    peers_max: int = 4096
    """Peers whose speed and failures are remembered."""
    idle_streams_max: int = 4
    """Streams to one peer kept open after their session, so that the next one saves two round trips."""
    hop_overhead_s: float = 0.003
    """What a hop costs beyond round trip and compute, until measured: encryption, wake-ups, codec."""
    unknown_rtt_s: float = 0.1
    """Assumed for a server that was never reached: a bit worse than a good one, so that known ones win."""
    full_penalty_s: float = 10.0
    """A server whose announced cache room is too small is planned as if entering it took so long: last resort."""
    reroute_interval_s: float = 10.0
    """How often a running session asks whether another chain would be clearly better."""
    pings_max: int = 16
    """Servers of the likeliest chains whose round trips are kept measured; 0: no pings at all."""
    ping_interval_s: float = 30.0
    ping_timeout_s: float = 5.0
    """For connecting and two round trips; whoever does not make it is left alone for ``ban_s``."""


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of one node."""

    wire: WireLimits = field(default_factory=WireLimits)
    net: NetConfig = field(default_factory=NetConfig)
    records: RecordConfig = field(default_factory=RecordConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    client: ClientConfig = field(default_factory=ClientConfig)


def wan() -> Config:
    """The default: machines across the Internet."""
    return Config()


def lan() -> Config:
    """One site: faster detection of dead peers, fresher records."""
    base = Config()
    return replace(
        base,
        net=replace(base.net, dial_timeout_s=4.0, heartbeat_interval_s=1.0, heartbeat_timeout_s=2.0),
        records=replace(base.records, announce_interval_s=20.0, ttl_s=60.0),
    )


def local() -> Config:
    """One machine (the demo, tests): everything within a second or two."""
    base = lan()
    return replace(
        base,
        records=replace(
            base.records, exchange_interval_s=1.0, announce_interval_s=5.0, ttl_s=20.0, rebootstrap_interval_s=2.0
        ),
        client=replace(base.client, refresh_interval_s=1.0, step_timeout_min_s=1.0, ping_interval_s=10.0),
        server=replace(base.server, ping_interval_s=5.0),
    )


PRESETS = {"wan": wan, "lan": lan, "local": local}


def preset(config: Config | str) -> Config:
    """``config`` itself, or the preset of that name.

    Raises:
        UserError: there is no such preset.
    """
    if isinstance(config, Config):
        return config
    if config not in PRESETS:
        raise UserError(f"no preset {config!r}; there are {', '.join(PRESETS)}")
    return PRESETS[config]()
