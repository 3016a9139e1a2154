"""Compares what an answer returned with what was expected, and says the difference in a sentence."""

from typing import Any

import torch
from torch import Tensor

# Relative and absolute tolerance by the least precise floating dtype involved. The absolute one is scaled by the
# largest expected magnitude. float32: a sum of some hundred products in another order stays well inside.
TOLERANCE = {
    torch.float64: (1e-9, 1e-10),
    torch.float32: (1e-4, 1e-5),
    torch.float16: (1e-2, 2e-3),
    torch.bfloat16: (3e-2, 1.6e-2),
}


def precision(*trees: dict[str, Any]) -> torch.dtype:
    """The least precise floating dtype among the leaves; float64 where there is none."""
    found = [
        leaf.dtype for tree in trees for leaf in tree.values() if isinstance(leaf, Tensor) and leaf.dtype in TOLERANCE
    ]
    return min(found, key=lambda dtype: -TOLERANCE[dtype][0], default=torch.float64)


def difference(got: dict[str, Any], exact: dict[str, Any], like: dict[str, Any], dtype: torch.dtype) -> str | None:
    """None where `got` is right, else one sentence about how it is not.

    Args:
        got: leaves that the answer returned.
        exact: leaves of the float64 reference.
        like: leaves of the reference on the inputs as they were: shapes, dtypes and types to expect.
        dtype: decides the tolerance.
    """
    if got.keys() != like.keys():
        return _structure(got, like)
    for name in like:
        wrong = _leaf(name, got[name], exact[name], like[name], dtype)
        if wrong:
            return wrong
    return None


def agree(first: dict[str, Any], second: dict[str, Any], dtype: torch.dtype) -> bool:
    """Whether two answers returned the same shapes and values, within tolerance; dtypes may differ."""
    if first.keys() != second.keys():
        return False
    for name, one in first.items():
        other = second[name]
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            if one.shape != other.shape or not _close(one, other, dtype).all():
                return False
        elif _number(one) is not None and _number(other) is not None:
            if not _close(torch.tensor(_number(one)), torch.tensor(_number(other)), dtype):
                return False
        elif type(one) is not type(other) or (isinstance(one, str) and one != other):
            return False
    return True


def _structure(got: dict[str, Any], like: dict[str, Any]) -> str:
    if list(got.values()) and all(leaf is None for leaf in got.values()):
        return "returned None: is a `return` missing?"
    wanted = ", ".join(like) if len(like) > 1 else f"one {_kind(next(iter(like.values())))}"
    given = f"{len(got)} values" if len(got) != 1 else f"one {_kind(next(iter(got.values())))}"
    return f"returned {given}; expected {wanted}"


def _leaf(name: str, got: Any, exact: Any, like: Any, dtype: torch.dtype) -> str | None:
    if got is None and like is not None:
        return f"{name} is None: is a `return` missing?" if name == "output" else f"{name} is None"
    if not isinstance(like, Tensor):
        return _scalar(name, got, exact, like, dtype)
    if not isinstance(got, Tensor):
        return f"{name} is a {_kind(got)}; expected a tensor of shape {tuple(like.shape)}"
    if got.shape != like.shape:
        return f"{name} has shape {tuple(got.shape)}; expected {tuple(like.shape)}"
    if got.dtype != like.dtype:
        return f"{name} has dtype {_dtype(got)}; expected {_dtype(like)}"
    finite = got.isfinite() | ~exact.isfinite()
    if not finite.all():
        bad = got[~finite]
        what = "NaN" if bad.isnan().any() else "infinite"
        if got.dim() == 0:
            return f"{name} is {what}; expected {_show(exact)}"
        return f"{name}: {len(bad)} of {got.numel()} values are {what}, first at {_where(~finite)}"
    close = _close(got, exact, dtype)
    if close.all():
        return None
    if got.dim() == 0:
        return f"{name} is {_show(got)}; expected {_show(exact)}"
    wrong = int((~close).sum())
    first = tuple((~close).nonzero()[0].tolist())
    return (
        f"{name}: {wrong} of {got.numel()} values are wrong; first {_where(~close)}: "
        f"got {_show(got[first])}, expected {_show(exact[first])}"
    )


def _scalar(name: str, got: Any, exact: Any, like: Any, dtype: torch.dtype) -> str | None:
    if isinstance(got, Tensor) and got.numel() == 1:
        got = got.item()
    wanted, given = _number(exact), _number(got)
    if wanted is not None:
        if given is None:
            return f"{name} is a {_kind(got)}; expected a number"
        if not _close(torch.tensor(given), torch.tensor(wanted), dtype):
            return f"{name} is {_show(given)}; expected {_show(wanted)}"
        return None
    if type(got) is not type(like):
        return f"{name} is a {_kind(got)}; expected a {_kind(like)}"
    if isinstance(like, str) and got != like:
        return f"{name} is {got!r}; expected {exact!r}"
    return None


def _close(got: Tensor, exact: Tensor, dtype: torch.dtype) -> Tensor:
    if not got.is_floating_point() and not exact.is_floating_point():
        return got.to(torch.int64) == exact.to(torch.int64)
    relative, absolute = TOLERANCE[dtype]
    got, exact = got.double(), exact.double()
    finite = exact[exact.isfinite()].abs()
    scale = max(1.0, float(finite.max())) if finite.numel() else 1.0
    return torch.isclose(got, exact, rtol=relative, atol=absolute * scale, equal_nan=True)


def _number(value: Any) -> int | float | None:
    return value if type(value) in (int, float, bool) else None


def _kind(value: Any) -> str:
    return "tensor" if isinstance(value, Tensor) else type(value).__name__


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _where(mask: Tensor) -> str:
    return f"[{', '.join(map(str, mask.nonzero()[0].tolist()))}]"


def _show(value: Any) -> str:
    number = value.item() if isinstance(value, Tensor) else value
    return f"{number:.5g}" if isinstance(number, float) else str(number)
