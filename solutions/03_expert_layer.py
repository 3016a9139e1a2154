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
#     title: The expert layer
#     promise: >-
#       Send each token to its experts and bring the results back, in three ways that are the same function and differ
#       in cost. Then train a layer of your own.
#     objectives:
#       - Keep E experts as two stacked tensors, and run all of them in two matrix products.
#       - Dispatch and combine by a loop, by one-hot tensors and by sorting, and prove that all three are one function.
#       - Predict and measure what each costs as the number of experts grows at constant active compute.
#       - Build an MoE layer, train it on text next to dense networks, and say what the result shows and what not.
#     prerequisites:
#       - Lesson 01, the dense FFN
#       - Lesson 02, the router
#     minutes: 90
#     difficulty: 2
# ---

# %% tags=["parameters"]
seed: int = 0  # of weights, tokens and the first training run
threads: int = 1  # that torch computes with; one keeps timings and losses repeatable
rounds: int = 7  # samples of each timing, of which the median counts
most_experts: int = 64  # E in the timings goes from 4 to this, 4 at least, times 4 each time
num_experts: int = 8  # E of the layer that is trained
top_k: int = 2  # K, experts per token
d_model: int = 64  # D
d_ff: int = 128  # F, hidden width of one expert
context: int = 8  # characters that the model sees before it predicts the next one
batch_size: int = 512  # windows of text in one training step
steps: int = 300  # of training
learning_rate: float = 0.02  # AdamW's largest, the same for all models
num_seeds: int = 3  # training runs of each model

# %%
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from moe_course import Question, check, quiz, record, show, sliders
from moe_course.figures import lesson_03 as figures

torch.set_num_threads(threads)

# %% [markdown]
# ## 1. Many networks, two tensors
#
# Lesson 01 gave you an FFN. Lesson 02 gave you a router: for each token $t$ the ids of $K$ experts, `expert_ids` of
# shape $(T, K)$, and a weight for each, `expert_weights` of the same shape. What is missing is the layer between
# them:
#
# $$y_t = \sum_{k=1}^{K} g_{tk} \; \mathrm{FFN}_{e_{tk}}(x_t),
# \qquad \mathrm{FFN}_e(x) = W^\text{out}_e \, \mathrm{GELU}(W^\text{in}_e \, x) .$$
#
# Here $e_{tk}$ is the $k$-th expert of token $t$ and $g_{tk}$ its weight. The equation is short. The difficulty lies
# in where things are: tokens come in the order of the text, and experts want theirs together. So the layer takes two
# trips. **Dispatch** brings tokens to experts, and **combine** brings outputs back to tokens.

# %%
few_ids = torch.tensor([[0, 2], [1, 0], [2, 3], [0, 1], [2, 0], [0, 3]])
few_weights = torch.tensor([[0.7, 0.3], [0.6, 0.4], [0.8, 0.2], [0.5, 0.5], [0.9, 0.1], [0.6, 0.4]])

show(figures.there_and_back(few_ids, few_weights, num_experts=4))

# %% [markdown]
# On the way there a token goes to both of its experts whole. On the way back, each output counts as much as its
# weight. An expert has the same colour in every figure of this course.
#
# All experts have the same shape, so nobody keeps $E$ separate modules. Their weights are **stacked**: `w_in` has
# shape $(E, F, D)$ and `w_out` has shape $(E, D, F)$. One tensor is one entry in a checkpoint, one thing to cut up
# over GPUs, and one argument for a kernel that does all experts at once. **Predict**, before you read on:

# %% tags=["hide-input"]
quiz(
    Question(
        "A layer has E = 8 experts of hidden width F, and K = 2. Next to it stands a dense FFN of hidden width 2F. "
        "Leave the router out. How do they compare?",
        [
            "The layer has 4 times the parameters and does the same multiplications for each token",
            "The layer has 8 times the parameters and does twice the multiplications for each token",
            "The same parameters, and a quarter of the multiplications",
        ],
        0,
        [
            "Stored: 8F against 2F. Used for a token: 2F against 2F. This pair is compared all through the lesson: "
            "equal active FLOPs.",
            "Against a dense FFN of width F, that would be right. This one has width 2F.",
            "The experts are 8F wide in all, and the dense FFN is 2F wide.",
        ],
    )
)

# %% [markdown]
# ### Exercise: E experts in two matrix products
#
# Suppose dispatch has done its work, and each expert holds $C$ tokens of its own: a tensor $(E, C, D)$. Run every
# expert on its tokens. No loop: the leading $E$ is a batch of matrix products.
#
# The weights are stored as `nn.Linear` stores its weight, (out, in). The activation is the exact GELU of lesson 01.

# %% exercise="03.run_experts"
def run_experts(
    tokens: Float[Tensor, "E C D"], w_in: Float[Tensor, "E F D"], w_out: Float[Tensor, "E D F"]
) -> Float[Tensor, "E C D"]:
    """Run every expert on tokens of its own.

    Args:
        tokens: C tokens for each expert, (E, C, D).
        w_in: first weights of all experts, (E, F, D).
        w_out: second weights of all experts, (E, D, F).

    Returns:
        (E, C, D): row c of expert e is that expert's FFN of tokens[e, c].
    """
    ### BEGIN SOLUTION
    return F.gelu(tokens @ w_in.mT) @ w_out.mT
    ### END SOLUTION

# %% check="03.run_experts"
run_experts = check(run_experts)

# %% [markdown]
# With `run_experts` you can already write the whole layer, wastefully. Send *every* token through *every* expert, and
# give the experts that were not chosen the weight 0. It is slow and plainly right, so it will serve as the yardstick
# for the rest.

