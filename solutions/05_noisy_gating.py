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
#     title: Noisy gating
#     promise: >-
#       Shake the router while it learns: every expert gets a chance, and the number of tokens an expert receives
#       becomes something you can differentiate.
#     objectives:
#       - Build the noisy top-k gate of Shazeer et al., with noise that is trained and that is off in evaluation.
#       - Derive the probability that an expert is chosen, and check it against sampling.
#       - Reproduce the order of the paper's Table 6 on real text over several seeds, and say what noise itself costs.
#       - Measure when a router has made up its mind, and say who still uses noise and who dropped it.
#     prerequisites:
#       - Lesson 03, the expert layer
#       - Lesson 04, the load-balancing loss
#       - The normal distribution
#     minutes: 90
#     difficulty: 2
# ---

# %% tags=["parameters"]
seed: int = 0  # of weights, tokens and the first training run
num_seeds: int = 3  # training runs of each setting
noise: float = 1.0  # times the trained noise in training; 0 trains without any
w_importance: float = 0.2  # weight of the importance loss alone; half of it where both losses act
w_load: float = 0.2  # weight of the load loss alone; half of it where both losses act
compared: list = ["no loss", "importance", "load", "both", "both, no noise"]  # settings that section 5 trains
num_experts: int = 16  # E of the layers that are trained
top_k: int = 2  # K, experts per token
d_model: int = 32  # D
d_ff: int = 16  # F, hidden width of one expert
context: int = 3  # characters that the model sees before it predicts the next one
batch_size: int = 1024  # windows of text in one training step
steps: int = 220  # of training
learning_rate: float = 0.03  # AdamW's largest

# %%
import math
import re

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from moe_course import Question, check, quiz, record, show, sliders
from moe_course.figures import lesson_05 as figures

torch.set_num_threads(1)  # many small tensors: a second thread would only get in the way

# %% [markdown]
# ## 1. A router that never tries
#
# A top-k router learns from the experts it chose. An expert that it does not choose gives no output, so it gets no
# gradient, so it stays as bad as it was, so it is not chosen. Lesson 04 broke the circle with a balance loss. Its
# trick was a product: the fraction $f_i$ counts, and has no gradient; the mean probability $P_i$ carries one.
#
# This lesson goes back to where it began. In 2017, [Shazeer et al.](https://arxiv.org/abs/1701.06538) put **noise**
# on the logits. Noise does two things:
#
# - *It explores.* An expert that is a little behind is sometimes chosen, so it can learn and catch up.
# - *It smooths.* Whether an expert is chosen is a step function of its logit. The *probability* that it is chosen
#   under noise is a smooth one. A count of tokens becomes an expectation, which has a gradient.
#
# How much noise? The router decides that itself, token by token and expert by expert, with a second matrix:
#
# $$H_i = (x W_g)_i + \varepsilon_i \cdot \mathrm{softplus}\big((x W_\text{noise})_i\big),
# \qquad \varepsilon_i \sim \mathcal{N}(0, 1),
# \qquad \mathrm{softplus}(z) = \log(1 + e^z) .$$
#
# The gate is then a softmax over the $K$ largest $H_i$, as in lesson 02. In evaluation there is no noise: $H = x W_g$.
#
# Both matrices start at **zero**. **Predict**, before you read on:

# %% tags=["hide-input"]
quiz(
    Question(
        "Both matrices are zero and the layer trains. Which experts does the first batch use?",
        [
            "All of them, about equally",
            "The same K for every token: all logits are tied",
            "None: a gate of zero chooses nobody",
        ],
        0,
        [
            "The clean logits are all 0, and softplus(0) = log 2 = 0.69 is noise of the same size for all. "
            "Noise alone decides.",
            "That is what happens in evaluation. In training the noise breaks the ties.",
            "Top-k always chooses K. With equal logits the noise decides which.",
        ],
    )
)

# %% [markdown]
# ### Exercise: a gate with trained noise
#
# Compute $H$. The noise $\varepsilon$ comes in as an argument, so that your function has no randomness of its own and
# can be checked. Return the clean logits and the noise scale as well; section 3 needs all three. Weights are stored as
# `nn.Linear` stores them, $(E, D)$.

# %% exercise="05.noisy_logits"
def noisy_logits(
    x: Float[Tensor, "T D"],
    w_gate: Float[Tensor, "E D"],
    w_noise: Float[Tensor, "E D"],
    noise: Float[Tensor, "T E"],
    training: bool,
) -> tuple[Float[Tensor, "T E"], Float[Tensor, "T E"], Float[Tensor, "T E"]]:
    """Score every expert for every token, with noise while training.

    Args:
        x: tokens, (T, D).
        w_gate: the gate, (E, D).
        w_noise: the second matrix, (E, D), which says how loud the noise is.
        noise: draws from a standard normal, (T, E).
        training: whether to use the noise.

    Returns:
        noisy_logits: H, (T, E); the clean logits in evaluation.
        clean_logits: x·W_g, (T, E).
        noise_scale: softplus(x·W_noise), (T, E), the same in training and in evaluation.
    """
    ### BEGIN SOLUTION
    clean_logits = x @ w_gate.T
    noise_scale = F.softplus(x @ w_noise.T)
    noisy = clean_logits + noise * noise_scale if training else clean_logits
    return noisy, clean_logits, noise_scale
    ### END SOLUTION

# %% check="05.noisy_logits"
noisy_logits = check(noisy_logits)

