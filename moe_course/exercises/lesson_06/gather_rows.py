"""Exercise 06.gather_rows: bring tokens into sorted order, a block of rows and columns at a time."""

import torch
from torch import Generator, Tensor

from ..launch import ReferenceKernel, kernel_drive, not_all_written, unwritten
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, ceil_div, flat_choices, kernel, order_of

BLOCK_ROWS, BLOCK_COLUMNS = 16, 16


def spec(x: Tensor, order: Tensor, top_k: int) -> Tensor:
    """rows (N, D): row i is the token that made choice order[i]."""
    return x[order // top_k]


def launch(kernel, x: Tensor, order: Tensor, top_k: int) -> Tensor:
    """A grid of blocks: rows by columns."""
    num_rows, width = len(order), x.shape[1]
    rows = unwritten(num_rows, width, dtype=x.dtype)
    grid = (ceil_div(num_rows, BLOCK_ROWS), ceil_div(width, BLOCK_COLUMNS))
    kernel[grid](x, order, rows, num_rows, width, top_k, BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLUMNS=BLOCK_COLUMNS)
    return rows


def _stand_in(x_ptr, order_ptr, rows_ptr, num_rows, width, top_k, BLOCK_ROWS, BLOCK_COLUMNS):
    rows_ptr.copy_(spec(x_ptr, order_ptr, top_k))


def _rows(num_tokens: int, width: int, num_experts: int, top_k: int, dtype: torch.dtype = torch.float32) -> Make:
    def make(generator: Generator) -> Inputs:
        expert_ids = flat_choices(num_tokens, num_experts, top_k, generator)
        x = torch.randn(num_tokens, width, generator=generator).to(dtype)
        return {"x": x, "order": order_of(expert_ids), "top_k": top_k}

    return make


def _unwritten(inputs: Inputs, output: Tensor) -> str | None:
    return not_all_written(output)


GATHER_ROWS = Exercise(
    id="06.gather_rows",
    entry="gather_rows",
    title="Gather a block of rows",
    points=3,
    difficulty=2,
    minutes=15,
    hints=(
        "A program instance copies a rectangle: BLOCK_ROWS rows and BLOCK_COLUMNS columns of `rows`. Which rows it "
        "writes follows from `tl.program_id(0)`, which columns from `tl.program_id(1)`. Which rows of `x` it reads "
        "stands in `order`.",
        "Element (r, c) of a contiguous matrix of D columns stands at r·D + c. With rows as a column and columns as a "
        "row, `r[:, None] * width + c[None, :]` is a whole rectangle of addresses. The mask is a rectangle as well.",
        "`order = tl.load(order_ptr + rows, mask=rows < num_rows, other=0)`, `tokens = order // top_k`. Load from "
        "`x_ptr + tokens[:, None] * width + columns[None, :]` and store to "
        "`rows_ptr + rows[:, None] * width + columns[None, :]`, both with "
        "`mask=(rows < num_rows)[:, None] & (columns < width)[None, :]`.",
    ),
    reference=ReferenceKernel(kernel("gather_rows"), spec, _stand_in),
    cases=(
        Case("one full block", _rows(8, 16, 4, 2)),
        Case("top-1, two column blocks", _rows(16, 32, 4, 1)),
        Case("ragged rows", _rows(11, 16, 4, 2)),
        Case("ragged columns", _rows(16, 10, 4, 1)),
        Case("ragged both ways, top-3", _rows(7, 20, 5, 3)),
        Case("one token", _rows(1, 16, 2, 2)),
        Case("float16", _rows(8, 24, 4, 2, dtype=torch.float16)),
    ),
    properties=(Property("every element is written", _unwritten),),
    misconceptions=(
        Misconception(
            "choice-for-token",
            "`order` holds numbers of choices, up to T·K, and you use them as rows of `x`, which has only T. Choice c "
            "belongs to token `c // top_k`.",
            kernel("gather_rows", ("order // top_k", "order")),
        ),
        Misconception(
            "remainder-for-token",
            "The remainder of the division by K is the column k of a choice. Its token is the quotient, "
            "`order // top_k`.",
            kernel("gather_rows", ("order // top_k", "order % top_k")),
        ),
        Misconception(
            "scattered",
            "You read rows in order and write them to where `order` points: a scatter. A gather reads from where "
            "`order` points and writes in order.",
            kernel(
                "gather_rows",
                ("x_ptr + tokens[:, None]", "x_ptr + (rows // top_k)[:, None]"),
                ("rows_ptr + rows[:, None]", "rows_ptr + order[:, None]"),
            ),
        ),
        Misconception(
            "column-mask-missing",
            "The last block of columns is ragged, and you do not mask it: it runs into the next row, and at the last "
            "row past the end. Mask `columns < width`.",
            kernel("gather_rows", (" & (columns < width)[None, :]", "")),
        ),
        Misconception(
            "row-mask-missing",
            "The last block of rows is ragged, and you do not mask it: it writes rows that do not exist. Mask "
            "`rows < num_rows`.",
            kernel("gather_rows", ("(rows < num_rows)[:, None] & ", "")),
        ),
        Misconception(
            "block-width-as-row-length",
            "You step from row to row by BLOCK_COLUMNS. A row of the tensor has `width` elements, however wide your "
            "block is.",
            kernel("gather_rows", ("[:, None] * width", "[:, None] * BLOCK_COLUMNS")),
        ),
        Misconception(
            "axes-swapped",
            "The grid's axis 0 counts blocks of rows and axis 1 blocks of columns. You have them the other way round, "
            "so some blocks are copied by nobody.",
            kernel(
                "gather_rows",
                ("tl.program_id(0)", "@"),
                ("tl.program_id(1)", "tl.program_id(0)"),
                ("@", "tl.program_id(1)"),
            ),
        ),
        Misconception(
            "first-columns-only",
            "All program instances copy the first block of columns, so the others are never written. The columns start "
            "at `tl.program_id(1) * BLOCK_COLUMNS`.",
            kernel("gather_rows", ("tl.program_id(1) * BLOCK_COLUMNS + ", "")),
        ),
    ),
    alternatives=(kernel("gather_rows"), kernel("gather_rows_one_by_one")),
    drive=kernel_drive(launch),
)
