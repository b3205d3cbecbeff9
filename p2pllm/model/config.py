"""A checkpoint's ``config.json`` as one frozen value, and the tensors that such a model has.

Invariants: nothing here imports torch or reads a file. Every field that changes the result is either understood or
refused by name: a key that this file does not know is an error, because ignoring it might compute another model.
Both generations of spellings are read (``torch_dtype`` and ``dtype``, ``rope_scaling`` and
``rope_parameters``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from p2pllm.errors import CheckpointError
from p2pllm.model.fields import count, flag, number, token_ids


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding.

    Attributes:
        kind: ``none`` (plain), ``linear``, ``dynamic``, ``yarn`` or ``llama3``.
        theta: base of the wavelengths.
        factor: by how much the context is stretched; 1 for ``none``.
        original_positions: context length of the pretraining; ``max_positions`` where the config does not say.
        attention_factor: what cosines and sines are multiplied by (yarn), resolved; 1 for the other kinds.
        truncate: whether yarn's correction range is rounded to whole dimensions.
    """

    kind: str = "none"
    theta: float = 10000.0
    factor: float = 1.0
    original_positions: int = 2048
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Everything about a model that its blocks and ends need to know.

    Attributes:
        family: ``llama``, ``mistral``, ``qwen2`` or ``qwen3``: where the weights' names and quirks come from.
        windows: one entry per block, the sliding window in tokens (itself included) or None for full attention.
        qk_norm: queries and keys are RMS-normalised per head before the rotation.
        max_positions: the context length that the config claims.
        dtype: how the checkpoint says that its weights are stored (``float32``, ``bfloat16``, ``float16``) or None.
    """

    family: str
    hidden_size: int
    num_blocks: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    norm_eps: float
    rope: RopeConfig
    windows: tuple[int | None, ...]
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tie_word_embeddings: bool = False
    max_positions: int = 2048
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    dtype: str | None = None
    activation: str = "silu"

    @property
    def block_params(self) -> int:
        """Numbers in one block's tensors, for placement and memory planning."""
        return sum(math.prod(spec.shape) for spec in block_tensors(self, 0).values())

    @property
    def kv_numbers(self) -> int:
        """Numbers that one token puts into one block's cache: keys and values of all KV heads."""
        return 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a checkpoint: its name in the files and the shape that the config implies."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Family:
    """What a family fixes where its config is silent (the defaults of its configuration class)."""

    architecture: str
    kv_heads: int | None = None
    head_dim: int | None = None
    max_positions: int = 32768
    window: int | None = 4096
    qkv_bias: bool = False


_FAMILIES = {
    "llama": _Family("LlamaForCausalLM", max_positions=2048, window=None),
    "mistral": _Family("MistralForCausalLM", kv_heads=8, max_positions=131072),
    "qwen2": _Family("Qwen2ForCausalLM", kv_heads=32, qkv_bias=True),
    "qwen3": _Family("Qwen3ForCausalLM", kv_heads=32, head_dim=128),
}

ROPE_KINDS = {"default": "none", "linear": "linear", "dynamic": "dynamic", "yarn": "yarn", "llama3": "llama3"}

_UNDERSTOOD = """
model_type architectures hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim
intermediate_size vocab_size rms_norm_eps rope_theta rope_scaling rope_parameters partial_rotary_factor
original_max_position_embeddings sliding_window use_sliding_window max_window_layers layer_types attention_bias mlp_bias
tie_word_embeddings max_position_embeddings bos_token_id eos_token_id dtype torch_dtype hidden_act
"""

