"""Blocks of transformers and their checkpoints load into `MoELayer`, and compute the same, gradients included."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from moe_course.interop import load_moe_block, load_moe_state_dict

D, F, E, K = 16, 24, 6, 3
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
        intermediate_size=F,
        num_experts_per_tok=K,
        experts_implementation="eager",
        **({"moe_intermediate_size": F} if model_type == "qwen3_moe" else {}),
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
