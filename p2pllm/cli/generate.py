"""``p2pllm generate``: continue a prompt, streaming."""

from __future__ import annotations

import argparse

import trio

import p2pllm
from p2pllm.cli.running import Loading, client_options, errors, print_json, sampling_options
from p2pllm.errors import UserError


def run(args: argparse.Namespace) -> int:
    """Generate and print."""
    trio.run(_generate, args)
    return 0


async def _generate(args: argparse.Namespace) -> None:
    with Loading(f"Loading {args.model}") as loading:
        async with p2pllm.connect(args.model, progress=loading, **client_options(args)) as model:
            loading.stop()
            show = _silent if args.json else _show
            inputs = args.prompt if model.tokenizer is not None else _ids(args.prompt)
            show(args.prompt)
            try:
                async with model.stream(inputs, num_beams=args.num_beams, **sampling_options(args)) as pieces:
                    async for piece in pieces:
                        show(piece.text if model.tokenizer is not None else "".join(f",{i}" for i in piece.ids))
            finally:
                show("\n")
            result = pieces.result()
    if args.json:
        print_json(as_json(result))
    else:
        errors.print(f"[dim]{result.steps_per_s:.1f} steps/s over {len(result.route)} servers[/dim]")


def _show(text: str) -> None:
    print(text, end="", flush=True)


def _silent(text: str) -> None:
    """``--json``: only the result is printed."""


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        raise UserError("this checkpoint has no tokenizer: give the prompt as token ids, such as 1,15,27") from None


def as_json(result: p2pllm.GenerateResult) -> dict[str, object]:
    """A result as the JSON that others rely on."""
    return {
        "text": result.text,
        "ids": result.ids,
        "new_ids": list(result.new_ids[0]),
        "finished": result.finished[0],
        "steps_per_s": result.steps_per_s,
        "recoveries": result.recoveries,
        "exact": result.exact,
        "seed": result.seed,
        "route": [{"peer_id": hop.peer_id, "span": [hop.span.start, hop.span.end]} for hop in result.route],
    }