# %%
generator = torch.Generator().manual_seed(seed)
one = torch.ones(1, 1)  # a token of one feature, so that the matrices below are its logits
w_gate = torch.tensor([[1.0], [0.5], [0.0], [-0.5]])
draws = 2000
print("share of 2000 draws in which each expert is among the top 2, for clean logits 1, 0.5, 0, -0.5")
for raw in (-4.0, 0.0, 2.0):
    eps = torch.randn(draws, 4, generator=generator)
    noisy, _, scale = noisy_logits(one.expand(draws, 1), w_gate, torch.full((4, 1), raw), eps, training=True)
    shares = F.one_hot(noisy.topk(2, dim=-1).indices, 4).sum(1).double().mean(0)
    print(f"x·W_noise = {raw:4.1f}   noise scale {scale[0, 0]:.2f}   " + "  ".join(f"{s:.2f}" for s in shares.tolist()))

# %% [markdown]
# **What just happened.** With little noise the best two always win. With more, the others get their turn, and the
# better an expert's logit, the more often. The router can turn this knob: $W_\text{noise}$ has a gradient, since the
# noise changes the weights of the chosen experts.
#
# Noise alone balances nothing for long, though. As the gate learns, its logits move apart until the noise no longer
# bridges them. You will see that in section 5. So the paper adds two losses.
#
# ## 2. Importance: an even share of the weight
#
# The **importance** of an expert is the sum of the weights that a batch $X$ gives it:
#
# $$\mathrm{Importance}(X)_i = \sum_{x \in X} G(x)_i .$$
#
# Weights have a gradient, so importance has one. To push towards equal importance, penalise how much it varies.
#
# ### Exercise: importance
#
# Add up the weights of each expert. You have the routing of lesson 02: `weights` and `expert_ids`, both $(T, K)$.

# %% exercise="05.expert_importance"
def expert_importance(
    weights: Float[Tensor, "T K"], expert_ids: Int64[Tensor, "T K"], num_experts: int
) -> Float[Tensor, "E"]:
    """Sum each expert's weights over the batch.

    Args:
        weights: weights of the chosen experts, (T, K).
        expert_ids: their ids, (T, K).
        num_experts: number of experts E, of which some may not occur.

    Returns:
        (E,), which sums to T if the weights of each token sum to 1.
    """
    ### BEGIN SOLUTION
    return weights.new_zeros(num_experts).index_add(0, expert_ids.flatten(), weights.flatten())
    ### END SOLUTION

# %% check="05.expert_importance"
expert_importance = check(expert_importance)

# %% [markdown]
# How uneven are $E$ numbers? The **coefficient of variation** is their standard deviation over their mean: it does not
# care about the size of the batch. The loss uses its square:
#
# $$\mathrm{CV}^2(v) = \frac{\mathrm{Var}(v)}{\mathrm{mean}(v)^2 + \epsilon},
# \qquad L_\text{importance} = w_\text{importance} \cdot \mathrm{CV}^2(\mathrm{Importance}(X)) .$$
#
# The $\epsilon$ keeps an empty batch from becoming 0/0. The variance is that of all $E$ experts: divide by $E$, not by
# $E - 1$.
#
# ### Exercise: uneven, in one number
#
# Write $\mathrm{CV}^2$. Importance is one thing to put into it; the load of section 3 will be another.

# %% exercise="05.cv_squared"
def cv_squared(values: Float[Tensor, "E"], eps: float = 1e-10) -> Float[Tensor, ""]:
    """The squared coefficient of variation.

    Args:
        values: not negative, (E,).
        eps: added to mean².

    Returns:
        A scalar: 0 where all are equal, E - 1 where one expert has everything.
    """
    ### BEGIN SOLUTION
    return values.var(correction=0) / (values.mean() ** 2 + eps)
    ### END SOLUTION

# %% check="05.cv_squared"
cv_squared = check(cv_squared)

# %% [markdown]
# Write $s_i$ for expert $i$'s share of the total. A line of algebra gives $\mathrm{CV}^2 = E \sum_i s_i^2 - 1$. Compare
# lesson 04's loss, $E \sum_i f_i P_i$: put the same share for $f$ and for $P$, and the two differ by the constant 1.
# They are close relatives.

# %% tags=["nbval-check-output"]
print("CV² of some loads of 8 experts, and E·Σs² - 1 of the same")
for name, load in {
    "even": [10.0] * 8,
    "one busy expert": [30.0] + [10.0] * 7,
    "half are dead": [20.0] * 4 + [0.0] * 4,
    "one has everything": [80.0] + [0.0] * 7,
}.items():
    values = torch.tensor(load)
    shares = values / values.sum()
    by_shares = 8 * (shares**2).sum() - 1
    print(f"{name:20} {cv_squared(values):8.4f} {by_shares:8.4f}   max/mean {values.max() / values.mean():.2f}")

# %% [markdown]
# **Predict:** is an even importance enough?

# %% tags=["hide-input"]
quiz(
    Question(
        "Two experts have the same importance, 30. Can one of them have to process three times as many tokens?",
        [
            "No: importance is the number of tokens, weighed",
            "Yes: 90 tokens at a weight of 1/3 add up to as much as 30 at a weight of 1",
            "Only with K = 1",
        ],
        1,
        [
            "Weighed by numbers between 0 and 1. Equal sums can have very different numbers of terms.",
            "Memory and time follow the number of tokens. On real hardware an expert with many small weights runs out "
            "of one or the other.",
            "With K = 1 every weight here is 1, and importance *is* the load.",
        ],
    )
)

