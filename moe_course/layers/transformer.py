"""A language model with MoE layers, whole, in the order in which a token passes through it.

Decoder-only, pre-norm, RMSNorm, rotary positions, grouped queries, no biases: the shape of Llama and Mixtral. Routings
are returned, so that a loss or a figure can use them; the model keeps nothing from one call to the next.

Under bfloat16 or autocast each router multiplies in bfloat16 and rounds its logits to 8 bits before the softmax, which
itself runs in float32. Lesson 09 shows what that costs, and `moe_course.layers.stability` the remedy.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from moe_course.layers.accounting import ModelConfig
from moe_course.layers.attention import CausalSelfAttention, KVCache, LayerCache, check_heads
from moe_course.layers.ffn import Activation, DenseFFN, check_activation, check_positive
from moe_course.layers.moe import MoELayer
from moe_course.layers.router import Routing, Score, check_score, check_top_k


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a `MoETransformer`.

    Attributes:
        vocab_size: token ids V.
        d_model: width D of a token.
        num_layers: blocks.
        num_heads, num_kv_heads: query heads, and heads of keys and values; None: as many as query heads.
        d_ff: hidden width of the FFN in a dense block.
        moe_every: every P-th block has an MoE layer, blocks P−1, 2P−1, … counted from 0. 1: all; 0: none.
        num_experts, top_k, d_ff_expert: E, K and the hidden width of one expert.
        activation, score, renormalize: as in `MoELayer`.
        context: the longest sequence.
        rope_theta: the base of the rotary wavelengths.
        norm_eps: keeps RMSNorm from dividing by zero.
        tie_embeddings: the head is the embedding.

    Raises:
        ValueError: a setting is out of range, or two do not fit together; the message says what would.
    """

    vocab_size: int
    d_model: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None
    d_ff: int = 512
    moe_every: int = 1
    num_experts: int = 8
    top_k: int = 2
    d_ff_expert: int = 256
    activation: Activation = "swiglu"
    score: Score = "softmax"
    renormalize: bool = True
    context: int = 128
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "d_model", "num_layers", "d_ff", "num_experts", "d_ff_expert", "context")
        check_positive(**{name: getattr(self, name) for name in sizes})
        check_heads(self.d_model, self.num_heads, self.kv_heads)
        check_top_k(self.top_k, self.num_experts)
        check_activation(self.activation)
        check_score(self.score)
        if not 0 <= self.moe_every <= self.num_layers:
            raise ValueError(
                f"moe_every={self.moe_every} leaves num_layers={self.num_layers} blocks without an MoE layer; "
                f"choose 1 to {self.num_layers}, or 0 for a dense model"
            )
        if self.rope_theta <= 1 or self.norm_eps <= 0:
            raise ValueError(
                f"rope_theta={self.rope_theta} and norm_eps={self.norm_eps} are out of range; "
                "choose rope_theta > 1 and norm_eps > 0"
            )

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, also where num_kv_heads is None."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def moe_blocks(self) -> range:
        """Indices of the blocks that have an MoE layer."""
        return range(self.moe_every - 1, self.num_layers, self.moe_every) if self.moe_every else range(0)


@dataclass(frozen=True)
class TransformerOutput:
    """What a `MoETransformer` returns for B sequences of S tokens.

    Attributes:
        logits: of the token that follows each token, (B, S, V).
        routings: the `Routing` of each MoE layer by the index of its block, of the B·S tokens of this call.
    """

    logits: Float[Tensor, "B S V"]
    routings: dict[int, Routing]


