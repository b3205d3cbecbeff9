"""Real config.json files are understood; everything that is not understood is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from p2pllm.errors import CheckpointError
from p2pllm.model.config import ModelConfig, RopeConfig, TensorSpec, block_tensors, ends_tensors, parse_config
from tests.model import zoo

LLAMA_2 = {
    "_name_or_path": "meta-llama/Llama-2-7b-hf",
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "transformers_version": "4.31.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
LLAMA_31 = {
    **LLAMA_2,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 8,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0.dev0",
    "use_cache": True,
    "vocab_size": 32000,
}
QWEN_25 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN_3 = {
    **{k: v for k, v in QWEN_25.items() if k not in {"max_window_layers", "sliding_window"}},
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rope_scaling": None,
    "sliding_window": None,
}


def test_llama_2() -> None:
    config = parse_config(LLAMA_2)
    assert (config.family, config.num_blocks, config.head_dim, config.num_kv_heads) == ("llama", 32, 128, 32)
    assert config.rope == RopeConfig(theta=10000.0, original_positions=4096)
    assert (config.dtype, config.bos_id, config.eos_ids, config.norm_eps) == ("float16", 1, (2,), 1e-5)
    assert config.windows == (None,) * 32
    switches = (config.qkv_bias, config.o_bias, config.mlp_bias, config.qk_norm, config.tie_word_embeddings)
    assert not any(switches)
    assert config.block_params == 202_383_360
    assert config.kv_numbers == 2 * 4096


def test_llama_31() -> None:
    config = parse_config(LLAMA_31)
    assert config.rope == RopeConfig("llama3", 500000.0, 8.0, 8192, 1.0, 4.0)
    assert config.eos_ids == (128001, 128008, 128009)
    assert config.num_kv_heads == 8


def test_mistral_has_a_window_in_every_block_unless_it_is_null() -> None:
    assert parse_config(MISTRAL).windows == (4096,) * 32
    assert parse_config({**MISTRAL, "sliding_window": None}).windows == (None,) * 32
    assert parse_config({k: v for k, v in MISTRAL.items() if k != "sliding_window"}).windows == (4096,) * 32


def test_qwen_25_has_biases_and_windows_only_when_told() -> None:
    config = parse_config(QWEN_25)
    assert (config.qkv_bias, config.o_bias, config.tie_word_embeddings) == (True, False, True)
    assert config.windows == (None,) * 24
    windowed = parse_config({**QWEN_25, "use_sliding_window": True})
    assert windowed.windows == (None,) * 21 + (32768,) * 3
    everywhere = parse_config({**QWEN_25, "use_sliding_window": True, "max_window_layers": 0})
    assert everywhere.windows == (32768,) * 24


def test_qwen_3_has_norms_and_a_head_dim_of_its_own() -> None:
    config = parse_config(QWEN_3)
    assert (config.qk_norm, config.head_dim, config.qkv_bias) == (True, 128, False)
    assert "q_norm" in block_tensors(config, 0)


def test_layer_types_decide_where_they_are_given() -> None:
    kinds = ["sliding_attention" if i % 2 else "full_attention" for i in range(28)]
    raw = {**QWEN_3, "use_sliding_window": True, "sliding_window": 64, "layer_types": kinds}
    assert parse_config(raw).windows == (None, 64) * 14


def test_both_spellings_mean_the_same() -> None:
    old = {**LLAMA_31}
    new = {k: v for k, v in LLAMA_31.items() if k not in {"rope_scaling", "rope_theta", "torch_dtype"}}
    new["dtype"] = "bfloat16"
    new["rope_parameters"] = {**LLAMA_31["rope_scaling"], "rope_theta": 500000.0}
    assert parse_config(new) == parse_config(old)
    oldest = {**LLAMA_2, "rope_scaling": {"type": "linear", "factor": 2.0}}
    assert parse_config(oldest).rope == RopeConfig("linear", 10000.0, 2.0, 4096)


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_what_transformers_writes_is_read(name: str, tmp_path: Any) -> None:
    """The config.json that save_pretrained makes, with all its keys."""
    import json

    config_class, traits = zoo.FAMILIES[name]
    config_class(**{**zoo.BASE, **traits}).save_pretrained(tmp_path)
    config = parse_config(json.loads((tmp_path / "config.json").read_text()))
    assert (config.num_blocks, config.vocab_size) == (3, 97)


@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_specs_name_exactly_the_tensors_of_the_checkpoint(name: str) -> None:
    model = zoo.reference(name)
    config, tensors = zoo.ours(model)
    specs: list[TensorSpec] = [*ends_tensors(config).values()]
    for block in range(config.num_blocks):
        specs += block_tensors(config, block).values()
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert {s.name for s in specs} == set(tensors) - tied
    assert all(tuple(tensors[s.name].shape) == s.shape for s in specs)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"architectures": None, "model_type": "bloom"}, "bloom"),
        ({"architectures": "LlamaForCausalLM"}, "architectures"),
        ({"model_type": "mistral"}, "architectures"),
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"head_dim": 127}, "head_dim"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
        ({"eos_token_id": [1, "x"]}, "eos_token_id"),
        ({"torch_dtype": "float8_e4m3fn"}, "float8"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"logit_softcapping": 30.0}, "logit_softcapping"),
        ({"sliding_window": 4096}, "sliding_window"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_scaling": "linear"}, "rope"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "longrope"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 1}}, "beta_fast"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}}, "high_freq_factor"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
            "low_freq_factor",
        ),
    ],
)
def test_refused_by_name(change: dict[str, Any], names: str) -> None:
    with pytest.raises(CheckpointError, match=names):
        parse_config({**LLAMA_2, **change})


@pytest.mark.parametrize(
    ("raw", "change", "names"),
    [
        (MISTRAL, {"attention_bias": True}, "attention_bias"),
        (MISTRAL, {"mlp_bias": True}, "mlp_bias"),
        (MISTRAL, {"sliding_window": -1}, "sliding_window"),
        (MISTRAL, {"layer_types": ["full_attention"] * 32}, "layer_types"),
        (QWEN_3, {"layer_types": ["full_attention"]}, "layer_types"),
        (QWEN_3, {"layer_types": ["sliding_attention"] * 28}, "sliding_window"),
        (QWEN_3, {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": "9"}, "max_window_layers"),
    ],
)
def test_families_refuse_what_they_do_not_have(raw: dict[str, Any], change: dict[str, Any], names: str) -> None:
    with pytest.raises(CheckpointError, match=names):
        parse_config({**raw, **change})


def test_a_config_without_model_type_is_known_by_its_architecture() -> None:
    assert parse_config({k: v for k, v in MISTRAL.items() if k != "model_type"}).family == "mistral"
    with pytest.raises(CheckpointError, match="model_type None"):
        parse_config({"hidden_size": 4})


def test_blocks_that_do_not_exist_have_no_tensors() -> None:
    config = parse_config(LLAMA_2)
    with pytest.raises(ValueError, match="block 32"):
        block_tensors(config, 32)


def test_yarn_resolves_its_attention_factor() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    assert parse_config({**LLAMA_2, "rope_scaling": yarn}).rope.attention_factor == pytest.approx(1.1386, abs=1e-4)
    given = parse_config({**LLAMA_2, "rope_scaling": {**yarn, "attention_factor": 0.5}})
    assert given.rope.attention_factor == 0.5
    scaled = parse_config({**LLAMA_2, "rope_scaling": {**yarn, "mscale": 1.0, "mscale_all_dim": 1.0}})
    assert scaled.rope.attention_factor == 1.0
    assert parse_config({**LLAMA_2, "rope_scaling": {**yarn, "factor": None}}).rope.factor == 4.0


def test_the_config_is_light() -> None:
    """Readers of config.json (model ids, status) need no torch: the value holds plain Python."""
    assert isinstance(parse_config(LLAMA_2), ModelConfig)
    assert not any(isinstance(getattr(parse_config(LLAMA_2), f), torch.Tensor) for f in ModelConfig.__slots__)