# %% tags=["nbval-check-output"]
# Expert 0 is everybody's half-hearted second choice; experts 1 to 3 share the first choices.
first = torch.arange(90) % 3 + 1
uneven_ids = torch.stack([first, torch.zeros_like(first)], dim=-1)
uneven_weights = torch.tensor([[0.75, 0.25]]).expand(90, 2)
print("importance", expert_importance(uneven_weights, uneven_ids, 4).tolist())
print("load      ", torch.bincount(uneven_ids.flatten(), minlength=4).tolist())

# %% [markdown]
# **What just happened.** Importance is perfectly even, and expert 0 has three times the work. That is why the paper has
# a second loss, on the load. But the load is a count, and a count has no gradient.
#
# ## 3. The load, made smooth
#
# Take one token. Keep the noise on all experts but $i$, and ask: *if expert $i$'s noise were drawn again, how likely
# would it be chosen?* It is chosen when its noisy logit beats the $K$-th largest of **the others**. Call that
# $\mathrm{kth\_excluding}(H, K, i)$. Then
#
# $$P(x, i) = \Pr\big[(xW_g)_i + \varepsilon \cdot \sigma_i > \mathrm{kth\_excluding}(H, K, i)\big]
# = \Phi\!\left(\frac{(xW_g)_i - \mathrm{kth\_excluding}(H, K, i)}{\sigma_i}\right),$$
#
# with $\sigma_i = \mathrm{softplus}((xW_\text{noise})_i)$ and $\Phi$ the distribution function of the standard normal.
# The smooth load is $\mathrm{Load}(X)_i = \sum_{x} P(x, i)$, and $L_\text{load} = w_\text{load} \cdot
# \mathrm{CV}^2(\mathrm{Load}(X))$.
#
# Why leave $i$ out? **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "The noisy logits are 4, 1, 3, 2 and K = 2. What does each expert have to beat?",
        ["3, 3, 3, 3", "2, 3, 2, 3", "2, 2, 2, 2", "3, 2, 3, 2"],
        1,
        [
            "The second largest of the whole row. But the expert with 3 need not beat itself: without it, 2 is second.",
            "Take out 4 and the others are 3, 2, 1, with 2 in second place. Take out 1 and 3 stays in second place.",
            "The third largest of the row. An outsider has to beat the second largest, 3.",
            "The other way round: who is inside leaves a gap, and the next one moves up.",
        ],
    )
)

# %% [markdown]
# ### Exercise: what an expert has to beat
#
# With $K = E$ every expert is chosen and there are only $E - 1$ others: nothing to beat. Say so with $-\infty$.

# %% exercise="05.kth_excluding"
def kth_excluding(values: Float[Tensor, "T E"], k: int) -> Float[Tensor, "T E"]:
    """For each entry of a row, the k-th largest of the other entries.

    Args:
        values: (T, E).
        k: 1 to E.

    Returns:
        (T, E); -inf everywhere if k = E.
    """
    ### BEGIN SOLUTION
    if k == values.shape[-1]:
        return torch.full_like(values, -torch.inf)
    best = values.topk(k + 1, dim=-1).values
    kth, next_best = best[:, k - 1 : k], best[:, k:]
    return torch.where(values > next_best, next_best, kth)
    ### END SOLUTION

# %% check="05.kth_excluding"
kth_excluding = check(kth_excluding)

# %% [markdown]
# ### Exercise: the probability of being chosen
#
# Now $P(x, i)$. Mind which logit goes where: expert $i$'s noise is drawn again, so for $i$ itself only the *clean*
# logit is known. The others keep the noise they have, so the threshold comes from the *noisy* logits. All of them are
# raw logits. `torch.special.ndtr` is $\Phi$.

# %% exercise="05.selection_probability"
def selection_probability(
    clean_logits: Float[Tensor, "T E"],
    noisy_logits: Float[Tensor, "T E"],
    noise_scale: Float[Tensor, "T E"],
    top_k: int,
) -> Float[Tensor, "T E"]:
    """The probability that each expert is chosen, if its own noise alone is drawn anew.

    Args:
        clean_logits: x·W_g, (T, E).
        noisy_logits: H, (T, E).
        noise_scale: standard deviation of each logit's noise, (T, E).
        top_k: experts per token K.

    Returns:
        P(x, i), (T, E).
    """
    ### BEGIN SOLUTION
    return torch.special.ndtr((clean_logits - kth_excluding(noisy_logits, top_k)) / noise_scale)
    ### END SOLUTION

# %% check="05.selection_probability"
selection_probability = check(selection_probability)

# %% [markdown]
# Trust, but sample. One token, four experts, one draw of noise that the others keep. For each noise scale, draw new
# noise 2000 times for one expert alone and count how often it is among the top 2.

# %%
clean = torch.tensor([[1.0, 0.5, 0.0, -0.5]])
kept = torch.tensor([[0.6, -0.4, 0.9, -0.2]])  # the noise that the others keep
scales = torch.linspace(0.05, 3, 60)
computed = torch.cat(
    [selection_probability(clean, clean + s * kept, torch.full_like(clean, s), top_k=2) for s in scales]
)

generator = torch.Generator().manual_seed(seed)
sampled = torch.zeros_like(computed)
for row, scale in enumerate(scales):
    for expert in range(4):
        eps = kept.repeat(draws, 1)
        eps[:, expert] = torch.randn(draws, generator=generator)
        chosen = (clean + scale * eps).topk(2, dim=-1).indices == expert
        sampled[row, expert] = chosen.any(-1).float().mean()

largest = (computed - sampled).abs().max()
print(f"largest difference over {sampled.numel()} points: {largest:.3f}; three standard errors: {1.5 / draws**0.5:.3f}")
show(figures.odds(scales, computed, sampled, draws))

