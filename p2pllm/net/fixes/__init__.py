"""What py-libp2p 0.8.1 does wrong, and the small named thing that closes each; one file per trap.

* ``handlers``: an exception in a stream handler ends the whole host. Here it ends the stream.
* ``muxer``: a cancelled write corrupts the connection, a pause of 5 s kills the stream, stalls are polled, silence is
  never noticed, a message costs a dozen scheduler turns. Here: our yamux (``p2pllm.net.yamux``), behind libp2p's seam.
* ``short_reads``: a packet in more than 100 pieces kills noise; a stranger's length field is believed. Here: our link.
* ``inbound_slots``: a closed inbound connection keeps its slot until the node ends. Here it does not.
* ``dialing``: a dial sleeps 250 ms, tries one address, and a failure blocks the peer for 60 s. Here all are raced. And
  strangers are dialled until half of the connection limit is used. Here nobody is.
* ``choosing``: of two equal connections the higher memory address wins, and no run can be repeated. Here the newest.
* ``stream_order``: a lost connection's streams end in the order of memory addresses, likewise. Here of their numbers.
* ``peerstore``: beyond a thousand known peers a node forgets its own key first. Here it never does.
* ``kad_protocol``: the DHT ignores its protocol prefix and joins the public IPFS one. Here it has our name.
* ``kad_clients``: nodes that only ask are put into routing tables. Here they are asked whether they serve.
* ``kad_stores``: values live a day, providers two, and twenty dead providers lock out the living. Here none of it.

End of file that does not mean a clean end is closed in ``p2pllm.net.yamux``; the DHT's stale answers in
``p2pllm.net.kad``, which asks others and chooses itself. A fix of private code names the source that it replaces and
refuses an unknown one (``digest``); those that use a public seam need no such check.
"""
