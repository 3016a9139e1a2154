"""The configurations that ship: sizes of tiles, warps and stages for every kernel. All of them, as data.

`moe-course bench kernel` compiles each for two GPUs and shows what became of it: registers, shared memory, spills.
On a GPU those of one kernel and one BLOCK_M are timed once for each pair of widths, and the fastest is kept.
"""

import torch

from moe_course.kernels.launch import Config

Heights = dict[int, tuple[Config, ...]]  # by BLOCK_M


def choose_block_m(num_rows: int, num_experts: int, dtype: torch.dtype) -> int:
    """Rows of a tile, from the mean rows of an expert, which the CPU knows without asking the GPU.

    A taller tile reads the weights less often, but half a tile of each expert is empty on average. With many rows
    arithmetic is the limit, so 128 has to waste less than 10 %: a mean of 9/2 · 128. With few, reading the weights
    is, and what a tile lacks in rows costs nothing.
    """
    if dtype.itemsize > 2:
        return 64
    mean = num_rows / num_experts
    return 128 if mean >= 4.5 * 128 else 64 if mean > 32 else 16


def dot_precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: exactly, or as TF32 where `torch.set_float32_matmul_precision` allows it."""
    return "ieee" if dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest" else "tf32"


def gemm_configs(kernel: str, block_m: int, dtype: torch.dtype) -> tuple[Config, ...]:
    """What a grouped GEMM with tiles of block_m rows may choose from."""
    return (GEMM_16_BIT if dtype.itemsize == 2 else GEMM_32_BIT)[kernel][block_m]


def outer_configs(dtype: torch.dtype) -> tuple[Config, ...]:
    """What the gradient of a weight may choose from."""
    return OUTER_16_BIT if dtype.itemsize == 2 else OUTER_32_BIT


def _gemm(block_m: int, block_n: int, block_k: int, num_warps: int, num_stages: int = 3, group_m: int = 16) -> Config:
    blocks = (("BLOCK_M", block_m), ("BLOCK_N", block_n), ("BLOCK_K", block_k), ("GROUP_M", group_m))
    return Config(blocks, num_warps, num_stages)


# By BLOCK_M. One configuration where memory is the limit, two where arithmetic is.
_PLAIN: Heights = {
    16: (_gemm(16, 128, 64, 4),),
    64: (_gemm(64, 128, 64, 8),),
    128: (_gemm(128, 128, 64, 8), _gemm(128, 64, 64, 4, num_stages=4)),
}
# A gate and an up projection: two sums at once, each half as wide.
_GATED: Heights = {
    16: (_gemm(16, 64, 64, 4),),
    64: (_gemm(64, 64, 64, 8),),
    128: (_gemm(128, 64, 64, 8),),
}
# float32: numbers twice as large, so tiles half as deep, and on a GPU without tensor cores unless TF32 is allowed.
_FLOAT: Heights = {64: (_gemm(64, 64, 32, 8),)}

GEMM_16_BIT = {"up": _PLAIN, "up gated": _GATED, "plain": _PLAIN}
GEMM_32_BIT = {"up": _FLOAT, "up gated": _FLOAT, "plain": _FLOAT}
OUTER_16_BIT = (_gemm(128, 128, 64, 8, group_m=8),)
OUTER_32_BIT = (_gemm(64, 64, 32, 8, group_m=8),)
ACTIVATION_GRADIENT = (Config((("BLOCK_M", 8), ("BLOCK_F", 256)), num_warps=4, num_stages=1),)