# %% [markdown]
# **What just happened.** The formula and the counts agree within the error of counting. At a scale near 0 the clean
# order decides, and the probabilities are 1 or 0. There a gate learns nothing from the load, since the curve of
# $\Phi$ is flat. Noise gives it a slope.
#
# $P(x, i)$ leans on the noise that the others happen to have. Averaged over that noise as well, it is exactly the
# probability that the expert is chosen. So the smooth load is right *on average*: its mean is the mean of the count.
# Below, both are averaged over the same draws. Four things to try:
#
# - Set `draws` to 30 and move `noise` a little. Which of the two estimates jumps about more?
# - Make `lead` large. How much noise does it take until expert 3 is tried at all?
# - Set `top_k` to 1, then 3. Who gains?
# - Set `noise` to 0.05. What is left of the gradient?

# %%
def race(noise: float, lead: float, top_k: int, draws: int):
    """Counted and smooth estimates of who is chosen; expert 0 has a lead."""
    logits = torch.tensor([lead, 0.5, 0.0, -0.5])
    eps = torch.randn(draws, 4, generator=torch.Generator().manual_seed(seed))
    noisy = logits + noise * eps
    counted = F.one_hot(noisy.topk(top_k, dim=-1).indices, 4).sum(1).double()
    smooth = selection_probability(logits.expand(draws, 4), noisy, torch.full((draws, 4), noise), top_k)
    return figures.race(logits, noise, top_k, counted, smooth.double())


sliders(
    race, noise=(0.05, 3.0, 0.05, 0.7), lead=(-3.0, 5.0, 0.1, 1.0), top_k=(1, 3, 1, 2), draws=([30, 300, 3000], 300)
)

# %% [markdown]
# The smooth estimate has the shorter error bars: it replaces one random yes or no by its probability. Now the point of
# it all. Put a batch through a gate that favours expert 0, and ask both loads for a gradient.

# %%
logits = torch.zeros(512, 4)
logits[:, 0] = 1.0
logits.requires_grad_()
eps = torch.randn(512, 4, generator=torch.Generator().manual_seed(seed))
scale = torch.full((512, 4), math.log(2))
noisy = logits + eps * scale

count = torch.bincount(noisy.topk(2, dim=-1).indices.flatten(), minlength=4)
smooth_load = selection_probability(logits, noisy, scale, top_k=2).sum(0)
(gradient,) = torch.autograd.grad(cv_squared(smooth_load), logits)
print("counted load", count.tolist(), "  has a gradient:", count.requires_grad)
print("smooth load ", [round(v) for v in smooth_load.tolist()], "  has a gradient:", smooth_load.requires_grad)
print("gradient of CV² by each expert's logits, summed:", [f"{g:+.3f}" for g in gradient.sum(0).tolist()])

# %% [markdown]
# **What just happened.** The two loads are about equal, and only one can be trained on. A step against the gradient
# lowers the logits of the busy expert and raises the others.
#
# ## 4. The gate as a module
#
# ### Exercise: the noisy router
#
# Put the parts together. The module owns the two matrices, starts them at zero, and takes the noise as an argument. It
# returns what the layer needs, weights and ids, and what the loss needs, the smooth load. Whether to use the noise, ask
# `self.training`, which `model.train()` and `model.eval()` set.

