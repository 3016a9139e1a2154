"""Exact parameter and FLOP counts, checked against transformers' own modules and torch's own counter."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from moe_course.layers import DenseFFN, MoELayer
from moe_course.layers.accounting import (
    LatentAttention,
    ModelConfig,
    active_parameters,
    ffn_flops,
    ffn_parameters,
    flops_per_token,
    flops_table,
    moe_flops,
    moe_parameters,
    parameter_table,
    total_parameters,
)
from moe_course.layers.published import PUBLISHED

# total, active, active without the input embedding
COUNTS = {
    "mixtral-8x7b": (46_702_792_704, 12_879_925_248, 12_748_853_248),
    "mistral-7b": (7_241_732_096, 7_241_732_096, 7_110_660_096),
    "olmoe-1b-7b": (6_919_161_856, 1_282_017_280, 1_178_994_688),
    "qwen3-30b-a3b": (30_532_122_624, 3_353_032_704, 3_041_867_776),
    "gpt-oss-20b": (20_914_757_184, 4_187_440_704, 3_608_307_264),
    "gpt-oss-120b": (116_829_156_672, 5_711_982_912, 5_132_849_472),
    "deepseek-v3": (671_026_404_352, 37_552_282_624, 36_625_603_584),
}

# What differs from the defaults of transformers' config class, which are those of one published model each.
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral-8x7b": ("mixtral", {}),
    "mistral-7b": ("mistral", {}),
    "olmoe-1b-7b": ("olmoe", {"intermediate_size": 1024}),
    "qwen3-30b-a3b": ("qwen3_moe", {"num_hidden_layers": 48, "head_dim": 128}),
    "gpt-oss-20b": ("gpt_oss", {"num_hidden_layers": 24, "num_local_experts": 32}),
    "gpt-oss-120b": ("gpt_oss", {}),
    "deepseek-v3": ("deepseek_v3", {}),
}


def transformers_model(model_type: str, **settings: Any) -> torch.nn.Module:
    """Build a model of transformers without storage: a meta tensor has a shape and nothing else."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **settings)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name):
    config = PUBLISHED[name]
    counts = (
        total_parameters(config),
        active_parameters(config),
        active_parameters(config, input_embedding=False),
    )
    assert counts == COUNTS[name]


def test_every_published_model_is_checked():
    assert PUBLISHED.keys() == COUNTS.keys() == TRANSFORMERS.keys()
    assert all(config.source.startswith("https://") for config in PUBLISHED.values())


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_parts_equal_transformers(name):
    """Not only the sum: each part, so that two mistakes cannot cancel."""
    model_type, settings = TRANSFORMERS[name]
    counted = dict.fromkeys(parameter_table(PUBLISHED[name]), 0)
    for parameter, tensor in transformers_model(model_type, **settings).named_parameters():
        counted[_part_of(parameter)] += tensor.numel()
    assert counted == parameter_table(PUBLISHED[name])


def _part_of(parameter: str) -> str:
    rules = (
        ("embed_tokens", "embedding"),
        ("lm_head", "head"),
        ("self_attn", "attention"),
        ("shared_experts", "shared experts"),
        (".experts.", "experts"),
        (".mlp.gate.", "router"),
        (".mlp.router.", "router"),
        (".mlp.", "dense ffn"),
        ("norm", "norms"),
    )
    return next(part for pattern, part in rules if pattern in parameter)


def test_deepseek_selection_bias_is_state_not_a_parameter():
    buffers = transformers_model("deepseek_v3").named_buffers()
    assert sum(b.numel() for name, b in buffers if "e_score_correction_bias" in name) == 14_848


