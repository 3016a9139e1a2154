"""Models and blocks of transformers and their checkpoints load, and compute the same, gradients included."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from moe_course.interop import load_moe_block, load_moe_state_dict, load_transformer
from moe_course.layers import generate, model_balance_loss, model_config, total_parameters
from moe_course.training import language_model_loss

D, D_FF, E, K = 16, 24, 6, 3
CASES = {
    "mixtral": (MixtralSparseMoeBlock, "mixtral", {}),
    "olmoe": (OlmoeSparseMoeBlock, "olmoe", {"norm_topk_prob": False}),
    "olmoe renormalised": (OlmoeSparseMoeBlock, "olmoe", {"norm_topk_prob": True}),
    "qwen3": (Qwen3MoeSparseMoeBlock, "qwen3_moe", {"norm_topk_prob": False}),
    "qwen3 renormalised": (Qwen3MoeSparseMoeBlock, "qwen3_moe", {"norm_topk_prob": True}),
}


def make_block(case: str, **settings: Any) -> nn.Module:
    block_type, model_type, own = CASES[case]
    config = AutoConfig.for_model(
        model_type,
        hidden_size=D,
        intermediate_size=D_FF,
        num_experts_per_tok=K,
        experts_implementation="eager",
        **({"moe_intermediate_size": D_FF} if model_type == "qwen3_moe" else {}),
        **({"num_local_experts": E} if model_type == "mixtral" else {"num_experts": E}),
        **own,
        **settings,
    )
    block = block_type(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in block.parameters():  # transformers leaves them empty or zero outside a whole model
        nn.init.normal_(parameter, std=0.5, generator=generator)
    return block


@pytest.mark.parametrize("case", CASES)
def test_output_and_gradients_equal_the_block(case):
    block = make_block(case)
    layer = load_moe_block(block)
    x = torch.randn(2, 7, D, generator=torch.Generator().manual_seed(1), requires_grad=True)
    cotangent = torch.randn(2, 7, D, generator=torch.Generator().manual_seed(2))

    theirs = block(x)
    ours, routing = layer(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert routing.expert_ids.shape == (14, K)

    block_weights = [x, block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj]
    layer_weights = [x, layer.router.weight, layer.experts.w_in, layer.experts.w_out]
    expected = torch.autograd.grad(theirs, block_weights, cotangent)
    for name, ours_grad, theirs_grad in zip(
        ("x", "router", "w_in", "w_out"),
        torch.autograd.grad(ours, layer_weights, cotangent),
        expected,
        strict=True,
    ):
        assert theirs_grad.abs().max() > 1e-3, f"{name}: a gradient of zero would prove nothing"
        torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", CASES)
def test_weights_are_copies(case):
    block = make_block(case)
    layer = load_moe_block(block)
    x = torch.randn(5, D)
    before = layer(x)[0]
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    assert torch.equal(layer(x)[0], before)
    assert all(p.requires_grad and p.is_leaf for p in layer.parameters())


def as_published(block: nn.Module, names: tuple[str, str, str], block_name: str) -> dict[str, Tensor]:
    """The block's tensors as a checkpoint names them, one per expert."""
    gate, up = block.experts.gate_up_proj.detach().chunk(2, dim=1)
    tensors = {f"model.layers.1.{block_name}.gate.weight": block.gate.weight.detach()}
    for name, stacked in zip(names, (gate, up, block.experts.down_proj.detach()), strict=True):
        for expert in range(E):
            tensors[f"model.layers.1.{block_name}.experts.{expert}.{name}.weight"] = stacked[expert]
    return tensors


NAMINGS = {
    "mixtral": (("w1", "w3", "w2"), "block_sparse_moe"),
    "olmoe": (("gate_proj", "up_proj", "down_proj"), "mlp"),
    "qwen3 renormalised": (("gate_proj", "up_proj", "down_proj"), "mlp"),
}