# %%
def every_expert(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """The layer with E/K times the work: (T, D) to (T, D)."""
    gates = expert_weights.new_zeros(len(x), len(w_in)).scatter(1, expert_ids, expert_weights)  # (T, E)
    outputs = run_experts(x.expand(len(w_in), -1, -1), w_in, w_out)  # (E, T, D)
    return torch.einsum("te,etd->td", gates, outputs)


def random_layer(tokens: int, experts: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Tokens, random choices and random weights: x, expert_ids, expert_weights, w_in, w_out."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, d_model, generator=generator)
    best = torch.randn(tokens, experts, generator=generator).topk(min(top_k, experts), dim=-1)
    w_in = torch.randn(experts, d_ff, d_model, generator=generator) * d_model**-0.5
    w_out = torch.randn(experts, d_model, d_ff, generator=generator) * d_ff**-0.5
    return x.to(dtype), best.indices, best.values.softmax(dim=-1).to(dtype), w_in.to(dtype), w_out.to(dtype)


layer = random_layer(tokens=32, experts=num_experts, dtype=torch.float64)
x, expert_ids, expert_weights, w_in, w_out = layer
yardstick = every_expert(*layer)

print("tokens", tuple(x.shape), "  w_in", tuple(w_in.shape), "  w_out", tuple(w_out.shape))
print("rows through an expert:", len(x) * num_experts, "  needed:", expert_ids.numel())

# %% [markdown]
# **What just happened.** The waste is a factor $E/K$, and it grows with every expert you add. A layer like this has
# the parameters of an MoE and the cost of a dense network with as many parameters. From here on, each dispatch is a
# way to get rid of the waste.
#
# ## 2. First way: a loop
#
# The plainest dispatch visits the experts one after another. Each looks for its tokens, takes those rows, and adds
# its weighted output where they came from:
#
# > for each expert: *where* was it chosen? → *gather* → FFN → *weigh* → *add*
#
# **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "An expert is chosen by no token, so its `x[tokens]` has shape (0, D). What does its FFN do?",
        [
            "It raises an error: one cannot multiply an empty matrix",
            "It returns NaN",
            "It returns an empty (0, D), and adding that changes nothing",
        ],
        2,
        [
            "A product of (0, D) with (D, F) is (0, F), without complaint.",
            "NaN comes from 0/0, for instance from a mean over the tokens of an expert. A matrix product has none.",
            "Indexing, products and index_add all accept zero rows. What breaks are a mean over nothing, and "
            "`torch.stack` or `torch.cat` of an empty list.",
        ],
    )
)

# %% [markdown]
# ### Exercise: the loop over experts
#
# Write it. A token occurs with $K$ experts, so its row of the output receives $K$ contributions. The weight belongs
# to the expert's *output*.

# %% exercise="03.visit_experts"
def visit_experts(
    x: Float[Tensor, "T D"],
    expert_ids: Int64[Tensor, "T K"],
    expert_weights: Float[Tensor, "T K"],
    w_in: Float[Tensor, "E F D"],
    w_out: Float[Tensor, "E D F"],
) -> Float[Tensor, "T D"]:
    """The MoE layer, as a loop over experts.

    Args:
        x: tokens, (T, D).
        expert_ids: the K experts of each token, (T, K), all different.
        expert_weights: their weights, (T, K), in the same order.
        w_in: first weights of all experts, (E, F, D).
        w_out: second weights of all experts, (E, D, F).

    Returns:
        (T, D): for each token, the weighted sum of its experts' outputs.
    """
    ### BEGIN SOLUTION
    out = torch.zeros_like(x)
    for expert, (w_in_e, w_out_e) in enumerate(zip(w_in.unbind(0), w_out.unbind(0), strict=True)):
        tokens, choice = torch.where(expert_ids == expert)
        y = F.linear(F.gelu(F.linear(x[tokens], w_in_e)), w_out_e)
        out.index_add_(0, tokens, y * expert_weights[tokens, choice, None])
    return out
    ### END SOLUTION

# %% check="03.visit_experts"
visit_experts = check(visit_experts)

# %% tags=["nbval-check-output"]
ones, first_ids, first_weights = torch.ones_like(expert_weights), expert_ids[:, :1], expert_weights[:, :1]
unweighted = visit_experts(x, expert_ids, ones, w_in, w_out)
on_the_input = visit_experts(x * first_weights, first_ids, ones[:, :1], w_in, w_out)
on_the_output = visit_experts(x, first_ids, first_weights, w_in, w_out)

print("equals the yardstick:            ", torch.allclose(visit_experts(*layer), yardstick, rtol=0, atol=1e-12))
print("without the weights it would not:", not torch.allclose(unweighted, yardstick, rtol=0, atol=1e-3))
print("weights on the input neither:    ", not torch.allclose(on_the_input, on_the_output, rtol=0, atol=1e-3))

# %% [markdown]
# **What just happened.** No row is computed in vain: $T \cdot K$ rows go through an expert. The loop is what you will
# meet in most readable code. Its price is elsewhere. Each expert searches all $T \cdot K$ choices for its own, and 64
# experts mean 64 small products one after another where hardware would like a large one.
#
# ## 3. Second way: one-hot tensors
#
# In 2020, GShard wrote dispatch and combine as matrix products. Each expert owns $C$ **slots**. A tensor `dispatch`
# of shape $(T, E, C)$ holds a 1 where token $t$ sits in slot $c$ of expert $e$; `combine` holds the weight in the
# same place. Then
#
# $$\text{in}_{ecd} = \sum_t \text{dispatch}_{tec} \, x_{td}
# \qquad\qquad
# y_{td} = \sum_{e,c} \text{combine}_{tec} \, \text{out}_{ecd} .$$
#
# There is no indexing left, and no shape depends on the data once $C$ is fixed. Accelerators whose compilers want
# fixed shapes love it. Real systems fix $C$ and drop the tokens that find no slot; that is lesson 07. Here $C$ is the
# load of the busiest expert, so nobody is dropped.
#
# ### Exercise: a slot for every choice
#
# Build the two tensors. The heart of it is a number for each choice: its place in its expert's queue. Which of an
# expert's slots a token gets is up to you, as long as no slot is shared.

