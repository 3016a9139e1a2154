"""Exercise 06.expert_tile: one tile of the grouped GEMM."""

import torch
from torch import Generator, Tensor

from ..launch import ReferenceKernel, kernel_drive, not_all_written, unwritten
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, ceil_div, kernel
from .tile_map import tile_map

BLOCK = 16


def spec(rows: Tensor, w: Tensor, tile_experts: Tensor, tile_rows: Tensor, offsets: Tensor) -> Tensor:
    """out (N, F): each expert's rows times its matrix, transposed."""
    parts = rows.split(offsets.diff().tolist())
    return torch.cat([part @ matrix.T for part, matrix in zip(parts, w, strict=True)])


def launch(kernel, rows: Tensor, w: Tensor, tile_experts: Tensor, tile_rows: Tensor, offsets: Tensor) -> Tensor:
    """A grid of tiles: blocks of rows of one expert each, by blocks of columns."""
    d_out, d_in = w.shape[1:]
    out = unwritten(len(rows), d_out, dtype=rows.dtype)
    grid = (len(tile_experts), ceil_div(d_out, BLOCK))
    blocks = {"BLOCK_M": BLOCK, "BLOCK_N": BLOCK, "BLOCK_K": BLOCK}
    kernel[grid](rows, w, out, tile_experts, tile_rows, offsets, d_in, d_out, **blocks)
    return out


def _stand_in(
    rows_ptr, w_ptr, out_ptr, tile_experts_ptr, tile_rows_ptr, offsets_ptr, d_in, d_out, BLOCK_M, BLOCK_N, BLOCK_K
):
    out_ptr.copy_(spec(rows_ptr, w_ptr, tile_experts_ptr, tile_rows_ptr, offsets_ptr))


def _given(rows: Tensor, w: Tensor, counts: tuple[int, ...]) -> Inputs:
    tile_experts, tile_rows = tile_map(torch.tensor(counts), BLOCK)
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return {"rows": rows, "w": w, "tile_experts": tile_experts, "tile_rows": tile_rows, "offsets": offsets}


def _rows(counts: tuple[int, ...], d_in: int, d_out: int, dtype: torch.dtype = torch.float32) -> Make:
    def make(generator: Generator) -> Inputs:
        rows = torch.randn(sum(counts), d_in, generator=generator)
        w = torch.randn(len(counts), d_out, d_in, generator=generator) * d_in**-0.5
        return _given(rows.to(dtype), w.to(dtype), counts)

    return make


def _large_sums(generator: Generator) -> Inputs:
    """float16, with partial sums beyond its largest number, 65504, and a result below it."""
    rows, w = torch.ones(3, 48), torch.rand(1, 16, 48, generator=generator)
    rows[:, :32], rows[:, 32:] = 50, -50
    w[..., ::16] = 800  # 40 000 from each block of 16, the last one negative
    return _given(rows.half(), w.half(), (3,))


def _unwritten(inputs: Inputs, output: Tensor) -> str | None:
    return not_all_written(output)


