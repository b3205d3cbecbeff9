"""The simulator's second stack: the product's real network adapter over a transport in memory.

``world`` has the hosts and the experimenter's verbs, ``host`` is one host, ``stream`` puts the tap on its streams,
``transport`` is libp2p's interface, ``wire`` a connection, ``access`` the queues that a host's connections share.
"""