# Training, generation defaults, bookkeeping of other libraries: none of these changes what a block computes.
_HARMLESS = """
transformers_version _name_or_path name_or_path _commit_hash pad_token_id unk_token_id sep_token_id use_cache
decoder_start_token_id initializer_range attention_dropout hidden_dropout resid_pdrop pretraining_tp output_attentions
output_hidden_states output_scores return_dict return_dict_in_generate id2label label2id num_labels problem_type
finetuning_task task_specific_params tokenizer_class prefix torchscript use_bfloat16 pruned_heads
chunk_size_feed_forward is_decoder is_encoder_decoder add_cross_attention cross_attention_hidden_size
tie_encoder_decoder tf_legacy_loss remove_invalid_values neftune_noise_alpha temperature top_k top_p typical_p
min_length max_length max_new_tokens do_sample num_beams num_beam_groups diversity_penalty length_penalty
repetition_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids begin_suppress_tokens
suppress_tokens early_stopping num_return_sequences exponential_decay_length_penalty forced_bos_token_id
forced_eos_token_id rope_interleaved max_sequence_length model_max_length seq_length _attn_implementation
attn_implementation _flash_attn_2_enabled use_flash_attention_2 gradient_checkpointing unsloth_version unsloth_fixed
"""

KNOWN_KEYS = frozenset(_UNDERSTOOD.split())
HARMLESS_KEYS = frozenset(_HARMLESS.split())


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """Understand a ``config.json`` completely.

    Raises:
        CheckpointError: the architecture is not supported, a needed field is missing or malformed, or a field would
            change the result in a way that is not implemented. Names the field.
    """
    family, traits = _family(raw)
    _refuse_unknown(raw)
    hidden = count(raw, "hidden_size")
    blocks = count(raw, "num_hidden_layers")
    heads = count(raw, "num_attention_heads")
    kv_heads = count(raw, "num_key_value_heads", traits.kv_heads or heads, null=heads)
    if heads % kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
        )
    derived = hidden // heads
    head_dim = count(raw, "head_dim", traits.head_dim or derived, null=derived)
    if head_dim % 2:
        raise CheckpointError(f"config.json: head_dim {head_dim} is odd, rotary embedding needs pairs")
    max_positions = count(raw, "max_position_embeddings", traits.max_positions)
    attention_bias = flag(raw, "attention_bias")
    if attention_bias and family in ("mistral", "qwen2"):
        raise CheckpointError(f"config.json: attention_bias true is not supported for {family}")
    if flag(raw, "mlp_bias") and family != "llama":
        raise CheckpointError(f"config.json: mlp_bias true is not supported for {family}")
    return ModelConfig(
        family=family,
        hidden_size=hidden,
        num_blocks=blocks,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=count(raw, "intermediate_size"),
        vocab_size=count(raw, "vocab_size"),
        norm_eps=number(raw, "rms_norm_eps", 1e-6),
        rope=_rope(raw, max_positions),
        windows=_windows(raw, family, traits, blocks),
        qkv_bias=traits.qkv_bias or attention_bias,
        o_bias=attention_bias,
        mlp_bias=flag(raw, "mlp_bias"),
        qk_norm=family == "qwen3",
        tie_word_embeddings=flag(raw, "tie_word_embeddings"),
        max_positions=max_positions,
        bos_id=next(iter(token_ids(raw, "bos_token_id")), None),
        eos_ids=token_ids(raw, "eos_token_id"),
        dtype=_dtype(raw),
        activation=_activation(raw),
    )


