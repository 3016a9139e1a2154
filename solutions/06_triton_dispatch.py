# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   moe_course:
#     title: The Triton dispatch kernel
#     promise: >-
#       Write the kernels that bring tokens to experts and back, one at a time, from a histogram to the combine. Run
#       them on any machine, and read what the compiler makes of yours for a GPU that you do not have.
#     objectives:
#       - Say what a program instance is, which elements it owns, and why it needs masks.
#       - Sort choices by expert with a histogram, offsets and ranks, stable and without atomics.
#       - Compute a grouped GEMM tile by tile, and choose the tile by what it wastes.
#       - Combine in a fixed order, so that equal inputs give equal bits.
#       - Read registers, spills and tensor-core instructions from a compile report, and bound a kernel's time.
#     prerequisites:
#       - Lesson 03, the expert layer
#     minutes: 150
#     difficulty: 3
# ---

# %% tags=["parameters"]
seed: int = 0  # of tokens, choices and weights
num_tokens: int = 22  # T of the running example; small, for the interpreter is slow
num_experts: int = 5  # E
top_k: int = 2  # K, experts per token
d_model: int = 24  # D
d_ff: int = 40  # F, hidden width of one expert
block: int = 16  # rows and columns of a block in the running example, a power of two of at least 16
compile_kernels: bool = True  # for GPUs in section 8; takes some 15 s of CPU time the first time

# %%
import torch
from torch import Tensor
from torch.nn import functional as F

from moe_course import Question, check, kernels, quiz, record, show, sliders
from moe_course.exercises.with_triton import DEVICE, tl, triton
from moe_course.figures import lesson_06 as figures

if kernels.why_unavailable():
    print("Your kernels cannot run here.", kernels.why_unavailable() + ".")
    print("Read on all the same: PyTorch stands in for every kernel, and what needs none is checked as ever.")
elif kernels.is_interpreting():
    print(f"Triton {triton.__version__} interprets your kernels on the CPU: right, and slow.")
else:
    print(f"Triton {triton.__version__} compiles your kernels for {torch.cuda.get_device_name()}.")

# %% [markdown]
# ## 1. A kernel, and its program instances
#
# Lesson 03 ended with six PyTorch operations: sort, gather, two grouped products, an inverse and a sum. On a GPU each
# is a **kernel**, a function that thousands of threads run together. Now you write them yourself.
#
# In Triton you write what *one* **program instance** does. The launch says how many there are, `kernel[grid](…)`, and
# the GPU runs them in any order, many at a time. An instance asks for its number and does its share. It works on
# **blocks**: whole vectors of numbers, whose sizes are known beforehand and are powers of two.
#
# Here is the smallest useful one. Read it line by line.