@pytest.mark.parametrize("case", NAMINGS)
def test_checkpoint_of_a_whole_model(case):
    block = make_block(case)
    tensors = as_published(block, *NAMINGS[case])
    others = {
        "model.embed_tokens.weight": torch.zeros(3, D),
        "model.layers.1.self_attn.q_proj.weight": torch.zeros(D, D),
        "model.layers.11.mlp.gate.weight": torch.zeros(E, D),  # another MoE layer, with a name that starts alike
    }
    layer = load_moe_state_dict(others | tensors, prefix="model.layers.1.", top_k=K, renormalize=case != "olmoe")
    x = torch.randn(2, 5, D)
    torch.testing.assert_close(layer(x)[0], block(x), rtol=1e-5, atol=1e-5)


def test_stacked_checkpoint_needs_no_prefix_for_one_block():
    block = make_block("olmoe")
    layer = load_moe_state_dict(block.state_dict(), top_k=K, renormalize=False)
    x = torch.randn(5, D)
    torch.testing.assert_close(layer(x)[0], block(x[None])[0], rtol=1e-5, atol=1e-5)


def test_dtype_is_kept():
    layer = load_moe_block(make_block("qwen3").to(torch.bfloat16))
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}


def test_a_layer_that_is_no_moe_block():
    with pytest.raises(ValueError, match=r"Linear is not an MoE block.*pass one of MixtralSparseMoeBlock"):
        load_moe_block(nn.Linear(2, 2))


def test_experts_that_are_not_swiglu():
    with pytest.raises(ValueError, match="hidden_act='silu'"):
        load_moe_block(make_block("mixtral", hidden_act="gelu"))


def test_missing_tensors_are_named_with_a_remedy():
    tensors = as_published(make_block("mixtral"), *NAMINGS["mixtral"])
    del tensors["model.layers.1.block_sparse_moe.experts.4.w3.weight"]
    with pytest.raises(ValueError, match=r"lacks experts\.4\.w3\.weight.*merge"):
        load_moe_state_dict(tensors, top_k=K, renormalize=True)


@pytest.mark.parametrize(
    "extra",
    [
        "gate.e_score_correction_bias",
        "shared_expert_gate.weight",
        "shared_experts.up_proj.weight",
        "experts.6.w1.weight",
    ],
)
def test_tensors_without_a_place_are_refused(extra):
    tensors = as_published(make_block("mixtral"), *NAMINGS["mixtral"])
    tensors[f"model.layers.1.block_sparse_moe.{extra}"] = torch.zeros(1)
    with pytest.raises(ValueError, match=f"no place for {extra}"):
        load_moe_state_dict(tensors, top_k=K, renormalize=True)


def test_a_prefix_of_two_layers_or_of_none():
    tensors = {"layers.0.mlp.gate.weight": torch.zeros(E, D), "layers.1.mlp.gate.weight": torch.zeros(E, D)}
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.gate\.weight, layers\.1\.mlp.*pass the prefix"):
        load_moe_state_dict(tensors, top_k=K, renormalize=True)
    with pytest.raises(ValueError, match=r"prefix='layers\.2\.'.*none; pass the prefix"):
        load_moe_state_dict(tensors, prefix="layers.2.", top_k=K, renormalize=True)


