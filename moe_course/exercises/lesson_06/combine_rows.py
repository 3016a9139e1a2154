"""Exercise 06.combine_rows: bring the experts' outputs back to their tokens, in a fixed order and without atomics."""

import torch
from torch import Generator, Tensor

from ..launch import ReferenceKernel, kernel_drive, not_all_written, unwritten
from ..spec import Case, Exercise, Misconception, Property
from .inputs import Inputs, Make, ceil_div, flat_choices, kernel, order_of

BLOCK_TOKENS, BLOCK_COLUMNS = 16, 16


def spec(rows: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """out (T, D): for each token, Σ_k weights[t, k] · rows[positions[t·K + k]]."""
    by_choice = rows[positions].view(*weights.shape, rows.shape[1])
    return (by_choice.double() * weights[..., None].double()).sum(1).to(rows.dtype)


def launch(kernel, rows: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """A grid of blocks: tokens by columns."""
    (num_tokens, top_k), width = weights.shape, rows.shape[1]
    out = unwritten(num_tokens, width, dtype=rows.dtype)
    grid = (ceil_div(num_tokens, BLOCK_TOKENS), ceil_div(width, BLOCK_COLUMNS))
    blocks = {"BLOCK_TOKENS": BLOCK_TOKENS, "BLOCK_COLUMNS": BLOCK_COLUMNS}
    kernel[grid](rows, positions, weights, out, num_tokens, width, TOP_K=top_k, **blocks)
    return out


def _stand_in(rows_ptr, positions_ptr, weights_ptr, out_ptr, num_tokens, width, TOP_K, BLOCK_TOKENS, BLOCK_COLUMNS):
    out_ptr.copy_(spec(rows_ptr, positions_ptr, weights_ptr))


def _rows(num_tokens: int, width: int, num_experts: int, top_k: int, dtype: torch.dtype = torch.float32) -> Make:
    def make(generator: Generator) -> Inputs:
        order = order_of(flat_choices(num_tokens, num_experts, top_k, generator))
        rows = torch.randn(num_tokens * top_k, width, generator=generator).to(dtype)
        weights = (torch.rand(num_tokens, top_k, generator=generator) * 0.6 + 0.2).to(dtype)
        return {"rows": rows, "positions": order.argsort().int(), "weights": weights}

    return make


def _large_sums(generator: Generator) -> Inputs:
    """float16, with partial sums beyond its largest number, 65504, and a result below it."""
    rows = torch.randn(12, 16, generator=generator)
    rows[:8], rows[8:] = rows[:8] + 40_000, rows[8:] - 40_000
    first_to_last = torch.arange(12).view(3, 4).T.flatten()  # each token's rows: two large ones, then a negative one
    return {"rows": rows.half(), "positions": first_to_last.int(), "weights": torch.ones(4, 3).half()}


def _unwritten(inputs: Inputs, output: Tensor) -> str | None:
    return not_all_written(output)


COMBINE_ROWS = Exercise(
    id="06.combine_rows",
    entry="combine_rows",
    title="Back to tokens, without atomics",
    points=3,
    difficulty=2,
    minutes=15,
    hints=(
        "Turn it round: instead of having each row look for its token, let each token fetch its K rows. Then nobody "
        "else writes to its output, and the order of the additions is fixed.",
        "A program instance owns a rectangle of `out`. Loop over `range(TOP_K)`. In each step load the position and "
        "the weight of choice `tokens * TOP_K + k` for all tokens of the block, then the rectangle of rows at these "
        "positions, and add.",
        "`acc = tl.zeros((BLOCK_TOKENS, BLOCK_COLUMNS), dtype=tl.float32)`; in the loop load from "
        "`rows_ptr + position[:, None] * width + columns[None, :]` and add `weight[:, None].to(tl.float32) * "
        "rows.to(tl.float32)`. Store `acc.to(out_ptr.dtype.element_ty)`. Every load and the store are masked.",
    ),
    reference=ReferenceKernel(kernel("combine_rows"), spec, _stand_in),
    cases=(
        Case("top-2, whole blocks", _rows(16, 16, 4, 2)),
        Case("top-1", _rows(6, 16, 4, 1)),
        Case("ragged tokens, top-3", _rows(9, 16, 5, 3)),
        Case("ragged columns", _rows(16, 24, 4, 2)),
        Case("one token, K = E", _rows(1, 16, 4, 4)),
        Case("float16", _rows(7, 16, 4, 2, dtype=torch.float16)),
        Case("float16, large partial sums", _large_sums),
    ),
    properties=(Property("every element is written", _unwritten),),
    misconceptions=(
        Misconception(
            "positions-ignored",
            "You read rows t·K to t·K + K − 1, as if rows were in the order of the tokens. They are sorted by expert: "
            "choice c stands in row `positions[c]`.",
            kernel(
                "combine_rows",
                ("tl.load(positions_ptr + tokens * TOP_K + k, mask=here, other=0)", "tokens * TOP_K + k"),
            ),
        ),
        Misconception(
            "weights-in-sorted-order",
            "You look weights up by row. They are in the order of the choices, token after token: weight of choice "
            "`tokens * TOP_K + k`.",
            kernel("combine_rows", ("weights_ptr + tokens * TOP_K + k", "weights_ptr + position")),
        ),
        Misconception(
            "weights-missing",
            "The K rows are added up without their weights. Without them the router gets no gradient, either.",
            kernel("combine_rows", ("weight[:, None].to(tl.float32) * ", "")),
        ),
        Misconception(
            "mean-over-k",
            "You divide by K as well. The weights already say how much each expert counts.",
            kernel("combine_rows", ("acc.to(out", "(acc / TOP_K).to(out")),
        ),
        Misconception(
            "last-choice-only",
            "Each step overwrites the one before, so only the last of the K choices counts. Add: `acc += …`.",
            kernel("combine_rows", ("acc += ", "acc = ")),
        ),
        Misconception(
            "choices-by-column",
            "You take choice k of token t to be number k·T + t. Choices lie token after token: t·K + k.",
            kernel("combine_rows", ("tokens * TOP_K + k", "k * num_tokens + tokens")),
        ),
        Misconception(
            "column-mask-missing",
            "The last block of columns is ragged, and you do not mask it: it runs into the next row, and at the last "
            "row past the end. Mask `columns < width`.",
            kernel("combine_rows", (" & (columns < width)[None, :]", "")),
        ),
        Misconception(
            "token-mask-missing",
            "The last block of tokens is ragged, and your loads go past the last token: mask them, and the store, with "
            "`tokens < num_tokens`.",
            kernel(
                "combine_rows",
                (", mask=here, other=0)", ")"),
                (", mask=here, other=0.0)", ")"),
                ("here[:, None] & ", ""),
            ),
        ),
        Misconception(
            "accumulated-in-float16",
            "You add up in float16, which ends at 65504 and keeps 11 bits. Accumulate in float32 and round once, at "
            "the store.",
            kernel(
                "combine_rows",
                ("dtype=tl.float32", "dtype=out_ptr.dtype.element_ty"),
                ("weight[:, None].to(tl.float32) * rows.to(tl.float32)", "weight[:, None] * rows"),
            ),
        ),
    ),
    alternatives=(kernel("combine_rows"), kernel("combine_rows_one_by_one")),
    drive=kernel_drive(launch),
)
