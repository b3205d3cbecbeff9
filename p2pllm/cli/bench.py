"""``p2pllm bench``: measure a swarm as its users see it."""

from __future__ import annotations

import argparse

import trio

import p2pllm
from p2pllm.cli.running import Loading, client_options, out, print_json
from p2pllm.node.measuring import Measured, measure_forward, measure_inference


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    trio.run(_bench, args)
    return 0


async def _bench(args: argparse.Namespace) -> None:
    with Loading(f"Loading {args.model}") as loading:
        async with p2pllm.connect(args.model, progress=loading, **client_options(args)) as model:
            loading.stop()
            sizes = {"batch": args.batch, "seq_len": args.seq_len, "steps": args.steps}
            if args.what == "inference":
                found = await measure_inference(model, model.vocab_size, clients=args.clients, **sizes)
            else:
                found = await measure_forward(model, model.vocab_size, **sizes)
    if args.json:
        print_json(_as_json(args, found))
    else:
        _draw(args, found)


def _as_json(args: argparse.Namespace, found: Measured) -> dict[str, object]:
    return {
        "what": args.what,
        "batch": args.batch,
        "seq_len": args.seq_len,
        "steps": args.steps,
        "clients": args.clients,
        "steps_per_s": found.per_s if args.what == "inference" else None,
        "tokens_per_s": found.per_s * (args.batch if args.what == "inference" else 1),
        "prefill_tokens_per_s": found.prefill_per_s or None,
        "p50_ms": found.p50_ms,
        "p95_ms": found.p95_ms,
        "route": list(found.route),
    }


def _draw(args: argparse.Namespace, found: Measured) -> None:
    latency = f"p50 {found.p50_ms:.1f} ms, p95 {found.p95_ms:.1f} ms"
    if args.what == "inference":
        out.print(f"{found.per_s:.1f} steps/s over {args.clients} sessions ({latency})", highlight=False)
        out.print(
            f"{found.prefill_per_s:.0f} tokens/s in the prefill of {args.batch} x {args.seq_len}", highlight=False
        )
        out.print(f"chain: {' → '.join(found.route)}", highlight=False)
    else:
        out.print(f"{found.per_s:.0f} tokens/s in passes of {args.batch} x {args.seq_len} ({latency})", highlight=False)