def block_tensors(config: ModelConfig, block: int) -> dict[str, TensorSpec]:
    """The tensors of one block, by the names that ``p2pllm.model.llama`` uses for them.

    Raises:
        ValueError: there is no such block.
    """
    if not 0 <= block < config.num_blocks:
        raise ValueError(f"block {block} of a model with {config.num_blocks}")
    hidden, inter, dim = config.hidden_size, config.intermediate_size, config.head_dim
    q_width, kv_width = config.num_heads * dim, config.num_kv_heads * dim
    prefix = f"model.layers.{block}."
    specs = {
        "input_norm": TensorSpec(prefix + "input_layernorm.weight", (hidden,)),
        "q": TensorSpec(prefix + "self_attn.q_proj.weight", (q_width, hidden)),
        "k": TensorSpec(prefix + "self_attn.k_proj.weight", (kv_width, hidden)),
        "v": TensorSpec(prefix + "self_attn.v_proj.weight", (kv_width, hidden)),
        "o": TensorSpec(prefix + "self_attn.o_proj.weight", (hidden, q_width)),
        "post_norm": TensorSpec(prefix + "post_attention_layernorm.weight", (hidden,)),
        "gate": TensorSpec(prefix + "mlp.gate_proj.weight", (inter, hidden)),
        "up": TensorSpec(prefix + "mlp.up_proj.weight", (inter, hidden)),
        "down": TensorSpec(prefix + "mlp.down_proj.weight", (hidden, inter)),
    }
    biased = [*("qkv" if config.qkv_bias else ""), *(["o"] if config.o_bias else [])]
    biased += ["gate", "up", "down"] if config.mlp_bias else []
    for name in biased:
        weight = specs[name]
        specs[name + "_bias"] = TensorSpec(weight.name.removesuffix("weight") + "bias", weight.shape[:1])
    if config.qk_norm:
        specs["q_norm"] = TensorSpec(prefix + "self_attn.q_norm.weight", (dim,))
        specs["k_norm"] = TensorSpec(prefix + "self_attn.k_norm.weight", (dim,))
    return specs


def ends_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """The client's tensors: ``embed``, ``norm`` and, unless it is tied to the embedding, ``head``."""
    table = (config.vocab_size, config.hidden_size)
    specs = {
        "embed": TensorSpec("model.embed_tokens.weight", table),
        "norm": TensorSpec("model.norm.weight", (config.hidden_size,)),
    }
    if not config.tie_word_embeddings:
        specs["head"] = TensorSpec("lm_head.weight", table)
    return specs


def _family(raw: Mapping[str, Any]) -> tuple[str, _Family]:
    known = [traits.architecture for traits in _FAMILIES.values()]
    supported = ", ".join(known)
    architectures = raw.get("architectures") or []
    if not isinstance(architectures, list | tuple):
        raise CheckpointError("config.json: architectures is not a list")
    for name in architectures:
        if name not in known:
            raise CheckpointError(f"config.json: architecture {name!r} is not supported; supported: {supported}")
    model_type = raw.get("model_type")
    if model_type is None and architectures:
        model_type = next(f for f, t in _FAMILIES.items() if t.architecture == architectures[0])
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise CheckpointError(f"config.json: model_type {model_type!r} is not supported; supported: {supported}")
    traits = _FAMILIES[model_type]
    if architectures and traits.architecture not in architectures:
        raise CheckpointError(f"config.json: model_type {model_type!r} does not go with architectures {architectures}")
    return model_type, traits


def _refuse_unknown(raw: Mapping[str, Any]) -> None:
    for key, value in raw.items():
        if key in KNOWN_KEYS or key in HARMLESS_KEYS or value is None:
            continue
        if key == "quantization_config":
            raise CheckpointError(
                "config.json: quantization_config: pre-quantised checkpoints are not supported; use the fp32, bf16 or "
                "fp16 weights of this model"
            )
        raise CheckpointError(f"config.json: field {key!r} is not supported (ignoring it might compute another model)")
    if raw.get("is_encoder_decoder") or raw.get("add_cross_attention"):
        raise CheckpointError("config.json: encoder-decoder models are not supported")
    if raw.get("rope_interleaved"):
        raise CheckpointError("config.json: rope_interleaved true is not supported")


def _dtype(raw: Mapping[str, Any]) -> str | None:
    value = raw.get("dtype") if raw.get("dtype") is not None else raw.get("torch_dtype")
    if value is None or value == "auto":
        return None
    name = str(value).removeprefix("torch.")
    if name not in ("float32", "bfloat16", "float16"):
        raise CheckpointError(f"config.json: dtype {value!r} is not supported (float32, bfloat16 or float16)")
    return name


def _activation(raw: Mapping[str, Any]) -> str:
    value = raw.get("hidden_act", "silu")
    if value not in ("silu", "swish"):
        raise CheckpointError(f"config.json: hidden_act {value!r} is not supported (silu)")
    return "silu"