# %%
@triton.jit
def double(x_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """out = 2 · x. Instance i doubles elements i·BLOCK to i·BLOCK + BLOCK − 1."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # BLOCK numbers: which elements are mine
    here = at < size  # the last block may reach beyond the end
    values = tl.load(x_ptr + at, mask=here)  # addresses: where x begins, plus BLOCK offsets
    tl.store(out_ptr + at, 2 * values, mask=here)


if kernels.is_available():
    numbers = torch.arange(10.0, device=DEVICE)
    doubled = torch.empty_like(numbers)
    double[(triton.cdiv(10, 4),)](numbers, doubled, 10, BLOCK=4)
    print(doubled.tolist())

# %% [markdown]
# A pointer such as `x_ptr` is where a tensor begins. `x_ptr + at` is a block of addresses. Nothing checks them: an
# address past the end belongs to somebody else. That is what **masks** are for. A lane whose mask is false loads
# nothing (`other` says what it holds instead) and stores nothing.
#
# In two dimensions a block is a rectangle. With `r` as a column and `c` as a row, `r[:, None] * width + c[None, :]` is
# a rectangle of offsets.

# %%
show(figures.programs(num_rows=11, width=20, block_rows=4, block_columns=8))

# %% [markdown]
# **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "A kernel like `double` forgets both masks. x has 10 elements and BLOCK is 4. What happens on a GPU?",
        [
            "An error: index out of range",
            "It reads and writes two elements beyond the tensors, and usually nobody notices",
            "The last instance does not run",
        ],
        1,
        [
            "There are no indices, only addresses. The GPU sees nothing wrong with them as long as the memory exists.",
            "The memory there is often another tensor of yours. Its values change, and something else fails later.",
            "Three instances are launched, since 10 / 4 is rounded up. The third has two lanes too many.",
        ],
    )
)

# %% [markdown]
# Your kernels will not get away with it. In this lesson `check` puts margins around every tensor and looks at each
# load and store. It also tells you when two instances write different values to the same element, which a GPU would
# let pass, with a result that changes from run to run.
#
# **Without a GPU** the kernels run in Triton's interpreter: one instance after another, each operation in NumPy. It
# gives the right numbers in float32 and float16, and says nothing about speed. For bfloat16 it does not give the right
# numbers; section 7 shows it.
#
# Here is the whole road, for six tokens with two choices each.

# %%
few_ids = torch.tensor([[0, 2], [1, 0], [2, 3], [0, 1], [2, 0], [0, 3]])
show(figures.road(few_ids, num_experts=4))

# %% [markdown]
# From left to the middle: count each expert's choices, find where its rows begin, put every choice into its row,
# fetch the tokens. In the middle: multiply, tile by tile. To the right: each token adds up its rows. That makes seven
# exercises, and an eighth puts them together.

# %%
generator = torch.Generator().manual_seed(seed)
x = torch.randn(num_tokens, d_model, generator=generator)
preference = torch.linspace(1.5, -1.5, num_experts)  # an uneven router, as routers are
logits = torch.randn(num_tokens, num_experts, generator=generator) + preference
expert_weights, expert_ids = logits.softmax(-1).topk(top_k)
w_in = torch.randn(num_experts, d_ff, d_model, generator=generator) * d_model**-0.5
w_out = torch.randn(num_experts, d_model, d_ff, generator=generator) * d_ff**-0.5
layer = [tensor.to(DEVICE) for tensor in (x, expert_ids, expert_weights, w_in, w_out)]
x, expert_ids, expert_weights, w_in, w_out = layer
choices = expert_ids.flatten()  # N = T·K of them, token after token

print(f"N = {len(choices)} choices;", "rows of each expert:", choices.bincount(minlength=num_experts).tolist())

# %% [markdown]
# ## 2. Count, add up, place: a sort without comparisons
#
# There are few experts and many choices. Such keys are sorted best by **counting**. Once you know how many choices go
# to each expert, you know where its rows begin, and every choice can go straight to its row. No two choices are ever
# compared.
#
# First count. Each instance takes a block of choices and writes a row of counts of its own, so that nobody has to wait
# for anybody.
#
# ### Exercise: count, block by block
#
# The PyTorch function above the kernel says what is asked. `EXPERTS` is `num_experts` rounded up to a power of two.

# %% exercise="06.count_experts"
def count_experts_spec(expert_ids, num_experts, block):
    """What the kernel computes, in PyTorch: counts (B, E)."""
    return torch.stack([part.bincount(minlength=num_experts) for part in expert_ids.split(block)]).int()


@triton.jit
def count_experts(ids_ptr, counts_ptr, num_choices, num_experts, BLOCK: tl.constexpr, EXPERTS: tl.constexpr):
    """Count how many choices of each block go to each expert.

    ids_ptr: expert ids (N,), int64.
    counts_ptr: the output (B, E), int32, which may hold anything before. Program instance b counts choices b·BLOCK to
        b·BLOCK + BLOCK − 1, as far as they exist, and writes row b.
    num_choices, num_experts: N and E.
    BLOCK, EXPERTS: sizes of blocks, powers of two. EXPERTS is at least num_experts.
    """
    ### BEGIN SOLUTION
    instance = tl.program_id(0)
    choices = instance * BLOCK + tl.arange(0, BLOCK)
    ids = tl.load(ids_ptr + choices, mask=choices < num_choices, other=-1)
    experts = tl.arange(0, EXPERTS)
    counts = tl.sum((ids[:, None] == experts[None, :]).to(tl.int32), axis=0)
    tl.store(counts_ptr + instance * num_experts + experts, counts, mask=experts < num_experts)
    ### END SOLUTION

# %% check="06.count_experts"
count_experts = check(count_experts)

# %% tags=["nbval-check-output"]
def count(choices: Tensor, num_experts: int) -> Tensor:
    """Launch it: (N,) to (B, E)."""
    blocks = triton.cdiv(len(choices), block)
    counts = torch.empty(blocks, num_experts, dtype=torch.int32, device=choices.device)
    lanes = triton.next_power_of_2(num_experts)
    count_experts[(blocks,)](choices, counts, len(choices), num_experts, BLOCK=block, EXPERTS=lanes)
    return counts


counts = count(choices, num_experts)
print(f"counts of {len(counts)} blocks of {block} choices:")
print("\n".join(f"  block {b}: {row}" for b, row in enumerate(counts.tolist())))
print("equal to the spec:", torch.equal(counts, count_experts_spec(choices, num_experts, block)))

# %% [markdown]
# **What just happened.** The last block has fewer choices than lanes. A lane without a choice must count for nobody,
# which is why it holds −1 and not 0: expert 0 exists.
#
# The totals are the sum of the rows. Where do an expert's rows begin? After all rows of the experts before it. That is
# an **exclusive** running total: the expert itself does not count.
#
# ### Exercise: where each expert begins
#
# One instance does it all. It writes $E + 1$ numbers, so that expert $e$ owns the rows from `offsets[e]` up to, but
# without, `offsets[e + 1]`.

# %% exercise="06.expert_offsets"
def expert_offsets_spec(totals):
    """What the kernel computes, in PyTorch: offsets (E + 1,)."""
    return torch.cat([totals.new_zeros(1), totals.cumsum(0)]).int()


@triton.jit
def expert_offsets(totals_ptr, offsets_ptr, num_experts, EXPERTS: tl.constexpr):
    """Find where each expert's rows begin.

    totals_ptr: rows of each expert (E,), int32.
    offsets_ptr: the output (E + 1,), int32: where each expert's rows begin, and last the number of all rows.
    num_experts: E.
    EXPERTS: size of the block, a power of two of at least num_experts.
    """
    ### BEGIN SOLUTION
    experts = tl.arange(0, EXPERTS)
    totals = tl.load(totals_ptr + experts, mask=experts < num_experts, other=0)
    tl.store(offsets_ptr + experts, tl.cumsum(totals, axis=0) - totals, mask=experts < num_experts)
    tl.store(offsets_ptr + num_experts, tl.sum(totals, axis=0))
    ### END SOLUTION

# %% check="06.expert_offsets"
expert_offsets = check(expert_offsets)

# %% [markdown]
# Now an expert's rows are known, and how many of them each block has. Block $b$'s choices of expert $e$ come after
# those of the blocks before it:
#
# $$\text{start}_{be} = \text{offset}_e + \sum_{b' < b} \text{count}_{b'e} .$$

# %% tags=["nbval-check-output"]
def starts_of(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Where each expert's rows begin (E + 1,), and in which row each block's first choice of it goes (B, E)."""
    totals, num_experts = counts.sum(0, dtype=torch.int32), counts.shape[1]
    offsets = torch.empty(num_experts + 1, dtype=torch.int32, device=counts.device)
    expert_offsets[(1,)](totals, offsets, num_experts, EXPERTS=triton.next_power_of_2(num_experts))
    return offsets, (offsets[:-1] + counts.cumsum(0) - counts).int()


offsets, starts = starts_of(counts)
print("offsets:", offsets.tolist())
print("\n".join(f"  block {b} starts at rows {row}" for b, row in enumerate(starts.tolist())))

# %% [markdown]
# **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "Block 1 holds the ids [2, 0, 2, 2], and its starts are [5, 9, 12]. In which rows do its four choices go?",
        ["12, 5, 12, 12", "12, 5, 13, 14", "13, 6, 14, 15", "14, 5, 13, 12"],
        1,
        [
            "Then three choices share row 12, and two of them are lost.",
            "The first choice of expert 2 goes to row 12, the second to 13, the third to 14: start plus rank.",
            "Ranks begin at 0: the first one goes to the start itself.",
            "Each has a row of its own, but the expert's choices are in reverse: the sort is not stable.",
        ],
    )
)

