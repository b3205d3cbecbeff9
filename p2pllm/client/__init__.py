"""The client's half of a swarm: choosing chains, driving sessions through them, sampling tokens at home.

Reading order: ``route`` and ``peers`` (pure: which servers), ``sampling`` (pure: which token), ``hop`` (one server's
half of a session), ``session`` (a chain of hops), ``chain`` (whole sequences without caches), ``generate`` (the token
loop) and ``model`` (what ``p2pllm.connect`` yields). Nothing here knows servers' code, libp2p or the command line.
"""