# %% exercise="05.NoisyGate"
class NoisyGate(nn.Module):
    """A noisy top-k router.

    Args:
        d_model: width D of a token.
        num_experts: number of experts E.
        top_k: experts per token K.

    Parameters: w_gate and w_noise, both (num_experts, d_model).
    """

    def __init__(self, d_model: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        ### BEGIN SOLUTION
        self.top_k = top_k
        self.w_gate = nn.Parameter(torch.zeros(num_experts, d_model))
        self.w_noise = nn.Parameter(torch.zeros(num_experts, d_model))
        ### END SOLUTION

    def forward(
        self, x: Float[Tensor, "T D"], noise: Float[Tensor, "T E"]
    ) -> tuple[Float[Tensor, "T K"], Int64[Tensor, "T K"], Float[Tensor, "E"]]:
        """Choose K experts for each token.

        Args:
            x: tokens, (T, D).
            noise: draws from a standard normal, (T, E); not used in evaluation.

        Returns:
            weights: softmax over the K chosen noisy logits, (T, K).
            expert_ids: (T, K), in the order of the weights.
            load: smooth load of each expert, Σ_x P(x, i), (E,).
        """
        ### BEGIN SOLUTION
        noisy, clean, scale = noisy_logits(x, self.w_gate, self.w_noise, noise, self.training)
        best, expert_ids = noisy.topk(self.top_k, dim=-1)
        load = selection_probability(clean, noisy, scale, self.top_k).sum(dim=0)
        return best.softmax(dim=-1), expert_ids, load
        ### END SOLUTION

# %% check="05.NoisyGate"
NoisyGate = check(NoisyGate)

# %% [markdown]
# `moe_course.layers.NoisyTopKRouter` is the same as a router that draws its own noise, and takes the place of any
# `MoELayer`'s router. Are they one function? And does yours keep quiet in evaluation?

# %% tags=["nbval-check-output"]
from moe_course.layers import MoELayer, NoisyTopKRouter
from moe_course.layers import smooth_load as reference_load

torch.manual_seed(seed)
layer = MoELayer(d_model=8, d_ff=16, num_experts=4, top_k=2)
layer.router = NoisyTopKRouter(d_model=8, num_experts=4, top_k=2)
gate = NoisyGate(8, 4, 2)
with torch.no_grad():
    gate.w_gate.normal_(), gate.w_noise.normal_()
layer.router.load_state_dict({"weight": gate.w_gate, "noise_weight": gate.w_noise})
tokens = torch.randn(32, 8)

torch.manual_seed(7)
routing = layer.router(tokens)
torch.manual_seed(7)
weights, expert_ids, load = gate(tokens, torch.randn(32, 4))
print("same choices:", torch.equal(expert_ids, routing.expert_ids))
print("same weights:", torch.allclose(weights, routing.weights, atol=1e-6))
print("same load:   ", torch.allclose(load, reference_load(routing), atol=1e-4))

for mode in (True, False):
    gate.train(mode), layer.train(mode)
    once, twice = (gate(tokens, torch.randn(32, 4))[0] for _ in range(2))
    layer_repeats = torch.equal(layer(tokens)[0], layer(tokens)[0])
    print(f"{'training:' if mode else 'evaluation:':11} ", end="")
    print(f"your gate repeats itself: {torch.equal(once, twice)}, the layer: {layer_repeats}")

# %% [markdown]
# ## 5. The experiment: which loss does what?
#
# The paper's Table 6 asks what each loss is good for. Its model had 256 experts; four of its six rows:
#
# | $w_\text{importance}$ | $w_\text{load}$ | test perplexity | CV(importance) | CV(load) | max load / mean load |
# |---|---|---|---|---|---|
# | 0 | 0 | 39.8 | 3.04 | 3.01 | 17.80 |
# | 0.2 | 0 | 35.6 | 0.06 | 0.17 | 1.47 |
# | 0 | 0.2 | 35.7 | 0.22 | 0.04 | 1.15 |
# | 0.1 | 0.1 | 35.6 | 0.06 | 0.05 | 1.14 |
#
# You cannot repeat these numbers on a laptop, but you can ask for their *order*. It makes three claims:
#
# 1. Without any loss a few experts take nearly all tokens, and perplexity suffers.
# 2. Either loss cures both. In perplexity it hardly matters which.
# 3. Each loss evens out its own quantity best, so only the load loss brings the busiest expert close to the mean.
#
# The task is lesson 03's: predict the next character of Python's language reference, this time from three characters,
# with 16 experts of which each character uses 2. The busiest expert can have at most $E/K = 8$ times the mean. A fifth
# run has both losses and **no noise**. **Predict** where it will land, and write it down.

# %%
from moe_course.layers import Experts
from moe_course.training import draw_batches, python_docs, train, windows

text = python_docs()
train_rows, held_out = windows(text.train, context), windows(text.held_out, context)
held_out = held_out[torch.randperm(len(held_out), generator=torch.Generator().manual_seed(seed))[:4096]]


class NextCharacter(nn.Module):
    """A window of characters (B, context) to logits of the next one; one residual MoE layer with a noisy gate."""

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise
        self.embedding = nn.Embedding(len(text.vocabulary), 16)
        self.mix = nn.Linear(16 * context, d_model)
        self.norm, self.last_norm = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.gate = NoisyGate(d_model, num_experts, top_k)
        self.experts = Experts(num_experts, d_model, d_ff)
        self.head = nn.Linear(d_model, len(text.vocabulary))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Logits, what the gate saw, and what it returned."""
        hidden = self.mix(self.embedding(ids).flatten(1))
        x = self.norm(hidden)
        routed = self.gate(x, self.noise * torch.randn(len(x), num_experts))
        weights, expert_ids, _ = routed
        return self.head(self.last_norm(hidden + self.experts(x, expert_ids, weights))), x, routed

# %% [markdown]
# The loss adds the two penalties in training only. Each time it is called for evaluation it notes down the experts
# that held-out text goes to; section 6 looks at how they change.

# %%
settings = {  # weights of the two losses, and how much noise
    "no loss": (0.0, 0.0, noise),
    "importance": (w_importance, 0.0, noise),
    "load": (0.0, w_load, noise),
    "both": (w_importance / 2, w_load / 2, noise),
    "both, no noise": (w_importance / 2, w_load / 2, 0.0),
}
runs = {name: [] for name in compared}


def run(name: str, run_seed: int) -> dict:
    """Train one model; return its losses, choices and noise scales at ten points of the training."""
    on_importance, on_load, noise_level = settings[name]
    torch.manual_seed(run_seed)
    model = NextCharacter(noise_level)
    noted = {"expert_ids": [], "scale": [], "importance": []}

    def loss(model: NextCharacter, rows: Tensor) -> Tensor:
        out, x, (weights, expert_ids, load) = model(rows[:, :-1])
        task = F.cross_entropy(out, rows[:, -1])
        importance = expert_importance(weights, expert_ids, num_experts)
        if model.training:
            penalties = ((on_importance, importance), (on_load, load))
            return task + sum(weight * cv_squared(share) for weight, share in penalties if weight)
        noted["expert_ids"].append(expert_ids)
        noted["scale"].append(F.softplus(x @ model.gate.w_noise.T).mean())
        noted["importance"].append(importance)
        return task

    batches = draw_batches(train_rows, batch_size, steps, seed=run_seed)
    curve = train(model, loss, batches, held_out, steps=steps, learning_rate=learning_rate, points=10)
    return noted | {"curve": curve, "model": model}

# %%
def run_all(*names: str) -> None:
    for run_seed in range(seed, seed + num_seeds):
        for name in names:
            if name in runs:
                runs[name].append(run(name, run_seed))


run_all("no loss", "importance")

# %% [markdown]
# Those were the rows that leave the load alone. Now the two that train on it:

# %%
run_all("load", "both")

# %% [markdown]
# The fifth run starts from the same weights and sees the same text as the fourth. It lacks the noise.

# %%
run_all("both, no noise")

# %%
def summary(result: dict) -> dict[str, float]:
    """The columns of the paper's table, on held-out text in evaluation."""
    load = torch.bincount(result["expert_ids"][-1].flatten(), minlength=num_experts).float()
    return {
        "perplexity": math.exp(result["curve"].losses[-1]),
        "CV importance": cv_squared(result["importance"][-1]).sqrt().item(),
        "CV load": cv_squared(load).sqrt().item(),
        "max/mean": (load.max() / load.mean()).item(),
        "without a token": (load == 0).sum().item(),
    }


rows = {name: [summary(result) for result in results] for name, results in runs.items()}
columns = list(rows[compared[0]][0])
means = {name: {c: sum(r[c] for r in results) / num_seeds for c in columns} for name, results in rows.items()}
print(f"{f'means of {num_seeds} seeds':16}" + "".join(f"{column:>17}" for column in columns))
for name, mean in means.items():
    print(f"{name:16}" + "".join(f"{value:>17.2f}" for value in mean.values()))


def each_seed(column: str) -> dict[str, list[float]]:
    return {name: [result[column] for result in results] for name, results in rows.items()}


show(figures.balance(each_seed("perplexity"), each_seed("max/mean"), num_experts / top_k))
for name, mean in means.items():  # kept for tables over many runs
    record(**{"_".join(re.findall(r"\w+", f"{column} {name}")): value for column, value in mean.items()})

# %% [markdown]
# **What just happened.** Take the claims one by one. Three seeds are few, so the numbers below come from eight, run
# once while this lesson was written.
#
# 1. *No loss is worse: holds.* The busiest expert had 3 to 7 times the mean, where 8 is the most. Perplexity was higher
#    than with any loss on each of the eight seeds, by 0.6 on average against the importance loss and by 0.4 against the
#    load loss. Against the load loss, one seed of eight was within 0.03.
# 2. *It hardly matters which: half.* The load is evened out by either. But importance alone had the lowest perplexity
#    of the three on all eight seeds: 6.04 on average, both losses 6.15, load alone 6.28. The paper's three differ by
#    0.1 in 36.
# 3. *Each evens out its own: holds.* CV(importance) is lowest with the importance loss, CV(load) with the load loss,
#    and the load loss brings the busiest expert to 1.17 times the mean, importance alone to 1.33. Perfectly even odds
#    would give about 1.07 on 4096 windows, by chance.
#
# And the fifth run? **Without noise, both losses gave a lower perplexity on all eight seeds:** 5.81 against 6.15. Noise
# keeps sending tokens to experts that suit them less. What it buys is balance: without it the busiest expert had 1.36
# times the mean, and on two of the eight seeds one expert had no token at all. The load loss needs noise most. Alone
# and without it, it left the busiest expert at 2.3 to 3.2 times the mean: it evens out a load that there would be under
# noise, while the real one follows the clean logits. Set `noise = 0` in the parameters and see.
#
# How far does this carry? It is one small layer, one text and a short training. Perplexity is the fragile part: with
# batches of 256 windows, in seven of eight settings tried for this lesson, *no* loss had the lower perplexity, by 0.1
# to 0.5. A short training on few windows gets further by teaching two experts than sixteen. The order of the loads
# never changed.
#
# ## 6. When has a router made up its mind?
#
# Noise is for exploring, and exploring should end. The authors of [OLMoE](https://arxiv.org/abs/2409.02060) measure
# this with **router saturation**. Take the same tokens through a checkpoint $t$ and through the final one $T$, and see
# how many choices they share:
#
# $$\mathrm{saturation}(t) = \frac{1}{N} \sum_{n=1}^{N} \frac{\big|\mathcal{E}^{(t)}_n \cap \mathcal{E}^{(T)}_n\big|}{K} ,$$
#
# where $\mathcal{E}^{(t)}_n$ are the $K$ experts of token $n$ at checkpoint $t$. Choices at random share $K/E$. In
# OLMoE, with 64 experts and top-8, up to about 60 % of the choices were final after 1 % of the training, and up to
# about 80 % after 40 %. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "A router's saturation is 100 % from step 500 on. What may still change after it?",
        [
            "Nothing: the router has stopped learning",
            "The weights of the chosen experts, and the experts themselves",
            "Which experts are chosen, but not how often",
        ],
        1,
        [
            "The sets of chosen experts are final. How much each of them counts is not part of the measure.",
            "Saturation compares sets. The order in a set, and the weights, do not matter.",
            "Which are chosen is exactly what saturation looks at.",
        ],
    )
)