class MoETransformer(nn.Module):
    """Token ids in, logits of each next token out.

    Args:
        config: the model's shape.

    Source: Jiang et al. (Mixtral), arXiv 2401.04088, section 2.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model, device=device, dtype=dtype)
        self.blocks = nn.ModuleList(Block(config, i, device=device, dtype=dtype) for i in range(config.num_layers))
        self.norm = nn.RMSNorm(config.d_model, config.norm_eps, device=device, dtype=dtype)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False, device=device, dtype=dtype)
        if config.tie_embeddings:
            # As the head's: with nn.Embedding's much larger numbers a new model would be sure, and wrong.
            self.embedding.weight = self.head.weight

    def forward(self, ids: Int64[Tensor, "B S"], cache: KVCache | None = None) -> TransformerOutput:
        """Predict the token after each of `ids`.

        Args:
            ids: token ids, (B, S).
            cache: what the model has read of these sequences; `ids` continue them, and are added to it.

        Raises:
            ValueError: the sequence is longer than the context, or an id is not in the vocabulary.
        """
        self._check_ids(ids, past=cache.length if cache is not None else 0)
        caches = cache.layers if cache is not None else [None] * len(self.blocks)
        x = self.embedding(ids)
        routings = {}
        for i, (block, layer_cache) in enumerate(zip(self.blocks, caches, strict=True)):
            x, routing = block(x, layer_cache)
            if routing is not None:
                routings[i] = routing
        return TransformerOutput(self.head(self.norm(x)), routings)

    def _check_ids(self, ids: Tensor, past: int) -> None:
        length, vocab_size = past + ids.shape[1], self.config.vocab_size
        if length > self.config.context:
            raise ValueError(
                f"the sequence has {length} tokens but context={self.config.context}; "
                "shorten it, or build the model with a larger context"
            )
        # On a GPU, looking at the ids would make the CPU wait for it.
        if ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling():
            lowest, highest = (int(end) for end in ids.aminmax())
            if lowest < 0 or highest >= vocab_size:
                raise ValueError(
                    f"ids run from {lowest} to {highest}, but vocab_size={vocab_size}; "
                    f"pass ids from 0 to {vocab_size - 1}, as the model's own tokenizer makes them"
                )


class Block(nn.Module):
    """Attention, then an FFN or an MoE layer, each on normalised tokens and added to the residual stream.

    Args:
        config: the model's shape.
        index: which block this is, which decides whether it has an MoE layer.
    """

    def __init__(
        self,
        config: TransformerConfig,
        index: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = config
        self.attention_norm = nn.RMSNorm(c.d_model, c.norm_eps, device=device, dtype=dtype)
        self.attention = CausalSelfAttention(
            c.d_model, c.num_heads, c.num_kv_heads, rope_theta=c.rope_theta, device=device, dtype=dtype
        )
        self.ffn_norm = nn.RMSNorm(c.d_model, c.norm_eps, device=device, dtype=dtype)
        self.ffn: nn.Module
        if index in c.moe_blocks:
            self.ffn = MoELayer(
                c.d_model,
                c.d_ff_expert,
                c.num_experts,
                c.top_k,
                activation=c.activation,
                score=c.score,
                renormalize=c.renormalize,
                device=device,
                dtype=dtype,
            )
        else:
            self.ffn = DenseFFN(c.d_model, c.d_ff, c.activation, device=device, dtype=dtype)

    def forward(
        self, x: Float[Tensor, "B S D"], cache: LayerCache | None = None
    ) -> tuple[Float[Tensor, "B S D"], Routing | None]:
        """Returns the tokens, and the routing if `ffn` is a layer that returns one: any MoE layer may be put there."""
        x = x + self.attention(self.attention_norm(x), cache)
        out = self.ffn(self.ffn_norm(x))
        out, routing = out if isinstance(out, tuple) else (out, None)
        return x + out, routing


def model_config(config: TransformerConfig) -> ModelConfig:
    """The same shape for `total_parameters`, `active_parameters`, `flops_per_token` and their tables."""
    c, num_moe = config, len(config.moe_blocks)
    return ModelConfig(
        name="MoE transformer" if num_moe else "dense transformer",
        source="moe_course.layers.transformer",
        vocab_size=c.vocab_size,
        num_layers=c.num_layers,
        d_model=c.d_model,
        num_heads=c.num_heads,
        num_kv_heads=c.kv_heads,
        head_dim=c.d_model // c.num_heads,
        num_experts=c.num_experts if num_moe else 0,
        top_k=c.top_k if num_moe else 0,
        d_ff=c.d_ff_expert if num_moe else 0,
        num_dense_layers=c.num_layers - num_moe,
        dense_d_ff=c.d_ff if num_moe < c.num_layers else 0,
        activation=c.activation,
        tied_embedding=c.tie_embeddings,
    )