EXPERT_TILE = Exercise(
    id="06.expert_tile",
    entry="expert_tile",
    title="One tile of the grouped GEMM",
    points=4,
    difficulty=3,
    minutes=25,
    hints=(
        "A program instance computes a (BLOCK_M, BLOCK_N) rectangle of `out`. First find out who you are: the tile's "
        "expert and first row stand in the two tables. Then walk over d_in in blocks of BLOCK_K and add up products.",
        "The rectangle of `rows` has addresses `rows[:, None] * d_in + k[None, :]`. The one of `w` you want "
        "transposed, (BLOCK_K, BLOCK_N): `expert * d_out * d_in + columns[None, :] * d_in + k[:, None]`. Rows are "
        "yours below `offsets[expert + 1]`, k counts below d_in, columns below d_out; what is masked must be 0.",
        "`acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)` before the loop, "
        "`for start in range(0, d_in, BLOCK_K):`, in it `acc = tl.dot(a, b, acc)`. After it "
        "`tl.store(out_ptr + …, acc.to(out_ptr.dtype.element_ty), mask=mine[:, None] & (columns < d_out)[None, :])`.",
    ),
    reference=ReferenceKernel(kernel("expert_tile"), spec, _stand_in),
    cases=(
        Case("two experts, whole tiles", _rows((16, 16), 16, 16)),
        Case("ragged tiles", _rows((5, 18), 16, 16)),
        Case("two blocks along d_in", _rows((4, 7), 32, 16)),
        Case("ragged d_in", _rows((4, 7), 20, 16)),
        Case("ragged d_out", _rows((6, 3), 16, 24)),
        Case("idle experts, one token each", _rows((0, 1, 0, 1), 16, 16)),
        Case("float16", _rows((9, 4), 16, 16, dtype=torch.float16)),
        Case("float16, large partial sums", _large_sums),
    ),
    properties=(Property("every element is written", _unwritten),),
    misconceptions=(
        Misconception(
            "tile-crosses-experts",
            "Your last tile of an expert goes on into the rows of the next one, and multiplies them by the wrong "
            "matrix. A tile's rows end at `offsets[expert + 1]`: mask loads and the store with it.",
            kernel("expert_tile", ("rows < tl.load(offsets_ptr + expert + 1)", "rows >= 0")),
        ),
        Misconception(
            "masked-by-the-beginning",
            "You compare with `offsets[expert]`, where the expert's rows begin, so no row counts as yours. They end at "
            "`offsets[expert + 1]`.",
            kernel("expert_tile", ("offsets_ptr + expert + 1", "offsets_ptr + expert")),
        ),
        Misconception(
            "accumulated-in-float16",
            "You add up in float16. It has 11 bits and ends at 65504, so long sums lose their small terms or become "
            "infinite. Accumulate in float32 and round once, at the store.",
            kernel(
                "expert_tile",
                ("dtype=tl.float32", "dtype=rows_ptr.dtype.element_ty"),
                ("tl.dot(a, b, acc)", "(acc + tl.dot(a, b)).to(rows_ptr.dtype.element_ty)"),
            ),
        ),
        Misconception(
            "k-mask-missing",
            "When d_in is no multiple of BLOCK_K, your last block along it runs into the next row and adds up what it "
            "finds there. Mask `k < d_in` on both loads, with `other=0.0`.",
            kernel("expert_tile", (" & (k < d_in)[None, :]", ""), ("(k < d_in)[:, None] & ", "")),
        ),
        Misconception(
            "column-mask-missing",
            "When d_out is no multiple of BLOCK_N, your last block of columns reads and writes beyond the row. Mask "
            "`columns < d_out` on the load of `w` and on the store.",
            kernel("expert_tile", (" & (columns < d_out)[None, :]", "")),
        ),
        Misconception(
            "last-block-only",
            "Each step of the loop overwrites the one before, so only the last block along d_in counts. Add: "
            "`acc = tl.dot(a, b, acc)`.",
            kernel("expert_tile", ("tl.dot(a, b, acc)", "tl.dot(a, b)")),
        ),
        Misconception(
            "first-block-only",
            "Only the first BLOCK_K columns of `rows` are multiplied. A product needs all of d_in: loop over "
            "`range(0, d_in, BLOCK_K)`.",
            kernel("expert_tile", ("range(0, d_in, BLOCK_K)", "range(0, 1)")),
        ),
        Misconception(
            "tile-for-expert",
            "You take the tile's number for the expert's. A busy expert has several tiles and an idle one none: the "
            "expert of a tile stands in `tile_experts`.",
            kernel("expert_tile", ("tl.load(tile_experts_ptr + tile)", "tile")),
        ),
        Misconception(
            "one-matrix-for-all",
            "Every tile is multiplied by expert 0's matrix. Expert e's begins at `e * d_out * d_in`.",
            kernel("expert_tile", ("expert * d_out * d_in + ", "")),
        ),
        Misconception(
            "weights-not-transposed",
            "You read `w` as (d_in, d_out). It is stored as nn.Linear stores its weight, (d_out, d_in): element "
            "(column, k) stands at `column * d_in + k`.",
            kernel("expert_tile", ("columns[None, :] * d_in + k[:, None]", "k[:, None] * d_out + columns[None, :]")),
        ),
        Misconception(
            "rows-as-if-padded",
            "Your tile i begins at row i · BLOCK_M. Tiles begin where their expert's rows begin, which `tile_rows` "
            "says.",
            kernel("expert_tile", ("tl.load(tile_rows_ptr + tile)", "tile * BLOCK_M")),
        ),
    ),
    alternatives=(kernel("expert_tile"), kernel("expert_tile_transposed")),
    drive=kernel_drive(launch),
)
