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
#     title: Expert capacity
#     promise: >-
#       Give every expert a fixed number of slots. Find out who is dropped, how much of it is chance, and what it does
#       to a model.
#     objectives:
#       - Compute an expert's capacity and the place of each choice in its queue, as GShard does.
#       - Predict exactly what a perfectly balanced router drops by chance, and check it against drawn batches.
#       - Build dispatch and combine with dropped choices, and say what a dropped token gets.
#       - Choose who is dropped, and see who pays for first come, first served.
#       - Measure what slots and groups cost, and what dropping does in training and in evaluation.
#     prerequisites:
#       - Lesson 03, the expert layer
#       - Lesson 04, the load-balancing loss
#     minutes: 110
#     difficulty: 2
# ---

# %% tags=["parameters"]
seed: int = 0  # of tokens, weights and the first training run
num_seeds: int = 3  # training runs of each setting
num_experts: int = 8  # E
top_k: int = 1  # K of the model that is trained
draws: int = 2000  # random batches in the simulation
train_factors: list = [0.5, 1.0, 1.25]  # capacity factors in training; room for all is added
eval_factors: list = [0.5, 0.75, 1.0, 1.25, 2.0]  # capacity factors in evaluation; room for all is added
balance_weight: float = 0.01  # α of the balance loss
d_model: int = 32  # D
d_ff: int = 32  # F, hidden width of one expert
context: int = 4  # characters that the model sees before it predicts the next one
batch_size: int = 512  # windows of text in one training step, T
steps: int = 100  # of training
learning_rate: float = 0.02  # AdamW's largest
rounds: int = 5  # samples of each timing, of which the median counts

# %%
import math
import time

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from moe_course import Question, check, quiz, record, show, sliders
from moe_course.figures import lesson_07 as figures

torch.set_num_threads(1)  # the tensors of this lesson are small: a second thread would only get in the way

# %% [markdown]
# ## 1. A fixed number of slots
#
# In lesson 03 you gave every choice a slot, and each expert had as many as the *busiest* one needed. That number is
# known only once the router has spoken. It changes from batch to batch, and on a bad day it is huge.
#
# Many systems cannot live with that. A compiler for TPUs wants shapes before it sees data. A device has memory for so
# many rows and no more. Where experts sit on different devices, all wait for the one with the most work. So these
# systems fix the number of slots beforehand. It is the **capacity** of an expert, and it is set as a multiple of the
# even share:
#
# $$C = \left\lceil \frac{T \cdot K}{E} \cdot \text{capacity factor} \right\rceil .$$
#
# A choice that finds no free slot is **dropped**: that expert does not compute it. A slot that nobody wants is
# **padding**: it is computed and thrown away. A factor above 1 keeps slots in reserve. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "T = 64 tokens, E = 8 experts, K = 2, capacity factor 1.25. How many slots has an expert?",
        ["10", "16", "20", "160"],
        2,
        [
            "That is for K = 1. Each token makes two choices, and each choice wants a slot.",
            "That is the even share, 64 · 2 / 8. The factor is still missing.",
            "64 · 2 / 8 = 16 is the even share, and a quarter more makes 20.",
            "That is the number of slots of all experts together.",
        ],
    )
)

# %% [markdown]
# ### Exercise: how many slots
#
# Public code rounds up or down. Round up. And one more thing: a token takes at most one slot of an expert, so more than
# $T$ are of no use.

# %% exercise="07.expert_capacity"
def expert_capacity(num_tokens: int, num_experts: int, top_k: int, capacity_factor: float) -> int:
    """The number of slots of each expert.

    Args:
        num_tokens: T.
        num_experts: E.
        top_k: experts per token K.
        capacity_factor: room for so many times the even share.

    Returns:
        C: a whole number, rounded up, T at most; 0 for an empty batch.
    """
    ### BEGIN SOLUTION
    return min(math.ceil(num_tokens * top_k * capacity_factor / num_experts), num_tokens)
    ### END SOLUTION

# %% check="07.expert_capacity"
expert_capacity = check(expert_capacity)

# %% tags=["nbval-check-output"]
print("slots of an expert, E = 8, top-1   " + "".join(f"{f'factor {factor}':>14}" for factor in (0.5, 1.0, 1.25, 2.0)))
for tokens in (1, 5, 64, 1024):
    row = "".join(f"{expert_capacity(tokens, 8, 1, factor):>14}" for factor in (0.5, 1.0, 1.25, 2.0))
    print(f"T = {tokens:<31}{row}")

# %% [markdown]
# **What just happened.** Look at the small batches. Rounding up turns a factor of 1.25 into one of 1.6 for five tokens,
# and into one of 8 for a single token. The factor that you set and the room that you get are the same only when there
# are many choices for each expert.
#
# ## 2. A place in the queue
#
# If slots are short, somebody has to go without. The plainest rule is **first come, first served**: every expert has a
# queue, and those in the first $C$ places get a slot. Places count from 0.
#
# But who comes first? Tokens come in the order of the batch. With $K > 1$ there are two ways to line their choices up:
# token after token, each with all its choices, or **all first choices before any second choice**.
# [GShard](https://arxiv.org/abs/2006.16668) (algorithm 1) and [Mesh
# TensorFlow](https://github.com/tensorflow/mesh/blob/master/mesh_tensorflow/transformer/moe.py), which Switch was
# written in, do the latter. A token's favourite weighs most, so it should not lose its slot to somebody's second best.
# **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "Three tokens choose, in this order of preference: token 0 wants experts 0 and 1, token 1 wants 1 and 0, token 2 "
        "wants 1 and 2. In which place does token 0 stand at expert 1, all first choices first?",
        ["0", "1", "2"],
        2,
        [
            "That would be token after token. Expert 1 is only its second choice.",
            "Before it stand all whose *first* choice is expert 1. Count them.",
            "Tokens 1 and 2 both have expert 1 as their first choice: places 0 and 1. With C = 2, token 0 goes without.",
        ],
    )
)

# %% [markdown]
# ### Exercise: a place in the queue
#
# Number the choices in the queue of their expert. No capacity here: count on, however long the queue.

