"""``p2pllm bootstrap``: a member without blocks, by whose address others join."""

from __future__ import annotations

import argparse
from functools import partial

import trio

from p2pllm import api
from p2pllm.cli.running import Signals, errors, serve_until_signal, write_ready

DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/4001"


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    trio.run(serve_until_signal, partial(_serve, args))
    return 0


async def _serve(args: argparse.Namespace, signals: Signals) -> None:
    async with api.open_bootstrap(
        listen=args.listen or [DEFAULT_LISTEN],
        bootstrap=args.bootstrap,
        identity=args.identity,
        cache_dir=args.cache_dir,
        config=args.preset,
    ) as world:
        network = world.ports.network
        write_ready(args.ready_file, network.me, network.addrs, None)
        errors.print("Others join with one of")
        for addr in network.addrs:
            print(f"--bootstrap {addr}", flush=True)
        await signals.wait()