# %%
def router_saturation(expert_ids: Tensor, final_ids: Tensor) -> float:
    """Share of the choices (T, K) that the final checkpoint makes too, in whatever order."""
    agree = expert_ids[:, :, None] == final_ids[:, None, :]
    return agree.any(-1).double().mean().item()


shown = [name for name in compared if name in ("no loss", "both", "both, no noise")] or compared[:1]
saturation, noise_scale = {}, {}
for name in shown:
    noted = [result["expert_ids"] for result in runs[name]]
    saturation[name] = torch.tensor([[router_saturation(ids, run_ids[-1]) for ids in run_ids] for run_ids in noted])
    noise_scale[name] = torch.tensor([[scale.item() for scale in result["scale"]] for result in runs[name]])

at = runs[compared[0]][0]["curve"].steps
print(f"{'saturation, mean':18}" + "".join(f"{f'step {step}':>10}" for step in at))
for name, values in saturation.items():
    print(f"{name:18}" + "".join(f"{value:>10.2f}" for value in values.mean(0).tolist()))
show(figures.settling(at, saturation, noise_scale, top_k / num_experts))

# %% [markdown]
# **What just happened.** After a tenth of the training, a third to a half of the choices are final, where chance would
# give 12.5 %. Without a loss it goes fastest: a router that has settled on few experts has little left to decide. Part
# of the rise at the end is the schedule's doing, since the learning rate falls to zero and nothing can move any more.
#
# The right panel is the trained noise, which starts at $\log 2 = 0.69$. Two forces pull at it, and two of the runs show
# them apart. Without a loss only the task acts, and turns it down to about 0.2: noise hurts prediction. In the run
# without noise only the load loss acts, for the scale appears nowhere else, and pushes it up to about 2: noise evens
# out the load. Where both act, it rises at first, and then the task wins.
#
# ## 7. Other ways to shake
#
# Switch uses a simpler noise. It multiplies the router's *input* by random factors, each feature by its own, uniform
# between $1 - \epsilon$ and $1 + \epsilon$, with
# $\epsilon = 0.01$ as transformers' default. There is no second matrix, nothing to learn, and no
# load estimator: Switch's balance loss (lesson 04) needs none.
#
# ### Exercise: input jitter
#
# `uniform` holds numbers between 0 and 1. Mind that the experts get the same `x`, undisturbed.