# %% exercise="07.position_in_expert"
def position_in_expert(expert_ids: Int64[Tensor, "T K"], num_experts: int) -> Int64[Tensor, "T K"]:
    """How many choices stand before each one in its expert's queue.

    Args:
        expert_ids: the K experts of each token, (T, K), the favourite first.
        num_experts: number of experts E.

    Returns:
        (T, K), counted from 0; all first choices before all second ones, tokens in their order.
    """
    ### BEGIN SOLUTION
    num_tokens, top_k = expert_ids.shape
    queue = expert_ids.T.flatten()  # (K·T,)
    counts = F.one_hot(queue, num_experts).cumsum(0) - 1
    return counts.gather(1, queue[:, None]).view(top_k, num_tokens).T
    ### END SOLUTION

# %% check="07.position_in_expert"
position_in_expert = check(position_in_expert)

# %% tags=["nbval-check-output"]
three = torch.tensor([[0, 1], [1, 0], [1, 2]])
for t, (ids, places) in enumerate(zip(three.tolist(), position_in_expert(three, 3).tolist(), strict=True)):
    wants = ", then ".join(f"expert {expert} (place {place})" for expert, place in zip(ids, places, strict=True))
    print(f"token {t}: {wants}")

# %% [markdown]
# ## 3. Used, padded, dropped
#
# Places give you the drops: a choice is dropped if its place is $C$ or more. For the bill you need even less, only the
# loads.
#
# ### Exercise: the bill
#
# Return three numbers for each expert.

# %% exercise="07.slot_usage"
def slot_usage(
    tokens_per_expert: Int64[Tensor, "E"], capacity: int
) -> tuple[Int64[Tensor, "E"], Int64[Tensor, "E"], Int64[Tensor, "E"]]:
    """What becomes of each expert's slots, and of the choices that wanted one.

    Args:
        tokens_per_expert: choices that fell on each expert, (E,).
        capacity: slots of each expert, C.

    Returns:
        used: slots with a token, (E,).
        padded: slots without a token, (E,).
        dropped: choices without a slot, (E,).
    """
    ### BEGIN SOLUTION
    used = tokens_per_expert.clamp(max=capacity)
    return used, capacity - used, tokens_per_expert - used
    ### END SOLUTION

# %% check="07.slot_usage"
slot_usage = check(slot_usage)

# %% [markdown]
# Now play. `skew` adds a preference for the first experts to every token.
#
# 1. Leave `skew` at 0: the router has no favourites. Which factor do you need until nothing is dropped? How much is
#    padding then?
# 2. Raise `num_tokens` with the factor as it is. What happens to the drops?
# 3. Set `skew` to 2 and try to get rid of the drops by the factor alone.

