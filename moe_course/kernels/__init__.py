"""Triton kernels for the Mixture-of-Experts layer, one idea a file. Imports nothing else of the package.

Read them in the order in which a token meets them:

    permutation.py    sort the T·K choices by expert: histogram, offsets, positions
    tiles.py          cut each expert's rows into tiles: the tile → expert map
    projection.py     the grouped GEMMs: gather fused into the load; activation, weight fused into the store
    grouped_gemm.py   the GEMM that the second of them and the gradients share
    reduction.py      add up each token's K rows, without atomics
    gradient.py       the gradients, from the same pieces
    ops.py            all of it as operators that autograd and torch.compile accept
    dispatch.py       `triton_dispatch`, what a layer calls

and for the compile report configs.py, compiling.py and report.py, schedule.py and traffic.py.

Public, with N = T·K choices (T tokens, K experts per token, E experts, D d_model, F d_ff):

    triton_dispatch(x, expert_ids, expert_weights, w_in, w_out, activation="gelu") -> (T, D)
    permute(expert_ids (T, K), num_experts) -> Permutation
    tile_map(expert_starts (E+1,), num_rows, block_m) -> TileMap
    up_project(x (T, D), w_in, permutation, activation="gelu") -> h (N, F), rows sorted by expert
    down_project(h (N, F), w_out, permutation, expert_weights (T, K)) -> y (N, D), each row times its weight
    combine(rows (N, D), permutation) -> (T, D), the sum of each token's K rows
    compile_report(), a row a kernel: registers, spills, shared memory, instructions; needs no GPU
    defects(row of the report), what that kernel should have and has not
    is_available(), why_unavailable(), is_interpreting()

Without a GPU the kernels run in Triton's interpreter, on the CPU, slowly and with the right numbers.
"""

from importlib import import_module
from typing import Any

from moe_course.kernels.availability import is_available, is_interpreting, prepare_triton, why_unavailable

__all__ = [
    "Permutation",
    "TileMap",
    "combine",
    "compile_report",
    "defects",
    "down_project",
    "is_available",
    "is_interpreting",
    "permute",
    "tile_map",
    "triton_dispatch",
    "up_project",
    "why_unavailable",
]

# Loaded on first use: these import Triton, which does not exist on macOS and Windows.
_LAZY = {
    "Permutation": "permutation",
    "TileMap": "tiles",
    "combine": "reduction",
    "compile_report": "report",
    "defects": "report",
    "down_project": "projection",
    "permute": "permutation",
    "tile_map": "tiles",
    "triton_dispatch": "dispatch",
    "up_project": "projection",
}

prepare_triton()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'moe_course.kernels' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = globals()[name] = getattr(import_module(f"moe_course.kernels.{_LAZY[name]}"), name)
    return value
