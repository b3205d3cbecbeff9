"""The network, for real: py-libp2p behind the Network port. Slow to import; only the composition root does.

``identity.load_or_create(path)`` says who we are, ``open_network(...)`` opens the port. Below them: ``host`` puts
libp2p together with the ``fixes``, ``dialer`` reaches peers, ``yamux`` over ``noise`` over ``link`` carries streams,
``pacing`` decides how much bulk may be in flight, ``kad`` is the DHT.
"""

from p2pllm.net.quiet import quiet as _quiet

_quiet()

from p2pllm.net.host import open_network as open_network  # noqa: E402
from p2pllm.net.identity import Identity as Identity  # noqa: E402
from p2pllm.net.identity import load_or_create as load_or_create  # noqa: E402
from p2pllm.net.network import Libp2pNetwork as Libp2pNetwork  # noqa: E402