# %% exercise="05.jitter_input"
def jitter_input(
    x: Float[Tensor, "*tokens D"], uniform: Float[Tensor, "*tokens D"], jitter: float, training: bool
) -> Float[Tensor, "*tokens D"]:
    """Disturb what the router sees.

    Args:
        x: tokens, (…, D).
        uniform: random numbers from 0 to 1, (…, D).
        jitter: the largest relative change of a feature.
        training: whether to disturb it at all.

    Returns:
        x times a factor for each feature, (…, D).
    """
    ### BEGIN SOLUTION
    return x * (1 - jitter + 2 * jitter * uniform) if training else x
    ### END SOLUTION

# %% check="05.jitter_input"
jitter_input = check(jitter_input)

# %% [markdown]
# How much shaking is that? Take the router of a trained model and held-out text, and count the choices that each kind
# of noise changes.

# %%
model = runs["both" if "both" in runs else compared[0]][0]["model"].eval()
with torch.no_grad():
    _, x, (_, clean_ids, _) = model(held_out[:, :-1])
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(x.shape, generator=generator)
    eps = torch.randn(len(x), num_experts, generator=generator)

    def changed(x: Tensor) -> float:
        """Share of the choices that a disturbed input changes."""
        return 1 - router_saturation(model.gate(x, eps)[1], clean_ids)

    print(f"input jitter 0.01               {changed(jitter_input(x, uniform, 0.01, True)):6.1%} of the choices change")
    print(f"input jitter 0.1                {changed(jitter_input(x, uniform, 0.1, True)):6.1%}")
    print(f"0.1, one factor for all of x    {changed(jitter_input(x, uniform[:, :1].expand_as(x), 0.1, True)):6.1%}")
    model.train()
    print(f"the trained noise               {changed(x):6.1%}")

# %% tags=["nbval-check-output"]
factors = torch.linspace(0.99, 1.01, 10001)
print("numbers between 0.99 and 1.01 in bfloat16:", len(factors.bfloat16().unique()))

# %% [markdown]
# **What just happened.** Switch's jitter is a nudge: it changes only choices that were close anyway. The trained noise
# shakes far more. One common factor changes nothing, because it stretches a token without turning it; lesson 02 showed
# that only the direction decides. And in bfloat16 the factors have a handful of values left, so draw them in float32.
#
# ## 8. In production
#
# | model | noise in the router while training | balance |
# |---|---|---|
# | [Shazeer et al.][shazeer], 2017 | trained Gaussian on the logits | importance and load loss |
# | [GShard][gshard], 2020 | the second expert is used with a probability in proportion to its weight | product loss |
# | [Switch][switch], 2021 | input jitter; it tied with none at all: −1.468 against −1.471 in log perplexity (table 11) | product loss |
# | [V-MoE][vmoe], 2021 | fixed Gaussian on the logits, standard deviation $1/E$ | importance and load loss |
# | [ST-MoE][stmoe], 2022 | tried input jitter: stable in 3 runs of 3 against 4 of 6, at −1.777 against −1.755 (as Stanford's CS336, lecture 4, quotes its table); took the z-loss instead | product loss, z-loss |
# | Mixtral | input jitter as a setting in [transformers][hf], 0 unless you change it | product loss |
# | OLMoE, Qwen3, gpt-oss, DeepSeek-V3 | none in transformers' code | a balance loss or a bias: lesson 04 |
#
# [shazeer]: https://arxiv.org/abs/1701.06538
# [gshard]: https://arxiv.org/abs/2006.16668
# [switch]: https://arxiv.org/abs/2101.03961
# [vmoe]: https://github.com/google-research/vmoe/blob/main/vmoe/nn/routing.py
# [stmoe]: https://arxiv.org/abs/2202.08906
# [hf]: https://github.com/huggingface/transformers/blob/main/src/transformers/models/mixtral/configuration_mixtral.py
#
# Why did noise go away? You have built two plausible reasons. It was there to give the load a gradient, and lesson 04's
# product $f_i P_i$ has one without it. And it has a price: in every step some tokens go to experts that suit them less.
# Your fifth run shows it.
#
# V-MoE's code departs from the equation in one place. Its threshold is the plain $K$-th largest of all noisy logits,
# the expert's own among them. What does that do to the load?

