"""The kernels that this lesson asks for, solved: the plainest right ones.

N = T·K choices, sorted into N rows; B blocks of choices; E experts; D the width of a row.
"""

from ..with_triton import tl, triton


@triton.jit
def count_experts(ids_ptr, counts_ptr, num_choices, num_experts, BLOCK: tl.constexpr, EXPERTS: tl.constexpr):
    """counts (B, E): how many choices of each block go to each expert. Program b owns row b."""
    block = tl.program_id(0)
    choices = block * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + choices, mask=choices < num_choices, other=-1)
    experts = tl.arange(0, EXPERTS)
    counts = tl.sum((ids[:, None] == experts[None, :]).to(tl.int32), axis=0)
    tl.store(counts_ptr + block * num_experts + experts, counts, mask=experts < num_experts)


@triton.jit
def expert_offsets(totals_ptr, offsets_ptr, num_experts, EXPERTS: tl.constexpr):
    """offsets (E + 1): where each expert's rows begin, and after them N."""
    experts = tl.arange(0, EXPERTS)
    totals = tl.load(totals_ptr + experts, mask=experts < num_experts, other=0)
    tl.store(offsets_ptr + experts, tl.cumsum(totals, axis=0) - totals, mask=experts < num_experts)
    tl.store(offsets_ptr + num_experts, tl.sum(totals, axis=0))


@triton.jit
def place_choices(ids_ptr, starts_ptr, order_ptr, num_choices, num_experts, BLOCK: tl.constexpr):
    """order (N): the number of the choice that each sorted row belongs to. Program b places block b."""
    block = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    choices = block * BLOCK + lanes
    here = choices < num_choices
    ids = tl.load(ids_ptr + choices, mask=here, other=-1)
    before_me = (ids[:, None] == ids[None, :]) & (lanes[None, :] < lanes[:, None])
    rank = tl.sum(before_me.to(tl.int32), axis=1)
    start = tl.load(starts_ptr + block * num_experts + ids, mask=here, other=0)
    tl.store(order_ptr + start + rank, choices, mask=here)


