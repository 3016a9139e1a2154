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
#     title: The router
#     promise: >-
#       One small matrix decides which experts work for which token. Build it, and see how a single division
#       can stop it from learning.
#     objectives:
#       - Picture a linear gate as regions of space, and compute its logits for any batch.
#       - Turn logits into scores, keep the top K and weigh them, as Switch, Mixtral, OLMoE and DeepSeek-V3 do.
#       - Prove when softmax before and after top-k agree, and when they do not.
#       - Derive and measure why top-1 routing with renormalisation gives the router no gradient.
#     prerequisites:
#       - Lesson 01, the dense FFN
#       - The chain rule, and the softmax
#     minutes: 85
#     difficulty: 1
# ---

# %% tags=["parameters"]
seed: int = 4  # of tokens, gates and experts
num_seeds: int = 5  # repetitions of each experiment
num_experts: int = 4  # E; the tokens form as many clumps
num_tokens: int = 512  # T, even
steps: int = 300  # of training, in the last experiment
learning_rate: float = 0.3  # of SGD with momentum 0.9

# %%
import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from moe_course import Question, check, quiz, record, show, sliders
from moe_course.figures import lesson_02 as figures

torch.set_num_threads(1)  # the tensors of this lesson are tiny: a second thread would only get in the way

# %% [markdown]
# ## 1. The routing problem, as a picture
#
# A dense FFN sends every token through the same weights. A Mixture-of-Experts layer owns $E$ FFNs, the *experts*,
# and sends each token through only $K$ of them. Something has to choose, for every token and in every layer. That
# is the **router**, also called the *gate*.
#
# Its heart is one matrix $W$ of shape $(E, D)$: a row for each expert. For a token $x$ with $D$ features it
# computes
#
# $$z = x W^\top, \qquad z_e = \langle x, w_e \rangle .$$
#
# The number $z_e$ is the **logit** of expert $e$. It is large when the token points the same way as the expert's
# row. With $D = 2$ you can see all of it. Below, tokens lie in the plane, each row $w_e$ is an arrow, and each
# token has the colour of the expert with the largest logit.

