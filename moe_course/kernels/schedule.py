"""What each program of a GEMM reads and writes, in the order in which programs start, without running any.

A test compares it with the kernels themselves, program by program and byte by byte.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

BYTES = 2  # bf16


@dataclass(frozen=True)
class Workload:
    """One MoE layer and a batch of tokens."""

    name: str
    num_tokens: int
    d_model: int
    d_ff: int
    num_experts: int
    top_k: int


WORKLOADS = {
    "olmoe": Workload("OLMoE, 4096 tokens", 4096, 2048, 1024, 64, 8),
    "mixtral": Workload("Mixtral, 4096 tokens", 4096, 4096, 14336, 8, 2),
    "decode": Workload("OLMoE, 64 tokens", 64, 2048, 1024, 64, 8),
}


class Routing(NamedTuple):
    """Which token each sorted row is, and where each expert's rows start."""

    tokens: np.ndarray
    starts: np.ndarray


def random_routing(workload: Workload, seed: int = 0) -> Routing:
    """Every token chooses K of E experts, all alike: what a balanced router comes to."""
    scores = np.random.default_rng(seed).random((workload.num_tokens, workload.num_experts))
    ids = scores.argsort(1)[:, : workload.top_k].ravel()
    starts = np.concatenate([[0], np.bincount(ids, minlength=workload.num_experts).cumsum()])
    return Routing(ids.argsort(kind="stable") // workload.top_k, starts)


def padding_efficiency(routing: Routing, block_m: int) -> float:
    """Rows over the rows of their tiles: what is left of arithmetic if the last tile of each expert is not full."""
    rows = np.diff(routing.starts)
    return float(rows.sum() / (-(-rows // block_m) * block_m).sum())


class Operand(NamedTuple):
    """One of the two matrices that a launch multiplies, cut into pieces; program p reads parts[part_of[p]]."""

    piece_bytes: np.ndarray
    parts: list[np.ndarray]  # numbers of pieces
    part_of: np.ndarray


class Programs(NamedTuple):
    """What the programs of a launch read and write, in the order in which they start."""

    operands: tuple[Operand, Operand]
    written: np.ndarray  # bytes
    cached: bool  # whether what is written takes room in the cache; not if the kernel stores it past (.cs)
    flops: float  # with those for rows and columns that only fill up a tile


def programs_of(kernel: str, blocks: dict[str, int], workload: Workload, routing: Routing) -> Programs:
    """The schedule of one GEMM of the layer: "up, gelu", "up, swiglu", "down", "dh", "dx", "dw_in" or "dw_out".

    dx and dw_in are those of swiglu experts, with 2·F rows in w_in.
    """
    d_model, d_ff = workload.d_model, workload.d_ff
    if kernel in ("dw_in", "dw_out"):
        widths = (2 * d_ff, d_model) if kernel == "dw_in" else (d_model, d_ff)
        return _outer(blocks, workload, routing, widths, gather_first=kernel == "dw_out")
    width_in, width_out, gather = {
        "up, gelu": (d_model, d_ff, True),
        "up, swiglu": (d_model, d_ff, True),
        "down": (d_ff, d_model, False),
        "dh": (d_model, d_ff, True),
        "dx": (2 * d_ff, d_model, False),
    }[kernel]
    matrices = 2 if kernel == "up, swiglu" else 1  # gate and up projection
    outputs = {"up, gelu": 2, "up, swiglu": 3}.get(kernel, 1)  # pre-activations and h
    return _grouped(blocks, workload, routing, width_in, width_out, gather, matrices, outputs)


def _grouped(
    blocks: dict[str, int],
    workload: Workload,
    routing: Routing,
    width_in: int,
    width_out: int,
    gather: bool,
    matrices: int,
    outputs: int,
) -> Programs:
    block_m, block_n = blocks["BLOCK_M"], blocks["BLOCK_N"]
    tiles = grouped_order(routing.starts, block_m, width_out, block_n, blocks["GROUP_M"])
    column_blocks = -(-width_out // block_n)
    first_rows, tile_of = np.unique(tiles.first_row, return_inverse=True)
    num_rows = np.zeros(len(first_rows), dtype=int)
    num_rows[tile_of] = tiles.num_rows
    rows = [np.arange(first, first + n) for first, n in zip(first_rows, num_rows, strict=True)]
    if gather:  # the rows that a tile lacks are read as the token of choice 0
        rows = [np.union1d(routing.tokens[r], [] if len(r) == block_m else [0]).astype(int) for r in rows]
    rows_bytes = np.full(workload.num_tokens if gather else len(routing.tokens), width_in * BYTES)
    weights = np.arange(workload.num_experts * column_blocks)
    weights_bytes = np.full(len(weights), matrices * min(block_n, width_out) * width_in * BYTES)
    columns = np.minimum(block_n, width_out - tiles.column_block * block_n)
    return Programs(
        (
            Operand(rows_bytes, rows, tile_of),
            Operand(weights_bytes, list(weights[:, None]), tiles.expert * column_blocks + tiles.column_block),
        ),
        written=outputs * tiles.num_rows * columns * BYTES,
        cached=True,
        flops=2.0 * matrices * len(tiles.expert) * block_m * block_n * width_in,
    )


class Tiles(NamedTuple):
    """Where each program of a grouped GEMM works: the four numbers of `tiles.locate_tile`."""

    expert: np.ndarray
    first_row: np.ndarray
    num_rows: np.ndarray
    column_block: np.ndarray


def grouped_order(starts: np.ndarray, block_m: int, columns: int, block_n: int, group_m: int) -> Tiles:
    """`tiles.locate_tile` for every program that has something to do, in their order."""
    found = []
    for expert, (start, end) in enumerate(pairwise(starts)):
        tiles = np.arange(start, end, block_m)
        for group in range(0, len(tiles), group_m):
            column_block, first_row = np.meshgrid(
                np.arange(-(-columns // block_n)), tiles[group : group + group_m], indexing="ij"
            )
            rows = np.minimum(block_m, end - first_row)
            found.append(np.stack([np.full_like(rows, expert), first_row, rows, column_block]).reshape(4, -1))
    return Tiles(*np.concatenate(found, axis=1))


def _outer(
    blocks: dict[str, int], workload: Workload, routing: Routing, widths: tuple[int, int], gather_first: bool
) -> Programs:
    sizes = (blocks["BLOCK_M"], blocks["BLOCK_N"])
    counts = [-(-width // size) for width, size in zip(widths, sizes, strict=True)]
    rows_side = 1 if gather_first else 0
    # As tl.swizzle2d: GROUP_M blocks of the sorted rows meet one block of the gathered tokens, then the next.
    order = [
        (rows_block, tokens_block)
        for group in range(0, counts[rows_side], blocks["GROUP_M"])
        for tokens_block in range(counts[1 - rows_side])
        for rows_block in range(group, min(group + blocks["GROUP_M"], counts[rows_side]))
    ]
    block_of = np.array(order).T if rows_side == 0 else np.array(order).T[::-1]
    experts = np.repeat(np.arange(workload.num_experts), len(order))
    loads = np.diff(routing.starts)
    operands = []
    for side in (0, 1):
        piece = min(sizes[side], widths[side]) * BYTES
        parts_of = experts * counts[side] + np.tile(block_of[side], workload.num_experts)
        if side == rows_side:  # nobody else has an expert's rows: they are one piece
            piece_bytes = np.repeat(loads * piece, counts[side])
            parts = list(np.arange(len(piece_bytes))[:, None])
        else:
            piece_bytes = np.full(workload.num_tokens * counts[side], piece)
            tokens_of = np.split(routing.tokens, routing.starts[1:-1])
            parts = [block * workload.num_tokens + tokens for tokens in tokens_of for block in range(counts[side])]
        operands.append(Operand(piece_bytes, parts, parts_of))
    columns = [np.minimum(sizes[side], widths[side] - sizes[side] * block_of[side]) for side in (0, 1)]
    steps = -(-loads // blocks["BLOCK_K"])
    return Programs(
        (operands[0], operands[1]),
        written=np.tile(columns[0] * columns[1] * BYTES, workload.num_experts),
        cached=False,
        flops=2.0 * steps.sum() * blocks["BLOCK_K"] * len(order) * sizes[0] * sizes[1],
    )