@triton.jit
def gather_rows(
    x_ptr, order_ptr, rows_ptr, num_rows, width, top_k, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    """rows (N, D): row i is the token of choice order[i]. Program (i, j) copies one block."""
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    order = tl.load(order_ptr + rows, mask=rows < num_rows, other=0)
    tokens = order // top_k
    inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
    values = tl.load(x_ptr + tokens[:, None] * width + columns[None, :], mask=inside)
    tl.store(rows_ptr + rows[:, None] * width + columns[None, :], values, mask=inside)


@triton.jit
def expert_tile(
    rows_ptr,
    w_ptr,
    out_ptr,
    tile_experts_ptr,
    tile_rows_ptr,
    offsets_ptr,
    d_in,
    d_out,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out (N, d_out): each row times its expert's matrix. Program (i, j) computes columns block j of tile i."""
    tile = tl.program_id(0)
    expert = tl.load(tile_experts_ptr + tile)
    rows = tl.load(tile_rows_ptr + tile) + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mine = rows < tl.load(offsets_ptr + expert + 1)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, d_in, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(rows_ptr + rows[:, None] * d_in + k[None, :], mask=mine[:, None] & (k < d_in)[None, :], other=0.0)
        b = tl.load(
            w_ptr + expert * d_out * d_in + columns[None, :] * d_in + k[:, None],
            mask=(k < d_in)[:, None] & (columns < d_out)[None, :],
            other=0.0,
        )
        acc = tl.dot(a, b, acc)
    inside = mine[:, None] & (columns < d_out)[None, :]
    tl.store(out_ptr + rows[:, None] * d_out + columns[None, :], acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def combine_rows(
    rows_ptr,
    positions_ptr,
    weights_ptr,
    out_ptr,
    num_tokens,
    width,
    TOP_K: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """out (T, D): the weighted sum of each token's K rows. Program (i, j) computes one block."""
    tokens = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    here = tokens < num_tokens
    inside = here[:, None] & (columns < width)[None, :]
    acc = tl.zeros((BLOCK_TOKENS, BLOCK_COLUMNS), dtype=tl.float32)
    for k in range(TOP_K):
        position = tl.load(positions_ptr + tokens * TOP_K + k, mask=here, other=0)
        weight = tl.load(weights_ptr + tokens * TOP_K + k, mask=here, other=0.0)
        rows = tl.load(rows_ptr + position[:, None] * width + columns[None, :], mask=inside, other=0.0)
        acc += weight[:, None].to(tl.float32) * rows.to(tl.float32)
    tl.store(out_ptr + tokens[:, None] * width + columns[None, :], acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def count_experts_by_histogram(
    ids_ptr, counts_ptr, num_choices, num_experts, BLOCK: tl.constexpr, EXPERTS: tl.constexpr
):
    """The same as count_experts, by Triton's own histogram."""
    block = tl.program_id(0)
    choices = block * BLOCK + tl.arange(0, BLOCK)
    here = choices < num_choices
    ids = tl.load(ids_ptr + choices, mask=here, other=0).to(tl.int32)
    counts = tl.histogram(ids, EXPERTS, mask=here)
    experts = tl.arange(0, EXPERTS)
    tl.store(counts_ptr + block * num_experts + experts, counts, mask=experts < num_experts)


@triton.jit
def expert_offsets_shifted(totals_ptr, offsets_ptr, num_experts, EXPERTS: tl.constexpr):
    """The same as expert_offsets: the inclusive total, one place further."""
    experts = tl.arange(0, EXPERTS)
    totals = tl.load(totals_ptr + experts, mask=experts < num_experts, other=0)
    tl.store(offsets_ptr, 0)
    tl.store(offsets_ptr + 1 + experts, tl.cumsum(totals, axis=0), mask=experts < num_experts)


@triton.jit
def place_choices_by_cumsum(ids_ptr, starts_ptr, order_ptr, num_choices, num_experts, BLOCK: tl.constexpr):
    """The same as place_choices: the rank by a running count, expert after expert."""
    block = tl.program_id(0)
    choices = block * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + choices, mask=choices < num_choices, other=-1)
    for expert in range(num_experts):
        mine = (ids == expert).to(tl.int32)
        start = tl.load(starts_ptr + block * num_experts + expert)
        tl.store(order_ptr + start + tl.cumsum(mine, axis=0) - 1, choices, mask=mine > 0)


@triton.jit
def gather_rows_one_by_one(
    x_ptr, order_ptr, rows_ptr, num_rows, width, top_k, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    """The same as gather_rows: a loop over the rows of the block."""
    first = tl.program_id(0) * BLOCK_ROWS
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    for row in range(first, min(first + BLOCK_ROWS, num_rows)):
        token = tl.load(order_ptr + row) // top_k
        values = tl.load(x_ptr + token * width + columns, mask=columns < width)
        tl.store(rows_ptr + row * width + columns, values, mask=columns < width)


@triton.jit
def expert_tile_transposed(
    rows_ptr,
    w_ptr,
    out_ptr,
    tile_experts_ptr,
    tile_rows_ptr,
    offsets_ptr,
    d_in,
    d_out,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The same as expert_tile: loads w as it is stored and transposes the block; adds with +=."""
    expert = tl.load(tile_experts_ptr + tl.program_id(0))
    rows = tl.load(tile_rows_ptr + tl.program_id(0)) + tl.arange(0, BLOCK_M)[:, None]
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mine = rows < tl.load(offsets_ptr + expert + 1)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, d_in, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)[None, :]
        a = tl.load(rows_ptr + rows * d_in + k, mask=mine & (k < d_in), other=0.0)
        w_rows = (expert * d_out + columns)[:, None]
        b = tl.load(w_ptr + w_rows * d_in + k, mask=(columns < d_out)[:, None] & (k < d_in), other=0.0)
        acc += tl.dot(a, tl.trans(b))
    inside = mine & (columns < d_out)[None, :]
    tl.store(out_ptr + rows * d_out + columns[None, :], acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def combine_rows_one_by_one(
    rows_ptr,
    positions_ptr,
    weights_ptr,
    out_ptr,
    num_tokens,
    width,
    TOP_K: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """The same as combine_rows: a loop over the tokens of the block."""
    first = tl.program_id(0) * BLOCK_TOKENS
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    for token in range(first, min(first + BLOCK_TOKENS, num_tokens)):
        acc = tl.zeros((BLOCK_COLUMNS,), dtype=tl.float32)
        for k in range(TOP_K):
            row = tl.load(positions_ptr + token * TOP_K + k)
            weight = tl.load(weights_ptr + token * TOP_K + k).to(tl.float32)
            acc += weight * tl.load(rows_ptr + row * width + columns, mask=columns < width, other=0.0).to(tl.float32)
        tl.store(out_ptr + token * width + columns, acc.to(out_ptr.dtype.element_ty), mask=columns < width)
