"""Exercise 08.apply_rotary: positions as rotations of pairs."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from ...layers.attention import apply_rotary
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make


def _heads(*shape: int, first: int = 0, theta: float = 10_000.0, dtype: torch.dtype = torch.float32) -> Make:
    """Queries or keys (B, H, S, Dh) of tokens that stand at `first`, first + 1, …"""

    def make(generator: Generator) -> Inputs:
        return {
            "x": torch.randn(shape, generator=generator).to(dtype),
            "positions": torch.arange(first, first + shape[-2]),
            "theta": theta,
        }

    return make


def _unit(generator: Generator) -> Inputs:
    """One pair at positions 0 to 3, whose angles are the positions themselves."""
    return {"x": torch.tensor([[[[1.0, 0.0]] * 4]]), "positions": torch.arange(4), "theta": 10_000.0}


def _scattered(generator: Generator) -> Inputs:
    inputs = _heads(2, 2, 5, 8)(generator)
    return inputs | {"positions": torch.randperm(40, generator=generator)[:5] + 1}


def _stretched(inputs: Inputs, output: Tensor) -> str | None:
    """A rotation changes no length; bfloat16 rounds."""
    before, after = (tensor.double().norm(dim=-1) for tensor in (inputs["x"], output))
    worst = ((after - before).abs() / before).max().item() if before.numel() else 0.0
    return (
        None if worst < 2e-2 else f"a rotation keeps the length of a head's vector; one of yours changed by {worst:.0%}"
    )


def _rates(head_dim: int, theta: float, dtype: torch.dtype) -> Tensor:
    """theta^(−2i/Dh) for each pair, (Dh/2,)."""
    return theta ** (-torch.arange(0, head_dim, 2, dtype=dtype) / head_dim)


def _angles(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """(S, Dh/2)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    return positions.to(dtype)[:, None] * _rates(x.shape[-1], theta, dtype)


def _turn(x: Tensor, angle: Tensor) -> Tensor:
    """Pairs (i, i + Dh/2) by `angle`."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _with_rotate_half(x: Tensor, positions: Tensor, theta: float = 10_000.0) -> Tensor:
    angle = _angles(x, positions, theta).repeat(1, 2)
    return (x * angle.cos() + _rotate_half(x) * angle.sin()).to(x.dtype)


def _as_complex_numbers(x: Tensor, positions: Tensor, theta: float = 10_000.0) -> Tensor:
    angle = _angles(x, positions, theta)
    first, second = x.to(angle.dtype).chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], dim=-1).to(x.dtype)


def _interleaved(x: Tensor, positions: Tensor, theta: float = 10_000.0) -> Tensor:
    angle = _angles(x, positions, theta)
    even, odd = x[..., 0::2], x[..., 1::2]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)


def _mixed(x: Tensor, positions: Tensor, theta: float = 10_000.0) -> Tensor:
    angle = _angles(x, positions, theta).repeat_interleave(2, dim=-1)
    return (x * angle.cos() + _rotate_half(x) * angle.sin()).to(x.dtype)


def _no_minus(x: Tensor, positions: Tensor, theta: float = 10_000.0) -> Tensor:
    angle = _angles(x, positions, theta)
    first, second = x.chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos + second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def _by(angles: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[..., Tensor]:
    """The right turn by the wrong angles."""
    return lambda x, positions, theta=10_000.0: _turn(x, angles(x, positions, theta))


def _low_precision(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    return positions.to(x.dtype)[:, None] * _rates(x.shape[-1], theta, torch.float32).to(x.dtype)


APPLY_ROTARY = Exercise(
    id="08.apply_rotary",
    entry="apply_rotary",
    title="Rotary positions",
    points=3,
    difficulty=2,
    minutes=12,
    hints=(
        "Three steps: the rate of each pair, (Dh/2,); the angle of each pair at each position, (S, Dh/2); and the "
        "rotation of a pair by its angle, as a 2 × 2 matrix does it.",
        "`rate = theta ** (-torch.arange(0, Dh, 2) / Dh)` and `angle = positions[:, None] * rate`, in float32. "
        "`first, second = x.chunk(2, dim=-1)` are the two components of all pairs.",
        "The first components become `first * cos − second * sin`, the second ones `second * cos + first * sin`. "
        "`torch.cat` them along the last dimension, and go back to the dtype of x.",
    ),
    reference=apply_rotary,
    cases=(
        Case("one pair at positions 0 to 3", _unit),
        Case("a batch of heads", _heads(2, 3, 6, 8), grad=("x",)),
        Case("tokens that follow 100 others", _heads(1, 2, 4, 8, first=100), grad=("x",)),
        Case("positions in any order", _scattered),
        Case("another theta", _heads(1, 2, 5, 8, theta=100.0)),
        Case("bfloat16, 1000 tokens on", _heads(1, 2, 5, 8, first=1000, dtype=torch.bfloat16)),
        Case("no tokens", _heads(1, 2, 0, 8)),
    ),
    properties=(Property("lengths stay", _stretched),),
    misconceptions=(
        Misconception(
            "neighbours-paired",
            "You paired neighbours, (0, 1), (2, 3), …, as the paper does. Here component i belongs to i + Dh/2, as in "
            "the checkpoints of Llama and Mixtral. Both work if trained so, but weights of one are wrong in the other.",
            _interleaved,
        ),
        Misconception(
            "pairings-mixed",
            "You mixed the two conventions: angles in the order of neighbours, components in the order of halves. The "
            "two components of a pair then turn by different angles, and that is no rotation.",
            _mixed,
        ),
        Misconception(
            "minus-missing",
            "Both components come out with a plus. A rotation has one minus: first · cos − second · sin.",
            _no_minus,
        ),
        Misconception(
            "turned-backwards",
            "You turned the other way. Distances would still come out right among your own tokens, but not with keys "
            "or weights that were turned forwards. The minus belongs to the first component.",
            _by(lambda x, positions, theta: -_angles(x, positions, theta)),
        ),
        Misconception(
            "positions-from-one",
            "Your first token stands at 1. Positions count from 0, and `positions` has them as they should be.",
            _by(lambda x, positions, theta: _angles(x, positions + 1, theta)),
        ),
        Misconception(
            "positions-ignored",
            "You counted 0, 1, 2, … yourself and never used `positions`. With a cache the new tokens do not start at "
            "0: to the model each of them would look like the first.",
            _by(lambda x, positions, theta: _angles(x, torch.arange(len(positions)), theta)),
        ),
        Misconception(
            "rates-too-close",
            "Your rates are theta^(−i/Dh), so the slowest pair turns √theta times as fast as it should, or more. The "
            "exponent is −2i/Dh: it runs from 0 to nearly −1 over the Dh/2 pairs.",
            _by(lambda x, positions, theta: _angles(x, positions, theta**0.5)),
        ),
        Misconception(
            "rates-grow",
            "Your exponent is positive, so the rates grow from pair to pair and the last ones spin. They should fall "
            "from 1.",
            _by(lambda x, positions, theta: _angles(x, positions, 1 / theta)),
        ),
        Misconception(
            "one-rate-for-all",
            "All your pairs turn at the same rate. Then a distance of a full turn looks like no distance at all; the "
            "slow pairs are there to tell the turns apart.",
            _by(lambda x, positions, theta: _angles(x, positions, 1.0)),
        ),
        Misconception(
            "angles-in-low-precision",
            "Your angles were computed in bfloat16, which cannot tell position 1000 from 1001. Compute them in "
            "float32 and round at the end.",
            _by(_low_precision),
        ),
    ),
    alternatives=(_with_rotate_half, _as_complex_numbers),
)