# %% [markdown]
# ### Exercise: every choice finds its row
#
# A choice's row is `starts[block, id]` plus its **rank**: how many earlier choices of its block have the same expert.
# Store the *number of the choice* in that row. It is the hardest idea of this lesson, and six lines.

# %% exercise="06.place_choices"
def place_choices_spec(expert_ids, starts, block):
    """What the kernel computes, in PyTorch: order (N,)."""
    return expert_ids.argsort(stable=True).int()


@triton.jit
def place_choices(ids_ptr, starts_ptr, order_ptr, num_choices, num_experts, BLOCK: tl.constexpr):
    """Write each choice's number into its row.

    ids_ptr: expert ids (N,), int64.
    starts_ptr: (B, E), int32: the row of block b's first choice of expert e.
    order_ptr: the output (N,), int32: the number of the choice in each row. Program instance b places block b.
    num_choices, num_experts: N and E.
    BLOCK: choices of a block, a power of two.
    """
    ### BEGIN SOLUTION
    instance = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    choices = instance * BLOCK + lanes
    here = choices < num_choices
    ids = tl.load(ids_ptr + choices, mask=here, other=-1)
    before_me = (ids[:, None] == ids[None, :]) & (lanes[None, :] < lanes[:, None])
    rank = tl.sum(before_me.to(tl.int32), axis=1)
    start = tl.load(starts_ptr + instance * num_experts + ids, mask=here, other=0)
    tl.store(order_ptr + start + rank, choices, mask=here)
    ### END SOLUTION

# %% check="06.place_choices"
place_choices = check(place_choices)

# %% tags=["nbval-check-output"]
def sort_on_device(expert_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """Three launches: expert_ids (T, K) to order (N,) and offsets (E + 1,)."""
    choices = expert_ids.flatten()
    offsets, starts = starts_of(count(choices, num_experts))
    order = torch.empty(len(choices), dtype=torch.int32, device=choices.device)
    grid = (triton.cdiv(len(choices), block),)
    place_choices[grid](choices, starts, order, len(choices), num_experts, BLOCK=block)
    return order, offsets


order, offsets = sort_on_device(expert_ids, num_experts)
print("order:  ", order.tolist())
print("experts:", choices[order].tolist())
print("equal to a stable argsort:", torch.equal(order, place_choices_spec(choices, starts, block)))

# %% [markdown]
# ### The shortcut, and its price
#
# There is a shorter way. Keep one counter for each expert, and let every choice take the next free row:
# `tl.atomic_add(counter + id, 1)` adds 1 and returns what was there before, in one step that nobody can interrupt. No
# counts of blocks, no ranks. Many kernels do it.
#
# Its price shows when instances run in another order, as they may on a GPU. Here the order is part of the input.

# %%
@triton.jit
def place_by_atomics(ids_ptr, counters_ptr, order_ptr, turns_ptr, num_choices, BLOCK: tl.constexpr):
    """Every choice takes the next free row of its expert. Instance i does block turns[i]."""
    block = tl.load(turns_ptr + tl.program_id(0))
    choices = block * BLOCK + tl.arange(0, BLOCK)
    here = choices < num_choices
    ids = tl.load(ids_ptr + choices, mask=here, other=0)
    row = tl.atomic_add(counters_ptr + ids, 1, mask=here)
    tl.store(order_ptr + row, choices, mask=here)


if kernels.is_available():
    orders = []
    blocks = triton.cdiv(len(choices), block)
    for turns in (range(blocks), reversed(range(blocks))):
        counters, mixed = offsets[:-1].clone(), torch.empty_like(order)
        turns = torch.tensor(list(turns), device=DEVICE)
        place_by_atomics[(blocks,)](choices, counters, mixed, turns, len(choices), BLOCK=block)
        orders.append(mixed)
    same_experts = torch.equal(choices[orders[0]], choices[orders[1]])
    print("both orders are sorted by expert:", same_experts)
    print("rows that hold another choice:   ", int((orders[0] != orders[1]).sum()), "of", len(choices))

# %% [markdown]
# **What just happened.** Both are right answers, and they differ. The layer's *output* does not notice. But the
# gradient of a weight matrix is a sum over the rows of its expert, and it now adds them up in another order: equal
# inputs no longer give equal bits. A training run that
# cannot be repeated cannot be debugged. Your version needs no atomics and always gives the same order.
#
# ## 3. Gather
#
# `order[i]` is the choice in row $i$. Choices lie token after token, so its token is `order[i] // K`. The gather copies
# that token's row of `x`, a rectangle at a time.
#
# ### Exercise: gather a block of rows

# %% exercise="06.gather_rows"
def gather_rows_spec(x, order, top_k):
    """What the kernel computes, in PyTorch: rows (N, D)."""
    return x[order // top_k]


@triton.jit
def gather_rows(
    x_ptr, order_ptr, rows_ptr, num_rows, width, top_k, BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr
):
    """Copy each row's token from x.

    x_ptr: tokens (T, D), contiguous.
    order_ptr: the number of the choice in each row (N,), int32.
    rows_ptr: the output (N, D). Program instance (i, j) copies the i-th block of rows and the j-th of columns.
    num_rows, width, top_k: N, D and K.
    BLOCK_ROWS, BLOCK_COLUMNS: sizes of a block, powers of two.
    """
    ### BEGIN SOLUTION
    rows = tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    tokens = tl.load(order_ptr + rows, mask=rows < num_rows, other=0) // top_k
    inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
    values = tl.load(x_ptr + tokens[:, None] * width + columns[None, :], mask=inside)
    tl.store(rows_ptr + rows[:, None] * width + columns[None, :], values, mask=inside)
    ### END SOLUTION

# %% check="06.gather_rows"
gather_rows = check(gather_rows)

# %% tags=["nbval-check-output"]
def gathered(x: Tensor, order: Tensor, top_k: int) -> Tensor:
    """Launch it: x (T, D) to rows (N, D)."""
    num_rows, width = len(order), x.shape[1]
    rows = x.new_empty(num_rows, width)
    grid = (triton.cdiv(num_rows, block), triton.cdiv(width, block))
    gather_rows[grid](x, order, rows, num_rows, width, top_k, BLOCK_ROWS=block, BLOCK_COLUMNS=block)
    return rows


rows = gathered(x, order, top_k)
print(f"{triton.cdiv(len(rows), block)} × {triton.cdiv(d_model, block)} instances copied {len(rows)} rows of {d_model}")
print("equal to the spec:", torch.equal(rows, gather_rows_spec(x, order.long(), top_k)))

# %% [markdown]
# A production kernel does not stop here. It loads rows through `order` *inside* the matrix product, so that the copy
# is never made: the gather is **fused** into the load. `moe_course.kernels` does so. You keep the two apart, since each
# is easier to see alone.
#
# ## 4. Why sort at all: tiles
#
# A tensor core multiplies small matrices. To keep it busy, an instance computes a whole **tile** of the output: a block
# of rows times a block of columns. All rows of a tile are multiplied by the *same* weight matrix. So they must belong
# to the same expert. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "Take 16 choices of 8 experts just as they come, without sorting. About how many different experts are among "
        "them, if all are equally likely?",
        ["1 or 2", "about 4", "about 7", "16"],
        2,
        [
            "That is what sorting gives.",
            "Each expert is missing with probability (7/8)^16 = 12 %, so about 7 of 8 are there.",
            "Each expert is missing with probability (7/8)^16 = 12 %, so about 7 of 8 are there.",
            "There are only 8.",
        ],
    )
)