def test_tied_embedding_counts_once():
    shape = dict(vocab_size=96, num_hidden_layers=2, hidden_size=16, intermediate_size=40)
    heads = dict(num_attention_heads=4, num_key_value_heads=2)
    model = transformers_model("mistral", **shape, **heads, tie_word_embeddings=True)
    config = ModelConfig("tiny", "here", 96, 2, 16, 4, 2, 4, num_dense_layers=2, dense_d_ff=40, tied_embedding=True)
    assert total_parameters(config) == sum(p.numel() for p in model.parameters())
    assert active_parameters(config, input_embedding=False) == total_parameters(config)  # it is the head too


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_layer_counts_equal_the_layers(activation):
    moe = MoELayer(12, 20, 6, 2, activation=activation)
    assert moe_parameters(12, 20, 6, activation) == sum(p.numel() for p in moe.parameters())
    dense = DenseFFN(12, 20, activation)
    assert ffn_parameters(12, 20, activation) == sum(p.numel() for p in dense.parameters())


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_layer_flops_equal_torchs_counter(activation):
    x = torch.randn(10, 12)
    dense, moe = DenseFFN(12, 20, activation), MoELayer(12, 20, 6, 2, activation=activation, dispatch="loop")
    assert ffn_flops(10, 12, 20, activation) == _counted(dense, x)
    assert moe_flops(10, 12, 20, 6, 2, activation) == _counted(moe, x)


def test_training_costs_three_forward_passes():
    x, dense = torch.randn(10, 12, requires_grad=True), DenseFFN(12, 20)
    with FlopCounterMode(display=False) as counter:
        dense(x).sum().backward()
    assert counter.get_total_flops() == 3 * ffn_flops(10, 12, 20, "gelu")


def _counted(module: torch.nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        module(x)
    return counter.get_total_flops()


TINY = dict(vocab_size=96, num_layers=3, d_model=16, num_heads=4, num_experts=8, top_k=2, d_ff=24)
TINY_LATENT = LatentAttention(q_rank=12, kv_rank=10, nope_head_dim=6, rope_head_dim=4, v_head_dim=8)
TINY_MODELS: dict[str, tuple[dict[str, Any], ModelConfig]] = {
    "mixtral": (
        dict(num_key_value_heads=2, intermediate_size=24),
        ModelConfig("tiny", "here", **TINY, num_kv_heads=2, head_dim=4),
    ),
    "deepseek_v3": (
        dict(q_lora_rank=12, kv_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=8)
        | dict(n_group=2, topk_group=1, first_k_dense_replace=1, moe_intermediate_size=24, intermediate_size=40)
        | dict(num_key_value_heads=4),
        ModelConfig(
            "tiny",
            "here",
            **TINY,
            num_shared_experts=1,
            num_dense_layers=1,
            dense_d_ff=40,
            latent=TINY_LATENT,
        ),
    ),
}


@pytest.mark.parametrize("model_type", TINY_MODELS)
def test_model_flops_equal_torchs_counter(model_type):
    """A whole model's forward pass as torch counts it: matrices and attention scores."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings, config = TINY_MODELS[model_type]
    shape = dict(vocab_size=96, num_hidden_layers=3, hidden_size=16, num_attention_heads=4, num_experts_per_tok=2)
    hf_config = AutoConfig.for_model(model_type, **shape, **settings, num_local_experts=8)
    model = AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager", experts_implementation="eager")
    tokens = 5
    with FlopCounterMode(display=False) as counter:
        model(torch.arange(tokens)[None], use_cache=False)
    # Eager attention computes the masked half of the scores as well, so each token attends to all of them.
    assert counter.get_total_flops() == tokens * flops_per_token(config, context=tokens)


def test_experts_cost_flops_by_top_k_and_parameters_by_all():
    config = PUBLISHED["mixtral-8x7b"]
    assert flops_table(config)["experts"] == 2 * 2 * 32 * ffn_parameters(4096, 14_336, "swiglu")
    assert parameter_table(config)["experts"] == 8 * 32 * ffn_parameters(4096, 14_336, "swiglu")
    assert flops_table(config)["embedding"] == 0


def test_moe_flops_refuses_more_choices_than_experts():
    with pytest.raises(ValueError, match="choose top_k ≤ num_experts"):
        moe_flops(1, 4, 8, 8, 9, "gelu")