def _windows(raw: Mapping[str, Any], family: str, traits: _Family, blocks: int) -> tuple[int | None, ...]:
    window = raw.get("sliding_window", traits.window)
    if family in ("qwen2", "qwen3") and not flag(raw, "use_sliding_window"):
        window = None
    if family == "llama" and window is not None:
        raise CheckpointError("config.json: sliding_window is not supported for llama")
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window <= 0):
        raise CheckpointError(f"config.json: field 'sliding_window' must be a positive integer, not {window!r}")
    kinds = raw.get("layer_types")
    if kinds is None:
        first = count(raw, "max_window_layers", 28, least=0) if family in ("qwen2", "qwen3") else 0
        return tuple(window if block >= first else None for block in range(blocks))
    known = {"full_attention": None, "sliding_attention": window}
    if not isinstance(kinds, list | tuple) or len(kinds) != blocks or any(kind not in list(known) for kind in kinds):
        raise CheckpointError(f"config.json: layer_types must name full_attention or sliding_attention {blocks} times")
    if "sliding_attention" in kinds and window is None:
        raise CheckpointError("config.json: layer_types has sliding_attention, but sliding_window is not set")
    if family == "mistral":
        raise CheckpointError("config.json: layer_types is not supported for mistral")
    return tuple(known[kind] for kind in kinds)


def _rope(raw: Mapping[str, Any], max_positions: int) -> RopeConfig:
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise CheckpointError("config.json: rope_parameters/rope_scaling is not an object")
    rope = {**given}
    where = "config.json, rope parameters"
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if not isinstance(kind, str) or kind not in ROPE_KINDS:
        raise CheckpointError(f"{where}: kind {kind!r} is not supported; supported: {', '.join(ROPE_KINDS)}")
    for holder in (raw, rope):
        if holder.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise CheckpointError(
                f"{where}: partial_rotary_factor {holder['partial_rotary_factor']!r} is not supported"
            )
    theta = number(rope, "rope_theta", number(raw, "rope_theta", 10000.0), where)
    known = {"rope_theta", "partial_rotary_factor", "factor", "original_max_position_embeddings"}
    known |= {"llama3": {"low_freq_factor", "high_freq_factor"}}.get(kind, set())
    if kind == "yarn":
        known |= {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "finetuned"}
    for key, value in rope.items():
        if key not in known and value is not None:
            raise CheckpointError(f"{where}: field {key!r} is not supported for kind {kind!r}")
    if kind == "default":
        return RopeConfig(theta=theta, original_positions=max_positions)
    key = "original_max_position_embeddings"
    original = max_positions if kind == "dynamic" else count(raw, key, count(rope, key, max_positions))
    factor = number(rope, "factor", max_positions / original if kind == "yarn" else None, where)
    if kind == "llama3":
        low, high = (number(rope, key, None, where) for key in ("low_freq_factor", "high_freq_factor"))
        if low >= high:
            raise CheckpointError(f"{where}: low_freq_factor {low} is not below high_freq_factor {high}")
        return RopeConfig("llama3", theta, factor, original, low, high)
    if kind != "yarn":
        return RopeConfig(ROPE_KINDS[kind], theta, factor, original)
    return RopeConfig(
        "yarn",
        theta,
        factor,
        original,
        beta_fast=number(rope, "beta_fast", 32.0, where),
        beta_slow=number(rope, "beta_slow", 1.0, where),
        attention_factor=_yarn_attention(rope, factor, where),
        truncate=rope.get("truncate") is not False,
    )


def _yarn_attention(rope: Mapping[str, Any], factor: float, where: str) -> float:
    """Yarn's temperature, as given or by the paper's rule."""
    if rope.get("attention_factor") is not None:
        return number(rope, "attention_factor", None, where)

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(number(rope, "mscale", None, where)) / scale(number(rope, "mscale_all_dim", None, where))
    return scale(1.0)
