"""Loads published models: a whole one into `MoETransformer`, or one MoE block into `MoELayer`.

    model = load_transformer(MixtralForCausalLM.from_pretrained(folder))
    layer = load_moe_block(model.model.layers[3].mlp)
    layer = load_moe_state_dict(tensors, prefix="model.layers.3.", top_k=8, renormalize=False)

Mixtral, OLMoE and Qwen3-MoE are the models whose block is a softmax router over SwiGLU experts without biases,
which is what `MoELayer` computes. The last two normalise queries and keys, which `MoETransformer` does not: of
whole models, Mixtral loads, and Llama and Mistral, which are dense. transformers is not imported here: whoever has
a model has it already.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe_course.layers import DenseFFN, MoELayer, MoETransformer, TransformerConfig

# Mixtral's first checkpoints number the three matrices of an expert: w1 is the gate, w3 the up projection.
_GATE_UP_DOWN = (("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj"))
_MODELS = ("mixtral", "llama", "mistral")
_PARTS = {
    "self_attn.q_proj": "attention.query",
    "self_attn.k_proj": "attention.key",
    "self_attn.v_proj": "attention.value",
    "self_attn.o_proj": "attention.out",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_BLOCKS = ("MixtralSparseMoeBlock", "OlmoeSparseMoeBlock", "Qwen3MoeSparseMoeBlock")


def load_transformer(model: nn.Module) -> MoETransformer:
    """Copy a transformers model into a `MoETransformer` that computes the same logits.

    Args:
        model: a MixtralForCausalLM, or a dense LlamaForCausalLM or MistralForCausalLM.

    Returns:
        A model with copies of the weights, on their device and in their dtype. Dropout in attention, 0 in the
        published models, is not carried over.

    Raises:
        ValueError: the model is of another kind, or has a setting that `MoETransformer` has not.
    """
    source: Any = model
    config = _transformer_config(source.config)
    weights = {
        "embedding.weight": source.model.embed_tokens.weight,
        "norm.weight": source.model.norm.weight,
        "head.weight": source.lm_head.weight,
    }
    for i, block in enumerate(source.model.layers):
        for theirs, ours in _PARTS.items():
            weights[f"blocks.{i}.{ours}.weight"] = block.get_submodule(theirs).weight
        ffn = load_moe_block(block.mlp) if config.moe_every else _load_dense(block.mlp)
        weights |= {f"blocks.{i}.ffn.{name}": weight for name, weight in ffn.state_dict().items()}
    loaded = MoETransformer(config, device="meta")
    loaded.load_state_dict({name: weight.detach().clone() for name, weight in weights.items()}, assign=True)
    if config.tie_embeddings:
        loaded.head.weight = loaded.embedding.weight
    return loaded


def _transformer_config(theirs: Any) -> TransformerConfig:
    """The same shape as a transformers config describes."""
    if theirs.model_type not in _MODELS:
        raise ValueError(
            f"a {theirs.model_type!r} model has parts that MoETransformer has not, such as norms of queries and keys; "
            f"pass a model of type {', '.join(_MODELS)}, or load its MoE blocks one by one with load_moe_block"
        )
    plain = {
        "hidden_act": "silu",
        "sliding_window": None,
        "attention_bias": False,
        "mlp_bias": False,
        "head_dim": theirs.hidden_size // theirs.num_attention_heads,
    }
    for name, value in plain.items():
        if (found := getattr(theirs, name, None)) not in (value, None):
            raise ValueError(f"{name}={found!r} has no place in MoETransformer; choose a model with {name}={value!r}")
    rope = theirs.rope_parameters
    if (kind := rope.get("rope_type", "default")) != "default":
        raise ValueError(f"rope_type={kind!r} has no place in MoETransformer; choose a model with rope_type='default'")
    experts: dict[str, Any] = {"moe_every": 0}
    if theirs.model_type == "mixtral":
        experts = {
            "moe_every": 1,
            "num_experts": theirs.num_local_experts,
            "top_k": theirs.num_experts_per_tok,
            "d_ff_expert": theirs.intermediate_size,
        }
    return TransformerConfig(
        vocab_size=theirs.vocab_size,
        d_model=theirs.hidden_size,
        num_layers=theirs.num_hidden_layers,
        num_heads=theirs.num_attention_heads,
        num_kv_heads=theirs.num_key_value_heads,
        d_ff=theirs.intermediate_size,
        **experts,
        context=theirs.max_position_embeddings,
        rope_theta=rope["rope_theta"],
        norm_eps=theirs.rms_norm_eps,
        tie_embeddings=theirs.tie_word_embeddings,
    )


def _load_dense(mlp: Any) -> DenseFFN:
    """A Llama FFN as a `DenseFFN`."""
    gate, up, down = mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight
    ffn = DenseFFN(gate.shape[1], gate.shape[0], "swiglu", device="meta")
    ffn.load_state_dict({"w_in": torch.cat([gate, up]).detach(), "w_out": down.detach()}, assign=True)
    return ffn


def load_moe_block(block: nn.Module) -> MoELayer:
    """Copy a transformers MoE block into a `MoELayer` that computes the same.

    Args:
        block: a MixtralSparseMoeBlock, OlmoeSparseMoeBlock or Qwen3MoeSparseMoeBlock.

    Returns:
        A layer with copies of the block's weights, on its device and in its dtype. Mixtral's router jitter, which
        is noise in training and 0 in the published model, is not carried over.

    Raises:
        ValueError: the block is of another type, or its experts do not use SiLU.
    """
    name = type(block).__name__
    if name not in _BLOCKS:
        raise ValueError(
            f"{name} is not an MoE block this course can load; pass one of {', '.join(_BLOCKS)}, "
            "found in a model as model.model.layers[i].mlp"
        )
    experts: Any = block.experts
    act_fn = next(m.act_fn for m in experts.modules() if hasattr(m, "act_fn"))
    probe = torch.linspace(-4, 4, 9)
    if not torch.equal(act_fn(probe), F.silu(probe)):
        raise ValueError(f"the experts of this {name} use {act_fn}; choose a model with hidden_act='silu'")
    # The router holds the settings; in transformers 4 the block did.
    router: Any = block.gate if hasattr(block.gate, "top_k") else block
    renormalize = name == "MixtralSparseMoeBlock" or router.norm_topk_prob
    return load_moe_state_dict(block.state_dict(), top_k=router.top_k, renormalize=renormalize)


def load_moe_state_dict(
    state_dict: Mapping[str, Tensor], *, top_k: int, renormalize: bool, prefix: str = ""
) -> MoELayer:
    """Build a `MoELayer` from the tensors of one MoE block, as a checkpoint names them.

    Three namings are understood: one tensor per expert, as Mixtral (`experts.0.w1.weight`) or OLMoE and Qwen3-MoE
    (`experts.0.gate_proj.weight`) publish them, and the stacked `experts.gate_up_proj` of transformers 5.

    Args:
        state_dict: tensors by name; it may hold more than this block.
        top_k: experts per token, `num_experts_per_tok` in the model's config.
        renormalize: True for Mixtral, else `norm_topk_prob` in the model's config.
        prefix: start of the names of this layer, such as "model.layers.3.".

    Returns:
        A layer with copies of the tensors, on their device and in their dtype.

    Raises:
        ValueError: no block or several under the prefix, a tensor is missing, or one has no place in a `MoELayer`.
    """
    block = _block_under(prefix, state_dict)
    router = block.pop("gate.weight")
    num_experts, d_model = router.shape
    if "experts.gate_up_proj" in block:
        w_in, w_out = _take(block, ["experts.gate_up_proj", "experts.down_proj"])
    else:
        style = next((s for s in _GATE_UP_DOWN if f"experts.0.{s[0]}.weight" in block), _GATE_UP_DOWN[1])
        gate, up, down = (
            torch.stack(_take(block, [f"experts.{e}.{part}.weight" for e in range(num_experts)])) for part in style
        )
        w_in, w_out = torch.cat([gate, up], dim=1), down
    if block:
        raise ValueError(
            f"MoELayer has no place for {_some(block)}: a bias, a shared expert or experts beyond the router's "
            f"{num_experts} would be lost; load a Mixtral, OLMoE or Qwen3-MoE layer"
        )
    layer = MoELayer(
        d_model, w_out.shape[-1], num_experts, top_k, activation="swiglu", renormalize=renormalize, device="meta"
    )
    weights = {"router.weight": router, "experts.w_in": w_in, "experts.w_out": w_out}
    layer.load_state_dict({name: w.detach().clone() for name, w in weights.items()}, assign=True)
    return layer


def _block_under(prefix: str, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the one MoE block whose names start with the prefix, named from the block on."""
    routers = [name for name in state_dict if name.startswith(prefix) and re.search(r"(^|\.)gate\.weight$", name)]
    if len(routers) != 1:
        found = _some(routers) if routers else "none"
        raise ValueError(
            f"prefix={prefix!r} should name one MoE block, that is one router called 'gate.weight', but the routers "
            f"under it are: {found}; pass the prefix of one MoE layer, such as 'model.layers.3.'"
        )
    start = routers[0].removesuffix("gate.weight")
    return {name.removeprefix(start): tensor for name, tensor in state_dict.items() if name.startswith(start)}


def _take(block: dict[str, Tensor], names: list[str]) -> list[Tensor]:
    missing = [name for name in names if name not in block]
    if missing:
        raise ValueError(
            f"the state dict lacks {_some(missing)}; a layer of a large checkpoint can lie in two files: merge "
            "the dictionaries of the files that model.safetensors.index.json names"
        )
    return [block.pop(name) for name in names]


def _some(names: Mapping[str, Tensor] | list[str]) -> str:
    first, more = ", ".join(list(names)[:3]), len(names) - 3
    return f"{first} and {more} more" if more > 0 else first