# %% tags=["nbval-check-output"]
drawn = torch.randint(0, 8, (4096,), generator=torch.Generator().manual_seed(seed))
print("different experts in a block of 16 choices, on average of 256 blocks")
for name, ids in (("as they come", drawn), ("sorted", drawn.sort().values)):
    print(f"  {name:14}{sum(len(part.unique()) for part in ids.split(16)) / 256:.2f}")

# %% [markdown]
# **What just happened.** Unsorted, a tile would need seven weight matrices and use each for about two rows. Sorted, it
# needs one. Sorting is what makes the product a product of matrices.
#
# ### Exercise: one tile of the grouped GEMM
#
# Write the heart of it. An instance computes one tile: rows of one expert, `BLOCK_N` columns. Which expert, and which
# row is the tile's first, stands in two tables; the next exercise makes them. The sum along `d_in` is too long for one
# block, so walk along it and add up: `acc = tl.dot(a, b, acc)`.
#
# Rows end where the expert's rows end, at `offsets[expert + 1]`. The weights are stored as `nn.Linear` stores its own,
# `(d_out, d_in)` for each expert.

# %% exercise="06.expert_tile"
def expert_tile_spec(rows, w, tile_experts, tile_rows, offsets):
    """What the kernel computes, in PyTorch: out (N, d_out)."""
    parts = rows.split(offsets.diff().tolist())
    return torch.cat([part @ matrix.T for part, matrix in zip(parts, w, strict=True)])


