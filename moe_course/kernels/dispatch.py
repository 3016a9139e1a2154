"""`triton_dispatch`: the kernels as one function that autograd, autocast and torch.compile accept."""

import torch
from torch import Tensor

from moe_course.kernels.availability import require_triton

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def triton_dispatch(
    x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor, activation: str = "gelu"
) -> Tensor:
    """Send each token through its K experts and add up their weighted outputs, in Triton kernels.

    Sums are taken in float32, without atomics: the same input gives the same bits. On a CPU the kernels are
    interpreted, which takes seconds where a GPU takes microseconds; bfloat16 is then computed in float32, because
    the interpreter multiplies bfloat16 wrongly.

    Args:
        x: tokens, (T, D).
        expert_ids: the K experts of each token, (T, K). On a CPU an id that names no expert is refused; on a GPU,
            where looking would make the CPU wait, that choice adds nothing.
        expert_weights: their weights, (T, K).
        w_in: first weights of all experts, (E, F, D); (E, 2F, D) for swiglu.
        w_out: second weights of all experts, (E, D, F).
        activation: "gelu" or "swiglu".

    Returns:
        (T, D), in x's dtype, or autocast's. Can be differentiated once.

    Raises:
        ValueError: the shapes or dtypes do not fit together, or the activation is unknown.
        RuntimeError: Triton does not run here.
    """
    require_triton()
    from moe_course.kernels import ops

    device = x.device.type
    if torch.is_autocast_enabled(device):
        # Here, where autograd sees it: every gradient comes back in its own tensor's dtype.
        dtype = torch.get_autocast_dtype(device)
        x, w_in, w_out = x.to(dtype), w_in.to(dtype), w_out.to(dtype)
    expert_weights = expert_weights.to(x.dtype)
    _check(x, expert_ids, expert_weights, w_in, w_out, activation)
    permutation = ops.permute(expert_ids, len(w_in))
    wanted = torch.is_grad_enabled() and any(t.requires_grad for t in (x, expert_weights, w_in, w_out))
    out, _ = ops.expert_ffn(x, expert_weights, w_in, w_out, *permutation, activation, wanted)
    return out


def _check(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor, activation: str) -> None:
    """Raise a ValueError that names the remedy when the arguments do not fit together."""
    if activation not in ("gelu", "swiglu"):
        raise ValueError(f"activation={activation!r} is unknown; choose 'gelu' or 'swiglu'")
    if expert_ids.shape != expert_weights.shape:
        raise ValueError(
            f"expert_ids has shape {tuple(expert_ids.shape)}, expert_weights {tuple(expert_weights.shape)}; "
            "pass one weight for each id, both (T, K)"
        )
    if x.ndim != 2 or expert_ids.ndim != 2 or x.shape[0] != expert_ids.shape[0]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and expert_ids {tuple(expert_ids.shape)}; "
            "flatten x to (T, D) and pass expert_ids of shape (T, K) for the same T tokens"
        )
    num_experts, d_model, d_ff = w_out.shape
    gated = activation == "swiglu"
    if w_in.shape != (num_experts, 2 * d_ff if gated else d_ff, d_model) or x.shape[1] != d_model:
        raise ValueError(
            f"x {tuple(x.shape)}, w_in {tuple(w_in.shape)}, w_out {tuple(w_out.shape)} do not fit together; "
            f"for {activation} pass x (T, D), w_in (E, {'2F' if gated else 'F'}, D) and w_out (E, D, F)"
        )
    if not x.dtype == w_in.dtype == w_out.dtype or x.dtype not in DTYPES:
        raise ValueError(
            f"x is {x.dtype}, w_in {w_in.dtype}, w_out {w_out.dtype}; pass all three as float32, float16 or bfloat16, "
            "or choose dispatch='sorted', which also takes float64"
        )
    if expert_ids.device.type == "cpu" and expert_ids.numel() and not torch.compiler.is_compiling():
        lowest, highest = (int(end) for end in expert_ids.aminmax())
        if lowest < 0 or highest >= num_experts:
            raise ValueError(
                f"expert_ids run from {lowest} to {highest}, but w_in and w_out hold {num_experts} experts; "
                f"pass ids from 0 to {num_experts - 1}"
            )