# %% exercise="03.one_hot_slots"
def one_hot_slots(
    expert_ids: Int64[Tensor, "T K"], expert_weights: Float[Tensor, "T K"], num_experts: int
) -> tuple[Float[Tensor, "T E C"], Float[Tensor, "T E C"]]:
    """Give every choice a slot of its expert.

    Args:
        expert_ids: the K experts of each token, (T, K), all different.
        expert_weights: their weights, (T, K).
        num_experts: number of experts E.

    Returns:
        dispatch: (T, E, C), 1 where token t sits in slot c of expert e, else 0. C is the load of the busiest expert.
        combine: (T, E, C), the weight of the choice in the same places. Both in the dtype of `expert_weights`.
    """
    ### BEGIN SOLUTION
    chosen = F.one_hot(expert_ids.flatten(), num_experts)  # (T·K, E)
    position = (chosen.cumsum(0) - 1).gather(1, expert_ids.reshape(-1, 1)).view_as(expert_ids)
    capacity = int(chosen.sum(0).max())

    combine = expert_weights.new_zeros(len(expert_ids), num_experts, capacity)
    dispatch = torch.zeros_like(combine)
    token = torch.arange(len(expert_ids))[:, None].expand_as(expert_ids)
    dispatch[token, expert_ids, position] = 1
    combine[token, expert_ids, position] = expert_weights
    return dispatch, combine
    ### END SOLUTION

# %% check="03.one_hot_slots"
one_hot_slots = check(one_hot_slots)

# %% [markdown]
# With it, the second way is three lines. Here are the slots of the six tokens from the first figure.

# %%
def one_hot_experts(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """The layer by one-hot tensors, as GShard does it: (T, D) to (T, D)."""
    dispatch, combine = one_hot_slots(expert_ids, expert_weights, len(w_in))
    outputs = run_experts(torch.einsum("tec,td->ecd", dispatch, x), w_in, w_out)
    return torch.einsum("tec,ecd->td", combine, outputs)


show(figures.slots(one_hot_slots(few_ids, few_weights, 4)[0]))

# %% [markdown]
# Two prices are visible. Empty columns are slots that are computed and thrown away: $E \cdot C$ rows go through an
# expert instead of $T \cdot K$. And the tensor is mostly zeros, which the einsum multiplies all the same. Count those
# multiplications. With an even load, $C = TK/E$:
#
# - the two einsums cost $2 \cdot 2 \cdot T \cdot (EC) \cdot D = 4 K T^2 D$ FLOPs,
# - the experts cost $2 \cdot 2 \cdot TK \cdot D \cdot F = 4 K T D F$.
#
# **Predict:** how does the price of *moving* tokens compare to the price of *working* on them?

# %% tags=["hide-input"]
quiz(
    Question(
        "T = 4096 tokens, experts of hidden width F = 512. Moving costs how much of what the experts' work costs?",
        ["1/8 of it", "the same", "8 times as much", "It depends on E"],
        2,
        [
            "Divide 4KT²D by 4KTDF, not the other way round.",
            "Divide 4KT²D by 4KTDF.",
            "The ratio is T/F = 4096/512: nothing but tokens over hidden width. The einsums are quadratic in T.",
            "E cancels: more experts have fewer slots each.",
        ],
    )
)

# %% tags=["nbval-check-output"]
print("FLOPs of the two einsums, in multiples of the experts' work, for an even load")
print("T tokens     " + "".join(f"{tokens:>9}" for tokens in (128, 512, 2048, 8192)))
for width in (128, 1024, 14336):
    print(f"F = {width:<8} " + "".join(f"{tokens / width:>9.2f}" for tokens in (128, 512, 2048, 8192)))

# %% [markdown]
# Few tokens and wide experts, and moving is cheap. Many tokens and narrow experts, and the layer spends its time
# multiplying by zero. GShard therefore cuts a batch into groups and dispatches inside each group.
#
# The other price, empty slots, depends on the router. Play with one. `skew` adds a preference for the first experts
# to all tokens' logits:
#
# 1. Find the skew at which one-hot slots cost as much as running every expert.
# 2. With `skew` 0, raise `num_experts`. The load per expert falls. What happens to the share of empty slots?
# 3. Does anything you do change the cost of a loop?

# %%
def batch_of_tokens(skew: float, num_experts: int, top_k: int, num_tokens: int):
    """Where a batch goes, and what each dispatch computes for it."""
    generator = torch.Generator().manual_seed(seed)
    preference = torch.linspace(1, -1, num_experts)
    logits = torch.randn(num_tokens, num_experts, generator=generator) + skew * preference
    return figures.flow_and_waste(logits.topk(top_k, dim=-1).indices, num_experts)


sliders(
    batch_of_tokens, skew=(0.0, 8.0, 0.25, 0.5), num_experts=[4, 8, 16], top_k=(1, 4, 1, 2), num_tokens=[16, 64, 256]
)

# %% [markdown]
# **What just happened.** Slots are made for the busiest expert, so an uneven router makes *everybody's* compute grow,
# by the ratio of the largest load to the average. Even a perfectly fair router has a busiest expert by chance, and
# the fewer tokens there are for each expert, the worse. A loop computes $T \cdot K$ rows whatever happens.
#
# ## 4. Third way: sort
#
# You want the loop's economy and the large products of the second way. The idea: **put the tokens of an expert next
# to each other.** Then an expert's tokens are a slice, and a slice needs neither a search nor a one-hot tensor.
#
# Lay out the $T \cdot K$ choices in a row, token after token, so that choice $k$ of token $t$ has number $tK + k$.
# Sort them by expert:
#
# | | | | | | | |
# |---|---|---|---|---|---|---|
# | `expert_ids`, flattened | 2 | 0 | 1 | 2 | 2 | 1 |
# | number of the choice | 0 | 1 | 2 | 3 | 4 | 5 |
# | **sorted:** expert | 0 | 1 | 1 | 2 | 2 | 2 |
# | `order`: number of the choice | 1 | 2 | 5 | 0 | 3 | 4 |
# | `tokens`: its token, for K = 2 | 0 | 1 | 2 | 0 | 1 | 2 |
#
# Expert 0 owns rows 0 to 0, expert 1 rows 1 to 2, expert 2 rows 3 to 5. Counting as Python's slices do, their `ends`
# are 1, 3, 6. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "There is also an expert 3, which nobody chose. What is `ends[3]`?",
        ["0", "6", "7", "It has no entry"],
        1,
        [
            "Its count is 0. Its end is where the rows before it ended.",
            "It owns the rows from 6 to 6: none.",
            "That would give it one row. An empty expert ends where the one before it ended.",
            "It exists, and its weights stand in the stack. An entry less would shift the others.",
        ],
    )
)