@triton.jit
def expert_tile(
    rows_ptr, w_ptr, out_ptr, tile_experts_ptr, tile_rows_ptr, offsets_ptr, d_in, d_out,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """Multiply one tile of sorted rows by its expert's matrix.

    rows_ptr: rows sorted by expert (N, d_in), contiguous.
    w_ptr: stacked weights (E, d_out, d_in), contiguous.
    out_ptr: the output (N, d_out). Program instance (i, j) computes tile i's rows and the j-th block of columns.
    tile_experts_ptr, tile_rows_ptr: the expert and the first row of each tile.
    offsets_ptr: where each expert's rows begin (E + 1,).
    d_in, d_out: widths of rows and out.
    BLOCK_M, BLOCK_N, BLOCK_K: rows and columns of a tile, and how many of d_in to take at a time.
    """
    ### BEGIN SOLUTION
    tile = tl.program_id(0)
    expert = tl.load(tile_experts_ptr + tile)
    rows = tl.load(tile_rows_ptr + tile) + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    mine, wide = rows < tl.load(offsets_ptr + expert + 1), columns < d_out
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, d_in, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        deep = k < d_in
        a = tl.load(rows_ptr + rows[:, None] * d_in + k[None, :], mask=mine[:, None] & deep[None, :], other=0.0)
        w_at = expert * d_out * d_in + columns[None, :] * d_in + k[:, None]
        b = tl.load(w_ptr + w_at, mask=deep[:, None] & wide[None, :], other=0.0)
        acc = tl.dot(a, b, acc)
    out_at = rows[:, None] * d_out + columns[None, :]
    tl.store(out_ptr + out_at, acc.to(out_ptr.dtype.element_ty), mask=mine[:, None] & wide[None, :])
    ### END SOLUTION

# %% check="06.expert_tile"
expert_tile = check(expert_tile)

# %% [markdown]
# **Why float32 for `acc`?** float16 keeps 11 bits and ends at 65504. Add up in it and small terms vanish, or the sum
# becomes infinite on the way to a harmless result. The tensor cores of an A100 or H100 multiply float16
# and add in float32 at the same rate. So accumulate in float32 and round once.
#
# ## 5. Which tile is whose
#
# The launch is one list of equal instances, yet experts have different numbers of rows. The **tile map** connects the
# two. An expert with $n$ rows gets $\lceil n / \text{block} \rceil$ tiles, and no tile holds rows of two experts. Play
# with it. `skew` makes the router uneven:
#
# 1. At `block` 16, raise `skew`. Does the share of lanes in use fall as that of one-hot slots does?
# 2. Raise `block` to 128 with 64 experts. Why does the share collapse?
# 3. Find a setting in which an expert has no row. How many tiles has it?

# %%
def occupancy(block: int, skew: float, num_experts: int, num_rows: int):
    """Tiles of one batch."""
    draw = torch.Generator().manual_seed(seed)
    likely = (skew * torch.linspace(1, -1, num_experts)).softmax(0)
    drawn = torch.multinomial(likely, num_rows, replacement=True, generator=draw)
    return figures.tiles(drawn.bincount(minlength=num_experts), block)


sliders(
    occupancy,
    block=([8, 16, 32, 64, 128], 16),
    skew=(0.0, 4.0, 0.25, 0.5),
    num_experts=([4, 8, 16, 64], 8),
    num_rows=([64, 256, 1024], 256),
)

# %% [markdown]
# **What just happened.** Each expert wastes less than one tile, however uneven the loads. One-hot slots waste as much
# as the busiest expert dictates. What hurts tiles is a large block where experts have few rows.
#
# ### Exercise: the tile map
#
# This one is plain PyTorch. Loops are fine.

# %% exercise="06.tile_map"
def tile_map(tokens_per_expert: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Cut each expert's rows into tiles.

    Args:
        tokens_per_expert: rows of each expert, (E,), int64; some may be 0.
        block: rows of a tile.

    Returns:
        tile_experts: the expert of each tile, (tiles,), int64.
        tile_rows: the first row of each tile among the N sorted rows, (tiles,), int64. An expert's rows are not
            padded: they begin where those of the expert before end.
    """
    ### BEGIN SOLUTION
    tiles = (tokens_per_expert + block - 1) // block
    experts = torch.arange(len(tiles), device=tiles.device)
    tile_experts = experts.repeat_interleave(tiles)
    first_row = tokens_per_expert.cumsum(0) - tokens_per_expert
    first_tile = tiles.cumsum(0) - tiles
    number = torch.arange(len(tile_experts), device=tiles.device) - first_tile[tile_experts]
    return tile_experts, first_row[tile_experts] + number * block
    ### END SOLUTION

# %% check="06.tile_map"
tile_map = check(tile_map)

# %% tags=["nbval-check-output"]
def grouped(rows: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """Launch the tiles: rows (N, d_in) and w (E, d_out, d_in) to (N, d_out)."""
    d_out, d_in = w.shape[1:]
    tile_experts, tile_rows = (t.to(rows.device) for t in tile_map(offsets.diff().long().cpu(), block))
    out = rows.new_empty(len(rows), d_out)
    grid = (len(tile_experts), triton.cdiv(d_out, block))
    sizes = {"BLOCK_M": block, "BLOCK_N": block, "BLOCK_K": block}
    expert_tile[grid](rows, w, out, tile_experts, tile_rows, offsets, d_in, d_out, **sizes)
    return out


tile_experts, tile_rows = tile_map(offsets.diff().long().cpu(), block)
for expert, row in zip(tile_experts.tolist(), tile_rows.tolist(), strict=True):
    end = min(row + block, int(offsets[expert + 1]))
    print(f"  rows {row:>2} to {end - 1:>2}, expert {expert}: {end - row:>2} of {block} lanes")
hidden = grouped(rows, w_in, offsets)
spec = expert_tile_spec(rows, w_in, tile_experts, tile_rows, offsets)
print("equal to the spec:", torch.allclose(hidden, spec, atol=1e-5))
record(lanes_in_use=figures.padding_efficiency(offsets.diff().cpu(), block))  # kept for tables over many runs

# %% [markdown]
# ### How large a block?
#
# Large tiles reuse what they load: a tile of $M \times N$ reads $(M + N) \cdot d$ numbers for $M \cdot N \cdot d$
# multiplications. Small tiles waste fewer lanes. How fast the waste grows depends on the rows that an expert has on
# average. Take the shapes of two published models and draw choices at random, evenly:

# %% tags=["nbval-check-output"]
layers = {"Mixtral 8x7B, E = 8, K = 2": (8, 2), "OLMoE-1B-7B, E = 64, K = 8": (64, 8)}
block_sizes = [8, 16, 32, 64, 128, 256]
efficiency = {}
print(f"{'share of lanes in use, blocks of':46}" + "".join(f"{size:>6}" for size in block_sizes))
for name, (experts, k) in layers.items():
    for tokens in (16, 256, 4096):
        draw = torch.Generator().manual_seed(seed)
        drawn = torch.rand(tokens, experts, generator=draw).topk(k).indices.flatten()
        loads = drawn.bincount(minlength=experts)
        shares = [figures.padding_efficiency(loads, size) for size in block_sizes]
        efficiency[f"{name.split(',')[0]}, T = {tokens}"] = shares
        print(f"{name + f', T = {tokens}':46}" + "".join(f"{share:>6.0%}" for share in shares))

# %%
show(figures.padding(efficiency, block_sizes))

# %% [markdown]
# **What just happened.** With 4096 tokens both layers fill tiles of 64 and more. With 16 tokens, as when a server
# generates text, OLMoE's experts have two rows on average, and even a tile of 16 is mostly empty. No tile is best for
# both: the course's kernels choose it by the mean number of rows, and vLLM by the number of tokens.
#
# ## 6. Back to tokens
#
# The way back has two forms again. Each row can look for its token and add itself: that takes atomics, in an order that
# nobody fixes. Or each token **fetches** its $K$ rows and adds them up, always in the same order. For that it must know
# where its choices went: `positions`, the inverse of `order`.
#
# ### Exercise: combine, without atomics

# %% exercise="06.combine_rows"
def combine_rows_spec(rows, positions, weights):
    """What the kernel computes, in PyTorch: out (T, D)."""
    by_choice = rows[positions].view(*weights.shape, rows.shape[1])
    return (by_choice * weights[..., None]).sum(1)


@triton.jit
def combine_rows(
    rows_ptr, positions_ptr, weights_ptr, out_ptr, num_tokens, width,
    TOP_K: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):
    """Add up each token's K rows, weighted.

    rows_ptr: outputs of the experts, sorted by expert (N, D), contiguous.
    positions_ptr: the row of each choice t·K + k (N,), int32.
    weights_ptr: routing weights (T, K), contiguous.
    out_ptr: the output (T, D). Program instance (i, j) computes the i-th block of tokens and the j-th of columns.
    num_tokens, width: T and D.
    TOP_K: K.
    BLOCK_TOKENS, BLOCK_COLUMNS: sizes of a block, powers of two.
    """
    ### BEGIN SOLUTION
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
    ### END SOLUTION

# %% check="06.combine_rows"
combine_rows = check(combine_rows)

# %% [markdown]
# What would atomics do to the sum? Take three numbers, and add them in two orders. No kernel is needed to see it:

# %% tags=["nbval-check-output"]
a, b, c = torch.tensor([1e8, -1e8, 1.0])
print("float32: (a + b) + c =", ((a + b) + c).item(), "   (c + b) + a =", ((c + b) + a).item())

# %% [markdown]
# ## 7. The whole road
#
# ### Exercise: the layer from your kernels
#
# You have `sort_on_device`, `gathered` and `grouped`; `combined` is below. Put the layer of lesson 03 together.

# %%
def combined(rows: Tensor, order: Tensor, expert_weights: Tensor) -> Tensor:
    """Launch the combine: rows (N, D) sorted by expert to (T, D)."""
    (tokens, top_k), width = expert_weights.shape, rows.shape[1]
    positions = torch.empty_like(order)
    positions[order.long()] = torch.arange(len(order), dtype=order.dtype, device=order.device)  # the inverse
    out = rows.new_empty(tokens, width)
    grid = (triton.cdiv(tokens, block), triton.cdiv(width, block))
    sizes = {"BLOCK_TOKENS": block, "BLOCK_COLUMNS": block}
    combine_rows[grid](rows, positions, expert_weights.contiguous(), out, tokens, width, TOP_K=top_k, **sizes)
    return out

# %% [markdown]
# The experts are `F.gelu` between two grouped products, as before.

# %% exercise="06.tiled_experts"
def tiled_experts(
    x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor
) -> Tensor:
    """The MoE layer, from the kernels of this lesson.

    Args:
        x: tokens, (T, D).
        expert_ids: the K experts of each token, (T, K).
        expert_weights: their weights, (T, K).
        w_in: first weights of all experts, (E, F, D).
        w_out: second weights of all experts, (E, D, F).

    Returns:
        (T, D): for each token, the weighted sum of its experts' outputs.
    """
    ### BEGIN SOLUTION
    order, offsets = sort_on_device(expert_ids, len(w_in))
    rows = gathered(x, order, expert_ids.shape[1])
    hidden = F.gelu(grouped(rows, w_in, offsets))
    return combined(grouped(hidden, w_out, offsets), order, expert_weights)
    ### END SOLUTION

# %% check="06.tiled_experts"
tiled_experts = check(tiled_experts)

# %% [markdown]
# Now compare, with inputs that like to break kernels. The yardstick is the loop of lesson 03 in float64. Beside yours
# stands `kernels.triton_dispatch`, the course's own: the gather is fused into the first product's load, GELU and
# weights into the stores, and it has a backward pass, autotuned tiles and `torch.compile` support.

# %%
from moe_course.layers import loop_dispatch


def case(tokens: int, experts: int, k: int, dtype=torch.float32, loads: str = "uneven") -> list[Tensor]:
    """A layer and its tokens: x, expert_ids, expert_weights, w_in, w_out."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, experts, generator=draw) + torch.linspace(0.5, -0.5, experts)
    if loads == "idle":
        scores[:, 1::2] -= 2  # every other expert gets nothing
    ids = scores.topk(k).indices
    if loads == "single":
        ids[:] = 0
        ids[0] = experts - 1  # one token for the last expert, all others to expert 0
    weights = torch.rand(tokens, k, generator=draw)
    stacks = [torch.randn(experts, *shape, generator=draw) / 5 for shape in ((d_ff, d_model), (d_model, d_ff))]
    tensors = torch.randn(tokens, d_model, generator=draw), ids, weights, *stacks
    return [t.to(DEVICE, dtype) if t.is_floating_point() else t.to(DEVICE) for t in tensors]


def error(way, inputs: list[Tensor]) -> str:
    """Largest difference from the loop in float64, over the largest value."""
    exact = loop_dispatch(*[t.double() if t.is_floating_point() else t for t in inputs])
    return f"{((way(*inputs).double() - exact).abs().max() / exact.abs().max()).item():.0e}"


cases = {
    "uneven, T = 22, no multiple of 16": case(22, 5, 2),
    "every other expert idle": case(20, 6, 2, loads="idle"),
    "one token alone with its expert": case(17, 4, 1, loads="single"),
    "one token": case(1, 4, 2),
    "K = E": case(9, 3, 3),
    "float16": case(22, 5, 2, dtype=torch.float16),
}
ours = kernels.triton_dispatch if kernels.is_available() else None
print(f"{'largest error over largest value':36}{'yours':>10}{'course':>10}")
for name, inputs in cases.items():
    print(f"{name:36}{error(tiled_experts, inputs):>10}{error(ours, inputs) if ours else 'no Triton':>10}")
record(largest_error=max(float(error(tiled_experts, inputs)) for inputs in cases.values()))

# %% [markdown]
# **What just happened.** float32 errors are those of rounding, and so are the larger ones of float16, which keeps 11
# bits. No case is special: idle experts have no tile, single tokens have one, ragged ends are masked.
#
# **bfloat16** is missing, and it is what everybody trains in. The interpreter keeps bfloat16 as 16-bit integers and
# hands these to NumPy. `tl.dot` then multiplies bit patterns. See for yourself, with your own kernel:

# %%
if kernels.is_available():
    half = [t.bfloat16() for t in (rows, w_in)]
    exact = expert_tile_spec(rows.double(), w_in.double(), tile_experts, tile_rows, offsets)
    off = (grouped(*half, offsets).double() - exact).abs().max() / exact.abs().max()
    print(f"bfloat16, largest error over largest value: {off:.0e}")
    print("that is nonsense, and nothing warned you" if off > 1 else "that is bfloat16's rounding: 8 bits")

# %% [markdown]
# So this course tests in float32 and float16, and *compiles* in bfloat16. `triton_dispatch` knows of it: under the
# interpreter it computes bfloat16 in float32. On a GPU `tl.dot` is right.
#
# ### Weights belong on the output
#
# A fused kernel has several places where the routing weight could be multiplied on. Two are right: after the second
# product, or on the hidden activations after the GELU, since the second product is linear. One is wrong:

# %% tags=["nbval-check-output"]
one, ids1 = torch.ones_like(expert_weights[:, :1]), expert_ids[:, :1]
weight = expert_weights[:, :1]
right = loop_dispatch(x, ids1, weight, w_in, w_out)
on_input = loop_dispatch(x * weight, ids1, one, w_in, w_out)
picked_in, picked_out = w_in[ids1[:, 0]], w_out[ids1[:, 0]]
inside = weight * F.gelu(torch.einsum("td,tfd->tf", x, picked_in))
on_hidden = torch.einsum("tf,tdf->td", inside, picked_out)
for name, out in (("on the hidden activations", on_hidden), ("on the input", on_input)):
    same = torch.allclose(out, right, atol=1e-5)
    print(f"weights {name:27}", "the same layer" if same else "another layer")

# %% [markdown]
# Llama 4 weighs the input on purpose, and was trained that way. vLLM therefore has a switch,
# `apply_router_weight_on_input`. For any other model it must stay off.
#
# ## 8. For a GPU that is not here
#
# Triton can compile for a GPU without having one. The interpreter cannot tell you whether a kernel is any good; its
# machine code can. Below, *your* `expert_tile` is compiled in bfloat16 for two GPUs, an A100 (sm_80) and an H100
# (sm_90), in a process of its own, since this one interprets. Beside it: the down projection of `moe_course.kernels`.
#
# - **registers**: each thread has at most 255. What does not fit is **spilled** to slow memory.
# - **mma**, **wgmma**: tensor-core instructions, of one warp or of four together. Without any, a product runs on the
#   ordinary units, many times slower.
# - **shared memory**: where tiles wait for their turn. An A100 has 163 KB for one program, an H100 227.
#
# **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "The accumulator of a tile of 128 × 256 in float32, spread over 8 warps of 32 threads: how many registers of 32 "
        "bits does it take in each thread?",
        ["32", "64", "128", "256"],
        2,
        [
            "128 · 256 / (8 · 32) = 128.",
            "128 · 256 / (8 · 32) = 128.",
            "And half of all registers are gone before anything else has been stored.",
            "128 · 256 / (8 · 32) = 128.",
        ],
    )
)

