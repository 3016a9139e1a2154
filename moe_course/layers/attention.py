"""Causal self-attention with rotary positions and grouped queries, and the cache that makes generation cheap.

Shapes, besides the usual legend: B sequences, S tokens of each, H heads of width Dh, Hkv heads of keys and values.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from moe_course.layers.ffn import check_last_dimension, check_positive


class CausalSelfAttention(nn.Module):
    """Every token gathers values from itself and the tokens before it.

    Args:
        d_model: width D of a token; a head has Dh = D / H of it.
        num_heads: query heads H.
        num_kv_heads: heads of keys and values, each shared by H / Hkv query heads; None: as many as query heads.
        rope_theta: the base of the rotary wavelengths (see `apply_rotary`).

    Raises:
        ValueError: the heads do not divide d_model into even widths, or Hkv does not divide H.

    Source: Vaswani et al., arXiv 1706.03762, section 3.2; Ainslie et al. (grouped queries), arXiv 2305.13245.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        num_kv_heads: int | None = None,
        *,
        rope_theta: float = 10_000.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_heads(d_model, num_heads, num_kv_heads)
        self.head_dim = d_model // num_heads
        self.rope_theta = rope_theta
        kv_dim = num_kv_heads * self.head_dim
        self.query = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)
        self.key = nn.Linear(d_model, kv_dim, bias=False, device=device, dtype=dtype)
        self.value = nn.Linear(d_model, kv_dim, bias=False, device=device, dtype=dtype)
        self.out = nn.Linear(d_model, d_model, bias=False, device=device, dtype=dtype)

    def forward(self, x: Float[Tensor, "B S D"], cache: "LayerCache | None" = None) -> Float[Tensor, "B S D"]:
        """Attend within x, and to the tokens in the cache, which come before x.

        Args:
            x: S tokens of B sequences, (B, S, D).
            cache: keys and values of earlier tokens; those of x are added to it.

        Returns:
            (B, S, D).
        """
        check_last_dimension(x, self.query.in_features, "CausalSelfAttention")
        past = cache.length if cache is not None else 0
        q, k, v = (self._heads(project(x)) for project in (self.query, self.key, self.value))
        positions = torch.arange(past, past + x.shape[1], device=x.device)
        q, k = (apply_rotary(heads, positions, self.rope_theta) for heads in (q, k))
        if cache is not None:
            k, v = cache.extend(k, v)
        # Token i of x may look at the `past` tokens and at the first i + 1 of x. A single token may look at all.
        mask = None
        if past and x.shape[1] > 1:
            mask = torch.ones(x.shape[1], k.shape[2], dtype=torch.bool, device=x.device).tril(past)
        grouped = k.shape[1] < q.shape[1]
        mixed = F.scaled_dot_product_attention(q, k, v, mask, is_causal=past == 0, enable_gqa=grouped)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Float[Tensor, "B S HDh"]) -> Float[Tensor, "B H S Dh"]:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}, rope_theta={self.rope_theta}"


def apply_rotary(
    x: Float[Tensor, "*heads S Dh"], positions: Int64[Tensor, " S"], theta: float = 10_000.0
) -> Float[Tensor, "*heads S Dh"]:
    """Turn each pair of components by an angle that grows with the position: q · k then depends on the distance.

    Component i is paired with component i + Dh/2, as in the checkpoints of Llama and Mixtral; the paper pairs
    neighbours. The pair turns by position · theta^(−2i/Dh): the first ones fast, the last ones slowly.

    Args:
        x: queries or keys, (…, S, Dh).
        positions: of the S tokens, counted from 0, (S,).
        theta: how slow the slowest pair is.

    Returns:
        Shaped like x, in its dtype. Angles are float32 at least: bfloat16 cannot tell position 256 from 257.

    Source: Su et al. (RoFormer), arXiv 2104.09864, eq. 34.
    """
    head_dim = x.shape[-1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    rate = theta ** (-torch.arange(0, head_dim, 2, device=x.device, dtype=dtype) / head_dim)
    angle = positions.to(dtype)[:, None] * rate  # (S, Dh/2)
    cos, sin = angle.cos(), angle.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class KVCache:
    """Keys and values of the tokens that a model has read, so that a new token need not read them again.

    Args:
        num_layers: blocks of the model.
        max_tokens: room for this many tokens of each sequence.
    """

    def __init__(self, num_layers: int, max_tokens: int) -> None:
        check_positive(num_layers=num_layers, max_tokens=max_tokens)
        self.layers = [LayerCache(max_tokens) for _ in range(num_layers)]

    @property
    def length(self) -> int:
        """Tokens of each sequence that the model has read."""
        return self.layers[-1].length


class LayerCache:
    """The cache of one layer. Its memory is taken once, at the first call, for all `max_tokens`."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens, self.length = max_tokens, 0
        self._keys = self._values = torch.empty(0)

    def extend(
        self, keys: Float[Tensor, "B Hkv S Dh"], values: Float[Tensor, "B Hkv S Dh"]
    ) -> tuple[Float[Tensor, "B Hkv past_and_S Dh"], Float[Tensor, "B Hkv past_and_S Dh"]]:
        """Append the keys and values of S tokens.

        Returns:
            The keys and the values of all tokens so far: views, which the next call leaves as they are.

        Raises:
            ValueError: there is no room, or the batch is another than before.
        """
        batch, num_kv_heads, new, head_dim = keys.shape
        end = self.length + new
        if end > self.max_tokens:
            raise ValueError(
                f"the cache has room for max_tokens={self.max_tokens} tokens and {end} are needed; "
                "make a KVCache with more room"
            )
        if self.length == 0:
            self._keys = keys.new_empty(batch, num_kv_heads, self.max_tokens, head_dim)
            self._values = torch.empty_like(self._keys)
        elif batch != len(self._keys):
            raise ValueError(
                f"the cache holds {len(self._keys)} sequences and got tokens of {batch}; "
                "make a new KVCache for each batch"
            )
        self._keys[:, :, self.length : end], self._values[:, :, self.length : end] = keys, values
        self.length = end
        return self._keys[:, :, :end], self._values[:, :, :end]


def check_heads(d_model: int, num_heads: int, num_kv_heads: int) -> None:
    check_positive(d_model=d_model, num_heads=num_heads, num_kv_heads=num_kv_heads)
    if d_model % (2 * num_heads):
        raise ValueError(
            f"d_model={d_model} does not split into num_heads={num_heads} heads of an even width, which rotary "
            f"positions need; choose d_model as a multiple of {2 * num_heads}, or other num_heads"
        )
    if num_heads % num_kv_heads:
        raise ValueError(
            f"num_heads={num_heads} query heads cannot share num_kv_heads={num_kv_heads} heads of keys and values "
            f"evenly; choose num_kv_heads as a divisor of {num_heads}"
        )