# %% [markdown]
# ### Exercise: neighbours by sorting
#
# Return all three. Keep the sort stable: the tokens of an expert stay in the order of the text, so equal inputs give
# equal rows.

# %% exercise="03.sort_choices"
def sort_choices(
    expert_ids: Int64[Tensor, "T K"], num_experts: int
) -> tuple[Int64[Tensor, "T*K"], Int64[Tensor, "T*K"], Int64[Tensor, "E"]]:
    """Sort the choices of all tokens by expert.

    Args:
        expert_ids: the K experts of each token, (T, K).
        num_experts: number of experts E, of which some may not occur.

    Returns:
        order: (T·K,), numbers of the choices (t·K + k), by expert; stable.
        tokens: (T·K,), the token of each choice in that order.
        ends: (E,), one past the last row of each expert.
    """
    ### BEGIN SOLUTION
    flat = expert_ids.flatten()
    order = flat.argsort(stable=True)
    ends = torch.bincount(flat, minlength=num_experts).cumsum(0)
    return order, order // expert_ids.shape[1], ends
    ### END SOLUTION

# %% check="03.sort_choices"
sort_choices = check(sort_choices)

# %% [markdown]
# Now `x[tokens]` is the dispatch: $T \cdot K$ rows, sorted by expert. Run each expert on its slice and the results
# are in the same order. What is left is the way back. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "`rows` are sorted by expert, and `order` is [1, 2, 5, 0, 3, 4]. You want them in the order of the choices. "
        "Which line does it?",
        ["`rows[order]`", "`rows[order.argsort()]`", "`rows.sort()`", "`rows[order // K]`"],
        1,
        [
            "That sorts a second time. Choice 0 stands in row 3, but rows[order][0] is row 1.",
            "The argsort of a permutation is its inverse: [3, 0, 1, 4, 5, 2]. Choice 0 stands in row 3, and so on.",
            "That sorts numbers within columns.",
            "That picks rows by token number; rows are numbered otherwise.",
        ],
    )
)

# %% [markdown]
# ### Exercise: back to tokens
#
# Undo the sorting, weigh, and add the $K$ rows of each token. There are two good roads: add each row to its token
# with `index_add`, or restore the order of the choices and sum over $K$.

# %% exercise="03.combine_choices"
def combine_choices(
    rows: Float[Tensor, "T*K D"], order: Int64[Tensor, "T*K"], expert_weights: Float[Tensor, "T K"]
) -> Float[Tensor, "T D"]:
    """Bring the experts' outputs back to their tokens.

    Args:
        rows: outputs of the experts, sorted by expert, (T·K, D).
        order: the number of the choice (t·K + k) that each row belongs to, (T·K,).
        expert_weights: (T, K).

    Returns:
        (T, D): for each token, the weighted sum of its K rows.
    """
    ### BEGIN SOLUTION
    num_tokens, top_k = expert_weights.shape
    by_choice = rows[order.argsort()].view(num_tokens, top_k, rows.shape[1])
    return (by_choice * expert_weights[..., None]).sum(dim=1)
    ### END SOLUTION

# %% check="03.combine_choices"
combine_choices = check(combine_choices)

# %% [markdown]
# Here is the third way, twice. The first version takes slices in a loop. The second hands all slices to *one* call: a
# **grouped GEMM**, a batch of matrix products in which each group may have another number of rows. `F.grouped_mm`
# takes your `ends` as they are. A GPU then computes all experts in one kernel, and the sizes never have to travel to
# the CPU.

