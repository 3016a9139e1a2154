"""Exercise 08.MyBlock: attention and an MoE layer around a residual stream."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from ...layers import CausalSelfAttention, DenseFFN, MoELayer, Routing
from ..drive import call_module
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make

Output = tuple[Tensor, Routing | None]


class _Parts(nn.Module):
    """The parts that every answer has. Without experts, the FFN is a dense one."""

    def __init__(self, d_model: int, num_heads: int, d_ff: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(d_model, 1e-5)
        self.attention = CausalSelfAttention(d_model, num_heads)
        self.ffn_norm = nn.RMSNorm(d_model, 1e-5)
        self.ffn: nn.Module = DenseFFN(d_model, d_ff)
        if num_experts:
            self.ffn = MoELayer(d_model, d_ff, num_experts, top_k)


class MyBlock(_Parts):
    """Pre-norm block: x (B, S, D) to (B, S, D) and the routing, None for a dense FFN."""

    def forward(self, x: Tensor) -> Output:
        x = x + self.attention(self.attention_norm(x))
        out, routing = _split(self.ffn(self.ffn_norm(x)))
        return x + out, routing


def _split(out: Tensor | tuple[Tensor, Routing]) -> Output:
    return out if isinstance(out, tuple) else (out, None)


def _block(num_experts: int, top_k: int, shape: tuple[int, int] = (2, 5), d_model: int = 8, level: float = 0.0) -> Make:
    """A block with gains away from 1, and tokens of different sizes, some `level` away from 0."""

    def make(generator: Generator) -> Inputs:
        init = {"d_model": d_model, "num_heads": 2, "d_ff": 12, "num_experts": num_experts, "top_k": top_k}
        state = {}
        for name, parameter in MyBlock(**init).named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            state[name] = 1 + 0.4 * drawn if "norm" in name else 1.6 * drawn * parameter.shape[-1] ** -0.5
        size = torch.rand(*shape, 1, generator=generator) * 2 + 0.5
        return {"init": init, "state": state, "x": size * torch.randn(*shape, d_model, generator=generator) + level}

    return make


def _silent(generator: Generator) -> Inputs:
    """Attention and FFN that return zeros: what is left is the residual stream."""
    inputs = _block(4, 2)(generator)
    for name in ("attention.out.weight", "ffn.experts.w_out"):
        inputs["state"][name].zero_()
    return inputs


def _stream_changed(inputs: Inputs, output: Output) -> str | None:
    """Where both parts return zeros, x passes through untouched."""
    if inputs["state"]["attention.out.weight"].any():
        return None
    error = (output[0] - inputs["x"]).abs().max().item()
    return (
        None
        if error < 1e-4
        else f"attention and FFN return zeros here, so x should come out as it is; it changed by up to {error:.2g}"
    )


class _InSteps(_Parts):
    """A right answer in other words."""

    def forward(self, x: Tensor) -> Output:
        mixed = torch.add(x, self.attention(self.attention_norm(x)))
        result = self.ffn(self.ffn_norm(mixed))
        if isinstance(self.ffn, MoELayer):
            return mixed + result[0], result[1]
        return mixed + result, None


class _NormByHand(_Parts):
    """A right answer in other words: RMSNorm spelt out."""

    def forward(self, x: Tensor) -> Output:
        def norm(x: Tensor, gain: Tensor) -> Tensor:
            return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * gain

        x = self.attention(norm(x, self.attention_norm.weight)) + x
        out, routing = _split(self.ffn(norm(x, self.ffn_norm.weight)))
        return out + x, routing


def _forward(forward: Callable[[_Parts, Tensor], Output]) -> type[_Parts]:
    """A block with another forward."""

    class Wrong(_Parts):
        def forward(self, x: Tensor) -> Output:
            return forward(self, x)

    return Wrong


def _post_norm(block: _Parts, x: Tensor) -> Output:
    x = block.attention_norm(x + block.attention(x))
    out, routing = _split(block.ffn(x))
    return block.ffn_norm(x + out), routing


def _normalised_stream(block: _Parts, x: Tensor) -> Output:
    x = block.attention_norm(x)
    x = block.ffn_norm(x + block.attention(x))
    out, routing = _split(block.ffn(x))
    return x + out, routing


def _no_norm(block: _Parts, x: Tensor) -> Output:
    x = x + block.attention(x)
    out, routing = _split(block.ffn(x))
    return x + out, routing


def _ffn_not_normalised(block: _Parts, x: Tensor) -> Output:
    x = x + block.attention(block.attention_norm(x))
    out, routing = _split(block.ffn(x))
    return x + out, routing


def _one_norm_for_both(block: _Parts, x: Tensor) -> Output:
    x = x + block.attention(block.attention_norm(x))
    out, routing = _split(block.ffn(block.attention_norm(x)))
    return x + out, routing


def _without_residual(first: bool, second: bool) -> Callable[[_Parts, Tensor], Output]:
    """Keep x past the attention if `first`, past the FFN if `second`."""

    def forward(block: _Parts, x: Tensor) -> Output:
        mixed = first * x + block.attention(block.attention_norm(x))
        out, routing = _split(block.ffn(block.ffn_norm(mixed)))
        return second * mixed + out, routing

    return forward


def _residual_from_the_start(block: _Parts, x: Tensor) -> Output:
    mixed = x + block.attention(block.attention_norm(x))
    out, routing = _split(block.ffn(block.ffn_norm(mixed)))
    return x + out, routing


def _side_by_side(block: _Parts, x: Tensor) -> Output:
    out, routing = _split(block.ffn(block.ffn_norm(x)))
    return x + block.attention(block.attention_norm(x)) + out, routing


def _ffn_first(block: _Parts, x: Tensor) -> Output:
    out, routing = _split(block.ffn(block.ffn_norm(x)))
    x = x + out
    return x + block.attention(block.attention_norm(x)), routing


def _routing_lost(block: _Parts, x: Tensor) -> Output:
    return MyBlock.forward(block, x)[0], None  # type: ignore[arg-type]


MY_BLOCK = Exercise(
    id="08.MyBlock",
    entry="MyBlock",
    title="A block with an MoE layer",
    points=4,
    difficulty=2,
    minutes=12,
    hints=(
        "Two steps of the same form: x plus something of the *normalised* x. Nothing else ever touches x.",
        "`x = x + self.attention(self.attention_norm(x))`, then the same with `ffn_norm` and `ffn`. An `MoELayer` "
        "returns a pair, (output, routing), and a `DenseFFN` a tensor.",
        "`out = self.ffn(self.ffn_norm(x))`; `out, routing = out if isinstance(out, tuple) else (out, None)`; return "
        "`x + out, routing`.",
    ),
    reference=MyBlock,
    cases=(
        Case("top-2 of four experts", _block(4, 2), grad=("x",)),
        Case("a dense FFN", _block(0, 0), grad=("x",)),
        Case("attention and FFN that return zeros", _silent),
        Case("one long sequence", _block(6, 1, shape=(1, 12))),
        Case("tokens far from zero", _block(4, 2, level=3.0)),
    ),
    properties=(Property("the residual stream passes through", _stream_changed),),
    returns=("output", "routing"),
    drive=call_module,  # type: ignore[arg-type]
    misconceptions=(
        Misconception(
            "post-norm",
            "You normalised after adding, as the first transformer did. Then nothing passes through the model "
            "unchanged, and deep models need care to train at all. Pre-norm: x + f(norm(x)).",
            _forward(_post_norm),
        ),
        Misconception(
            "stream-normalised",
            "You wrote x = norm(x) and then x + f(x), so the norm is on the residual stream as well. Only what "
            "attention and FFN *read* is normalised; what they are added to is x itself.",
            _forward(_normalised_stream),
        ),
        Misconception(
            "no-norm",
            "Neither attention nor FFN gets normalised tokens. The stream grows from block to block, and with it all "
            "scores and router logits.",
            _forward(_no_norm),
        ),
        Misconception(
            "ffn-not-normalised",
            "The FFN reads x as it is. A router in front of tokens of different sizes is surer of the large ones.",
            _forward(_ffn_not_normalised),
        ),
        Misconception(
            "one-norm-for-both",
            "Both steps use `attention_norm`. Each has a gain of its own; `ffn_norm` would never be trained.",
            _forward(_one_norm_for_both),
        ),
        Misconception(
            "no-residual-at-attention",
            "The attention's output replaces x. Add it: x + attention(…).",
            _forward(_without_residual(False, True)),
        ),
        Misconception(
            "no-residual-at-ffn",
            "The FFN's output replaces x. An MoE layer returns no residual; that is this block's work.",
            _forward(_without_residual(True, False)),
        ),
        Misconception(
            "no-residual-at-all",
            "Both outputs replace x. Add them to it: without the residual stream the gradient must pass every layer.",
            _forward(_without_residual(False, False)),
        ),
        Misconception(
            "residual-from-the-start",
            "The FFN's output is added to the x from *before* the attention, whose result is then lost for the next "
            "block.",
            _forward(_residual_from_the_start),
        ),
        Misconception(
            "side-by-side",
            "The FFN reads the x from before the attention: attention and FFN side by side, as in some models. Here "
            "the FFN comes after, and routes tokens that know their surroundings.",
            _forward(_side_by_side),
        ),
        Misconception(
            "ffn-first",
            "Your FFN comes before the attention. Here it is the other way round.",
            _forward(_ffn_first),
        ),
        Misconception(
            "routing-lost",
            "The output is right, but the routing is not returned. Without it there is no balance loss and nothing to "
            "look at.",
            _forward(_routing_lost),
        ),
    ),
    alternatives=(_InSteps, _NormByHand),
)
