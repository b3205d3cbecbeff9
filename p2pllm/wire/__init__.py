"""Bytes and messages: what peers say to each other, with neither sockets, clocks nor tensors' libraries in sight.

``frame`` cuts a byte stream into checksummed messages, ``messages`` are the typed nouns, ``schema`` validates every
field that a peer sends, ``tensor`` packs activations, ``session*`` are the two halves of a session as automata.
``docs/protocol.md`` describes the same byte by byte.

Invariants: sans-I/O; nothing under here imports torch, trio or libp2p; a peer's bytes raise only RemoteProtocolError.
"""

SESSION = "/p2pllm/1/session"
"""Opener to server, both ways: Open, Step, Rewire, Attach, Close and their answers."""

PUSH = "/p2pllm/1/push"
"""Server to the next server of a chain: Step; back come only Faults."""

FORWARD = "/p2pllm/1/forward"
"""Whole sequences through a span without cache: Forward, Forwarded."""

BACKWARD = "/p2pllm/1/backward"
"""Gradients back through a span, stateless: Backward, Backwarded."""

INFO = "/p2pllm/1/info"
"""InfoRequest, Info: a server's current announcement, and a ping."""

RECORDS = "/p2pllm/1/records"
"""RecordsRequest, RecordsPage, RecordsOffer: members tell each other what changed."""