# %%
def slots_of_a_batch(capacity_factor: float, num_tokens: int, skew: float, top_k: int):
    """The slots of a random batch, whose tokens lean to the first experts."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_tokens, num_experts, generator=generator) + skew * torch.linspace(1, -1, num_experts)
    loads = torch.bincount(logits.topk(top_k, dim=-1).indices.flatten(), minlength=num_experts)
    return figures.slot_picture(*slot_usage(loads, expert_capacity(num_tokens, num_experts, top_k, capacity_factor)))


sliders(
    slots_of_a_batch,
    capacity_factor=(0.5, 4.0, 0.25, 1.25),
    num_tokens=([16, 32, 64, 128, 256], 64),
    skew=(0.0, 3.0, 0.25, 0.0),
    top_k=[1, 2],
)

# %% [markdown]
# **What just happened.** Dropping and padding happen *at the same time*, even with a router that prefers nobody. A
# free slot of one expert is no use to a token that wants another. With favourites no factor of reasonable size
# helps: you pay for slots of all experts to please one. That is what the balance loss of lesson 04 is for.
#
# ## 4. What chance alone drops
#
# Suppose training has balanced the router perfectly: each token goes to each expert with the same probability. Then an
# even share of slots should do. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "64 tokens, each sent to one of 8 experts by a fair die. Capacity factor 1.0: 8 slots for each expert. How many "
        "tokens are dropped, on average?",
        ["None: the router is balanced", "About 1 %", "About 13 %"],
        2,
        [
            "Balanced odds do not make equal counts. Throw a die 60 times, and you will not see each side ten times.",
            "More. Some experts get 11 tokens, others 5, and those who get 5 cannot lend their slots.",
            "See the next cell. Eight tokens of 64.",
        ],
    )
)

# %%
def drawn_loads(num_tokens: int) -> Int64[Tensor, "draws E"]:
    """Loads of random batches whose tokens choose an expert by a fair die."""
    generator = torch.Generator().manual_seed(seed + num_tokens)
    ids = torch.randint(num_experts, (draws, num_tokens), generator=generator)
    return torch.zeros(draws, num_experts, dtype=torch.int64).scatter_add(1, ids, torch.ones_like(ids))


simulated = {}
print(f"{draws} batches, E = {num_experts}, top-1" + "".join(f"{f'factor {factor}':>20}" for factor in (1.0, 1.25, 2.0)))
for tokens in (64, 256, 1024):
    row = ""
    for factor in (1.0, 1.25, 2.0):
        capacity = expert_capacity(tokens, num_experts, 1, factor)
        shares = (drawn_loads(tokens) - capacity).clamp(min=0).sum(-1) / tokens  # (draws,)
        simulated[tokens, factor] = shares.mean().item()
        row += f"{f'{shares.mean():.2%} ± {2 * shares.std() / draws**0.5:.2%}':>20}"
    print(f"T = {tokens:<27}{row}")
print("± twice the standard error")

# %% [markdown]
# **What just happened.** A balance loss brings the *odds* to even. It cannot bring the *counts* to even. With 64 tokens,
# one in eight is dropped for no fault of the router.
#
# You can compute these numbers without any drawing. Look at one expert. Each of the $T$ tokens asks for it with
# probability $p = K/E$, so its load $N$ follows the **binomial law**:
#
# $$\Pr[N = n] = \binom{T}{n} p^n (1 - p)^{T - n} .$$
#
# A load of $n$ drops $\max(n - C, 0)$ choices. Average that, add up the experts, divide by all choices:
#
# $$\text{drop rate} = \frac{E}{T K} \sum_{n=0}^{T} \max(n - C, 0) \, \Pr[N = n] .$$
#
# ### Exercise: the expected drop rate
#
# Write the formula as code. The numbers are exact here: no drawing, no approximation.

# %% exercise="07.expected_drop_rate"
def expected_drop_rate(num_tokens: int, num_experts: int, top_k: int, capacity: int) -> float:
    """The share of choices that a router drops on average when it chooses K different experts by chance.

    Args:
        num_tokens: T.
        num_experts: E.
        top_k: K.
        capacity: slots of each expert, C.

    Returns:
        Dropped choices over all choices, between 0 and 1.
    """
    ### BEGIN SOLUTION
    p = top_k / num_experts
    dropped_by_one = sum(
        (n - capacity) * math.comb(num_tokens, n) * p**n * (1 - p) ** (num_tokens - n)
        for n in range(capacity + 1, num_tokens + 1)
    )
    return num_experts * dropped_by_one / (num_tokens * top_k)
    ### END SOLUTION

# %% check="07.expected_drop_rate"
expected_drop_rate = check(expected_drop_rate)

# %% tags=["nbval-check-output"]
# For 1024 tokens the binomial coefficients are too large for a float: the package adds up their logarithms.
from moe_course.layers import expected_drop_rate as exact_drop_rate

exact = {}
print(f"exact, E = {num_experts}, top-1" + "".join(f"{f'factor {factor}':>14}" for factor in (1.0, 1.25, 2.0)) + f"{'√(E-1)/√2πT':>14}")
for tokens in (64, 256, 1024):
    for factor in (1.0, 1.25, 2.0):
        capacity = expert_capacity(tokens, num_experts, 1, factor)
        exact[tokens, factor] = exact_drop_rate(tokens, num_experts, 1, capacity)
    row = "".join(f"{exact[tokens, factor]:>14.3%}" for factor in (1.0, 1.25, 2.0))
    print(f"T = {tokens:<15}{row}{math.sqrt((num_experts - 1) / (2 * math.pi * tokens)):>14.3%}")

# %%
tokens, capacity = 64, expert_capacity(64, num_experts, 1, 1.0)
law = torch.distributions.Binomial(tokens, torch.tensor(1 / num_experts)).log_prob(torch.arange(tokens + 1.0)).exp()
seen = torch.bincount(drawn_loads(tokens).flatten(), minlength=tokens + 1) / (draws * num_experts)
title = f"{tokens} tokens, {capacity} slots: what lies right of the line is dropped"
show(figures.load_distribution(law, seen, capacity, title))
record(
    drop_rates=[{"tokens": t, "factor": f, "simulated": simulated[t, f], "exact": exact[t, f]} for t, f in exact],
)

# %% [markdown]
# **What just happened.** The law and the drawn batches agree. And the law tells you *why* large batches drop less. The
# mean load is $TK/E$, and its standard deviation $\sqrt{Tp(1-p)}$ grows only with the root of $T$. An average excess is
# about 0.4 standard deviations, so at factor 1
#
# $$\text{drop rate} \approx \sqrt{\frac{E - K}{2 \pi \, T K}} .$$
#
# That is the last column. Four times the tokens, half the drops. What counts is the number of choices for each
# expert: with more experts, the same batch drops more.
#
# Drops are one price, padding is the other. Here are both, exactly, for a balanced router.

# %%
factors = [round(0.5 + 0.05 * i, 2) for i in range(51)]
dropped, padded = {}, {}
for tokens in (16, 64, 256, 1024):
    slots = torch.tensor([expert_capacity(tokens, num_experts, 1, factor) for factor in factors])
    lost = torch.tensor([exact_drop_rate(tokens, num_experts, 1, capacity) for capacity in slots.tolist()])
    dropped[f"{tokens} tokens"], padded[f"{tokens} tokens"] = lost, 1 - tokens * (1 - lost) / (num_experts * slots)

show(figures.drops_and_padding(factors, dropped, padded))

# %% [markdown]
# **What just happened.** Nothing is free. At factor 2, from 64 tokens on, hardly anything is dropped, and half of all
# slots are computed in vain. At factor 1 the two shares are equal: as many slots stay empty as choices are dropped.
# Small batches get the worse of both, and steps where a slot more or less makes a difference. Factors between 1 and 2
# are the usual compromise. With 1024 tokens, 1.25 does for chance. The rest of the reserve is for routers that are
# *not* balanced.
#
# ## 5. A layer that drops
#
# Now the layer. It needs dispatch and combine of lesson 03, with the dropped choices left out of **both**.
#
# ### Exercise: slots for some
#
# You get the places. Those below $C$ are slots.

# %% exercise="07.capacity_slots"
def capacity_slots(
    expert_ids: Int64[Tensor, "T K"],
    expert_weights: Float[Tensor, "T K"],
    position: Int64[Tensor, "T K"],
    num_experts: int,
    capacity: int,
) -> tuple[Float[Tensor, "T E C"], Float[Tensor, "T E C"]]:
    """The two tensors of a layer with a fixed number of slots.

    Args:
        expert_ids: the K experts of each token, (T, K).
        expert_weights: their weights, (T, K).
        position: the place of each choice in its expert's queue, (T, K).
        num_experts: number of experts E.
        capacity: slots of each expert, C.

    Returns:
        dispatch: (T, E, C), 1 where token t has slot c of expert e, else 0.
        combine: (T, E, C), the weight of the choice in the same places. Both in the dtype of `expert_weights`.
    """
    ### BEGIN SOLUTION
    fits = position < capacity
    token = torch.arange(len(expert_ids))[:, None].expand_as(expert_ids)[fits]
    expert, place = expert_ids[fits], position[fits]

    combine = expert_weights.new_zeros(len(expert_ids), num_experts, capacity)
    dispatch = torch.zeros_like(combine)
    dispatch[token, expert, place] = 1
    combine[token, expert, place] = expert_weights[fits]
    return dispatch, combine
    ### END SOLUTION

# %% check="07.capacity_slots"
capacity_slots = check(capacity_slots)

# %% [markdown]
# What does a token get when *none* of its choices found a slot? An MoE layer stands in a block with a residual
# connection, $x + \mathrm{MoE}(x)$. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "A token is dropped by all of its experts. What should the MoE layer return for it?",
        ["x: the token passes through unchanged", "0: it contributes nothing", "the mean of the other outputs"],
        1,
        [
            "The *block* should pass it through. If the layer returns x, the block computes x + x, and the token is "
            "doubled.",
            "Then the block returns x + 0. The residual connection is what carries the token on.",
            "An expert's output for other tokens has nothing to do with this one.",
        ],
    )
)

# %%
def run_experts(
    tokens: Float[Tensor, "E C D"], w_in: Float[Tensor, "E F D"], w_out: Float[Tensor, "E D F"]
) -> Float[Tensor, "E C D"]:
    """Run every expert on its own slots."""
    return F.gelu(tokens @ w_in.mT) @ w_out.mT

# %% [markdown]
# ### Exercise: what a dropped token gets
#
# Put the pieces together: places, slots, experts, combine. `run_experts` is the one of lesson 03. Return what the
# *layer* returns; the block adds x. Leave the weights of the remaining choices as they are.

# %% exercise="07.capped_experts"
def capped_experts(
    x: Float[Tensor, "T D"],
    expert_ids: Int64[Tensor, "T K"],
    expert_weights: Float[Tensor, "T K"],
    w_in: Float[Tensor, "E F D"],
    w_out: Float[Tensor, "E D F"],
    capacity: int,
) -> Float[Tensor, "T D"]:
    """An MoE layer whose experts have C slots each, first come, first served.

    Args:
        x: tokens, (T, D).
        expert_ids: the K experts of each token, (T, K).
        expert_weights: their weights, (T, K).
        w_in: first weights of all experts, (E, F, D).
        w_out: second weights of all experts, (E, D, F).
        capacity: slots of each expert, C.

    Returns:
        (T, D): the weighted sum of the outputs of the choices that found a slot.
    """
    ### BEGIN SOLUTION
    position = position_in_expert(expert_ids, len(w_in))
    dispatch, combine = capacity_slots(expert_ids, expert_weights, position, len(w_in), capacity)
    outputs = run_experts(torch.einsum("tec,td->ecd", dispatch, x), w_in, w_out)
    return torch.einsum("tec,ecd->td", combine, outputs)
    ### END SOLUTION

# %% check="07.capped_experts"
capped_experts = check(capped_experts)

# %% [markdown]
# The einsums need slots. Other dispatches do not: for them, a dropped choice is a choice of weight 0. So a **router**
# can do the dropping, in front of any layer. That is how this course's package does it: `CapacityRouter` wraps a router,
# sets the weights of dropped choices to 0, and reports which they were.

# %% tags=["nbval-check-output"]
from moe_course.layers import CapacityRouter, MoELayer

torch.manual_seed(seed)
layer = MoELayer(d_model, d_ff, num_experts, top_k=2, dtype=torch.float64)
layer.router = CapacityRouter(layer.router, capacity_factor=1.0)
x = torch.randn(64, d_model, dtype=torch.float64)
_, routing = layer(x)
wanted = routing.uncapped  # what the router decided before anything was dropped
mine = capped_experts(x, wanted.expert_ids, wanted.weights, layer.experts.w_in, layer.experts.w_out, routing.capacity)

print(f"slots of each expert: {routing.capacity}, dropped: {routing.dropped.sum()} of {routing.dropped.numel()} choices")
for dispatch in ("loop", "einsum", "grouped", "sorted"):
    layer.dispatch = dispatch
    print(f"your slots equal the {dispatch:8} dispatch:", torch.allclose(layer(x)[0], mine, rtol=0, atol=1e-12))

# %% [markdown]
# ### One line that doubles a token
#
# The mistake in the question above is real. It starts an output tensor as a copy of the input, and fills in what the
# experts return. Until 2025, the Switch model of `transformers` did ([issue
# 37017](https://github.com/huggingface/transformers/issues/37017), repaired by [pull request
# 37123](https://github.com/huggingface/transformers/pull/37123)). Six layers with a residual connection show what
# becomes of it:

# %%
def through_blocks(dropped_gets: str) -> list[float]:
    """Norm of tokens that are always dropped, over its start, after each of six blocks x + MoE(x)."""
    tokens = torch.randn(16, d_model, generator=torch.Generator().manual_seed(seed))
    norms = [1.0]
    start = tokens.norm()
    for _ in range(6):
        out = torch.zeros_like(tokens) if dropped_gets == "zero" else tokens.clone()
        tokens = tokens + out
        norms.append((tokens.norm() / start).item())
    return norms


for dropped_gets in ("zero", "itself"):
    norms = "".join(f"{norm:>8.0f}" for norm in through_blocks(dropped_gets))
    print(f"a dropped token gets {dropped_gets:8}: its norm after 0 to 6 blocks {norms}")

# %% [markdown]
# **What just happened.** The token doubles with each block that drops it, and nothing fails.
#
# ## 6. Who should go?
#
# First come, first served is fair to nobody in particular: it favours the front of the batch, whatever the tokens are
# worth. The alternative is **priority by score**. The choices of an expert queue up by the router's weight, and the
# least are dropped. Megatron and DeepSpeed call this drop policy `probs`.
#
# [V-MoE](https://arxiv.org/abs/2106.05974) has a variant of it. Its *batch prioritized routing* sorts the tokens by
# their largest weight, and keeps first choices before second ones.
#
# ### Exercise: the best first
#
# Number the choices of each expert by weight, the largest first. All choices of an expert stand in one queue, whether
# they are their token's first or second. Among equal weights, the order is that of `position_in_expert`.

# %% exercise="07.place_by_score"
def place_by_score(
    expert_ids: Int64[Tensor, "T K"], expert_weights: Float[Tensor, "T K"], num_experts: int
) -> Int64[Tensor, "T K"]:
    """How many choices of the same expert go before each one when the largest weight goes first.

    Args:
        expert_ids: the K experts of each token, (T, K).
        expert_weights: their weights, (T, K).
        num_experts: number of experts E.

    Returns:
        (T, K), counted from 0.
    """
    ### BEGIN SOLUTION
    num_tokens, top_k = expert_ids.shape
    order = expert_weights.T.flatten().argsort(descending=True, stable=True)
    queue = expert_ids.T.flatten()[order]
    counts = (F.one_hot(queue, num_experts).cumsum(0) - 1).gather(1, queue[:, None]).squeeze(1)
    position = torch.empty_like(counts)
    position[order] = counts
    return position.view(top_k, num_tokens).T
    ### END SOLUTION

# %% check="07.place_by_score"
place_by_score = check(place_by_score)

# %%
def random_batches(batches: int, num_tokens: int, top_k: int) -> list[tuple[Tensor, Tensor]]:
    """Choices and weights (T, K) of routers without favourites."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batches, num_tokens, num_experts, generator=generator)
    best = logits.softmax(-1).topk(top_k, dim=-1)
    return list(zip(best.indices, best.values, strict=True))