# %%
from moe_course.exercises.lesson_06.compile_tile import compile_tile

try:
    report = compile_tile(expert_tile) if compile_kernels else []
except RuntimeError as problem:  # what the interpreter runs need not compile
    report = []
    print(problem)
if report:
    columns = ("target", "registers", "spills", "mma", "wgmma", "shared KB")
    print(f"{'kernel':28}{'M × N × K, warps':>19}" + "".join(f"{name:>11}" for name in columns))
for row in report:
    sizes = " × ".join(str(size) for size in list(row["blocks"].values())[:3])
    row["shared KB"] = row["shared_bytes"] // 1024
    shape = f"{sizes}, {row['num_warps']}"
    print(f"{row['kernel']:28}{shape:>19}" + "".join(f"{row[name]:>11}" for name in columns))
if report:
    record(compiled=[{column: row[column] for column in ("kernel", *columns)} for row in report])
else:
    print(kernels.why_unavailable() or "no report")

# %% [markdown]
# **What just happened.** A kernel of some twenty lines became tensor-core code for both GPUs. Small tiles use the
# instruction of a single warp even on an H100; from 64 rows on it is `wgmma`. And 128 × 256 does not fit on an A100:
# the accumulator takes 128 registers of each thread, operands and addresses the rest, and the remainder spills. The
# same tile fits on an H100, whose `wgmma` reads its operands from shared memory.
#
# `moe-course bench kernel` prints this for all kernels and configurations of the course.
#
# ### How fast could it be?
#
# A compile report is no timing. But two limits hold for any kernel: the arithmetic must be done, and every weight that
# is used must be read once. The larger of the two times is a **lower bound**. It is not a prediction: a real kernel
# also loses time at the edges, waiting, and to lanes that are masked.
#
# The peaks are NVIDIA's own: an [H100 SXM](https://www.nvidia.com/en-us/data-center/h100/) does 989 TFLOP/s in
# bfloat16 without sparsity and moves 3.35 TB/s.

