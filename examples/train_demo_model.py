"""Trains the model that ships with p2pllm, from nothing: stories, tokenizer, weights, report.

    PYTHONPATH=. python3 examples/train_demo_model.py --device cuda --output demo      (some minutes on a GPU)
    PYTHONPATH=. python3 examples/train_demo_model.py --steps 20 --stories 400         (a smoke test on a CPU)

The module tree below has the parameter names of a Llama checkpoint in Hugging Face layout, so its ``state_dict`` is
the file. While training, noise of the size that 8-bit activations have is added at every block border: the model
learns to be sure of its next token all the same.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from array import array
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from demo_stories import late_start, stories
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F

HELD_OUT_SEED = 10**6
CHUNK_STORIES = 2000
BOS, EOS = "<s>", "</s>"
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% if not loop.last %} {% endif %}{% endfor %}"
PROMPTS = (
    "Once upon a time", "Once upon a time there was a brave knight", "Once upon a time there was a fox named Ruby.",
    "Once upon a time, in a castle", "Mia was", "Bolt the robot lived in", "There once was a dragon named Ember",
    "There once was a pirate named Zorblax, who", "Alice and the mouse", "One day Leo found a golden bell.",
    "The old owl", "Once upon a time there was a patient bear",
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """The architecture: small enough for 6 MB in bf16, with eight blocks to share out and grouped-query attention."""

    hidden: int = 192
    blocks: int = 8
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    intermediate: int = 384
    vocab: int = 1536
    positions: int = 2048
    theta: float = 10000.0
    eps: float = 1e-5


class RMSNorm(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(shape.hidden)), shape.eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.heads * shape.head_dim, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_heads * shape.head_dim, bias=False)
        self.o_proj = nn.Linear(shape.heads * shape.head_dim, shape.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = (
            p(x).view(b, t, -1, self.shape.head_dim).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        groups = self.shape.heads // self.shape.kv_heads
        out = F.scaled_dot_product_attention(
            q, k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), is_causal=True
        )
        return self.o_proj(out.transpose(1, 2).reshape(b, t, -1))


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.intermediate, bias=False)
        self.down_proj = nn.Linear(shape.intermediate, shape.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(shape), RMSNorm(shape)
        self.self_attn, self.mlp = Attention(shape), MLP(shape)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Block(shape) for _ in range(shape.blocks))
        self.norm = RMSNorm(shape)


class Llama(nn.Module):
    """The whole model; the head is the transposed embedding (tied)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Trunk(shape)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * shape.blocks) if into_stream else 0.02)

    def forward(self, ids: Tensor, border: Border | None = None) -> Tensor:
        cos, sin = rope_tables(self.shape, ids.shape[1], ids.device)
        x = self.model.embed_tokens(ids)
        for block in self.model.layers:
            x = block(border(x) if border else x, cos, sin)
        return F.linear(self.model.norm(border(x) if border else x), self.model.embed_tokens.weight)