# %%
def tokens_in_the_plane(num_tokens: int, num_regions: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Tokens (T, 2) in clumps around the origin, and the clump of each token (T,)."""
    region = torch.randint(num_regions, (num_tokens,), generator=generator)
    offset = 0.76 * (torch.rand(num_tokens, generator=generator) - 0.5)
    angle = (region + 0.5 + offset) * 2 * math.pi / num_regions
    radius = 0.7 + 0.6 * torch.rand(num_tokens, generator=generator)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=-1), region


generator = torch.Generator().manual_seed(seed)
x, region = tokens_in_the_plane(num_tokens, num_experts, generator)
gate = torch.randn(num_experts, 2, generator=generator)  # W, one row for each expert

show(figures.gate_regions(x, gate))

# %% [markdown]
# The regions are cones that meet at the origin. **Predict**, before you read on:

# %% tags=["hide-input"]
quiz(
    Question(
        "Take one token and move it straight away from the origin, to twice its distance. What happens to its logits "
        "and to its expert?",
        [
            "All logits double, and the expert stays the same",
            "The logits stay the same, and so does the expert",
            "All logits double, and the expert may change",
        ],
        0,
        "The gate is linear, so every logit doubles and their order stays. Only the direction of a token decides who "
        "wins: hence cones. Its length decides how clearly, as you will see when the softmax comes in.",
    )
)

# %% [markdown]
# Now turn and stretch the arrow of expert 0. Two things to try:
#
# - Give every expert some tokens. How even can you make the counts in the legend?
# - Set the length to 0. Does expert 0 lose all its tokens? Its logit is then 0 for every token. Look at where it
#   still wins.

# %%
def turned(degrees: int, length: float):
    """The regions after the arrow of expert 0 was replaced."""
    angle = math.radians(degrees)
    arrow = length * torch.tensor([[math.cos(angle), math.sin(angle)]])
    return figures.gate_regions(x, torch.cat([arrow, gate[1:]]))


sliders(turned, degrees=(0, 360, 5, 45), length=(0.0, 3.0, 0.1, 1.0))

# %% [markdown]
# With length 0, expert 0 wins exactly where all other logits are negative. A logit has no meaning on its own. It
# counts only against the other logits of the same token.
#
# ### Exercise: the linear gate
#
# Write the gate. The weight is `(E, D)`, as above. A real batch is `(B, S, D)`, so keep whatever leading dimensions
# `x` has: `*tokens` stands for any number of them, none included.

# %% exercise="02.router_logits"
def router_logits(x: Float[Tensor, "*tokens D"], weight: Float[Tensor, "E D"]) -> Float[Tensor, "*tokens E"]:
    """Score every expert for every token.

    Args:
        x: tokens, (…, D).
        weight: the gate, (E, D), one row for each expert.

    Returns:
        Logits, (…, E): the dot product of each token with each row.
    """
    ### BEGIN SOLUTION
    return x @ weight.T
    ### END SOLUTION

# %% check="02.router_logits"
router_logits = check(router_logits)

# %% tags=["nbval-check-output"]
logits = router_logits(x, gate)
batch_logits = router_logits(x.reshape(2, -1, 2), gate)
print("tokens", tuple(x.shape), "-> logits", tuple(logits.shape))
print("batch ", tuple(x.reshape(2, -1, 2).shape), "-> logits", tuple(batch_logits.shape))

# %% [markdown]
# **What just happened.** The router is a linear classifier over experts, with $E \cdot D$ parameters. In a layer of
# OLMoE ($E = 64$, $D = 2048$) that is 131 072 parameters for choosing. Each of its experts has 6.3 million, 48 times
# as many.
#
# ### Exercise: who does the work?
#
# An expert's **load** is the number of tokens it has to process. You will need it all through the course. Take the
# ids that a router chose, $K$ for each token, and count.
#
# Mind the experts that nobody chose. They exist, their load is 0, and they are where naive code breaks.

# %% exercise="02.tokens_per_expert"
def tokens_per_expert(expert_ids: Int64[Tensor, "T K"], num_experts: int) -> Int64[Tensor, "E"]:
    """Count the tokens of every expert.

    Args:
        expert_ids: the K experts of each token, (T, K).
        num_experts: number of experts E, of which some may not occur.

    Returns:
        Counts, (E,), which sum to T·K.
    """
    ### BEGIN SOLUTION
    return torch.bincount(expert_ids.flatten(), minlength=num_experts)
    ### END SOLUTION

# %% check="02.tokens_per_expert"
tokens_per_expert = check(tokens_per_expert)

# %%
best_expert = logits.argmax(dim=-1, keepdim=True)  # (T, 1): top-1 needs only the order of the logits
counts = tokens_per_expert(best_expert, num_experts)
print("mean over the tokens of an expert that has none:", x[:0].mean().item())

show(figures.load(counts, top_k=1))

# %% [markdown]
# **What just happened.** Nothing in the gate asks for an even load, and a random one does not have it. The line
# above the figure shows the trap: a mean over no tokens is `nan`, and one `nan` spreads through a whole model.
# Keeping the load even is the subject of lesson 04.
#
# ## 2. Scores: competing or independent
#
# Logits may be any number. To weigh experts you want **scores** between 0 and 1. Two functions are in use:
#
# $$\text{softmax: } p_e = \frac{e^{z_e}}{\sum_{j=1}^{E} e^{z_j}}
# \qquad\qquad
# \text{sigmoid: } s_e = \frac{1}{1 + e^{-z_e}} .$$
#
# In a softmax the experts of a token compete: a score can rise only if others fall, and they sum to 1. Sigmoids are
# independent: each expert is scored as if it were alone. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "You add 10 to all logits of a token. What happens to its scores?",
        [
            "Softmax and sigmoid scores both stay as they are",
            "Softmax scores stay; sigmoid scores all move close to 1",
            "Softmax scores get sharper; sigmoid scores stay",
            "Both change",
        ],
        1,
        "The factor exp(10) cancels in the softmax's quotient. Sigmoids see each logit alone, so all of them rise.",
    )
)

# %% [markdown]
# ### Exercise: from logits to scores
#
# Two demands come from practice. First, logits can be large, and `exp(1000)` is infinite: your function has to
# survive it. Secondly, scores are computed in float32 even when the model runs in bfloat16, because bfloat16 keeps
# only 8 significant bits.

# %% exercise="02.router_scores"
def router_scores(logits: Float[Tensor, "*tokens E"], score: str = "softmax") -> Float[Tensor, "*tokens E"]:
    """Turn logits into scores between 0 and 1.

    Args:
        logits: (…, E), of any floating dtype and size.
        score: "softmax" over the experts of each token, or an independent "sigmoid" for each expert.

    Returns:
        Scores, (…, E), in float32.
    """
    ### BEGIN SOLUTION
    logits = logits.float()
    return logits.softmax(dim=-1) if score == "softmax" else logits.sigmoid()
    ### END SOLUTION

# %% check="02.router_scores"
router_scores = check(router_scores)

# %% tags=["nbval-check-output"]
token = torch.tensor([0.0, 2.0, -1.0, 1.0])
print("logits           softmax                  sum     sigmoid                  sum")
for shift in (0, 10):
    row = f"token + {shift:<4}"
    for score in ("softmax", "sigmoid"):
        scores = router_scores(token + shift, score)
        row += "    " + " ".join(f"{value:.3f}" for value in scores.tolist()) + f"  {scores.sum():.2f}"
    print(row)

# %% [markdown]
# **What just happened.** The shift left the softmax alone and pushed every sigmoid to 1. So a softmax router knows
# only the *differences* between logits. A sigmoid router also knows their level, and can say "no expert suits this
# token" with four low scores.
#
# ## 3. Top-k: choose, then weigh
#
# Let $S$ be the set of the $K$ experts with the largest scores of a token. The layer's output is
#
# $$y = \sum_{e \in S} g_e \, E_e(x),$$
#
# where $E_e(x)$ is the output of expert $e$, and $g_e$ its **weight**. Two choices for the weight are in use:
#
# $$\text{not renormalised: } g_e = s_e
# \qquad\qquad
# \text{renormalised: } g_e = \frac{s_e}{\sum_{j \in S} s_j} .$$
#
# The token above has softmax scores 0.087, 0.644, 0.032 and 0.237. Its two best experts are 1 and 3. Not
# renormalised, they get 0.644 and 0.237, which sum to 0.881. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "What does renormalisation make of 0.644 and 0.237?",
        ["0.322 and 0.118", "0.600 and 0.400", "0.731 and 0.269", "0.704 and 0.296"],
        2,
        [
            "That divides by K = 2. The two would sum to 0.44: divide by their own sum, 0.881.",
            "That is a softmax over 0.644 and 0.237, so the second softmax in a row: it flattens the weights. Divide "
            "by their sum, 0.881.",
            "0.644 / 0.881 and 0.237 / 0.881. The ratio between the two is kept.",
            "Divide each by the sum of the two, 0.881.",
        ],
    )
)

# %% [markdown]
# ### Exercise: top-k routing
#
# This is the central function of the lesson. Return the weights and the ids of the experts, in matching order;
# which of a token's experts comes first is up to you. When two experts are tied, either may win: libraries differ
# here, so write nothing that relies on the winner.
#
# You may call `router_scores`. Weights come back in the dtype of the logits.

# %% exercise="02.route"
def route(
    logits: Float[Tensor, "T E"], top_k: int, score: str = "softmax", renormalize: bool = True
) -> tuple[Float[Tensor, "T K"], Int64[Tensor, "T K"]]:
    """Choose K experts for each token and weigh them.

    Args:
        logits: (T, E).
        top_k: experts per token K, at most E.
        score: "softmax" or "sigmoid", as in `router_scores`.
        renormalize: make the K weights of each token sum to 1.

    Returns:
        weights, (T, K), in the dtype of `logits`, and expert_ids, (T, K): position k of a row belongs to the same
        expert in both.
    """
    ### BEGIN SOLUTION
    weights, expert_ids = router_scores(logits, score).topk(top_k, dim=-1)
    if renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights.to(logits.dtype), expert_ids
    ### END SOLUTION

# %% check="02.route"
route = check(route)

# %% [markdown]
# Now play with one token and four experts. The third panel shows what each expert's output is multiplied by. Three
# experiments, and remember what you see:
#
# 1. `top_k` 2, softmax. Move the logit of an expert that is *not* chosen, without letting it win. Do the weights of
#    the chosen move? Compare `renormalize` True and False.
# 2. The same with sigmoid.
# 3. `top_k` 1 and `renormalize` True. Move the winner's logit. What does its weight do?

# %%
def one_token(top_k: int, score: str, renormalize: bool, **logits: float):
    """Logits, scores and weights of one token."""
    z = torch.tensor(list(logits.values()))
    weights, expert_ids = route(z[None], top_k, score, renormalize)
    return figures.one_token(z, router_scores(z, score), weights[0], expert_ids[0])


sliders(
    one_token,
    **{f"logit_{e}": (-4.0, 4.0, 0.1, value) for e, value in enumerate(token.tolist())},
    top_k=(1, 4, 1, 2),
    score=["softmax", "sigmoid"],
    renormalize=[True, False],
)

# %% [markdown]
# **What just happened.** With softmax and renormalisation, experts that are not chosen have no influence at all.
# Without it, they pull the chosen weights down through the shared denominator. With sigmoid they never matter. And
# with `top_k` 1 and renormalisation the weight stood still at 1 while you moved its logit. Keep that picture in
# mind for section 5.
#
# ## 4. Softmax before or after top-k?
#
# Papers and code write the router in two orders. The Mixtral paper and gpt-oss pick the top-k logits first and
# apply a softmax to those. Hugging Face's Mixtral applies the softmax to all logits, picks, then renormalises.
# People keep [asking](https://github.com/Lightning-AI/litgpt/issues/1286) whether this changes the model. It does
# not, and the proof is two lines. Call $Z = \sum_{j=1}^{E} e^{z_j}$.
#
# - *Same experts.* $p_e = e^{z_e} / Z$ grows with $z_e$, so the largest probabilities belong to the largest logits.
# - *Same weights.* For $e \in S$, the denominator $Z$ cancels:
#
# $$g_e = \frac{p_e}{\sum_{j \in S} p_j} = \frac{e^{z_e} / Z}{\sum_{j \in S} e^{z_j} / Z}
# = \frac{e^{z_e}}{\sum_{j \in S} e^{z_j}} .$$
#
# The last expression is the softmax over the chosen logits. Notice what the proof needs: that somebody divides by
# $\sum_{j \in S} p_j$. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "OLMoE takes a softmax over all 64 experts, keeps 8 and does not renormalise. Somebody runs its weights with a "
        "softmax over the 8 chosen logits instead. What changes?",
        [
            "Nothing: the two orders agree",
            "Other experts are chosen",
            "The same experts are chosen, but the layer's output becomes larger",
        ],
        2,
        "The experts and the ratios between their weights stay. But now the weights sum to 1 instead of less, so the "
        "layer adds more to the residual stream than it was trained to.",
    )
)

# %% [markdown]
# ### Exercise: top-k first, then softmax
#
# Write the second order, in the form of Shazeer et al. (2017): $\mathrm{softmax}(\mathrm{KeepTopK}(z))$, where
# KeepTopK replaces all but the $K$ largest logits by $-\infty$. The result has a column for *every* expert, with
# zeros where a token does not go. One trap is set: tied logits must not let a token keep more than $K$ experts.

# %% exercise="02.softmax_over_top_k"
def softmax_over_top_k(logits: Float[Tensor, "T E"], top_k: int) -> Float[Tensor, "T E"]:
    """Softmax over the K largest logits of each token.

    Args:
        logits: (T, E).
        top_k: experts per token K.

    Returns:
        Gates of all experts, (T, E): K of each row are positive and sum to 1, the others are 0.
    """
    ### BEGIN SOLUTION
    best, chosen = logits.topk(top_k, dim=-1)
    kept = torch.full_like(logits, -torch.inf).scatter(-1, chosen, best)
    return kept.softmax(dim=-1)
    ### END SOLUTION

# %% check="02.softmax_over_top_k"
softmax_over_top_k = check(softmax_over_top_k)

# %% [markdown]
# Now the measurement: 1000 tokens, 8 experts, every K. `spread_out` writes the result of your `route` in the same
# form.

# %% tags=["nbval-check-output"]
def spread_out(
    weights: Float[Tensor, "T K"], expert_ids: Int64[Tensor, "T K"], num_experts: int
) -> Float[Tensor, "T E"]:
    """The weights of the chosen experts in the columns of all experts, with zeros between them."""
    return weights.new_zeros(len(weights), num_experts).scatter(-1, expert_ids, weights)


many = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
print("        largest difference to softmax over top-k     mean sum of the weights")
print("  K     renormalised     not renormalised            not renormalised")
for k in range(1, 9):
    after = softmax_over_top_k(many, k)
    before = spread_out(*route(many, k), 8)
    plain = spread_out(*route(many, k, renormalize=False), 8)
    same = "below 1e-6" if (before - after).abs().max() < 1e-6 else "DIFFERENT"
    print(f"  {k}     {same:<17}{(plain - after).abs().max():<28.3f}{plain.sum(-1).mean():.3f}")

# %% [markdown]
# **What just happened.** Renormalised, the two orders agree to rounding for every K. Not renormalised, they differ
# for every K < E, and at K = E the question goes away because nothing is dropped.
#
# This is not an academic point. A port of OLMoE that took the softmax over the chosen logits [began sentences well
# and then drifted into non-sequiturs](https://github.com/lablup/mlxcel/pull/391): right experts, wrong scale, in
# every layer.
#
# ## 5. What renormalisation does to the gradient
#
# How does a router learn? The choice itself has no gradient: `topk` returns whole numbers, and a small change of
# the logits usually changes none of them. **The only way from the loss to the gate leads through the weights $g$.**
# By the chain rule,
#
# $$\frac{\partial L}{\partial z_j} = \sum_{i \in S}
# \underbrace{\Big\langle \frac{\partial L}{\partial y}, E_i(x) \Big\rangle}_{\text{does expert } i \text{ help?}} \;
# \underbrace{\frac{\partial g_i}{\partial z_j}}_{J_{ij}} .$$
#
# The first factor says whether more of expert $i$ would lower the loss. The second passes the message on to the
# logits. If the matrix $J$ is zero, no message gets through, however useful the experts are.
#
# ### Exercise: which logit moves which gate
#
# Work out $J$ for one token and softmax scores. Let $g$ hold the gates of all $E$ experts, 0 for those not chosen.
# Start on paper with $K = E$: what is $\partial p_i / \partial z_j$ for $i = j$, and for $i \neq j$? Then drop
# experts. There is a closed form of one line for each of the two cases.

# %% exercise="02.gate_jacobian"
def gate_jacobian(logits: Float[Tensor, "E"], top_k: int, renormalize: bool) -> Float[Tensor, "E E"]:
    """The derivative of every gate by every logit, for one token and softmax scores.

    Args:
        logits: (E,).
        top_k: experts per token K.
        renormalize: whether the K gates are divided by their sum.

    Returns:
        J, (E, E): J[i, j] is the derivative of gate i by logit j. Rows of experts that are not chosen are 0.
    """
    ### BEGIN SOLUTION
    probs = logits.softmax(dim=-1)
    chosen = logits.topk(top_k).indices
    gates = torch.zeros_like(probs).scatter(-1, chosen, probs[chosen])
    if renormalize:
        gates = gates / gates.sum()
        return torch.diag(gates) - torch.outer(gates, gates)
    return torch.diag(gates) - torch.outer(gates, probs)
    ### END SOLUTION

# %% check="02.gate_jacobian"
gate_jacobian = check(gate_jacobian)

# %%
show(
    figures.jacobians(
        {
            "top-1, not renormalised": gate_jacobian(token, 1, renormalize=False),
            "top-1, renormalised": gate_jacobian(token, 1, renormalize=True),
            "top-2, renormalised": gate_jacobian(token, 2, renormalize=True),
        }
    )
)

# %% [markdown]
# **What just happened.** Renormalised, $J_{ij} = g_i (\delta_{ij} - g_j)$. With $K = 1$ the one gate is $g = s/s =
# 1$, and $1 \cdot (1 - 1) = 0$. You do not even need the algebra: a constant has no derivative. You saw it stand
# still under the slider.
#
# Without renormalisation the top-1 row is alive, and it spans all experts: raising the winner's own logit raises
# its gate, and raising anybody else's lowers it.
#
# ### Experiment: eight routers, one question
#
# The claim: *of the eight combinations of K = 1 or 2, softmax or sigmoid, renormalised or not, some give the gate
# no gradient.*
#
# The task: each clump of tokens has an answer of its own, a point in the plane, and the layer has to give it. The
# experts are the simplest there are. Each knows one point and gives it to every token it gets. So all the skill is
# in the routing: send each clump to an expert of its own, and the loss can go to 0. **Predict which routers are
# dead:**

# %% tags=["hide-input"]
quiz(
    Question(
        "Which of the eight routers get no gradient from the task?",
        [
            "All four with K = 1",
            "K = 1 renormalised, with softmax and with sigmoid",
            "K = 1 renormalised with softmax only; sigmoids are independent",
            "All four that are renormalised",
        ],
        1,
        [
            "Switch trains with K = 1. Its weight is the probability itself, which does depend on the logits.",
            "s / s = 1 whatever the score s is.",
            "The sigmoid cancels as well: s / s = 1.",
            "With K = 2 the two weights still share 1 between them, so they can shift from one expert to the other.",
        ],
    )
)

# %%
def moe(x: Tensor, gate: Tensor, answers: Tensor, top_k: int, score: str, renormalize: bool) -> Tensor:
    """A mixture of experts that each know one answer, (E, 2), built on your functions."""
    weights, expert_ids = route(router_logits(x, gate), top_k, score, renormalize)
    return spread_out(weights, expert_ids, len(answers)) @ answers


def fresh_start(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens and targets, a random gate and random answers; everything follows from the seed."""
    generator = torch.Generator().manual_seed(seed)
    x, region = tokens_in_the_plane(num_tokens, num_experts, generator)
    angle = 2 * math.pi / num_experts * torch.randperm(num_experts, generator=generator)
    target = torch.stack([angle.cos(), angle.sin()], dim=-1)[region]
    gate = torch.randn(num_experts, 2, generator=generator)
    answers = 0.5 * torch.randn(num_experts, 2, generator=generator)
    return x, target, gate.requires_grad_(), answers.requires_grad_()


# %%
def gate_gradient_norm(seed: int, top_k: int, score: str, renormalize: bool) -> float:
    """‖∂ loss / ∂ gate‖ before the first step of training."""
    x, target, gate, answers = fresh_start(seed)
    loss = (moe(x, gate, answers, top_k, score, renormalize) - target).square().mean()
    return torch.autograd.grad(loss, gate)[0].norm().item()


norms = {}
for top_k in (1, 2):
    for score in ("softmax", "sigmoid"):
        for renormalize in (True, False):
            name = f"top-{top_k}, {score}" + (", renormalised" if renormalize else "")
            settings = (top_k, score, renormalize)
            norms[name] = torch.tensor([gate_gradient_norm(seed + i, *settings) for i in range(num_seeds)])
            print(f"{name:<30} median {norms[name].median():.1e}")

show(figures.gradient_norms(norms))
dead, live = norms["top-1, softmax, renormalised"], norms["top-1, softmax"]
record(gradient_dead=dead.median(), gradient_live=live.median())  # kept for tables over many runs

# %% [markdown]
# **What just happened.** Two of the eight are dead, the two that the proof names. What is left there, around
# $10^{-9}$, is the rounding error of $s/s$ in float32.
#
# The same mistake was found in a public training project: a router gradient norm of [7.02e-10 instead of
# 1.02e-02](https://github.com/jingyaogong/minimind/pull/859). Nothing crashed. The loss went down. The MoE with
# three times the parameters only [ended up worse than the dense
# model](https://github.com/jingyaogong/minimind/issues/858), which is how somebody noticed.
#
# ### Experiment: what a dead router costs
#
# Now train. As a control, one run has a gate that is *never* trained. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "Top-1 with renormalisation: what will the training loss do?",
        [
            "Stay where it starts, since the layer gets no gradient",
            "Fall, since the experts still learn, but stop at a higher value than with a live router",
            "Fall as far as with a live router, only more slowly",
        ],
        1,
        "The experts do get gradients. Each becomes as good as it can for whatever tokens the random gate happens to "
        "send. What cannot improve is who gets which token.",
    )
)