def first_come(expert_ids: Tensor, weights: Tensor) -> Tensor:
    return position_in_expert(expert_ids, num_experts)


def by_score(expert_ids: Tensor, weights: Tensor) -> Tensor:
    return place_by_score(expert_ids, weights, num_experts)


batches, tokens = random_batches(100, 512, top_k=2), 512
capacity = expert_capacity(tokens, num_experts, 2, 0.75)
masks, lost = {}, {}
for name, place in (("first come", first_come), ("by score", by_score)):
    masks[name] = torch.stack([place(ids, weights) >= capacity for ids, weights in batches]).float()  # (batches, T, 2)
    gone = torch.stack([weights for _, weights in batches]) * masks[name]
    lost[name] = (gone.sum() / sum(weights.sum() for _, weights in batches)).item()
    first, second = masks[name].mean((0, 1)).tolist()
    print(f"{name:12} dropped: {masks[name].mean():.1%} of choices ({first:.1%} of first ones, {second:.1%} of second "
          f"ones), {lost[name]:.1%} of the weight")

show(figures.drops_by_place({name: mask.mean((0, 2)).unflatten(0, (16, -1)).mean(1) for name, mask in masks.items()}, tokens))

# %% [markdown]
# **What just happened.** Both drop equally many choices, for the loads are the same. They differ in which.
#
# First come spares all first choices here, and cuts off the end of the batch: the late tokens lose their second expert
# almost for certain. By score, every place has the same risk, and less of the weight is lost. It also takes some first
# choices, those that their router was not sure of.
#
# Score has a price, too. **Predict:** you generate text, and at each step the layer sees one more token. Which rule
# lets a *later* token change what an *earlier* one gets?