# %% tags=["nbval-check-output"]
PEAK, BANDWIDTH = 989e12, 3.35e12  # FLOP/s and bytes/s


def least_times(tokens: int, experts: int, k: int, d_model: int, d_ff: int) -> tuple[float, float]:
    """Seconds for the arithmetic and for the traffic of a SwiGLU expert layer in bfloat16, evenly routed."""
    flops = 2 * tokens * k * 3 * d_model * d_ff
    touched = experts * (1 - (1 - k / experts) ** tokens)  # experts with a token, on average (lesson 01)
    numbers = touched * 3 * d_model * d_ff + 2 * tokens * d_model  # weights once, tokens in and out once
    return flops / PEAK, 2 * numbers / BANDWIDTH


shapes = {"Mixtral 8x7B": (8, 2, 4096, 14336), "OLMoE-1B-7B": (64, 8, 2048, 1024)}
lengths = [2**power for power in range(0, 17)]
for name, shape in shapes.items():
    times = [least_times(tokens, *shape) for tokens in lengths]
    turn = next(tokens for tokens, (arithmetic, traffic) in zip(lengths, times, strict=True) if arithmetic > traffic)
    print(f"{name}: traffic is the limit up to {turn // 2} tokens or more, arithmetic from {turn} on")

# %%
arithmetic, traffic = zip(*[least_times(tokens, *shapes["OLMoE-1B-7B"]) for tokens in lengths], strict=True)
title = "One OLMoE layer on an H100: no kernel is faster than this"
subtitle = "a bound from peak rates, not a prediction; forward pass, bfloat16"
show(figures.bounds(lengths, arithmetic, traffic, title, subtitle))

