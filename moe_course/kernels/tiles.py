"""Cut each expert's rows into tiles of block_m, and say which expert each tile belongs to.

Experts have different numbers of rows, but a kernel is launched as one list of equal programs. The tile → expert
map tells each program where it works. It is made on the GPU: the CPU never learns the loads, and never waits.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from moe_course.kernels.launch import Config, Grid, launch

CONFIGS = (Config((("BLOCK", 128), ("BLOCK_E", 16)), num_warps=4, num_stages=1),)


class TileMap(NamedTuple):
    """Which expert each tile of block_m rows belongs to.

    Attributes:
        tile_to_expert: expert of each tile, or -1 for those at the end that are not needed, (max_tiles,), int32.
        first_tile: tiles first_tile[e] to first_tile[e + 1] are expert e's, (E + 1,), int32.
        block_m: rows of a tile; the last tile of an expert may have fewer.
    """

    tile_to_expert: Tensor
    first_tile: Tensor
    block_m: int


def tile_map(expert_starts: Tensor, num_rows: int, block_m: int) -> TileMap:
    """Cut sorted rows into tiles, none of which holds rows of two experts.

    Args:
        expert_starts: as in `Permutation`, (E + 1,).
        num_rows: N = T·K rows.
        block_m: rows of a tile.

    Returns:
        A `TileMap` with room for the worst routing of N rows: N // block_m full tiles, and a partial one for every
        expert that has rows.
    """
    num_experts = len(expert_starts) - 1
    max_tiles = num_rows // block_m + min(num_experts, num_rows)
    tiles = (expert_starts.diff() + (block_m - 1)) // block_m
    first_tile = torch.zeros_like(expert_starts)
    torch.cumsum(tiles, 0, out=first_tile[1:])
    tile_to_expert = torch.empty(max_tiles, dtype=torch.int32, device=expert_starts.device)
    if max_tiles:
        launch(
            _tile_to_expert_kernel,
            lambda meta: (triton.cdiv(max_tiles, meta["BLOCK"]),),
            CONFIGS,
            first_tile_ptr=first_tile,
            tile_to_expert_ptr=tile_to_expert,
            max_tiles=max_tiles,
            num_experts=num_experts,
        )
    return TileMap(tile_to_expert, first_tile, block_m)


def grouped_grid(tiles: TileMap, num_columns: int) -> Grid:
    """The number of programs of a grouped GEMM: one for each tile of rows and block of columns."""
    return lambda meta: (len(tiles.tile_to_expert) * triton.cdiv(num_columns, meta["BLOCK_N"]),)


@triton.jit
def _tile_to_expert_kernel(
    first_tile_ptr, tile_to_expert_ptr, max_tiles, num_experts, BLOCK: tl.constexpr, BLOCK_E: tl.constexpr
):
    """A tile's expert is the number of experts whose tiles all come before it."""
    tile = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    before = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, num_experts, BLOCK_E):
        expert = first + tl.arange(0, BLOCK_E)
        end = tl.load(first_tile_ptr + expert + 1, mask=expert < num_experts, other=2147483647)
        before += tl.sum((end[None, :] <= tile[:, None]).to(tl.int32), 1)
    tl.store(tile_to_expert_ptr + tile, tl.where(before < num_experts, before, -1), mask=tile < max_tiles)


@triton.jit
def locate_tile(
    tile_to_expert_ptr,
    first_tile_ptr,
    expert_starts_ptr,
    num_columns,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Where this program of a grouped GEMM works: (expert or -1, its first row, how many rows, column block).

    An expert with m tiles of rows and n blocks of columns owns m·n programs in a row. Programs run about in order of
    their number, so those that follow each other should read the same data: GROUP_M tiles of rows take a block of
    columns, then the same tiles take the next block.
    """
    pid = tl.program_id(0)
    column_blocks = tl.cdiv(num_columns, BLOCK_N)
    expert = tl.load(tile_to_expert_ptr + pid // column_blocks)
    owner = tl.maximum(expert, 0)
    first_tile = tl.load(first_tile_ptr + owner)
    num_tiles = tl.load(first_tile_ptr + owner + 1) - first_tile

    local = pid - first_tile * column_blocks
    group = local // (GROUP_M * column_blocks)
    group_tiles = tl.maximum(1, tl.minimum(num_tiles - group * GROUP_M, GROUP_M))
    in_group = local - group * GROUP_M * column_blocks
    tile = group * GROUP_M + in_group % group_tiles
    column_block = in_group // group_tiles

    first_row = tl.load(expert_starts_ptr + owner) + tile * BLOCK_M
    num_rows = tl.minimum(tl.load(expert_starts_ptr + owner + 1) - first_row, BLOCK_M)
    return expert, first_row, num_rows, column_block