# %% tags=["nbval-check-output"]
def changed_by_later_tokens(place, top_k: int) -> int:
    """Of 24 tokens, how many lose or win an expert because 24 others follow; C stays the same."""
    ids, weights = random_batches(1, 48, top_k)[0]
    capacity = 4 * top_k
    alone = place(ids[:24], weights[:24]) >= capacity
    with_others = place(ids, weights)[:24] >= capacity
    return int((alone != with_others).any(-1).sum())


for name, place in (("first come", first_come), ("by score", by_score)):
    counts = [changed_by_later_tokens(place, k) for k in (1, 2)]
    print(f"{name:12} top-1: {counts[0]:2} of 24 tokens change, top-2: {counts[1]:2}")

# %% [markdown]
# **What just happened.** Only first come with $K = 1$ leaves the past alone. With $K = 2$, a later token's first choice
# goes before an earlier one's second. By score, anybody with a larger weight may push in. In training, a token's output
# then depends a little on tokens that it must not see. And the capacity itself depends on $T$, so whatever the rule,
# **the same text may come out differently in another batch**. [One
# paper](https://arxiv.org/abs/2402.05526) makes an attack of it: its queries fill the slots of others' queries in the
# same batch.
#
# ## 7. Groups, and what slots cost
#
# One batch need not be one queue. GShard and Mesh TensorFlow cut it into **groups**, each with queues and slots of its
# own. Where experts are spread over devices, each device's tokens are a group of their own in any case. A group may be
# a sequence or a slice of the batch.
#
# ### Exercise: groups with slots of their own
#
# Queues and capacity begin anew in each group. Return the mask of dropped choices.

# %% exercise="07.drop_in_groups"
def drop_in_groups(
    expert_ids: Int64[Tensor, "G T K"], num_experts: int, capacity_factor: float
) -> Bool[Tensor, "G T K"]:
    """Which choices are dropped when each group has slots of its own, first come, first served.

    Args:
        expert_ids: the choices of the T tokens of each of G groups, (G, T, K).
        num_experts: number of experts E.
        capacity_factor: slots of an expert for one group, as a multiple of an even share of that group's choices.

    Returns:
        (G, T, K), True for dropped choices.
    """
    ### BEGIN SOLUTION
    _, num_tokens, top_k = expert_ids.shape
    capacity = expert_capacity(num_tokens, num_experts, top_k, capacity_factor)
    return torch.stack([position_in_expert(group, num_experts) >= capacity for group in expert_ids])
    ### END SOLUTION

# %% check="07.drop_in_groups"
drop_in_groups = check(drop_in_groups)

# %% [markdown]
# Why would anybody want groups? They drop more, as you know from section 4. **Predict** how the cost of moving tokens
# by one-hot tensors, $2 \cdot 2 \cdot T \cdot EC \cdot D$ FLOPs, changes when 1024 tokens are cut into 8 groups of 128:

# %% tags=["hide-input"]
quiz(
    Question(
        "T = 1024 tokens in one group, or in 8 groups of 128. How does the cost of the two einsums compare?",
        ["The same", "An eighth", "A 64th"],
        1,
        [
            "C shrinks with the group, so each einsum is smaller by more than the number of groups.",
            "T · C shrinks by 64 for one group, and there are 8 groups.",
            "That is one group. There are eight of them.",
        ],
    )
)

# %%
ids = torch.stack([expert_ids for expert_ids, _ in random_batches(50, 1024, 1)])  # (50, 1024, 1)
print("1024 tokens, top-1, capacity factor 1.25, a router without favourites, 50 batches")
print(f"{'groups':>8}{'tokens each':>14}{'slots each':>12}{'dropped':>10}{'entries of dispatch':>22}")
in_groups = []
for groups in (1, 4, 16, 64):
    size = 1024 // groups
    rate = drop_in_groups(ids.reshape(-1, size, 1), num_experts, 1.25).float().mean().item()
    slots = expert_capacity(size, num_experts, 1, 1.25)
    entries = groups * size * num_experts * slots
    in_groups.append({"groups": groups, "dropped": rate, "entries": entries})
    print(f"{groups:>8}{size:>14}{slots:>12}{rate:>10.2%}{entries:>22,}".replace(",", " "))
record(drops_in_groups=in_groups)

# %% [markdown]
# Now in milliseconds. Three ways to run the same layer: sorted and dropless as in lesson 03; one-hot slots over the
# whole batch; one-hot slots in groups of 128.

