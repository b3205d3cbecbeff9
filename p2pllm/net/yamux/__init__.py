"""Yamux, the stream multiplexer of libp2p, as the specification has it, built for steps and for bad networks.

Why not py-libp2p's own: there a cancelled write corrupts the connection, a receiver that pauses five seconds loses the
stream, stalls are polled, a silent peer is never noticed, and every message costs a dozen scheduler turns. All of these
sit in one class, so replacing it (through libp2p's muxer seam) is smaller than mending it. The wire is unchanged: any
libp2p node can be at the other end.
"""

from p2pllm.net.yamux.connection import YamuxConnection as YamuxConnection
from p2pllm.net.yamux.stream import YamuxStream as YamuxStream
