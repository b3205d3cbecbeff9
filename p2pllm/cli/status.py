"""``p2pllm status``: who serves which blocks of a model, how fast, and which blocks nobody serves."""

from __future__ import annotations

import argparse
from typing import Any

import trio
from rich.table import Table

from p2pllm import api
from p2pllm.cli.running import errors, out, print_json
from p2pllm.dht.record import Announcement
from p2pllm.errors import SwarmError
from p2pllm.node.look import Look, look_around
from p2pllm.types import ServerState

COLOURS = {ServerState.JOINING: "yellow", ServerState.ONLINE: "green", ServerState.DRAINING: "magenta"}
MAP_WIDTH = 32
WIDE = 110
"""Columns of a terminal from which on names and versions are shown, too."""


def run(args: argparse.Namespace) -> int:
    """Print the swarm; exit code 0 also when it has gaps."""
    trio.run(_status, args)
    return 0


async def _status(args: argparse.Namespace) -> None:
    looking = api.look(args.model, bootstrap=args.bootstrap, cache_dir=args.cache_dir, config=args.preset)
    async with looking as (world, opened, directory):
        seen = await look_around(world.ports, directory, opened.id, opened.checkpoint.config.num_blocks)
    if seen.alone:
        tried = f"none of the {len(world.bootstrap)} bootstrap addresses answers: check them, and that you are online"
        raise SwarmError(tried if world.bootstrap else api.NOBODY_KNOWN)
    if args.json:
        print_json(as_json(args.model, seen))
    else:
        draw(args.model, seen)


def as_json(model: str, seen: Look) -> dict[str, Any]:
    """The swarm as the JSON that others rely on."""
    return {
        "model": model,
        "model_id": seen.model,
        "num_blocks": seen.num_blocks,
        "coverage": list(seen.coverage),
        "servers": [_server_json(server, seen) for server in seen.servers],
    }


def _server_json(server: Announcement, seen: Look) -> dict[str, Any]:
    speed = server.throughput
    rtt_s = seen.rtt_s.get(server.peer)
    return {
        "peer_id": server.peer,
        "name": server.name,
        "span": [server.span.start, server.span.end],
        "state": server.state.name,
        "throughput": {"inference": speed.inference, "forward": speed.forward, "network": speed.network},
        "cache_tokens_free": server.cache_tokens_free,
        "queue": server.queue,
        "relayed": server.relayed,
        "rtt_ms": None if rtt_s is None else round(1000 * rtt_s, 2),
        "version": server.version,
        "numerics": server.numerics.tag(),
    }


def draw(model: str, seen: Look) -> None:
    """A table for people: one line per server, gaps in red."""
    wide = out.width >= WIDE
    table = Table(box=None, pad_edge=False)
    for column in (
        "server",
        "state",
        "blocks",
        "",
        "steps/s",
        "cache free",
        "RTT",
        *(("name", "version") if wide else ()),
    ):
        table.add_column(column, no_wrap=True)
    for server in sorted(seen.servers, key=lambda s: (s.span, s.peer)):
        rtt_s = seen.rtt_s.get(server.peer)
        reached = "[red]no answer[/red]" if rtt_s is None else f"{1000 * rtt_s:.1f} ms"
        cells = [
            f"…{server.peer[-8:]}",
            f"[{COLOURS.get(server.state, 'red')}]{server.state.name}[/]",
            str(server.span),
            _bar(server, seen.num_blocks),
            f"{server.throughput.inference:.0f}",
            str(server.cache_tokens_free),
            reached + (" relayed" if server.relayed else ""),
        ]
        table.add_row(*cells, *((server.name or "-", server.version or "-") if wide else ()))
    out.print(f"{model}: {seen.num_blocks} blocks, {len(seen.servers)} servers", highlight=False)
    if seen.servers:
        out.print(table, highlight=False)
    if seen.gaps:
        out.print(f"[red]Nobody serves {seen.gaps_text}[/red]; start p2pllm node {model} to close the gap")
    else:
        errors.print(f"[dim]Every block is served by at least {min(seen.coverage)}.[/dim]")


def _bar(server: Announcement, num_blocks: int) -> str:
    """The span on a line of at most ``MAP_WIDTH`` characters."""
    width = min(num_blocks, MAP_WIDTH)
    scale = num_blocks / width
    return "".join(
        "█" if server.span.start < (i + 1) * scale and i * scale < server.span.end else "·" for i in range(width)
    )