# %%
def sorted_experts(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """The layer by sorting, one product for each expert: (T, D) to (T, D)."""
    order, tokens, ends = sort_choices(expert_ids, len(w_in))
    sizes = ends.diff(prepend=ends.new_zeros(1)).tolist()
    slices = zip(x[tokens].split(sizes), w_in.unbind(0), w_out.unbind(0), strict=True)
    rows = torch.cat([F.linear(F.gelu(F.linear(part, w_in_e)), w_out_e) for part, w_in_e, w_out_e in slices])
    return combine_choices(rows, order, expert_weights)


def grouped_experts(x: Tensor, expert_ids: Tensor, expert_weights: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    """The layer by sorting, all experts in two grouped GEMMs: (T, D) to (T, D). Not in float64."""
    order, tokens, ends = sort_choices(expert_ids, len(w_in))
    hidden = F.gelu(F.grouped_mm(x[tokens], w_in.mT, offs=ends.int()))
    return combine_choices(F.grouped_mm(hidden, w_out.mT, offs=ends.int()), order, expert_weights)


print("largest difference from the yardstick:", f"{(sorted_experts(*layer) - yardstick).abs().max():.1e}")

# %% [markdown]
# **What just happened.** $T \cdot K$ rows, no waste, and no search: one sort replaced $E$ scans of all choices.
# `sorted_experts` holds no trick at all, and it is how production systems work today.
#
# ## 5. Are they really the same?
#
# The three ways should be *one function*: equal outputs and equal gradients, for every input. A proof is short. Each
# of them computes $g_{tk} \, \mathrm{FFN}_{e_{tk}}(x_t)$ for every choice, once, and adds the $K$ results to row $t$.
# They differ in the order of the additions only, and that changes rounding errors. So check it where rounding is
# small, in float64, on inputs that like to break code.

# %% tags=["nbval-check-output"]
ways = {"loop": visit_experts, "one-hot slots": one_hot_experts, "sort": sorted_experts}


def output_and_gradients(way, x, expert_ids, expert_weights, w_in, w_out) -> list[Tensor]:
    """The output, and its gradient by everything that has one."""
    leaves = [tensor.clone().requires_grad_() for tensor in (x, expert_weights, w_in, w_out)]
    out = way(leaves[0], expert_ids, *leaves[1:])
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


def unfair(x, expert_ids, expert_weights, w_in, w_out) -> tuple[Tensor, ...]:
    """The same layer, with all first choices moved to expert 0; later experts go idle."""
    first = torch.arange(expert_ids.shape[1]).expand(expert_ids.shape)
    return x, first, expert_weights, w_in, w_out


inputs = {
    "32 tokens": layer,
    "idle experts": unfair(*layer),
    "one token": random_layer(1, num_experts, torch.float64),
    "no tokens": random_layer(0, num_experts, torch.float64),
    "one expert": random_layer(32, 1, torch.float64),
}
print(f"{'equal to 1e-12, gradients too:':32}" + "".join(f"{name:>15}" for name in ways))
for name, case in inputs.items():
    wanted = output_and_gradients(every_expert, *case)
    row = f"{name:32}"
    for way in ways.values():
        pairs = zip(output_and_gradients(way, *case), wanted, strict=True)
        equal = all(torch.allclose(got, want, rtol=0, atol=1e-12) for got, want in pairs)
        row += f"{'yes' if equal else 'NO':>15}"
    print(row)

# %% [markdown]
# The last row deserves a second look. With one expert there is nothing to choose, and the layer must *be* the dense
# FFN of lesson 01. This is a good first test of anybody's MoE layer. A public one failed it, for its experts had
# another activation.

# %% tags=["nbval-check-output"]
from moe_course.layers import DenseFFN

x1, ids1, weights1, w_in1, w_out1 = random_layer(32, 1)
dense = DenseFFN(d_model, d_ff)
dense.load_state_dict({"w_in": w_in1[0], "w_out": w_out1[0]})
for name, way in (ways | {"grouped GEMM": grouped_experts}).items():
    out = way(x1, ids1, weights1, w_in1, w_out1)
    print(f"{name:14} with E = 1 is the dense FFN: {torch.allclose(out, dense(x1), rtol=0, atol=1e-5)}")

# %% [markdown]
# ## 6. What does it cost?
#
# Now the claim that sells these models: *cost follows active compute*. Keep $T$, $K$, $D$ and $F$ fixed and raise
# $E$. Each token still goes through $K$ experts, so the arithmetic asked for stays the same, however many experts
# there are. Does the time?
#
# Five candidates join in: the yardstick, one-hot slots, your loop, the grouped GEMM, and a loop that differs from the
# solution's in one detail. It writes `w_in[e]` inside the loop where the solution takes `w_in.unbind(0)` once, before
# it. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "From E = 4 to E = 64 at constant active compute: which one's time grows in proportion to E, sixteen-fold?",
        ["Every expert on every token", "One-hot slots", "The loop", "The grouped GEMM"],
        0,
        [
            "T·E rows: sixteen times as many.",
            "With an even load it has about T·K slots for any E. It is slow from the start and stays so.",
            "It grows, since 64 small steps cost more than 4 large ones. But most of its arithmetic stays the same.",
            "Its arithmetic stays. What grows is reading 16 times the weights, and writing 16 times the gradients.",
        ],
    ),
    Question(
        "What does `w_in[e]` in the loop cost in the backward pass that `unbind` does not?",
        [
            "Nothing, they are the same operation",
            "Each w_in[e] gives a gradient of the full shape (E, F, D), nearly all zero, and E of them are added",
            "It copies expert e in the forward pass",
        ],
        1,
        [
            "The forward passes are the same.",
            "That is E·E·F·D numbers written, quadratic in E. The backward of `unbind` stacks E small gradients, once.",
            "Indexing with one number gives a view, without a copy.",
        ],
    ),
)

# %%
from moe_course.bench.indexing_loop import indexing_loop  # the loop that writes w_in[e]
from moe_course.bench.timing import interleave, median_ratio

candidates = {
    "every expert on every token": every_expert,
    "one-hot slots": one_hot_experts,
    "loop, w_in[e]": indexing_loop,
    "your loop": visit_experts,
    "sort + grouped GEMM": grouped_experts,
}


def forward_and_backward(way, *inputs: Tensor):
    """A call that runs a layer forward and backward once."""
    leaves = [tensor.requires_grad_() if tensor.is_floating_point() else tensor for tensor in inputs]

    def call() -> None:
        way(*leaves).sum().backward()

    return call

# %%
timing_tokens = 1024
expert_counts = [count for count in (4, 16, 64, 256) if count <= most_experts]
baseline = DenseFFN(d_model, top_k * d_ff)  # as many multiplications for each token as K experts
ratios = {name: {} for name in candidates}
for count in expert_counts:
    inputs = random_layer(timing_tokens, count)
    calls = {"dense": forward_and_backward(baseline, inputs[0])}
    calls |= {name: forward_and_backward(way, *inputs) for name, way in candidates.items()}
    samples = interleave(calls, rounds=rounds, min_seconds=0.01)  # A B C … A B C …: a busy moment hits all alike
    for name in candidates:
        ratios[name][count] = median_ratio(samples[name], samples["dense"])

print(f"{'in dense FFNs':28}" + "".join(f"   E = {count:<4}" for count in expert_counts))
for name, by_count in ratios.items():
    print(f"{name:28}" + "".join(f"{by_count[count]:>9.1f} " for count in expert_counts))
sizes = f"T = {timing_tokens}, K = {top_k}, D = {d_model}, F = {d_ff}"
show(figures.cost(ratios, f"{sizes}; forward and backward, CPU time, medians of {rounds}"))
every, slots, _, loop, grouped = (by_count[expert_counts[-1]] for by_count in ratios.values())
record(cost_every=every, cost_slots=slots, cost_loop=loop, cost_grouped=grouped)  # kept for tables over many runs

