"""One server of a swarm: it holds a span of blocks and computes steps and forwards for many clients.

Pure policies: ``kvcache`` (pages), ``scheduler`` (what runs next), ``placement`` (which blocks). Around them:
``backend`` (a span on a device), ``engine`` (passes through the device), ``handlers`` and friends (conversations with
clients), ``throughput`` (what this machine can do) and ``service`` (a server's life from loading to leaving).
"""