# %%
logits = torch.zeros(4096, 4)
eps = torch.randn(4096, 4, generator=torch.Generator().manual_seed(seed))
kth_of_all = eps.topk(2, dim=-1).values[:, -1:]
print("four tied experts, top-2, noise scale 1: each is chosen with probability 0.5")
print(f"threshold leaves the expert out: {selection_probability(logits, eps, torch.ones_like(eps), 2).mean():.3f}")
print(f"threshold among all:             {torch.special.ndtr(logits - kth_of_all).mean():.3f}")

# %% [markdown]
# The estimate comes out too low. A loss that only compares experts, as CV² does, may forgive that; a monitor that
# reports loads would not.
#
# ## 9. Pitfalls
#
# The checks above know these by name, but for the one on K = 1. The linked ones were found in public code.
#
# - **Noise left on in evaluation**: every call routes anew ([DeepSpeed
#   #8620](https://github.com/deepspeedai/DeepSpeed/pull/8620), [MoCE-IR
#   #19](https://github.com/eduardzamfir/MoCE-IR/issues/19)).
# - **W_gate where W_noise is meant**: the favourite expert is also the loudest ([SliME
#   #3](https://github.com/yfzhang114/SliME/issues/3)).
# - **Softmaxed thresholds against raw logits** in the load estimator ([mixture-of-experts
#   #31](https://github.com/davidmrau/mixture-of-experts/issues/31)).
# - **A noise scale of 0 in evaluation, then a division by it** ([mixture-of-experts
#   #9](https://github.com/davidmrau/mixture-of-experts/issues/9)). Remove the noise, keep the scale.
# - **Jitter in place**: `x *= factor` also changes what the experts get ([transformers
#   #33969](https://github.com/huggingface/transformers/issues/33969)).
# - **A scale that may be negative or dies**: no softplus, or a ReLU.
# - **The noisy logit in the numerator**, or the clean ones in the threshold: one noise is drawn again, the rest stays.
# - **K = E** has no threshold; `topk(k + 1)` crashes. **E = 1** with `var()` is 0/0. **A mean over an expert's tokens**
#   is NaN for an expert that has none.
# - **A counted load in a loss**: it has no gradient and teaches nothing.
# - **K = 1 with a softmax over the chosen logit**: the weight is a constant 1 (lesson 02), so the task teaches the gate
#   nothing. The paper's gate wants $K \ge 2$.
#
# ## 10. Recap
#
# - Noisy top-k: $H = xW_g + \varepsilon \cdot \mathrm{softplus}(xW_\text{noise})$ in training, $xW_g$ in evaluation;
#   both matrices start at zero.
# - Importance sums weights and has a gradient. An even importance does not mean an even load.
# - $P(x, i) = \Phi\big((\text{clean}_i - \mathrm{kth\_excluding}_i) / \sigma_i\big)$ turns the load into something
#   smooth, and right on average.
# - $\mathrm{CV}^2 = E \sum s_i^2 - 1$: 0 when even, $E - 1$ when one expert has everything.
# - Noise has a price in every step. Mixtral, OLMoE, Qwen3, gpt-oss and DeepSeek-V3 do without it.

# %% tags=["hide-input"]
quiz(
    Question(
        "You set `model.eval()` and evaluate twice. The noisy router's choices differ. What is the likeliest cause?",
        ["The noise is not tied to `self.training`", "top-k breaks ties at random", "W_noise is not zero"],
        0,
        [
            "In evaluation H is the clean logits, so nothing random is left.",
            "Ties are rare after training, and torch breaks them the same way each time on the same machine.",
            "W_noise is trained and will not be zero; in evaluation it must not matter.",
        ],
    ),
    Question(
        "Two losses, two runs. In one CV(importance) is 0.1 and CV(load) 0.3; in the other it is the other way round. "
        "Which run used the load loss?",
        ["The first", "The second", "Neither: both would be equal"],
        1,
        "Each loss evens out its own quantity best.",
    ),
    Question(
        "An expert's clean logit equals its threshold. What is P(x, i)?",
        ["0", "1/2, whatever the noise scale", "It depends on the noise scale"],
        1,
        "Φ(0) = 1/2. The noise is symmetric: half of its draws lift the expert above the threshold.",
    ),
    Question(
        "The router learns a noise scale near 0 everywhere. What becomes of the load loss?",
        [
            "It becomes exact and trains better",
            "Its gradient vanishes for nearly all tokens: Φ is flat away from the threshold",
            "It becomes negative",
        ],
        1,
        "The smooth load turns back into a count. That is the trouble with counts.",
    ),
    Question(
        "Multiplying all features of a token by 1.05 before a linear router with top-2 changes",
        ["which experts are chosen", "how much the chosen ones weigh", "nothing"],
        1,
        "All logits grow by 5 %: the order stays, and the softmax over the two gets a little sharper.",
    ),
)

# %% [markdown]
# **Words of this lesson.** *Noisy top-k gating*: choose by logits with noise. *Trained noise*: noise whose scale the
# router learns. *Importance*: the sum of an expert's weights over a batch. *Smooth load*: the sum of its probabilities
# of being chosen. *Coefficient of variation, CV*: standard deviation over mean. *kth_excluding*: the k-th largest of
# the others. *Input jitter*: random factors on what the router sees. *Router saturation*: the share of choices that are
# already the final ones.