# %% [markdown]
# **What just happened.** Read the figure from the top at E = 64.
#
# - *Every expert* rose with $E$, as predicted.
# - *One-hot slots* hardly rose, for they start high: $T/F = 8$ says that moving the tokens takes eight times the
#   work. Section 3's formula, measured.
# - *`w_in[e]`* grew with $E^2$ in its backward pass, one innocent line. If *your loop* lies on it, you indexed too.
# - *Sort + grouped GEMM* grew least. It still grew: 64 experts have sixteen times the weights to read and the
#   gradients to write, and small products run less efficiently than large ones. "Cost follows active compute" is a
#   limit that good code comes near, when each expert has enough tokens.
#
# These are one-threaded ratios on a CPU at one small size. `moe-course bench layer` measures the course's own layer
# at five sizes against other libraries.
#
# ## 7. A layer of your own
#
# You have all parts. A layer owns a router matrix $(E, D)$ and two stacks. Its `forward` takes any leading dimensions
# and returns two things: the output, and the `Routing` of lesson 02. Later lessons need the routing to balance the
# load.
#
# The constructor is given. It starts every matrix as `nn.Linear` would, uniformly within $\pm
# 1/\sqrt{\text{fan-in}}$, and it does so by hand for a reason. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "`nn.init.kaiming_uniform_` looks at a tensor's shape to find its fan-in. What does it take for the fan-in of "
        "a stack of shape (E, F, D)?",
        ["D, as for one matrix", "F·D, as for a convolution", "E·F·D"],
        1,
        [
            "Only for two dimensions. A third makes it think of a kernel.",
            "Dimension 1 counts as input channels and the rest as the kernel, so the bound shrinks by √F.",
            "The first dimension counts as outputs.",
        ],
    )
)

# %% tags=["nbval-check-output"]
stack, matrix = torch.empty(8, 256, 64), torch.empty(256, 64)
torch.manual_seed(seed)
nn.init.kaiming_uniform_(stack)
nn.init.kaiming_uniform_(matrix)
print(f"one (256, 64) matrix alone reaches {matrix.abs().max():.2f}, in a stack of eight {stack.abs().max():.3f}")

# %% [markdown]
# A stack treated like this starts sixteen times too small, so its experts hardly pass on a signal or a gradient.
# Nothing warns you.
#
# ### Exercise: the layer
#
# Write `forward`. `top_k_routing` is lesson 02's `route`, wrapped into a `Routing`, softmax and renormalised by
# default. For the dispatch, use whichever of your three you like; `sorted_experts` is a good choice. Return no
# residual: that belongs to the block around the layer.

# %% exercise="03.MyMoELayer"
from moe_course.layers import Routing, top_k_routing


