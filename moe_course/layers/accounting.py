"""Where a transformer's parameters and FLOPs are: exact counts, part by part, from a model's shape alone.

Read `parameter_table` first. Every part of a model is a pair: the entries of its matrices, which cost one
multiply-add (2 FLOPs) per token each, and its vectors (biases, norms, sinks), which cost next to nothing.
So parameters are matrices + vectors, and FLOPs per token are 2 × the matrices that a token meets.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from moe_course.layers.ffn import Activation, check_activation, in_rows
from moe_course.layers.router import check_top_k


@dataclass(frozen=True)
class LatentAttention:
    """Widths of multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    q_rank: int
    kv_rank: int
    nope_head_dim: int  # part of a query or key head without position
    rope_head_dim: int  # part with rotary position; the key's is shared by all heads
    v_head_dim: int


@dataclass(frozen=True)
class ModelConfig:
    """One decoder-only transformer's shape; a dense model has num_dense_layers=num_layers and no experts."""

    name: str
    source: str
    vocab_size: int
    num_layers: int
    d_model: int
    num_heads: int
    num_kv_heads: int = 0
    head_dim: int = 0
    num_experts: int = 0
    top_k: int = 0
    d_ff: int = 0  # hidden width of one expert
    num_shared_experts: int = 0  # each as wide as a routed one, used by every token
    num_dense_layers: int = 0  # layers with a plain FFN in place of experts
    dense_d_ff: int = 0
    activation: Activation = "swiglu"
    latent: LatentAttention | None = None  # replaces num_kv_heads and head_dim
    qk_norm: Literal["none", "head", "full"] = "none"  # one gain per head_dim, or per projected width
    attention_bias: bool = False
    attention_sinks: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    tied_embedding: bool = False


class Part(NamedTuple):
    """Parameters of one part of a model: entries of matrices, and everything else."""

    matrices: int
    vectors: int = 0


def parameter_table(config: ModelConfig, *, active: bool = False) -> dict[str, int]:
    """Count a model's parameters by part.

    Args:
        config: the model's shape.
        active: count only what one token uses: top_k of the num_experts experts of each layer.

    Returns:
        parameters of: embedding, attention, router, experts, shared experts, dense ffn, norms, head.
        A tied embedding is counted once, as the head, since that is where it is multiplied.
    """
    return {name: sum(part) for name, part in _parts(config, active).items()}


def total_parameters(config: ModelConfig) -> int:
    """All parameters: what memory must hold."""
    return sum(parameter_table(config).values())


def active_parameters(config: ModelConfig, *, input_embedding: bool = True) -> int:
    """Parameters that one token uses; papers differ on whether they count the input embedding."""
    table = parameter_table(config, active=True)
    return sum(table.values()) - (0 if input_embedding else table["embedding"])


def flops_table(config: ModelConfig, *, context: int = 0) -> dict[str, int]:
    """Count one token's forward FLOPs by part, 2 per multiply-add; a training step costs 3 times as many.

    Args:
        config: the model's shape.
        context: how many tokens this one attends to in each layer, for the attention scores.

    Returns:
        FLOPs of the parts of `parameter_table`, and of the attention scores. Looking up the embedding costs
        nothing; norms, softmax and activations are left out: below 1 % at these widths.
    """
    table = {name: 2 * part.matrices for name, part in _parts(config, active=True).items()}
    table["embedding"] = 0
    latent = config.latent
    score_dim = latent.nope_head_dim + latent.rope_head_dim if latent else config.head_dim
    value_dim = latent.v_head_dim if latent else config.head_dim
    table["attention scores"] = config.num_layers * 2 * context * config.num_heads * (score_dim + value_dim)
    return table


def flops_per_token(config: ModelConfig, *, context: int = 0) -> int:
    """FLOPs of one token's forward pass (see `flops_table`)."""
    return sum(flops_table(config, context=context).values())


def ffn_parameters(d_model: int, d_ff: int, activation: Activation) -> int:
    """Parameters of one FFN without biases: an up- and a down-projection, and for SwiGLU a gate as well."""
    return d_model * (in_rows(d_ff, check_activation(activation)) + d_ff)


def ffn_flops(tokens: int, d_model: int, d_ff: int, activation: Activation) -> int:
    """FLOPs of one FFN's forward pass over `tokens` tokens."""
    return 2 * tokens * ffn_parameters(d_model, d_ff, activation)


def moe_parameters(d_model: int, d_ff: int, num_experts: int, activation: Activation) -> int:
    """Parameters of one MoE layer: a router row and an FFN per expert."""
    return num_experts * (d_model + ffn_parameters(d_model, d_ff, activation))


def moe_flops(tokens: int, d_model: int, d_ff: int, num_experts: int, top_k: int, activation: Activation) -> int:
    """FLOPs of one MoE layer's forward pass: every token meets the whole router, but only top_k experts."""
    check_top_k(top_k, num_experts)
    return 2 * tokens * d_model * num_experts + top_k * ffn_flops(tokens, d_model, d_ff, activation)


def _parts(c: ModelConfig, active: bool) -> dict[str, Part]:
    moe_layers = c.num_layers - c.num_dense_layers
    experts = moe_layers * (c.top_k if active else c.num_experts)
    expert = ffn_parameters(c.d_model, c.d_ff, c.activation)
    expert_bias = in_rows(c.d_ff, c.activation) + c.d_model if c.expert_bias else 0  # one per output
    attention = _attention(c)
    embedding = c.vocab_size * c.d_model
    return {
        "embedding": Part(0 if c.tied_embedding else embedding),
        "attention": Part(c.num_layers * attention.matrices, c.num_layers * attention.vectors),
        "router": Part(moe_layers * c.num_experts * c.d_model, moe_layers * c.num_experts if c.router_bias else 0),
        "experts": Part(experts * expert, experts * expert_bias),
        "shared experts": Part(moe_layers * c.num_shared_experts * expert),
        "dense ffn": Part(c.num_dense_layers * ffn_parameters(c.d_model, c.dense_d_ff, c.activation)),
        "norms": Part(0, (2 * c.num_layers + 1) * c.d_model),  # before attention, before the FFN, at the end
        "head": Part(embedding),
    }


def _attention(c: ModelConfig) -> Part:
    """Attention of one layer: query, key, value and output projections, and what hangs on them."""
    if c.latent:
        return _latent_attention(c, c.latent)
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    bias = q + 2 * kv + c.d_model if c.attention_bias else 0
    sinks = c.num_heads if c.attention_sinks else 0
    qk_norm = {"none": 0, "head": 2 * c.head_dim, "full": q + kv}[c.qk_norm]
    return Part(c.d_model * (q + 2 * kv + q), bias + sinks + qk_norm)


def _latent_attention(c: ModelConfig, m: LatentAttention) -> Part:
    """Queries, and keys with values, each go down to a small rank, are normalised, and come up again."""
    q_down = c.d_model * m.q_rank
    q_up = m.q_rank * c.num_heads * (m.nope_head_dim + m.rope_head_dim)
    kv_down = c.d_model * (m.kv_rank + m.rope_head_dim)
    kv_up = m.kv_rank * c.num_heads * (m.nope_head_dim + m.v_head_dim)
    out = c.num_heads * m.v_head_dim * c.d_model
    return Part(q_down + q_up + kv_down + kv_up + out, m.q_rank + m.kv_rank)