# %%
from moe_course.layers import cap_routing, capped_einsum_dispatch, sorted_dispatch, top_k_routing


def layer_of(num_tokens: int, width: int = 128):
    """Tokens, their logits, and stacked weights, for timing."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (num_tokens, 64), (num_tokens, num_experts), (num_experts, width, 64), (num_experts, 64, width)
    return [torch.randn(shape, generator=generator) * 0.1 for shape in shapes]


def in_one_group(x, logits, w_in, w_out):
    capacity = expert_capacity(len(x), num_experts, 2, 1.25)
    return capped_einsum_dispatch(x, cap_routing(top_k_routing(logits, 2), capacity), w_in, w_out)


def in_groups_of_128(x, logits, w_in, w_out):
    parts = zip(x.split(128), logits.split(128), strict=True)
    return torch.cat([in_one_group(tokens, scores, w_in, w_out) for tokens, scores in parts])


def dropless(x, logits, w_in, w_out):
    routing = top_k_routing(logits, 2)
    return sorted_dispatch(x, routing.expert_ids, routing.weights, w_in, w_out)

# %%
ways = {"sorted, dropless": dropless, "slots, groups of 128": in_groups_of_128, "slots, one group": in_one_group}
times = {name: {} for name in ways}
for tokens in (128, 256, 512, 1024):
    arguments = layer_of(tokens)
    samples = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.process_time()  # of this process alone, whatever else the machine does
            with torch.no_grad():
                way(*arguments)
            samples[name].append(1000 * (time.process_time() - start))
    for name, taken in samples.items():
        times[name][tokens] = torch.tensor(taken[1:]).median().item()  # the first call warms up

ratio = {name: by_tokens[1024] / times["sorted, dropless"][1024] for name, by_tokens in times.items()}
print("1024 tokens, in multiples of sorted: " + ", ".join(f"{name} {value:.1f}" for name, value in ratio.items()))
show(figures.cost(times, f"top-2 of {num_experts}, D = 64, F = 128, factor 1.25; CPU time of one thread, medians of {rounds}"))

# %% [markdown]
# **What just happened.** In one group, twice the tokens cost in the end some four to six times the time, for the dispatch
# tensor has $T \cdot E \cdot C \approx 1.25 \, K T^2$ entries, 2.6 million at 1024 tokens. Groups make that linear, and
# pay with drops. Sorting needs neither slots nor groups, and drops nothing. From some hundred tokens on it is the
# fastest of the three here, on a CPU. A TPU or a compiler that wants fixed shapes may see it otherwise.
#
# ## 8. What does dropping do to a model?
#
# Back to the text of lesson 03: the reference of Python, a window of a few characters, the next one to predict. One MoE
# layer in a residual block, top-1, weights not renormalised, and a balance loss with α = 0.01: a small Switch.
#
# Train it with different capacity factors. Then evaluate *each* model with *all* factors. Room for all is a factor
# of $E/K$: more than $T$ slots cannot be used.

# %%
from moe_course.layers import load_balancing_loss
from moe_course.training import draw_batches, python_docs, train, windows

text = python_docs()
train_rows, held_out = windows(text.train, context), windows(text.held_out, context)
held_out = held_out[torch.randperm(len(held_out), generator=torch.Generator().manual_seed(seed))[:2048]]
room_for_all = num_experts / top_k


class NextCharacter(nn.Module):
    """A window of characters (B, context) to logits of the next one, and the routing of its MoE layer."""

    def __init__(self, capacity_factor: float, priority: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(text.vocabulary), 16)
        self.mix = nn.Linear(16 * context, d_model)
        self.norm, self.last_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.moe = MoELayer(d_model, d_ff, num_experts, top_k, renormalize=top_k > 1)
        self.moe.router = CapacityRouter(self.moe.router, capacity_factor=capacity_factor, priority=priority)
        self.head = nn.Linear(d_model, len(text.vocabulary))

    def forward(self, ids: Tensor):
        hidden = self.mix(self.embedding(ids).flatten(1))
        out, routing = self.moe(self.norm(hidden))
        return self.head(self.last_norm(hidden + out)), routing

# %% [markdown]
# Five ways to train, three seeds each. **Predict**, and write it down: which model is best when evaluated with room for
# all? And which suffers least when evaluated at factor 1?

# %%
def next_character_loss(model: NextCharacter, rows: Tensor) -> Tensor:
    logits, routing = model(rows[:, :-1])
    loss = F.cross_entropy(logits, rows[:, -1])
    if not model.training:
        return loss
    return loss + balance_weight * load_balancing_loss(routing.probs, routing.expert_ids)


def run(capacity_factor: float, priority: str, run_seed: int) -> NextCharacter:
    torch.manual_seed(run_seed)
    model = NextCharacter(capacity_factor, priority)
    batches = draw_batches(train_rows, batch_size, steps, seed=run_seed)
    train(model, next_character_loss, batches, held_out, steps=steps, learning_rate=learning_rate, points=1)
    return model.eval()


ways_to_train = {f"factor {factor:g}": (factor, "first_come") for factor in train_factors}
ways_to_train |= {"room for all": (room_for_all, "first_come"), "factor 1, by score": (1.0, "score")}
models = {name: [run(*how, seed + i) for i in range(num_seeds)] for name, how in ways_to_train.items()}

# %%
@torch.no_grad()
def evaluate(model: NextCharacter, factor: float, size: int = batch_size) -> tuple[Tensor, Tensor]:
    """Loss of each held-out window, and whether its token was dropped, in batches of `size`."""
    model.moe.router.eval_capacity_factor = factor
    losses, dropped = [], []
    for rows in held_out.split(size):
        logits, routing = model(rows[:, :-1])
        losses.append(F.cross_entropy(logits, rows[:, -1], reduction="none"))
        dropped.append(routing.dropped.all(-1))
    return torch.cat(losses), torch.cat(dropped)


factors = [*eval_factors, room_for_all]
labels = [f"{factor:g}" for factor in eval_factors] + ["all"]
full, usual = (min(range(len(factors)), key=lambda i: abs(factors[i] - wanted)) for wanted in (1.0, 1.25))  # or nearest
results = {name: [[evaluate(model, factor) for model in runs] for factor in factors] for name, runs in models.items()}
losses = {name: torch.tensor([[loss.mean() for loss, _ in runs] for runs in rows]) for name, rows in results.items()}
drops = {name: torch.tensor([[lost.float().mean() for _, lost in runs] for runs in rows]) for name, rows in results.items()}

print(f"{'loss on held-out text':26}" + "".join(f"{f'at {label}':>9}" for label in labels) + f"{f'dropped at {labels[usual]}':>18}")
for name, values in losses.items():
    row = "".join(f"{value:>9.3f}" for value in values.mean(1).tolist())
    print(f"{name:26}{row}{drops[name][usual].mean():>18.1%}")
show(figures.evaluation(labels, losses))

# %% [markdown]
# **What just happened.** Three seeds are few, so the numbers below come from eight, run once while this lesson was
# written. ± is the standard error of the difference from seed to seed.
#
# 1. *Dropping in training costs, and little at usual factors.* With room for all in evaluation, the model that was
#    trained with room for all is best: 2.265. Those trained at 1.25 and at 1 are 0.011 ± 0.004 and 0.023 ± 0.006
#    behind, on seven and on all eight of the seeds. At 0.5 it is 0.089 ± 0.009.
# 2. *A model gets used to drops.* Evaluated at factor 1, the model trained with room for all loses 0.077 ± 0.014, and
#    falls behind the one trained at 1, by 0.025 ± 0.012. That is six of eight seeds: likely, not certain.
# 3. *More room in evaluation helps those who were served first come.* The model trained at 1 gains 0.029 ± 0.003 from
#    room for all, on every seed. That fits ST-MoE's choice of 1.25 in training and 2.0 in evaluation.
# 4. *By score, drops cost least.* At factor 1 it is ahead of first come by 0.034 ± 0.008, on seven of eight seeds. Room
#    for all changes next to nothing: it is worse by 0.004 ± 0.001. And it stays 0.022 ± 0.006 behind the model that
#    never dropped.
#
# Mind the last column of the table. These routers are far from balanced. At factor 1.25, chance alone would drop
# 0.08 % of 512 tokens. And mind the limits: one layer, one text, top-1, 100 steps. At other sizes the gaps will differ.
#
# Where does the loss come from? A window here is a token of its own, so only dropped ones can change. Look at them with
# and without their expert:

# %%
print(f"{f'evaluated at factor {labels[full]}':26}{'dropped':>10}{'their loss: with expert':>26}{'without':>10}{'largest change of others':>28}")
for name, rows in results.items():
    each = []
    for (whole, _), (capped, lost) in zip(rows[-1], rows[full], strict=True):
        each.append([lost.float().mean(), whole[lost].mean(), capped[lost].mean(), (capped - whole)[~lost].abs().max()])
    share, with_expert, without, others = torch.tensor(each).mean(0).tolist()
    print(f"{name:26}{share:>10.1%}{with_expert:>26.2f}{without:>10.2f}{others:>28g}")

# %% [markdown]
# And the size of the batch matters, though the model and the text are the same:

# %%
once = {}
name = "factor 1.25" if "factor 1.25" in models else next(iter(models))
print(f"trained with {name}, evaluated at factor 1.25")
for size in (32, 128, 512, 2048):
    pairs = [evaluate(model, 1.25, size) for model in models[name]]
    loss, lost = (torch.stack(part).float().mean().item() for part in zip(*pairs, strict=True))
    once[size] = loss
    print(f"batches of {size:>5}: {lost:6.1%} dropped, loss {loss:.3f}")

record(
    final_losses=[
        {"trained": name, "evaluated": label, "loss": values[i].mean().item(), "sd": values[i].std().item()}
        for name, values in losses.items()
        for i, label in enumerate(labels)
    ],
    loss_by_evaluation_batch=[{"batch": size, "loss": loss} for size, loss in once.items()],
    loss_room_for_all=losses["room for all"][-1].mean().item(),
    loss_by_score=losses["factor 1, by score"][-1].mean().item(),
)

# %% [markdown]
# **What just happened.** All of the loss comes from the dropped windows: the others do not change in any digit. Most
# models predict them clearly worse without their expert. Not the one that learnt with priority by score. It drops the
# choices of small weight, and a choice of small weight adds little to the sum.
#
# And a loss at a finite factor belongs to a model *and a batch size*: 32 windows at a time drop far more than 2048.
# When you report one, evaluate with room for all, or say both.
#
# ## 9. Watch it
#
# `ExpertMonitor` of lesson 04 has one more column when a layer drops. Here are 40 steps of training at factor 1.25,
# without a balance loss and with one.

# %%
from moe_course.training import ExpertMonitor

for weight in (0.0, 0.1):
    torch.manual_seed(seed)
    model = NextCharacter(1.25, "first_come")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    with ExpertMonitor(model) as monitor:
        for rows in draw_batches(train_rows, batch_size, 40, seed=seed):
            logits, routing = model(rows[:, :-1])
            balance = load_balancing_loss(routing.probs, routing.expert_ids)
            (F.cross_entropy(logits, rows[:, -1]) + weight * balance).backward()
            optimizer.step()
            optimizer.zero_grad()
    print(f"α = {weight:g}\n{monitor}\n")

# %% [markdown]
# The loads in the table are what the router *wanted*, dropped choices included. The balance loss needs them that way,
# too: counted after dropping, a crowded expert would look no busier than its capacity.
#
# ## 10. In production
#
# | model or code | capacity | who goes |
# |---|---|---|
# | [GShard](https://arxiv.org/abs/2006.16668) | fixed, for each group | first choices before second ones, then in order |
# | [Switch](https://arxiv.org/abs/2101.03961) | $T/E$ times the factor; top-1 | a dropped token contributes zero |
# | [Mesh TensorFlow](https://github.com/tensorflow/mesh/blob/master/mesh_tensorflow/transformer/moe.py) | 1.25 in training, 2.0 in evaluation, groups of 1024, by default; rounded down | as GShard; the other weights stay as they are |
# | [ST-MoE](https://arxiv.org/abs/2202.08906) | 1.25 in training, 2.0 in evaluation | |
# | [V-MoE](https://github.com/google-research/vmoe/blob/main/vmoe/moe.py) | rounded up, to a multiple of 4 | in order, or the tokens with the largest weight first |
# | [DeepSpeed](https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/moe/sharded_moe.py) | rounded up, with a least number of slots | top-1: at random; top-2: as GShard, then renormalised |
# | [Megatron](https://github.com/NVIDIA/Megatron-LM/blob/main/megatron/core/transformer/moe/moe_utils.py) | none unless you set a factor; rounded up | `probs`: the least weights; or `position` |
# | [DeepSeek-V2](https://arxiv.org/abs/2405.04434) | in training, factor 1 for each *device*; about 10 % of the sequences are never dropped | the least scores |
# | [DeepSeek-V3](https://arxiv.org/abs/2412.19437) | none, in training and in inference | nobody |
# | [MegaBlocks](https://arxiv.org/abs/2211.15841) | none: block-sparse products | nobody |
# | Mixtral, OLMoE, Qwen3-MoE, gpt-oss in [transformers](https://huggingface.co/docs/transformers/v5.12.0/experts_interface) | none: the dispatches of lesson 03 | nobody |
#
# Why they differ:
#
# - *Shapes or grouped products.* One-hot slots came with TPUs and compilers that want fixed shapes. MegaBlocks' abstract
#   names the choice they force: drop tokens, or waste computation and memory on padding. Where sort and grouped GEMM
#   run well, neither is needed.
# - *Memory.* A dropless layer needs room for the worst batch. Capacity is a bound. DeepSeek-V2 put it on devices, not
#   on experts: what counts is what a device has to do.
# - *Training and use.* Dropping only in training makes the two differ. The models at 1.25 and 2.0 accept that.
#   DeepSeek-V2 keeps some sequences whole, so that the model knows both.
# - *Renormalised or not.* With two experts of weights 0.6 and 0.4, a token that loses the second keeps 0.6 of the first
#   in GShard, Mesh TensorFlow and Megatron, and 1.0 in DeepSpeed. Neither is a bug. But a model trained one way should
#   not be run the other way.
#
# ## 11. Pitfalls
#
# The checks of this lesson know these by name:
#
# | mistake | consequence |
# |---|---|
# | *a dropped token returned as it came* | the block adds it again: its norm doubles at each layer |
# | *a dropped choice as weight times the token* | a little of the same, in every layer |
# | *weights renormalised after dropping* | another convention; with K = 1 the gate becomes a constant 1 |
# | *a token lost with one of its choices* | up to K times the drops |
# | *the factor made an integer*, the share rounded before the factor | 1.25 does nothing, or too much |
# | *rounded down* | small batches have no slots at all |
# | *K forgotten, or put into the denominator* | half the slots, or a quarter, with K = 2 |
# | *more slots than tokens* | padding for certain, or a `topk` that crashes ([DeepSpeed #8155](https://github.com/deepspeedai/DeepSpeed/pull/8155)) |
# | *places counted from 1, or place C kept* | a slot too few or too many |
# | *token by token*, with K > 1 | second choices push out first ones |
# | *a queue for each choice* | two tokens in one slot, which the einsum adds up |
# | *overflow clamped into the last slot, or begun again at slot 0* | the same |
# | *dropped choices left in the combine* | a token gets another token's output |
# | *tokens sorted instead of choices* | V-MoE's rule, where Megatron's was meant |
# | *one queue for all groups, or the capacity of the whole batch* | late groups lose everything, or nobody drops |
# | *drops of the average instead of the average of drops* | you expect none, and one in eight is gone |
#
# ## 12. Recap
#
# - Capacity fixes shapes, memory and time. It is paid with dropped choices and padded slots, both at once.
# - A dropped choice contributes 0. A token that loses all its choices lives on by the residual connection alone.
# - All first choices before any second; or the largest weights first. First come makes the end of the batch pay.
# - A perfectly balanced router still drops: about $\sqrt{(E - K) / (2 \pi T K)}$ at factor 1.
# - Small groups drop more, and one-hot slots cost the square of the group.
# - With a capacity, what a token gets depends on the rest of its batch.
# - Where grouped products run well, models are dropless now.

# %% tags=["hide-input"]
quiz(
    Question(
        "You double the batch and leave the capacity factor at 1.25. What happens to the drops of a balanced router?",
        ["They double", "They stay the same share", "Their share falls"],
        2,
        [
            "The number of tokens doubles. The excess of an expert grows more slowly.",
            "Load and capacity both double. The chance deviations between them do not.",
            "The spread of a load grows with the root of T, the reserve with T.",
        ],
    ),
    Question(
        "E = 8, K = 2, T = 100. From which capacity factor on is nothing ever dropped, whatever the router does?",
        ["1.25", "2", "4"],
        2,
        [
            "Enough for chance, perhaps. Not for a router that sends all tokens to one expert.",
            "Then an expert has 50 slots. All 100 tokens may want it.",
            "E/K = 4: then C = 100 · 2 · 4 / 8 = 100, a slot for every token.",
        ],
    ),
    Question(
        "The loss of your capped model differs between evaluation with batch size 8 and 512. What is the likeliest cause?",
        [
            "A bug in the data loader",
            "Dropping: capacity and queues belong to a batch",
            "The balance loss is added in evaluation",
        ],
        1,
        [
            "Perhaps. But look at the drop column first.",
            "Other batches, other drops. Evaluate with room for all if you want a number that belongs to the model.",
            "It would change the loss, but not with the batch size alone.",
        ],
    ),
    Question(
        "A token's two choices have weights 0.7 and 0.3, and the second is dropped. What does GShard's layer return?",
        ["0.7 times the first expert's output", "the first expert's output", "0.7 times the output, plus 0.3 times the token"],
        0,
        [
            "The weights stay as the router made them, and the dropped part is missing.",
            "That is DeepSpeed's renormalisation.",
            "A dropped choice contributes 0; the token itself comes in by the residual connection.",
        ],
    ),
)

# %% [markdown]
# **Words of this lesson.** *Capacity*: the number of slots of an expert. *Capacity factor*: capacity over the even
# share. *Dropped choice*: one that found no slot. *Padding*: here, slots without a token. *Queue, place*: who goes
# before whom at an expert. *First come, first served*: places in the order of the batch, first choices first. *Priority
# by score*: places by the router's weight. *Group*: tokens that share slots. *Dropless*: without a capacity. *Binomial
# law*: how often something with a fixed probability happens in T independent tries.
