"""The same in plain code, from any thread.

python examples/generate_sync.py /ip4/127.0.0.1/tcp/4001/p2p/12D3KooW...
"""

from __future__ import annotations

import sys

import torch

import p2pllm.sync


def main(addr: str) -> None:
    """Stream a story, then score a sequence."""
    with p2pllm.sync.connect("demo", bootstrap=[addr]) as model:
        for piece in model.stream("Once upon a time", max_new_tokens=24, temperature=0.8, seed=7):
            print(piece.text, end="", flush=True)
        print()
        ids = torch.randint(0, 100, (2, 8))
        logits = model.forward(ids)  # [2, 8] -> [2, 8, vocab]
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        print(f"loss of random tokens: {loss.item():.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
