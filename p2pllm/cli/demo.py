"""``p2pllm demo``: a whole swarm on this machine, in separate processes, tells a story."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import trio
from rich.table import Table

import p2pllm
from p2pllm.api import Hop
from p2pllm.cli.running import errors, print_json
from p2pllm.errors import UserError
from p2pllm.local.models import resolve_model
from p2pllm.local.storage import DiskStorage
from p2pllm.model.checkpoint import Checkpoint
from p2pllm.node.local_swarm import LocalSwarm, Member, open_local_swarm, split
from p2pllm.node.reference import Reference

MODEL = "demo"
BLOCKS = 8


def run(args: argparse.Namespace) -> int:
    """Show it; exit code 1 when the swarm's text differs from one process's."""
    if args.servers > BLOCKS:
        raise UserError(f"--servers {args.servers}: the demo model has {BLOCKS} blocks to share out")
    return trio.run(_demo, args)


async def _demo(args: argparse.Namespace) -> int:
    spans = split(BLOCKS, args.servers, args.replicas)
    show = _Show(quiet=args.json, processes=len(spans) + 1)
    show.say(
        f"Starting a bootstrap node and {len(spans)} servers, {args.replicas} for each of {args.servers} spans, "
        "each a process of its own."
    )
    async with open_local_swarm(MODEL, spans, flags=["--exact", *_threads(args)], on_ready=show.ready) as swarm:
        show.servers(swarm)
        cache = str(swarm.folder / "client")
        connecting = p2pllm.connect(MODEL, bootstrap=swarm.bootstrap, cache_dir=cache, threads=1, config="local")
        async with connecting as model:
            show.say("\nA client finds them through the DHT and sends 8-bit activations along a chain:\n")
            show.text(args.prompt)
            async with model.stream(args.prompt, max_new_tokens=args.max_new_tokens) as pieces:
                async for piece in pieces:
                    show.text(piece.text)
            show.text("\n")
            result = pieces.result()
            prompt = model.tokenizer.encode(args.prompt) if model.tokenizer else []
        alone = await trio.to_thread.run_sync(one_process, prompt, args.max_new_tokens, result.route)
    equal = list(result.new_ids[0]) == alone
    show.end(result, equal)
    if args.json:
        print_json(_as_json(result, equal, swarm.servers))
    return 0 if equal else 1


def one_process(prompt: list[int], new_tokens: int, route: Sequence[Hop]) -> list[int]:
    """What the whole model in this process says, rounded where the servers' borders round."""
    storage = DiskStorage()
    reference = Reference(Checkpoint(resolve_model(MODEL, "", storage)))
    borders = sorted({border for hop in route for border in (hop.span.start, hop.span.end)})
    return reference.greedy(prompt, new_tokens, borders, "int8")


def _threads(args: argparse.Namespace) -> list[str]:
    return ["--threads", str(args.threads or 1)]


class _Show:
    """What a person sees; nothing at all with ``--json``."""

    def __init__(self, quiet: bool, processes: int) -> None:
        self._quiet = quiet
        self._left = processes

    def say(self, text: str) -> None:
        if not self._quiet:
            errors.print(text, highlight=False)

    def text(self, text: str) -> None:
        if not self._quiet:
            print(text, end="", flush=True)

    def ready(self, member: Member) -> None:
        self._left -= 1
        what = f"blocks {member.span}" if member.span else "bootstrap node"
        self.say(f"  [green]✓[/green] {what:<15}[dim]…{member.peer_id[-6:]}  process {member.process.pid}[/dim]")

    def servers(self, swarm: LocalSwarm) -> None:
        if self._quiet:
            return
        table = Table(box=None, pad_edge=False)
        for column in ("blocks", *map(str, range(BLOCKS))):
            table.add_column(column)
        for member in sorted(swarm.servers, key=lambda m: (m.span.start if m.span else 0, m.peer_id)):
            held = ["[green]█[/green]" if member.span and b in member.span else "·" for b in range(BLOCKS)]
            table.add_row(f"…{member.peer_id[-6:]}", *held)
        errors.print(table)

    def end(self, result: p2pllm.GenerateResult, equal: bool) -> None:
        route = " → ".join(f"{hop.span} …{hop.peer_id[-6:]}" for hop in result.route)
        self.say(f"\n{result.steps_per_s:.1f} steps/s through {route}")
        verdict = "[green]the same tokens[/green]" if equal else "[red]other tokens[/red]"
        self.say(f"One process with the whole model computes {verdict}.")


def _as_json(result: p2pllm.GenerateResult, equal: bool, servers: Sequence[Member]) -> dict[str, Any]:
    return {
        "text": result.text,
        "equal": equal,
        "steps_per_s": result.steps_per_s,
        "killed": None,
        "recovery_s": None,
        "servers": [
            {"peer_id": m.peer_id, "span": [m.span.start, m.span.end] if m.span else None, "pid": m.process.pid}
            for m in servers
        ],
    }