# %% [markdown]
# **What just happened.** With few tokens a layer's time is the time to read its experts, whatever the kernel computes.
# So a mostly empty tile costs little there: lanes are free, bytes are not. With many tokens arithmetic is the limit,
# and there tiles are full. That is why the best tile is small for few tokens and large for many.
#
# ## 9. In production
#
# | code | sort | tiles | combine |
# |---|---|---|---|
# | [MegaBlocks](https://github.com/databricks/megablocks/blob/main/megablocks/layers/dmoe.py) | radix sort, histogram, running totals in CUDA | each expert's rows padded to a multiple of 128, a topology of blocks instead of a map | `padded_scatter`, weighted |
# | [ScatterMoE](https://github.com/shawntan/scattermoe/blob/main/scattermoe/kernels/ops.py) | `torch.sort` | a table of first rows, as yours; gather and scatter fused into the product, no padding in memory | a product with the weights |
# | [vLLM, fused_moe](https://github.com/vllm-project/vllm/blob/main/vllm/model_executor/layers/fused_moe/fused_moe.py) | `moe_align_block_size`: sorted ids, padded for each expert to whole blocks | one expert id for each block; tile sizes from tuned tables for each shape and GPU | weights fused into the second product, then a sum over K |
# | [torch, `F.grouped_mm`](https://docs.pytorch.org/docs/main/generated/torch.nn.functional.grouped_mm.html) | yours: it takes `offs`, the ends of the groups | inside; the CPU never learns the sizes | yours |
# | `moe_course.kernels` | as here, in three kernels | as here; the gather fused into the load | as here, without atomics |
#
# Why they differ:
#
# - *Padding in memory, or only in lanes.* Padded rows need no masks and waste memory and copies. Unpadded rows need a
#   table and masks.
# - *Who knows the sizes.* Reading the loads back to the CPU stalls it until the GPU has finished. Yours does so once,
#   in `grouped`, for the sake of clarity. Production kernels make the map on the GPU and launch as many instances as
#   could be needed; those without a tile return at once.
# - *Repeatable or not.* Some scatter with atomics, since it saves the positions. Others gather, as you did.
#
# ## 10. Pitfalls
#
# The checks of this lesson know these by name:
#
# | mistake | consequence |
# |---|---|
# | *a mask forgotten* on a ragged block | reads and writes other tensors, without an error on a GPU |
# | *`other=0` for missing ids* | padding counts for expert 0 |
# | *inclusive for exclusive* offsets | every expert gets the next one's rows |
# | *no rank, or ranks from 1* | choices overwrite each other, or leave a hole |
# | *later lanes first*, or rows handed out by atomics | the sort is not stable |
# | *the inverse in place of the order* | right for sorted inputs, so easy to miss |
# | *the choice, or `order % K`, for the token* | rows of other tokens |
# | *the block's width as the row's length* | right where the width is a multiple of the block |
# | *a tile across two experts* | some rows times the wrong matrix, and a race at the border |
# | *an idle expert left out and the rest renumbered* | everybody after it gets another expert's weights |
# | *a tile for an idle expert* | it writes over its neighbour's rows |
# | *adding up in float16* | lost terms, or infinity |
# | *`acc =` instead of adding* | only the last block of the sum counts |
# | *weights on the input* | another function, for experts are not linear |
# | *atomics for the sum* | another rounding in each run |
# | *`and` between masks* | the interpreter keeps one of them; write `&` |
#
# One more, which no check of this lesson can see: on a GPU `tl.dot` rounds float32 to TF32, 10 bits, unless told
# otherwise with `input_precision="ieee"`. The interpreter does not round, and this lesson's first cell has told Triton
# otherwise for you.
#
# ## 11. Recap
#
# - A kernel says what one program instance does. Instances run in any order: each owns what it writes.
# - Counting sort: counts for each block, an exclusive running total, start plus rank. Stable, and without atomics.
# - Sorted rows make tiles of one expert. The tile map joins a regular launch to irregular loads.
# - A tile wastes less than one block for each expert. Choose it by the rows an expert has.
# - Add up in float32, and in a fixed order.
# - Without a GPU you can test the numbers, read the machine code, and bound the time. You cannot measure the time.

# %% tags=["hide-input"]
quiz(
    Question(
        "Experts have 33, 0, 16 and 1 rows, and the block is 16. How many tiles are there, and what share of their lanes "
        "is in use?",
        ["4 tiles, 78 %", "5 tiles, 62 %", "6 tiles, 52 %", "12 tiles, 26 %"],
        1,
        [
            "50 / 16 rounded up, but a tile holds rows of one expert only.",
            "3 + 0 + 1 + 1 tiles of 16 lanes hold 50 rows: 50 / 80.",
            "The idle expert has no tile.",
            "3 tiles for everybody is what slots for the busiest expert would take.",
        ],
    ),
    Question(
        "Why does each instance of `count_experts` write a row of its own, instead of adding to one row for all?",
        [
            "Integers cannot be added atomically",
            "The rows are needed: where a block's choices start depends on the counts of the blocks before it",
            "It uses less memory",
        ],
        1,
        [
            "They can, and for a plain histogram that would be fine: integer sums do not depend on the order.",
            "That is what makes the placement stable without atomics.",
            "It uses more: B rows instead of one.",
        ],
    ),
    Question(
        "A kernel passes all checks under the interpreter and gives wrong results on a GPU. Which is no possible cause?",
        [
            "It relied on instance 0 running before instance 1",
            "float32 products were rounded to TF32",
            "The grid was too small",
        ],
        2,
        [
            "The interpreter runs instances in order. (`check` looks for such races; plain runs do not.)",
            "A default of `tl.dot` on GPUs, which the interpreter does not imitate.",
            "Then elements are missing under the interpreter, too.",
        ],
    ),
    Question(
        "The compile report of a GEMM kernel shows 255 registers and 40 spills. What do you try first?",
        ["A smaller tile, or more warps for it", "float16 for the accumulator", "More stages"],
        0,
        [
            "The accumulator is what fills the registers: spread it over more threads or make it smaller.",
            "That halves it, and breaks the sums.",
            "Stages take shared memory, and more registers for addresses.",
        ],
    ),
)

# %% [markdown]
# **Words of this lesson.** *Kernel*: a function that a GPU runs many times at once. *Program instance*: one of these
# runs, with a number of its own. *Grid*: how many there are. *Block*: a vector or rectangle of numbers, of a size
# known beforehand. *Lane*: one place in a block. *Mask*: which lanes take part. *Atomic*: a read, change and write
# that nobody can interrupt. *Race*: a result that depends on who comes first. *Exclusive running total*: the sum of
# all before, without oneself. *Rank*: the place among equals. *Stable*: equals keep their order. *Tile*: a block of
# the output that one instance computes. *Tile map*: the expert and first row of each tile. *Fused*: done inside
# another kernel, without a trip to memory. *Spill*: a number that found no register. *Lower bound*: a time that no
# kernel can beat.