# %%
def train(seed: int, top_k: int, renormalize: bool, train_gate: bool = True) -> tuple[list[float], Tensor, Tensor]:
    """Loss after each step, and the gate before and after."""
    x, target, gate, answers = fresh_start(seed)
    before = gate.detach().clone()
    optimizer = torch.optim.SGD([gate, answers] if train_gate else [answers], lr=learning_rate, momentum=0.9)
    losses = []
    for _ in range(steps):
        loss = (moe(x, gate, answers, top_k, "softmax", renormalize) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, before, gate.detach()


routers = {
    "top-1, renormalised": {"top_k": 1, "renormalize": True},
    "top-1, renormalised, gate never trained": {"top_k": 1, "renormalize": True, "train_gate": False},
    "top-1, not renormalised": {"top_k": 1, "renormalize": False},
    "top-2, renormalised": {"top_k": 2, "renormalize": True},
}
runs = {name: [train(seed + i, **settings) for i in range(num_seeds)] for name, settings in routers.items()}

# %%
print(f"{'':42}final loss (best to worst)    gate moved by")
for name, results in runs.items():
    final = torch.tensor([losses[-1] for losses, _, _ in results])
    moved = torch.tensor([(after - before).norm() for _, before, after in results])
    print(f"{name:<42}{final.mean():.3f} ({final.min():.3f} to {final.max():.3f})       {moved.mean():.2g}")

show(figures.training({name: torch.tensor([losses for losses, _, _ in results]) for name, results in runs.items()}))
dead, frozen, live, two = (sum(losses[-1] for losses, _, _ in results) / num_seeds for results in runs.values())
record(loss_dead=dead, loss_frozen=frozen, loss_live=live, loss_top_2=two)

# %%
start, after_dead = runs["top-1, renormalised"][0][1:]
after_live = runs["top-1, not renormalised"][0][2]
show(
    figures.gate_regions_side_by_side(
        fresh_start(seed)[0].detach(),
        {"before": start, "top-1, renormalised": after_dead, "top-1, not renormalised": after_live},
        "Only a router with a gradient moves its regions onto the clumps",
    )
)

# %% [markdown]
# **What just happened.** The renormalised top-1 runs and the runs whose gate was never trained draw the same curves.
# The dead router *is* a frozen random gate. Where it sends two clumps to one expert, that expert can only settle
# between their answers, and the loss stops there. A live router turns its arrows until each clump has an expert of
# its own. Renormalisation is not the culprit by itself: with K = 2 it does no harm.
#
# How far does this carry? "Dead" is a theorem: it holds in every model. The size of the gap belongs to this toy, which
# was built to depend on routing alone. Two cautions:
#
# - Real models add a balance loss, which reaches the gate by another way. A dead router then moves after all, but only
#   towards an even load, never towards a useful one.
# - Adam divides a gradient by its own size, so it turns even rounding noise into steps. Try it: put
#   `torch.optim.Adam(…, lr=0.03)` into `train`. The dead gate moves, and the loss is no better. A gate that moves is no
#   proof that it learns; look at its gradient.
#
# ## 6. The router as a module
#
# Your functions are a complete router. `moe_course.layers.Router` is the same thing as a module. It returns one
# `Routing` value with everything the later lessons ask for.

# %% tags=["nbval-check-output"]
from moe_course.layers import Router, top_k_routing

router = Router(d_model=2, num_experts=num_experts, top_k=2)
routing = router(x.reshape(2, -1, 2))  # (B, S, D) counts as T = B·S tokens
weights, expert_ids = route(router_logits(x, router.weight), top_k=2)

mine = spread_out(weights, expert_ids, num_experts)
theirs = spread_out(routing.weights, routing.expert_ids, num_experts)
print("same gates as yours:", torch.allclose(mine, theirs, atol=1e-6))
print("same load as yours: ", torch.equal(routing.tokens_per_expert, tokens_per_expert(expert_ids, num_experts)))
print("weights", tuple(routing.weights.shape), "  expert_ids", tuple(routing.expert_ids.shape))

# %% [markdown]
# Its signatures carry shapes, such as `Float[Tensor, "T E"]`. In a notebook they are checked at every call, so a
# wrong shape fails where you made it and not three layers later. `top_k_routing` wants `(T, E)`; give it `(B, S,
# E)`:

# %%
try:
    top_k_routing(batch_logits, top_k=2)
except Exception as error:
    print("\n".join(str(error).splitlines()[:4]))

# %% [markdown]
# ## 7. In production
#
# | model | score | experts chosen | weights | order in the code |
# |---|---|---|---|---|
# | [Switch][switch] | softmax | 1 | not renormalised | softmax, top-1 |
# | [Mixtral 8x7B][mixtral] | softmax | 2 of 8 | sum to 1 | top-k, softmax ([transformers][hf]: the other order) |
# | [OLMoE][olmoe] | softmax | 8 of 64 | not renormalised | softmax, top-k |
# | [Qwen3-30B-A3B][qwen3] | softmax | 8 of 128 | sum to 1 | softmax, top-k, renormalise |
# | [gpt-oss-120b][gpt-oss] | softmax | 4 of 128 | sum to 1 | top-k, softmax |
# | [DeepSeek-V3][deepseek] | sigmoid | 8 of 256, and 1 shared | sum to 2.5 | sigmoid, top-k, renormalise, times 2.5 |
# | [Llama 4][llama4] | sigmoid | 1, and 1 shared | not renormalised | top-1, sigmoid |
#
# Some go further. DeepSeek-V3 adds a bias to the scores for the choice only, never in the weight, and lets experts
# compete in 8 groups of which a token uses 4. Llama 4 multiplies the weight into the expert's *input*. The gate of
# gpt-oss has a bias.
#
# [switch]: https://arxiv.org/abs/2101.03961
# [mixtral]: https://arxiv.org/abs/2401.04088
# [hf]: https://github.com/huggingface/transformers/blob/main/src/transformers/models/mixtral/modeling_mixtral.py
# [olmoe]: https://arxiv.org/abs/2409.02060
# [qwen3]: https://github.com/huggingface/transformers/blob/main/src/transformers/models/qwen3_moe/modeling_qwen3_moe.py
# [gpt-oss]: https://github.com/openai/gpt-oss/blob/main/gpt_oss/torch/model.py
# [deepseek]: https://arxiv.org/abs/2412.19437
# [llama4]: https://github.com/huggingface/transformers/blob/main/src/transformers/models/llama4/modeling_llama4.py
#
# Look down the table with section 5 in mind. Every model that chooses one expert leaves its weight alone; every
# model that renormalises chooses at least two. Before Switch, Shazeer et al. (2017) had conjectured that a router
# needs K > 1 to get a useful gradient. Switch showed that K = 1 suffices, *because* it multiplies the output by the
# probability.
#
# But for those three extras, your `route` covers all seven:

# %% tags=["nbval-check-output"]
production = {
    "Switch": (1, "softmax", False),
    "Mixtral, Qwen3, gpt-oss": (2, "softmax", True),
    "OLMoE": (2, "softmax", False),
    "DeepSeek-V3": (2, "sigmoid", True),
    "Llama 4": (1, "sigmoid", False),
}
print("one token with logits", token.tolist(), "(top-2 at most, for four experts)")
for name, settings in production.items():
    weights, expert_ids = route(token[None], *settings)
    pairs = sorted(zip(expert_ids[0].tolist(), weights[0].tolist(), strict=True))
    print(f"{name:<26}" + "   ".join(f"expert {e}: {weight:.3f}" for e, weight in pairs))

# %% [markdown]
# ## 8. Pitfalls
#
# The checks above know these by name, but for the first: that one is a right program and a wrong design. The linked
# ones were found in public code.
#
# - **Top-1 with renormalisation**: a weight of constant 1, a router without a gradient ([minimind
#   #858](https://github.com/jingyaogong/minimind/issues/858)).
# - **Renormalising a model that was trained without it**, or the other way round ([mlxcel
#   #391](https://github.com/lablup/mlxcel/pull/391), [torchtitan
#   #1448](https://github.com/pytorch/torchtitan/issues/1448)).
# - **Raw logits as weights** when renormalisation is off ([sglang
#   #35160](https://github.com/sgl-project/sglang/pull/35160)).
# - **Softmax twice**: renormalising probabilities with another softmax flattens them towards $1/K$. Divide by the
#   sum.
# - **Softmax over the tokens**, or `F.softmax` without `dim` on a `(B, S, E)` batch. The experts of one token
#   compete: `dim=-1`.
# - **Filling with 0 instead of $-\infty$** before a softmax. $e^0 = 1$ is a share like any other.
# - **Keeping everything that reaches the K-th score**: with ties a token keeps more than K experts.
# - **Ids and weights in different order** after sorting one of them.
# - **Forgetting experts without tokens**: `bincount` without `minlength`, `unique`, a mean over nothing.
# - **Detached weights**: `.detach()`, `.data`, `no_grad`. The numbers are right and the router never learns.
#
# ## 9. Recap
#
# - A gate is one matrix. Its rows are directions, and each token goes where it points most.
# - Softmax scores compete and see only differences of logits. Sigmoid scores stand alone.
# - Top-k chooses; the weights say how much. Softmax, top-k, renormalise is the same as softmax over the top-k
#   logits. Without renormalisation the order matters.
# - The weights are the router's only path to the loss. $J = \mathrm{diag}(g) - g g^\top$ when renormalised,
#   $\mathrm{diag}(g) - g p^\top$ when not. At K = 1 the first is zero.

# %% tags=["hide-input"]
quiz(
    Question(
        "A model uses top-1 routing. Which weight lets the task train its router?",
        ["The score itself", "The score divided by the sum of the chosen scores", "1, to keep the output's scale"],
        0,
        "The other two are the same constant.",
    ),
    Question(
        "Softmax over all 8 experts, top-2, renormalised. You raise the logit of an expert that stays unchosen. "
        "What happens to the two weights?",
        ["Both fall", "Nothing", "The larger one falls"],
        1,
        "The full denominator cancels. Only the chosen logits count, and they did not move.",
    ),
    Question(
        "`tokens_per_expert` of 1000 tokens with top-2 sums to",
        ["1000", "2000", "500"],
        1,
        "Every token counts once for each of its experts: T·K.",
    ),
    Question(
        "A router's gate moves during training, yet its gradient from the task is dead. What may move it?",
        ["Nothing can", "A balance loss, or Adam amplifying rounding noise", "The experts' gradients"],
        1,
        "A balance loss has a path of its own to the gate. Adam normalises gradients, however small. Look at the "
        "gradient, not at the movement.",
    ),
    Question(
        "Where do you expect `nan` in a router that computes exp(z) / exp(z).sum() literally?",
        ["For tied logits", "For logits beyond about ±90 in float32", "For an empty batch"],
        1,
        "float32 ends near exp(88.7): beyond that exp is infinite, and inf / inf is nan. Far below, all are 0, and "
        "0 / 0 is nan too. Subtract each row's maximum first.",
    ),
)

# %% [markdown]
# **Words of this lesson.** *Router* or *gate*: chooses experts for a token. *Logit*: a score before any
# normalisation. *Score*: a logit after softmax or sigmoid. *Top-k*: keep the K best. *Weight*, also *gate value*:
# what an expert's output is multiplied by. *Renormalise*: divide the K weights by their sum. *Load*: the tokens an
# expert has to process. *Dead router*: one that the task cannot train.
