"""``p2pllm node``: serve a span of a model's blocks."""

from __future__ import annotations

import argparse
from functools import partial

import trio

from p2pllm import api
from p2pllm.cli.running import Loading, Signals, errors, serve_until_signal, write_ready

DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/0"


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop, then drain and leave."""
    trio.run(serve_until_signal, partial(_serve, args))
    return 0


async def _serve(args: argparse.Namespace, signals: Signals) -> None:
    with Loading(f"Loading {args.model}") as loading:
        async with api.Node(
            args.model,
            bootstrap=args.bootstrap,
            blocks=args.blocks,
            num_blocks=args.num_blocks,
            listen=args.listen or [DEFAULT_LISTEN],
            device=args.device,
            dtype=args.dtype,
            cache_tokens=args.cache_tokens,
            memory=args.memory,
            throughput=args.throughput,
            exact=args.exact,
            identity=args.identity,
            cache_dir=args.cache_dir,
            public_name=args.public_name,
            threads=args.threads,
            config=args.preset,
            progress=loading,
        ) as node:
            loading.stop()
            span = node.span
            write_ready(args.ready_file, node.peer_id, node.addrs, (span.start, span.end) if span else None)
            errors.print(f"Serving blocks {span} of {args.model} as {node.peer_id}; Ctrl-C drains and leaves")
            await signals.wait()
            errors.print("Leaving: finishing what is under way (once more to leave at once)")
