"""Arguments of a dispatch, what they should give, and the device that kernels run on."""

import torch

from moe_course.layers import loop_dispatch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 5e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}  # of the largest value


def problem(tokens, num_experts, top_k, activation="gelu", dtype=torch.float32, d_model=20, d_ff=24, seed=0):
    """Random arguments; expert 0 gets nothing where there is a choice."""
    generator = torch.Generator().manual_seed(seed)
    lowest = 1 if num_experts > top_k else 0
    ids = [torch.randperm(num_experts - lowest, generator=generator)[:top_k] + lowest for _ in range(tokens)]
    rows = 2 * d_ff if activation == "swiglu" else d_ff
    shapes = [(tokens, d_model), (tokens, top_k), (num_experts, rows, d_model), (num_experts, d_model, d_ff)]
    x, weights, w_in, w_out = (torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes)
    expert_ids = torch.stack(ids) if tokens else torch.zeros(0, top_k, dtype=torch.int64)
    return x, expert_ids.to(DEVICE), weights, w_in / d_model**0.5, w_out / d_ff**0.5, activation


def gradients(dispatch, arguments):
    """The output, and the gradients of x, expert_weights, w_in and w_out."""
    x, ids, weights, w_in, w_out, activation = arguments
    wanted = [tensor.detach().requires_grad_() for tensor in (x, weights, w_in, w_out)]
    out = dispatch(wanted[0], ids, *wanted[1:], activation)
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.device, x.dtype)
    return out.detach(), *torch.autograd.grad(out, wanted, cotangent.to(out.dtype))


def check_against_float64(dispatch, arguments):
    """Output and gradients within the tolerance of their dtype from the loop over experts in float64."""
    x, ids, weights, w_in, w_out, activation = arguments
    doubles = [tensor.double() for tensor in (x, weights, w_in, w_out)]
    expected = gradients(loop_dispatch, (doubles[0], ids, *doubles[1:], activation))
    got = gradients(dispatch, arguments)
    for name, ours, exact in zip(("out", "dx", "dweights", "dw_in", "dw_out"), got, expected, strict=True):
        assert ours.shape == exact.shape and ours.dtype == x.dtype
        if exact.numel():
            error, largest = (ours.double() - exact).abs().max(), exact.abs().max()
            assert error <= TOLERANCE[x.dtype] * largest, f"{name} is off by {error:.1e}, with values to {largest:.1e}"