def test_transformers_is_not_imported():
    import subprocess
    import sys

    code = "import sys, moe_course.interop; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Whole models

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", {"num_local_experts": E, "num_experts_per_tok": 2}),
    "mixtral, tied, all heads, another theta": (
        "mixtral",
        {
            "num_local_experts": E,
            "num_experts_per_tok": K,
            "tie_word_embeddings": True,
            "num_key_value_heads": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": None}),
}
VOCABULARY = 31


def make_model(model_type: str, **settings: Any) -> Any:
    """A small model whose parameters, norms included, are all random and large enough to tell mistakes."""
    config = AutoConfig.for_model(
        model_type,
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=D_FF,
        num_hidden_layers=3,
        num_attention_heads=4,
        **{"num_key_value_heads": 2, "max_position_embeddings": 40, "rms_norm_eps": 1e-3} | settings,
        experts_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.25, generator=generator)
    return model.eval()


def make_ids(batch: int, length: int) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", MODELS)
def test_logits_and_gradients_equal_the_model(case):
    model_type, settings = MODELS[case]
    theirs = make_model(model_type, **settings)
    ours = load_transformer(theirs)
    ids = make_ids(3, 33)
    expected, logits = theirs(ids).logits, ours(ids).logits
    assert expected.std() > 1
    torch.testing.assert_close(logits, expected, rtol=2e-5, atol=2e-5)

    assert sum(p.numel() for p in theirs.parameters()) == total_parameters(model_config(ours.config))
    cotangent = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    (logits * cotangent).sum().backward()
    (expected * cotangent).sum().backward()
    last = theirs.model.layers[-1]
    for name, mine, original in (
        ("embedding", ours.embedding.weight, theirs.model.embed_tokens.weight),
        ("query", ours.blocks[0].attention.query.weight, theirs.model.layers[0].self_attn.q_proj.weight),
        ("value", ours.blocks[2].attention.value.weight, last.self_attn.v_proj.weight),
        ("norm", ours.blocks[2].ffn_norm.weight, last.post_attention_layernorm.weight),
        ("head", ours.head.weight, theirs.lm_head.weight),
    ):
        scale = original.grad.abs().max()
        assert scale > 1e-2, f"{name}: a gradient of zero would prove nothing"
        torch.testing.assert_close(mine.grad / scale, original.grad / scale, rtol=1e-4, atol=1e-4, msg=name)


def test_router_losses_equal_the_model():
    theirs = make_model("mixtral", num_local_experts=E, output_router_logits=True)
    ours = load_transformer(theirs)
    ids = make_ids(2, 30)
    output = theirs(ids, labels=ids)
    routings = list(ours(ids).routings.values())
    for routing, router_logits in zip(routings, output.router_logits, strict=True):
        torch.testing.assert_close(routing.logits, router_logits, rtol=1e-4, atol=1e-4)
    # Theirs counts every choice, so that an even load costs K, and pools the layers.
    pooled = model_balance_loss(routings, divide_by_top_k=False, pool_layers=True)
    torch.testing.assert_close(pooled, output.aux_loss, rtol=1e-5, atol=1e-5)
    # Layer by layer there is nothing to pool, and the two differ by the factor K alone.
    alone = [load_balancing_loss_func((logits,), E, 2) / 2 for logits in output.router_logits]
    loss = language_model_loss(ours, ids, balance_weight=0.0)
    torch.testing.assert_close(model_balance_loss(routings), torch.stack(alone).mean(), rtol=1e-5, atol=1e-5)
    shifted = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss.cross_entropy, shifted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["mixtral", "llama"])
def test_writes_the_same_text_as_the_model(case):
    model_type, settings = MODELS[case]
    theirs = make_model(model_type, **settings)
    prompt = make_ids(2, 4)
    expected = theirs.generate(prompt, max_new_tokens=20, do_sample=False, attention_mask=torch.ones_like(prompt))
    assert len(expected[:, 4:].unique()) > 3
    assert torch.equal(generate(load_transformer(theirs), prompt, 20), expected)


def test_a_loaded_model_keeps_nothing_of_the_original():
    theirs = make_model("mixtral", num_local_experts=E)
    ours = load_transformer(theirs.bfloat16())
    before = ours(make_ids(1, 5)).logits
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.zero_()
    assert torch.equal(ours(make_ids(1, 5)).logits, before)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("model_type", "settings", "message"),
    [
        (
            "qwen3_moe",
            {"moe_intermediate_size": D_FF, "num_experts": E},
            r"'qwen3_moe'.*norms of queries and keys",
        ),
        ("olmoe", {"num_experts": E}, r"'olmoe'.*load its MoE blocks one by one with load_moe_block"),
        ("mistral", {"sliding_window": 8}, r"sliding_window=8 has no place.*choose a model with sliding_window=None"),
        ("mixtral", {"head_dim": 16}, r"head_dim=16 has no place"),
        ("llama", {"attention_bias": True}, r"attention_bias=True has no place"),
        ("llama", {"hidden_act": "gelu"}, r"choose a model with hidden_act='silu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            r"rope_type='linear' has no place",
        ),
    ],
)
def test_models_with_other_parts_are_refused(model_type, settings, message):
    with pytest.raises(ValueError, match=message):
        load_transformer(make_model(model_type, **settings))