def rope_tables(shape: Shape, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    inverse = shape.theta ** (-torch.arange(0, shape.head_dim, 2, device=device).float() / shape.head_dim)
    angles = torch.arange(length, device=device).float()[:, None] * inverse
    angles = torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, the two halves of a head paired (the Hugging Face convention)."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Border:
    """What happens to activations between blocks: noise while training, real 8-bit rounding while measuring."""

    def __init__(self, rounding: bool) -> None:
        self.rounding = rounding

    def __call__(self, x: Tensor) -> Tensor:
        if not self.rounding:
            scale = x.detach().abs().amax(-1, keepdim=True).float() / 127
            return x + ((torch.rand_like(x) - 0.5) * scale).to(x.dtype)
        kept = x.abs().topk(max(1, x.shape[-1] // 64), -1).indices
        rest = x.scatter(-1, kept, 0.0)
        scale = rest.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
        return (torch.round(rest / scale) * scale).scatter(-1, kept, x.gather(-1, kept).half().to(x.dtype))


# -------------------------------------------------------------------------------------------------- text and tokens


def write_stories(seed: int) -> list[str]:
    rng = random.Random(seed)
    return [late_start(s, rng) if rng.random() < 0.1 else s for s in islice(stories(seed), CHUNK_STORIES)]


def train_tokenizer(texts: list[str], vocab: int) -> Tokenizer:
    """Byte-level BPE: any UTF-8 text has tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


class Corpus:
    """Tokens of many stories end to end, and where each begins: every sample starts at the start of a story."""

    def __init__(self, texts: list[str], tokenizer: Tokenizer, device: str) -> None:
        bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
        flat = array("h")
        starts: list[int] = []
        for at in range(0, len(texts), CHUNK_STORIES):
            for encoding in tokenizer.encode_batch_fast(texts[at : at + CHUNK_STORIES], add_special_tokens=False):
                starts.append(len(flat))
                flat.extend((bos, *encoding.ids, eos))
        self.tokens = torch.frombuffer(flat, dtype=torch.int16).to(device)
        self.starts = torch.tensor(starts)
        self.device = device

    def batch(self, rows: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        last = int(torch.searchsorted(self.starts, len(self.tokens) - length - 1, right=True))
        first = self.starts[torch.randint(max(last, 1), (rows,), generator=generator)].to(self.device)
        cut = self.tokens[first[:, None] + torch.arange(length + 1, device=self.device)].long()
        return cut[:, :-1], cut[:, 1:]


# -------------------------------------------------------------------------------------------------- training


def train(model: Llama, corpus: Corpus, args: argparse.Namespace) -> None:
    """AdamW with warm-up and cosine; three quarters on short samples, the rest on the model's full context."""
    decayed = [w for w in model.parameters() if w.dim() == 2]
    plain = [w for w in model.parameters() if w.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
    generator = torch.Generator().manual_seed(args.seed)
    border, began, report = Border(rounding=False), time.monotonic(), max(1, args.steps // 40)
    for step in range(args.steps):
        done = max(step / args.steps, (time.monotonic() - began) / (60 * args.minutes))
        if done >= 1:
            print(f"time is up at step {step}")
            break
        warm = min(1.0, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warm * (0.5 + 0.5 * math.cos(math.pi * done))
        length = args.length if done < 0.75 else model.shape.positions
        ids, targets = corpus.batch(max(1, args.batch_tokens // length), length, generator)
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.device != "cpu"):
            logits = model(ids, border)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % report == 0:
            print(f"step {step:6d}  loss {loss.item():.4f}  {time.monotonic() - began:6.1f} s", flush=True)


# -------------------------------------------------------------------------------------------------- report


def quantiles(margins: Tensor) -> str:
    marks = [("min", 0.0), ("0.1%", 0.001), ("1%", 0.01), ("5%", 0.05), ("median", 0.5)]
    values = margins.double().sort().values
    return "  ".join(f"{name} {values[int(q * (len(values) - 1))].item():.3f}" for name, q in marks)


@torch.no_grad()
def evaluate(model: Llama, corpus: Corpus, rows: int) -> dict[str, float]:
    """Held-out loss, top-2 margins and how often 8-bit activations change the argmax, position by position."""
    losses, margins, flips = [], [], []
    generator = torch.Generator().manual_seed(1)
    for _ in range(rows):
        ids, targets = corpus.batch(4, 512, generator)
        logits = model(ids)
        losses.append(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
        top = logits.topk(2, -1).values
        margins.append((top[..., 0] - top[..., 1]).flatten().cpu())
        flips.append((model(ids, Border(rounding=True)).argmax(-1) != logits.argmax(-1)).float().mean())
    loss, flipped = torch.stack(losses).mean().item(), torch.stack(flips).mean().item()
    print(
        f"held-out loss {loss:.4f} per token over {rows * 2048} tokens; "
        f"top-2 margin (logits): {quantiles(torch.cat(margins))}"
    )
    print(f"argmax changed by 8-bit activations at every block border: {100 * flipped:.3f} % of positions")
    return {"loss": loss, "flipped": flipped}


@torch.no_grad()
def tell(model: Llama, tokenizer: Tokenizer, device: str, tokens: int) -> None:
    """Greedy stories for some prompts, with the margins met on the way."""
    eos, met = tokenizer.token_to_id(EOS), []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt).ids
        margins = []
        for _ in range(tokens):
            top = model(torch.tensor([ids], device=device))[0, -1].topk(2)
            margins.append((top.values[0] - top.values[1]).item())
            ids.append(int(top.indices[0]))
            if ids[-1] == eos:
                break
        met += margins
        print(f"--- {prompt!r}  (smallest margin {min(margins):.3f}, {len(margins)} tokens)\n{tokenizer.decode(ids)}\n")
    print(f"top-2 margin over greedy continuations: {quantiles(torch.tensor(met))}")


def save(model: Llama, tokenizer: Tokenizer, folder: Path) -> int:
    """Write the checkpoint in Hugging Face layout, weights in bfloat16; returns its size in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    shape, bos, eos = model.shape, tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_dim,
        "vocab_size": shape.vocab, "max_position_embeddings": shape.positions, "rms_norm_eps": shape.eps,
        "rope_theta": shape.theta, "attention_bias": False, "mlp_bias": False, "tie_word_embeddings": True,
        "bos_token_id": bos, "eos_token_id": eos, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": bos, "eos_token_id": eos}, indent=2) + "\n"
    )
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(names, indent=2) + "\n")
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    weights = {
        name: weight.detach().to("cpu", torch.bfloat16).contiguous() for name, weight in model.state_dict().items()
    }
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors makes its file private
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=Path("demo"))
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--minutes", type=float, default=5.5, help="training stops here, its schedule shortened to fit")
    parser.add_argument("--stories", type=int, default=120_000)
    parser.add_argument("--batch-tokens", type=int, default=None)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    args.batch_tokens = args.batch_tokens or (65536 if args.device != "cpu" else 2048)
    torch.manual_seed(args.seed)

    chunks = math.ceil(args.stories / CHUNK_STORIES)
    with ProcessPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        texts = [text for chunk in pool.map(write_stories, range(args.seed, args.seed + chunks)) for text in chunk]
    texts = texts[: args.stories]
    shape = Shape()
    tokenizer = train_tokenizer(texts[:20_000], shape.vocab)
    corpus = Corpus(texts, tokenizer, args.device)
    held_out = Corpus(write_stories(HELD_OUT_SEED), tokenizer, args.device)
    model = Llama(shape).to(args.device)
    size = sum(w.numel() for w in model.parameters())
    print(
        f"{len(texts)} stories, {len(corpus.tokens):,} tokens, "
        f"vocabulary {tokenizer.get_vocab_size()}, {size:,} parameters"
    )

    train(model, corpus, args)
    total = save(model, tokenizer, args.output)
    model.load_state_dict(load_file(str(args.output / "model.safetensors")))  # what the file says, rounding included
    evaluate(model, held_out, 64 if args.device != "cpu" else 4)
    tell(model, tokenizer, args.device, 450 if args.device != "cpu" else 60)
    print(f"wrote {args.output}: {total:,} bytes")


if __name__ == "__main__":
    main()
