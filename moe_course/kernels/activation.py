"""The activations of an expert and their derivatives, as functions that kernels call on tiles in registers."""

import triton
import triton.language as tl


@triton.jit
def normal_cdf(x):
    """Φ(x), the share of a standard normal distribution below x."""
    return 0.5 * (1 + tl.erf(x * 0.7071067811865476))  # 1/√2


@triton.jit
def gelu(x):
    """The exact GELU, x·Φ(x), as `torch.nn.functional.gelu`."""
    return x * normal_cdf(x)


@triton.jit
def gelu_slope(x):
    """The derivative of GELU: Φ(x) + x·φ(x), with φ the density of the normal distribution."""
    return normal_cdf(x) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)  # 1/√(2π)


@triton.jit
def silu(x):
    """SiLU, x·σ(x)."""
    return x * tl.sigmoid(x)


@triton.jit
def silu_slope(x):
    """The derivative of SiLU: σ(x)·(1 + x·(1 − σ(x)))."""
    s = tl.sigmoid(x)
    return s * (1 + x * (1 - s))