class MyMoELayer(nn.Module):
    """A Mixture-of-Experts layer: K of E GELU experts for each token.

    Args:
        d_model: width D of a token.
        d_ff: hidden width F of one expert.
        num_experts: number of experts E.
        top_k: experts per token K.
    """

    def __init__(self, d_model: int, d_ff: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k = top_k
        self.router = nn.Parameter(torch.empty(num_experts, d_model))
        self.w_in = nn.Parameter(torch.empty(num_experts, d_ff, d_model))
        self.w_out = nn.Parameter(torch.empty(num_experts, d_model, d_ff))
        for weight in self.parameters():
            nn.init.uniform_(weight, -(weight.shape[-1] ** -0.5), weight.shape[-1] ** -0.5)

    def forward(self, x: Float[Tensor, "*tokens D"]) -> tuple[Float[Tensor, "*tokens D"], Routing]:
        """Apply the layer.

        Args:
            x: tokens with any leading dimensions, such as (T, D) or (B, S, D).

        Returns:
            The output, shaped like x, and the Routing of the flattened tokens.
        """
        ### BEGIN SOLUTION
        tokens = x.reshape(-1, x.shape[-1])
        routing = top_k_routing(F.linear(tokens, self.router), self.top_k)
        out = sorted_experts(tokens, routing.expert_ids, routing.weights, self.w_in, self.w_out)
        return out.reshape(x.shape), routing
        ### END SOLUTION

# %% check="03.MyMoELayer"
MyMoELayer = check(MyMoELayer)

# %% tags=["nbval-check-output"]
from moe_course.layers import MoELayer

torch.manual_seed(seed)
mine = MyMoELayer(d_model, d_ff, num_experts, top_k)
reference = MoELayer(d_model, d_ff, num_experts, top_k)
reference.load_state_dict({"router.weight": mine.router, "experts.w_in": mine.w_in, "experts.w_out": mine.w_out})
sentences = torch.randn(4, 10, d_model)
print("output", tuple(mine(sentences)[0].shape))
print("equals moe_course.layers.MoELayer:", torch.allclose(mine(sentences)[0], reference(sentences)[0], atol=1e-5))

# %% [markdown]
# ## 8. Train it
#
# Does the layer earn its parameters? Here is a task that every machine has: the language reference that comes with
# Python, the text behind `help("lambda")`. It has some 465 000 characters of English and code. A model sees 8
# characters and predicts the next. Every tenth chunk of 4096 characters is held out, and losses are measured there.
#
# The model is as small as can be: embed the characters, mix them with one matrix, then *one* residual layer, which is
# your MoE or a dense FFN, then predict.

# %%
from moe_course.training import draw_batches, python_docs, train, windows

text = python_docs()
train_rows, held_out = windows(text.train, context), windows(text.held_out, context)
held_out = held_out[torch.randperm(len(held_out), generator=torch.Generator().manual_seed(seed))[:4096]]
sample = held_out[2]
print(f"{text.train.numel():,} characters to train on, {len(text.vocabulary)} different ones")
print("one example:", repr(text.decode(sample[:-1])), "→", repr(text.decode(sample[-1:])))


class NextCharacter(nn.Module):
    """A window of characters (B, context) to logits of the next one, (B, vocabulary); `layer` is what is compared."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(text.vocabulary), 16)
        self.mix = nn.Linear(16 * context, d_model)
        self.norm, self.last_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.layer = layer
        self.head = nn.Linear(d_model, len(text.vocabulary))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.mix(self.embedding(ids).flatten(1))
        out = self.layer(self.norm(hidden))
        out = out[0] if isinstance(out, tuple) else out  # an MoE layer also returns its routing
        return self.head(self.last_norm(hidden + out))

# %% [markdown]
# Four runs for each seed. The first two are the comparison; the others are controls that keep you honest.
#
# | | hidden width | active FLOPs | parameters | steps |
# |---|---|---|---|---|
# | dense | $KF$ | 1 | 1 | 1 |
# | **MoE** | $K$ of $E$ experts of $F$ | 1 | $E/K$ | 1 |
# | dense, as many parameters | $EF$ | $E/K$ | $E/K$ | 1 |
# | dense, half as long again | $KF$ | 1 | 1 | 1.5 |
#
# **Predict** the order of the four losses on held-out text, and write it down.

# %%
def next_character_loss(model: nn.Module, rows: Tensor) -> Tensor:
    return F.cross_entropy(model(rows[:, :-1]), rows[:, -1])


models = {
    "dense": (lambda: DenseFFN(d_model, top_k * d_ff), steps),
    "MoE": (lambda: MyMoELayer(d_model, d_ff, num_experts, top_k), steps),
    "dense, as many parameters": (lambda: DenseFFN(d_model, num_experts * d_ff), steps),
    "dense, half as long again": (lambda: DenseFFN(d_model, top_k * d_ff), steps * 3 // 2),
}
curves = {name: [] for name in models}
for run in range(seed, seed + num_seeds):
    for name, (make, length) in models.items():
        torch.manual_seed(run)
        model = NextCharacter(make())
        batches = draw_batches(train_rows, batch_size, length, seed=run)
        settings = {"steps": length, "learning_rate": learning_rate}
        curves[name].append(train(model, next_character_loss, batches, held_out, **settings))
        if name == "MoE":
            trained = model

# %%
losses = {name: torch.tensor([curve.losses for curve in runs]) for name, runs in curves.items()}
print(f"{'loss on held-out text':28}{'mean':>8}{'each seed':>16}{'':12}{'seconds':>10}")
for name, values in losses.items():
    final = values[:, -1]
    seconds = torch.tensor([curve.seconds for curve in curves[name]]).mean()
    each = "  ".join(f"{value:.3f}" for value in final.tolist())
    print(f"{name:28}{final.mean():>8.3f}     {each:<24}{seconds:>9.1f}")
gain = losses["dense"][:, -1] - losses["MoE"][:, -1]
print(f"\nMoE minus dense: {-gain.mean():+.3f} ({-gain.max():+.3f} to {-gain.min():+.3f} over {num_seeds} seeds)")

show(figures.training({name: runs[0].steps for name, runs in curves.items()}, losses))
dense, moe, wide, longer = (values[:, -1].mean() for values in losses.values())
record(loss_dense=dense, loss_moe=moe, loss_dense_wide=wide, loss_dense_longer=longer, moe_gain=gain.mean())

# %% [markdown]
# **What just happened.** Compare the rows in pairs.
#
# - *Same steps, same active FLOPs:* the MoE beats the dense FFN. On the machine where this lesson was written it did
#   so for each of three seeds at each of five learning rates from 0.01 to 0.04, on average by 0.11 at the smallest
#   and 0.03 at the largest. With the best rate for each, 0.02 and 0.03, the gap was 0.05.
# - *Same parameters:* it is about level with a dense FFN that does four times the FLOPs. Parameters that rest most of
#   the time still count.
# - *No more time:* dense wins. An MoE step took about 1.7 times as long as a dense one there. Half as many steps again
#   cost less than that, and are worth more here than the parameters are.
#
# So is the layer worth it? This experiment does not say. The network is so small that the fixed costs of a step weigh
# heavily, and training is so short that the loss still falls steeply. It is one layer, one size and one text, without
# a balance loss. It shows that your layer works, learns, and turns extra parameters into a lower loss at equal active
# FLOPs. It does not show that an MoE wins on time, nor what happens at scale. Without the last row it would have
# looked like a clear win: a claim needs the control that could refute it.
#
# ### Who goes where?
#
# Nobody told the router what an expert should be for. Sort held-out windows by their last character, and look at
# where they go: once in a fresh layer, once in the last one you trained.

# %%
kinds = {
    "small letters": str.islower,
    "capitals": str.isupper,
    "digits": str.isdigit,
    "spaces": lambda character: character == " ",
    "line ends": lambda character: character == "\n",
    "other signs": lambda character: True,
}
kind_of_id = torch.tensor([next(i for i, test in enumerate(kinds.values()) if test(c)) for c in text.vocabulary])


@torch.no_grad()
def flows(model: NextCharacter) -> Tensor:
    """How many choices go from each kind of last character to each expert, (kinds, E)."""
    ids = held_out[:, :-1]
    _, routing = model.layer(model.norm(model.mix(model.embedding(ids).flatten(1))))
    counts = torch.zeros(len(kinds), num_experts, dtype=torch.int64)
    pairs = kind_of_id[ids[:, -1]].repeat_interleave(top_k), routing.expert_ids.flatten()
    return counts.index_put(pairs, torch.tensor(1), accumulate=True)


torch.manual_seed(seed + num_seeds - 1)
fresh = NextCharacter(MyMoELayer(d_model, d_ff, num_experts, top_k))
before, after = flows(fresh), flows(trained)
print(f"{'share of the two favourite experts':36}{'before':>8}{'after':>8}")
for kind, old, new in zip(kinds, before, after, strict=True):
    favourites = [counts.topk(top_k).values.sum() / counts.sum() for counts in (old, new)]
    print(f"{kind:36}{favourites[0]:>8.0%}{favourites[1]:>8.0%}")
show(figures.flow(list(kinds), after, "After training, kinds of characters have favourite experts"))

# %% [markdown]
# **What just happened.** Most kinds of characters lean more on two experts than in a fresh layer, which already sends
# similar tokens to similar experts, since its gate is a linear map. An even spread would give two of eight experts
# 25 %. Note the loads, too: nothing in this loss asks for an even one. Lesson 04 does.
#
# Be careful with names such as "the expert for spaces". The table knows one property of a window, its last character,
# in one run. A router follows whatever directions lower the loss.
#
# ## 9. In production
#
# | code | experts are kept as | dispatch |
# |---|---|---|
# | [GShard](https://arxiv.org/abs/2006.16668) and [DeepSpeed](https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/moe/sharded_moe.py) | a shard of experts on each device | one-hot einsums: `sec,sm->ecm` there and `sec,ecm->sm` back |
# | [DeepSeek-V3's inference code](https://github.com/deepseek-ai/DeepSeek-V3/blob/main/inference/model.py) | one module each | a loop; an expert without tokens is skipped |
# | [gpt-oss, PyTorch version](https://github.com/openai/gpt-oss/blob/main/gpt_oss/torch/model.py) | stacks `(E, 2F, D)` and `(E, D, F)` | none: fetches K weight matrices for every token, then a batched product |
# | [transformers 5](https://huggingface.co/docs/transformers/v5.12.0/experts_interface) | stacks | a choice: a loop (`eager`), copied weights (`batched_mm`), sort and grouped GEMM (`grouped_mm`) |
# | [torchtitan](https://github.com/pytorch/torchtitan/blob/main/torchtitan/models/common/moe.py) | stacks | sort, then a grouped GEMM with `offsets` from a `cumsum`, as yours |
# | [MegaBlocks](https://arxiv.org/abs/2211.15841) | stacks | block-sparse products instead of slots: nothing dropped, nothing padded to the busiest expert |
#
# Why they differ:
#
# - *Few tokens or many.* Fetching weights for each token suits a handful of tokens. For a long prompt it copies the
#   experts over and over.
# - *Fixed shapes.* One-hot slots with a fixed $C$ never ask how many tokens an expert has. That suits compilers, and
#   it forces the choice between waste and dropped tokens.
# - *Repeatable results.* On a GPU, `index_add` with repeated indices adds in no fixed order, so its rounding changes
#   from run to run. transformers [replaced it](https://github.com/huggingface/transformers/pull/43362) by the other
#   good road: restore the order, reshape, sum over $K$.
#
# ## 10. Pitfalls
#
# The checks of this lesson know these by name:
#
# | mistake | consequence |
# |---|---|
# | *overwriting instead of adding*, `out[tokens] = …` | with K > 1 only one expert of a token counts |
# | *`out[tokens] += …` with repeated tokens* | the same; use `index_add`, or visit each token once for each expert |
# | *weights on the input* | another function, for experts are not linear |
# | *weights forgotten or detached* | the router gets no gradient from the task |
# | *a mean over K* on top of the weights | an output K times too small |
# | *the order in place of its inverse* | tokens get other tokens' outputs, without an error |
# | *weights left in token order* beside sorted rows | each row meets another choice's weight |
# | *`order % K`* for the token | that is the column of the choice; the token is `order // K` |
# | *starts or counts for ends*, `bincount` without `minlength` | wrong slices, or idle experts missing |
# | *a queue for each choice* | two tokens share a slot and are added up |
# | *an expert without tokens* | a crash in `stack`, or NaN from a mean over nothing |
# | *another activation or start in the experts* | with E = 1 it is not the dense FFN |
# | *the residual inside the layer* | x is added twice |
#
# ## 11. Recap
#
# - An expert layer is a weighted sum of $K$ FFNs for each token. Its experts live in two stacked tensors.
# - Loop, one-hot slots and sorting are the same function, gradients included. They differ in cost.
# - Moving tokens by one-hot einsums costs $T/F$ times the experts' work, and slots are made for the busiest expert.
# - Sort, grouped GEMM, unsort: $T \cdot K$ rows, no search, no padding.
# - Cost follows active compute only as far as the code lets it. Measure, next to the dense FFN of equal active FLOPs.
# - A comparison needs the controls that could refute it: equal FLOPs, equal parameters, equal time.

# %% tags=["hide-input"]
quiz(
    Question(
        "T = 1000 tokens, E = 16 experts, K = 2; the busiest expert has 300 choices. How many rows go through an expert "
        "with one-hot slots, none dropped?",
        ["2000", "4800", "16 000"],
        1,
        [
            "That is what a loop or a sort computes.",
            "16 experts with 300 slots each. 2000 of them hold a token.",
            "That is every expert on every token.",
        ],
    ),
    Question(
        "Why does the layer sort the choices at all?",
        [
            "So that the largest weights come first",
            "So that the tokens of an expert are neighbours, and an expert's input is a slice",
            "Because index_add needs ascending indices",
        ],
        1,
        "Slices make one large product with groups possible. `ends` is all that a kernel needs to know.",
    ),
    Question(
        "Your MoE layer with E = 1 and K = 1 differs from the dense FFN with the same weights. Which is no cause?",
        ["Another activation", "The weights are multiplied on the input", "The sort is not stable"],
        2,
        [
            "It is one, found in public code.",
            "It is one wherever the weight is not 1, as with a sigmoid that is not renormalised.",
            "Order among the rows of one expert changes no output, as long as the way back uses the same order.",
        ],
    ),
    Question(
        "An MoE beats a dense network of equal active FLOPs after equally many steps. What follows?",
        [
            "It is better at equal training time",
            "Its extra parameters lowered the loss in this setting",
            "It needs less memory",
        ],
        1,
        [
            "Its steps may take longer. In this lesson the control with more steps won.",
            "That, and no more.",
            "All experts have to be stored, chosen or not: E/K times the parameters.",
        ],
    ),
)

# %% [markdown]
# **Words of this lesson.** *Expert*: one of E feed-forward networks of the same shape. *Stacked weights*: all experts
# in one tensor. *Dispatch*: bring tokens to experts. *Combine*: bring outputs back, weighted and added. *Slot*: a
# place for one token at one expert. *Permute, unpermute*: sort rows by expert, and undo it. *Grouped GEMM*: one call
# for matrix products with different numbers of rows. *Active FLOPs*: the arithmetic that a token needs. *Held-out
# text*: text that was never trained on.
