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
#     title: The load-balancing loss
#     promise: >-
#       Left alone, a router sends most tokens to a few experts. See it happen in seconds, write the loss that prevents
#       it, and measure what it costs.
#     objectives:
#       - Watch a router collapse, for several seeds, and say what drives it.
#       - Write the load-balancing loss with its two means right, padding and top-k included.
#       - Derive which part of it carries the gradient, and what it does to each logit.
#       - Measure balance and task loss against the weight α, and layers balanced apart or pooled.
#       - Count the load of a model in training without counting any token twice.
#     prerequisites:
#       - Lesson 02, the router
#       - Lesson 03, the expert layer
#     minutes: 100
#     difficulty: 2
# ---

# %% tags=["parameters"]
seed: int = 0  # of the first run; further runs count up from it
num_seeds: int = 4  # runs of each setting
alpha: float = 0.3  # weight of the balance loss where one value is looked at
alphas: list = [0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0]  # weights compared, besides alpha; [] for a quick run
num_experts: int = 8  # E
top_k: int = 1  # K, experts per token
d_model: int = 16  # D
d_ff: int = 8  # F, hidden width of one expert
d_ff_wide: int = 24  # F in the comparison with wide experts
batch_size: int = 128  # tokens in one training step, T
steps: int = 300  # of training
learning_rate: float = 0.01  # of Adam
offset: float = 4.0  # length of what all tokens have in common

# %%
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from moe_course import Question, check, quiz, record, show, sliders
from moe_course.figures import lesson_04 as figures

torch.set_num_threads(1)  # the tensors of this lesson are tiny: a second thread would only get in the way

# %% [markdown]
# ## 1. Collapse
#
# In lesson 03 your layer learnt, and its experts got uneven loads. Nothing in the loss asked for more. This lesson
# starts with a task that makes the trouble plain.
#
# Tokens lie in 32 clumps in space, and each clump has one of 8 labels. A top-1 MoE layer and a linear head have to
# tell the label. All tokens share a large common part, the `offset`, and differ in the rest.

# %%
NUM_CLUMPS, NUM_LABELS, SPREAD = 32, 8, 0.5


class Task:
    """A world of its own for each seed: where the clumps lie, and a stream of tokens from it."""

    def __init__(self, run_seed: int, offset: float) -> None:
        self.generator = torch.Generator().manual_seed(run_seed)
        common = torch.randn(d_model, generator=self.generator)
        self.centres = torch.randn(NUM_CLUMPS, d_model, generator=self.generator) + offset * common / common.norm()

    def draw(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Tokens (T, D) and their labels (T,)."""
        clump = torch.randint(NUM_CLUMPS, (tokens,), generator=self.generator)
        noise = torch.randn(tokens, d_model, generator=self.generator)
        return self.centres[clump] + SPREAD * noise, clump % NUM_LABELS

# %% [markdown]
# You will train some eighty small models. One after another that would take minutes, so they run side by side: every
# tensor has a leading dimension R, for the run. Each expert sees every token and the gates choose, the yardstick of
# lesson 03. It wastes work, and for experts this small it is the fastest way. The function is that of an `MoELayer`
# with `renormalize=False`.

# %%
class SideBySide(nn.Module):
    """R independent models: MoE layers and a linear head. Runs with the same seed start from the same weights."""

    def __init__(self, tasks: list[Task], copies: int, width: int, num_layers: int) -> None:
        super().__init__()

        def start(*shape: int) -> nn.Parameter:  # as nn.Linear does
            each = [torch.rand(shape, generator=task.generator) * 2 - 1 for task in tasks]
            return nn.Parameter(torch.stack(each * copies) / math.sqrt(shape[-1]))

        self.router = nn.ParameterList(start(num_experts, d_model) for _ in range(num_layers))
        self.w_in = nn.ParameterList(start(num_experts, width, d_model) for _ in range(num_layers))
        self.w_out = nn.ParameterList(start(num_experts, d_model, width) for _ in range(num_layers))
        self.head = start(NUM_LABELS, d_model)

    def forward(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Tokens (R, T, D) to logits of the labels (R, T, 8), and (probs, expert_ids) of each layer."""
        routings = []
        for router, w_in, w_out in zip(self.router, self.w_in, self.w_out, strict=True):
            probs = (x @ router.mT).softmax(dim=-1)  # (R, T, E)
            best = probs.topk(top_k, dim=-1)
            gates = torch.zeros_like(probs).scatter(-1, best.indices, best.values)
            hidden = F.gelu(torch.einsum("rtd,refd->rtef", x, w_in))
            out = torch.einsum("rtef,redf->rtd", gates[..., None] * hidden, w_out)
            x = x + out if len(self.router) > 1 else out  # a deeper model needs its residual connections
            routings.append((probs, best.indices))
        return x @ self.head.mT, routings

# %% [markdown]
# The training loop takes a list of weights α and a balance loss. There is no such loss yet, so it starts with α = 0:
# the task alone. It writes down who got the tokens in every step.

# %%
@dataclass
class Runs:
    """What A × S runs did, for A weights α and S seeds."""

    loads: Tensor  # choices of each expert, (A, S, steps, layers, E)
    entropy: Tensor  # of a token's probabilities, as a share of ln E, (A, S, steps, layers)
    held_out: Tensor  # loss of the task on tokens that were not trained on, (A, S)
    routing: list  # (probs, expert_ids) of each layer for those tokens, (A·S, T, …)

    def shares(self, first: int, last: int | None = None) -> Tensor:
        """Share of each expert in the load of some steps, (A, S, layers, E)."""
        loads = self.loads[:, :, first:last].sum(2).double()
        return loads / loads.sum(-1, keepdim=True)


@torch.no_grad()
def load_and_entropy(routings: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Of one step: choices of each expert, (R, layers, E), and entropy, (R, layers)."""
    loads = [F.one_hot(ids, num_experts).sum((1, 2)) for _, ids in routings]
    entropy = [torch.special.entr(probs).sum(-1).mean(-1) / math.log(num_experts) for probs, _ in routings]
    return torch.stack(loads, dim=1), torch.stack(entropy, dim=1)

# %%
def train(
    weights: list[float], width: int, balance: Callable | None = None, num_layers: int = 1, offset: float = offset
) -> Runs:
    """Train a model for each weight and each seed. `balance` maps the routings of one run to its balance loss."""
    tasks = [Task(run_seed, offset) for run_seed in range(seed, seed + num_seeds)]
    models = SideBySide(tasks, len(weights), width, num_layers)
    optimizer = torch.optim.Adam(models.parameters(), lr=learning_rate, fused=True)
    alpha_of_run = [weight for weight in weights for _ in tasks]

    def batch(tokens: int) -> tuple[Tensor, Tensor]:
        drawn = [task.draw(tokens) for task in tasks] * len(weights)
        return torch.stack([x for x, _ in drawn]), torch.stack([labels for _, labels in drawn])

    def run_all(x: Tensor, labels: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """The task's loss in every run, (R,), and the routings."""
        logits, routings = models(x)
        return F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none").mean(-1), routings

    held_out, steps_seen = batch(2048), []
    for _ in range(steps):
        losses, routings = run_all(*batch(batch_size))
        loss = losses.sum()  # the runs share no weight, so their sum trains each as if it were alone
        for run, weight in enumerate(alpha_of_run):
            if weight:
                loss = loss + weight * balance([(probs[run], ids[run]) for probs, ids in routings])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps_seen.append(load_and_entropy(routings))

    with torch.no_grad():
        losses, routing = run_all(*held_out)
    shape = (len(weights), len(tasks))
    loads, entropy = (torch.stack(part, dim=1).unflatten(0, shape) for part in zip(*steps_seen, strict=True))
    return Runs(loads, entropy, losses.view(shape), routing)

# %% [markdown]
# **Predict**, before you run it: 8 experts, all alike at the start, and 300 steps. What share of the tokens will the
# busiest expert have at the end?

# %% tags=["hide-input"]
quiz(
    Question(
        "32 clumps and 8 experts: 4 clumps for each would be fair. What will the busiest expert get without a balance "
        "loss?",
        ["About 13 %, the fair share", "About 25 %", "Half of all tokens or more"],
        2,
        "See for yourself in the next cell. Nothing in the loss asks for a fair share.",
    )
)

# %%
collapsed, control = train([0.0], d_ff), train([0.0], d_ff, offset=0.0)

print(f"{'':10}{'first 10 steps':>28}{'last 50 steps':>28}{'last 50, offset 0':>28}")
print(f"{'':10}" + f"{'busiest expert':>16}{'no token':>12}" * 3)
for run in range(num_seeds):
    line = f"seed {seed + run:<5}"
    for shares in (collapsed.shares(0, 10), collapsed.shares(-50), control.shares(-50)):
        of_experts = shares[0, run, 0]
        line += f"{of_experts.max():>16.0%}{int((of_experts == 0).sum()):>12}"
    print(line)

show(figures.loads_over_time(collapsed.loads[0, 0, :, 0], f"Seed {seed}, no balance loss: a few experts take it all"))
without, no_offset = (runs.shares(-50)[0, :, 0].amax(-1).mean() for runs in (collapsed, control))
record(busiest_without_loss=without, busiest_without_offset=no_offset)  # kept for tables over many runs

# %% [markdown]
# **What just happened.** This is **collapse**. A few experts get most of the tokens, others none at all. An expert
# without a token is called **dead**.
#
# The load is uneven from the first step, for the common part of the tokens favours the arrows that point its way.
# Without it, in the columns on the right, the load stays within bounds. But training does not repair the start. In
# every run, experts die that were alive in the first steps. [Shazeer and others](https://arxiv.org/abs/1701.06538)
# named the reason in 2017: the imbalance reinforces itself. An expert with more tokens is trained more, so the router
# prefers it more. An expert without tokens gets no gradient from the task, and nothing will bring it back.
#
# Two prices are paid. The parameters of dead experts are wasted. And where experts live on different devices, the
# layer is as slow as its busiest one while the others wait.
#
# ## 2. Two numbers for each expert
#
# To punish imbalance you have to measure it, in a way that a gradient can follow. [Switch
# Transformers](https://arxiv.org/abs/2101.03961) takes two numbers for each expert $i$, both over the tokens of a
# batch:
#
# $$f_i = \frac{\text{choices that fell on } i}{T \cdot K}
# \qquad\qquad
# P_i = \frac{1}{T} \sum_{t=1}^{T} p_{ti} .$$
#
# $f_i$ is the **fraction of the load**: what happened. $P_i$ is the **mean probability**: what the router thinks,
# where $p_{t}$ is the softmax over *all* experts, chosen or not. Both sum to 1.
#
# Real batches hold **padding**: tokens that only fill short sequences up. They pass through the router like all
# others, all alike, and so all to the same experts. They must count in neither number.
#
# ### Exercise: the fraction of the load
#
# Count as in lesson 02, leave padding out, divide. If no token counts, return zeros.

# %% exercise="04.load_fraction"
def load_fraction(
    expert_ids: Int64[Tensor, "T K"], num_experts: int, token_mask: Bool[Tensor, "T"] | None = None
) -> Float[Tensor, "E"]:
    """f, the fraction of the choices that went to each expert.

    Args:
        expert_ids: the K experts of each token, (T, K).
        num_experts: number of experts E, of which some may not occur.
        token_mask: True for tokens that count, False for padding, (T,). None: all count.

    Returns:
        (E,), in float32. Sums to 1; all zeros if no token counts.
    """
    ### BEGIN SOLUTION
    chosen = expert_ids if token_mask is None else expert_ids[token_mask]
    counts = torch.bincount(chosen.flatten(), minlength=num_experts)
    return counts / max(chosen.numel(), 1)
    ### END SOLUTION

# %% check="04.load_fraction"
load_fraction = check(load_fraction)

# %% [markdown]
# ### Exercise: the mean probability
#
# From the router's logits this time, so that the softmax is yours. Compute it in float32, as routers do.

# %% exercise="04.mean_router_probability"
def mean_router_probability(
    logits: Float[Tensor, "T E"], token_mask: Bool[Tensor, "T"] | None = None
) -> Float[Tensor, "E"]:
    """P, the mean probability of each expert.

    Args:
        logits: router logits, (T, E), of any floating dtype.
        token_mask: True for tokens that count, False for padding, (T,). None: all count.

    Returns:
        (E,), in float32. Sums to 1; all zeros if no token counts.
    """
    ### BEGIN SOLUTION
    probs = logits.float().softmax(dim=-1)
    if token_mask is not None:
        probs = probs[token_mask]
    return probs.sum(dim=0) / max(len(probs), 1)
    ### END SOLUTION

# %% check="04.mean_router_probability"
mean_router_probability = check(mean_router_probability)

# %% tags=["nbval-check-output"]
sentence_logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0], [0.0, 0.0, 9.0], [0.0, 0.0, 9.0]])
real = torch.tensor([True, True, True, False, False])  # the last two are padding
best = sentence_logits.argmax(dim=-1, keepdim=True)
for name, mask in (("padding counted", None), ("padding left out", real)):
    f = " ".join(f"{value:.2f}" for value in load_fraction(best, 3, mask).tolist())
    p = " ".join(f"{value:.2f}" for value in mean_router_probability(sentence_logits, mask).tolist())
    print(f"{name:18} f = {f}    P = {p}")

# %% [markdown]
# **What just happened.** The three real tokens are perfectly balanced. With two tokens of padding, the last expert
# seems to do most of the work, and a loss would push real tokens away from it.
#
# ## 3. The loss
#
# Multiply the two numbers of each expert, add up, and scale:
#
# $$L_\text{balance} = E \cdot \sum_{i=1}^{E} f_i \, P_i
# \qquad\qquad
# L = L_\text{task} + \alpha \, L_\text{balance} .$$
#
# An expert that is both busy and probable costs much. **Predict** its values:

# %% tags=["hide-input"]
quiz(
    Question(
        "E = 8, K = 1. The load is even, and so is P. What is the loss? And what if one expert has everything, with "
        "probability 1?",
        ["0 and 1", "1 and 8", "1/8 and 1", "8 and 64"],
        1,
        [
            "It has no reason to be 0: put f = P = 1/8 into the formula.",
            "Even: 8 · 8 · (1/8 · 1/8) = 1. Collapsed: 8 · 1 · 1 = 8. The factor E makes an even load cost 1 whatever E "
            "is, so that α keeps its meaning.",
            "That is without the factor E.",
            "That is with E² in place of E.",
        ],
    )
)

# %% [markdown]
# ### Exercise: the load-balancing loss
#
# This time you get the probabilities, as an MoE layer has them. They *are* probabilities: no second softmax. All
# tokens and all experts belong in $P$. Padding belongs nowhere.

# %% exercise="04.load_balancing_loss"
def load_balancing_loss(
    probs: Float[Tensor, "T E"], expert_ids: Int64[Tensor, "T K"], token_mask: Bool[Tensor, "T"] | None = None
) -> Float[Tensor, ""]:
    """The balance loss E · Σ f·P.

    Args:
        probs: softmax of each token over all experts, (T, E).
        expert_ids: the K experts of each token, (T, K).
        token_mask: True for tokens that count, False for padding, (T,). None: all count.

    Returns:
        A scalar, 1 for an even load; 0 if no token counts.
    """
    ### BEGIN SOLUTION
    num_experts = probs.shape[-1]
    fraction = load_fraction(expert_ids, num_experts, token_mask)
    if token_mask is not None:
        probs = probs[token_mask]
    mean = probs.sum(dim=0) / max(len(probs), 1)
    return num_experts * (fraction * mean).sum()
    ### END SOLUTION

# %% check="04.load_balancing_loss"
load_balancing_loss = check(load_balancing_loss)

# %% tags=["nbval-check-output"]
even = torch.eye(4) * 0.96 + 0.01  # four tokens, each sure of another expert
routers = {
    "even": even,
    "collapsed onto expert 0": even[[0, 0, 0, 0]],
    "expert 0 wins narrowly, the others clearly": torch.cat(
        [torch.tensor([[0.28, 0.24, 0.24, 0.24]] * 9), torch.eye(4)[[1, 1, 2, 2, 3, 3]]]
    ),
}
print(f"{'router':44}{'f':24}{'P':24}loss")
for name, probs in routers.items():
    ids = probs.argmax(dim=-1, keepdim=True)
    f, p = load_fraction(ids, 4).tolist(), probs.mean(0).tolist()
    cells = ["".join(f"{value:<5.2f}" for value in values) for values in (f, p)]
    print(f"{name:44}{cells[0]:24}{cells[1]:24}{load_balancing_loss(probs, ids):.2f}")

# %% [markdown]
# **What just happened.** Look at the last row: expert 0 has more than twice its share, and the loss is *below* 1. You
# will read that 1 is the minimum. It is the minimum where $f = P$, that is for a router that is sure of every token. In general $f$
# and $P$ are two different things, and a busy expert that wins its tokens narrowly is cheap. So read the loss
# together with the loads, never alone.
#
# **Two conventions.** With $K$ choices for each token, some code divides the counts by $T$ and not by $T \cdot K$.
# Then $f$ sums to $K$, and an even load costs $K$. The same α then pushes $K$ times as hard.
# `moe_course.layers.load_balancing_loss` has a parameter for it.

# %% tags=["nbval-check-output"]
from moe_course.layers import load_balancing_loss as reference_loss

generator = torch.Generator().manual_seed(seed)
probs = torch.randn(4096, 8, generator=generator).softmax(dim=-1)
print(f"{'K':>3}{'divided by K':>16}{'not divided':>16}")
for k in (1, 2, 4):
    ids = probs.topk(k, dim=-1).indices
    print(f"{k:>3}" + "".join(f"{reference_loss(probs, ids, divide_by_top_k=by):>16.2f}" for by in (True, False)))

# %% [markdown]
# ## 4. Who carries the gradient?
#
# $f$ counts choices. Move a logit a little, and no choice changes: as a function of the weights, $f$ is a staircase,
# flat almost everywhere. Its gradient is zero where it exists. So why is $f$ in the loss? **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "Which of the two could you leave out and still train a router to make even choices?",
        [
            "f: P alone, as E · Σ P², has a gradient and would do",
            "P: f alone, as E · Σ f², measures the load exactly and would do",
            "Neither: P carries the gradient, and f says where to push",
        ],
        2,
        [
            "It has a gradient, and it never looks at who was chosen. A router that favours one expert narrowly has an "
            "even P.",
            "It has no gradient at all. The router would learn nothing.",
            "f is the weight with which each P_i is pushed down.",
        ],
    )
)

# %%
probs_after, ids_after = collapsed.routing[0][0][0], collapsed.routing[0][1][0]  # seed 0 after its collapse, held out
logits = probs_after.log().requires_grad_()


def gradient_norm(loss_of: Callable[[Tensor], Tensor]) -> str:
    loss = loss_of(logits.softmax(dim=-1))
    if not loss.requires_grad:
        return f"{loss:>10.3f}{'none':>16}"
    return f"{loss:>10.3f}{torch.autograd.grad(loss, logits)[0].norm():>16.2e}"


def weights_of_chosen(probs: Tensor) -> Tensor:
    """The renormalised weights of the chosen experts, (T, E), in the place of the full softmax."""
    kept = probs.gather(-1, ids_after)
    return torch.zeros_like(probs).scatter(-1, ids_after, kept / kept.sum(-1, keepdim=True))


f_after = load_fraction(ids_after, num_experts)
print(f"{'loss':44}{'value':>10}{'gradient norm':>16}")
print(f"{'E · Σ f·P':44}" + gradient_norm(lambda probs: load_balancing_loss(probs, ids_after)))
print(f"{'E · Σ f·f':44}" + gradient_norm(lambda probs: num_experts * (f_after * f_after).sum()))
print(f"{'E · Σ P·P':44}" + gradient_norm(lambda probs: num_experts * probs.mean(0).square().sum()))
print(f"{'E · Σ f·P, P over renormalised weights':44}" + gradient_norm(
    lambda probs: load_balancing_loss(weights_of_chosen(probs), ids_after)
))
print(f"{'E · Σ f·P, softmax applied twice':44}" + gradient_norm(
    lambda probs: load_balancing_loss(probs.softmax(-1), ids_after)
))

# %% [markdown]
# **What just happened.** All five read like a balance loss, and all five return a plausible number.
#
# - $f \cdot f$ has no gradient.
# - $P$ over the renormalised weights of the chosen experts has none either with $K = 1$: those weights are a constant
#   1, as lesson 02 proved. What you see is rounding, or nothing. This mistake is found in public code.
# - The second softmax flattens, for probabilities differ by at most 1. The loss comes out far too low for a router
#   that has collapsed, and the gradient with it.
#
# ### Exercise: what the loss does to each logit
#
# Now derive the gradient. $f$ is a constant, so the loss is linear in $P$:
#
# $$\frac{\partial L}{\partial p_{ti}} = \frac{E}{T} \, f_i .$$
#
# Go on through the softmax of token $t$, and write the result as a function of `probs` and `expert_ids`. No padding
# here. Use your formula, not autograd.

# %% exercise="04.balance_gradient"
def balance_gradient(probs: Float[Tensor, "T E"], expert_ids: Int64[Tensor, "T K"]) -> Float[Tensor, "T E"]:
    """The gradient of the balance loss by the router's logits.

    Args:
        probs: softmax of each token over all experts, (T, E).
        expert_ids: the K experts of each token, (T, K).

    Returns:
        (T, E): ∂ load_balancing_loss / ∂ logits.
    """
    ### BEGIN SOLUTION
    num_tokens, num_experts = probs.shape
    fraction = load_fraction(expert_ids, num_experts)
    expected_load = (probs * fraction).sum(dim=-1, keepdim=True)  # (T, 1)
    return num_experts / max(num_tokens, 1) * probs * (fraction - expected_load)
    ### END SOLUTION

# %% check="04.balance_gradient"
balance_gradient = check(balance_gradient)

# %%
by_autograd = torch.autograd.grad(load_balancing_loss(logits.softmax(-1), ids_after), logits)[0]
by_hand = balance_gradient(probs_after, ids_after)
print(f"largest difference from autograd: {(by_hand - by_autograd).abs().max():.0e}")

show(figures.fraction_and_pull(f_after, probs_after.mean(0), -by_hand.sum(0)))

# %% [markdown]
# **What just happened.** Read the formula aloud: expert $i$'s logit for token $t$ is pushed down if $f_i$ is larger
# than $\sum_j p_{tj} f_j$, the load that this token expects to meet, and up if it is smaller. Experts that
# *nobody* chose have $f_i = 0$, so all tokens lift them. That is how the dead come back, and it works only because
# $P$ is over the full softmax.
#
# The factor $p_{ti}$ is the weak spot: an expert whose probability has gone to zero is hardly lifted at all. Balance
# has to act before a router is sure.
#
# ## 5. Does it work, and what does it cost?
#
# Train again with your loss, for seven weights α from 0 to 10, each with the same seeds. Then once more with wide
# experts: one or two of them have room for the whole task. **Predict** both curves of the task's loss:

# %% tags=["hide-input"]
quiz(
    Question(
        "As α grows from 0, what happens to the loss of the task, on held-out tokens?",
        [
            "It rises from the start: every push toward balance is a push away from the task",
            "It falls, then rises, if the task needs more than a few experts; else it only rises, slowly",
            "It falls: balance uses all parameters, and more parameters are always better",
        ],
        1,
        [
            "That would be so if collapse cost the task nothing.",
            "See whether the next cells bear it out.",
            "Only if the task needs them. And α pulls at the router at every step, needed or not.",
        ],
    )
)

# %%
def balance_of_layers(routings: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean of the layers' balance losses; so far there is one layer."""
    return torch.stack([load_balancing_loss(probs, ids) for probs, ids in routings]).mean()


alphas = sorted({*alphas, alpha})
narrow = train(alphas, d_ff, balance_of_layers)
wide = train(alphas, d_ff_wide, balance_of_layers)

names = {f"narrow experts, F = {d_ff}": narrow, f"wide experts, F = {d_ff_wide}": wide}
print(f"{'':10}" + "".join(f"{name:>36}" for name in names))
print(f"{'α':>10}" + f"{'busiest':>12}{'dead':>12}{'loss':>12}" * 2)
for row, weight in enumerate(alphas):
    line = f"{weight:>10g}"
    for runs in names.values():
        ends = runs.shares(-50)[row, :, 0]
        dead = (ends == 0).sum(-1).double().mean()
        line += f"{ends.amax(-1).mean():>12.0%}{dead:>12.1f}{runs.held_out[row].mean():>12.3f}"
    print(line)
print(f"means over {num_seeds} seeds; loads of the last 50 steps, loss on held-out tokens")

busiest = {name: runs.shares(-50)[:, :, 0].amax(-1) for name, runs in names.items()}
show(figures.trade_off(alphas, busiest, {name: runs.held_out for name, runs in names.items()}, num_experts))

# %%
looked_at = alphas.index(alpha)
ends = narrow.shares(-50)[looked_at, :, 0]
record(
    busiest_share=ends.amax(-1).mean(),
    dead_experts=(ends == 0).sum(-1).double().mean(),
    entropy=narrow.entropy[looked_at, :, -50:].mean(),
    task_loss=narrow.held_out[looked_at].mean(),
    task_loss_wide=wide.held_out[looked_at].mean(),
)

# %% [markdown]
# **What just happened.** On the left the loss does what it is for: from α = 0.1 on, no expert is dead, and the
# busiest one has little more than its share.
#
# On the right you see what it costs.
#
# - *Narrow experts* need each other. Collapse leaves most parameters unused, and balance brings the loss of the task
#   down to less than half, and down for every seed. At α = 10 that gain is gone: the router serves the balance loss.
# - *Wide experts* do not. One or two of them hold the whole task, so balance has nothing to win. Up to α = 1 it costs
#   nothing you could see among the seeds. At α = 10 the loss has doubled here as well.
#
# So "balance improves the model" is no law, and neither is "balance hurts". It makes the model use all experts. That
# pays if the model needs them, or if an uneven load costs you time, and too large an α always costs. Compare marks,
# not only means: between neighbouring values of α the seeds overlap. And this is a toy: its best α says nothing about
# yours.
#
# ### Replay a run
#
# Move α and watch the training of the narrow experts again. Things to look for:
#
# 1. At which α does the last expert stop dying?
# 2. At α = 0.03 some experts die and come *back* (seeds 2 and 3). Which part of the formula of section 4 does that?
# 3. Follow the entropy of the router: 0 where it is sure of every token, 1 where it finds all experts alike. Compare
#    α = 0, 0.3 and 10.

# %%
def replay(alpha: float, seed: int):
    """The run with this weight and this seed."""
    row, run = alphas.index(alpha), seed - first_seed
    loss = narrow.held_out[row, run]
    title = f"α = {alpha:g}, seed {seed}: loss of the task {loss:.3f}"
    return figures.replay(narrow.loads[row, run, :, 0], narrow.entropy[row, run, :, 0], title)


first_seed = seed
sliders(replay, alpha=(alphas, alphas[0]), seed=list(range(seed, seed + num_seeds)))

# %% [markdown]
# **What just happened.** Balance asks for an even *mean* over tokens. It does not ask that a single token be undecided,
# and yet the loss is lowered that way too. The entropy at the end rises from about 0.1 without the loss to 0.5 at
# α = 0.3. At α = 10 it stays above 0.9: the load is perfect, and the router hardly tells the experts apart. An even
# load alone does not make a good router.
#
# ## 6. Other forms of the same idea
#
# You will meet relatives of this loss.
#
# - **GShard** takes the *mean* over experts of $c_i/S \cdot m_i$, where $c_i$ counts *first* choices only and $m_i$
#   is our $P_i$ ([algorithm 1](https://arxiv.org/abs/2006.16668)). That is $E^2$ times smaller than ours.
#   [DeepSpeed](https://github.com/deepspeedai/DeepSpeed/blob/master/deepspeed/moe/sharded_moe.py) multiplies by
#   $E^2$ again.
# - **KL form:** $\mathrm{KL}(P \,\|\, \text{uniform}) = \sum_i P_i \ln (E \, P_i)$. It has no $f$ and never looks at
#   the choices.
# - **`compute_aux_loss(probs)`**, as many tutorials call it, finds the choices itself, as the most probable experts.
#   That is wrong as soon as something else chooses: noise (lesson 05) or a bias.

# %% tags=["nbval-check-output"]
from moe_course.layers import compute_aux_loss, gshard_balance_loss, kl_balance_loss

routers["all lean to expert 0, narrowly"] = torch.tensor([[0.26, 0.25, 0.25, 0.24]] * 4)
forms = {
    "E · Σ f·P": compute_aux_loss,
    "E² · GShard": lambda probs: 16 * gshard_balance_loss(probs, probs.argmax(-1, keepdim=True)),
    "KL": kl_balance_loss,
}
print(f"{'value, and norm of the gradient by logits':44}" + "".join(f"{name:>18}" for name in forms))
for name, probs in routers.items():
    row = f"{name:44}"
    for form in forms.values():
        logits = probs.clamp(min=1e-6).log().requires_grad_()
        value = form(logits.softmax(dim=-1))
        row += f"{value.abs():>10.2f}{torch.autograd.grad(value, logits)[0].norm():>8.3f}"
    print(row)

# %% [markdown]
# The last router sends *every* token to expert 0, and all three values look innocent. Look at the gradients. $f$
# points at expert 0 with its full weight. KL sees a mean probability that is all but even, and hardly pushes.
#
# ## 7. More than one layer
#
# A model has many MoE layers, and you want one loss. There are two ways to average:
#
# $$\underbrace{\frac{1}{N} \sum_{l} E \sum_i f_i^{(l)} P_i^{(l)}}_{\text{each layer, then the mean}}
# \qquad \text{or} \qquad
# \underbrace{E \sum_i \bar f_i \, \bar P_i}_{\text{pool the layers first}},
# \qquad \bar f_i = \frac{1}{N} \sum_l f_i^{(l)} .$$
#
# A mean of products is not the product of means. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "Two layers, two experts. Layer 0 sends everything to expert 0, layer 1 everything to expert 1, both with "
        "probability 1. What do the two ways say?",
        ["2 and 2", "2 and 1", "1 and 2", "1 and 1"],
        1,
        [
            "Pooled, both f and P are (½, ½).",
            "Each layer has collapsed, and costs 2. Pooled, f and P are (½, ½), and the loss says that all is well.",
            "It is the other way round.",
            "Each layer alone has collapsed completely.",
        ],
    )
)

# %% [markdown]
# ### Exercise: balance over layers
#
# Write the first way.

# %% exercise="04.balance_over_layers"
def balance_over_layers(
    probs: Float[Tensor, "L T E"], expert_ids: Int64[Tensor, "L T K"]
) -> Float[Tensor, ""]:
    """The mean over layers of each layer's balance loss.

    Args:
        probs: softmax of each token over all experts, in each of L layers, (L, T, E).
        expert_ids: the K experts of each token in each layer, (L, T, K).

    Returns:
        A scalar, 1 if every layer is even.
    """
    ### BEGIN SOLUTION
    losses = [load_balancing_loss(p, ids) for p, ids in zip(probs, expert_ids, strict=True)]
    return torch.stack(losses).mean()
    ### END SOLUTION

# %% check="04.balance_over_layers"
balance_over_layers = check(balance_over_layers)

# %% [markdown]
# Does it matter in training? Train models of two layers, half of them with each way.

# %%
def apart(routings: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Each layer's loss, then the mean."""
    return balance_over_layers(torch.stack([p for p, _ in routings]), torch.stack([ids for _, ids in routings]))


def pooled(routings: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The loss of all layers' tokens as if they were one batch."""
    return load_balancing_loss(torch.cat([p for p, _ in routings]), torch.cat([ids for _, ids in routings]))


deep = {"each layer, then the mean": apart, "layers pooled first": pooled}
ends = {name: train([alpha], d_ff, balance, num_layers=2).shares(-50)[0] for name, balance in deep.items()}

print(f"MaxVio over {num_seeds} seeds, α = {alpha}     {'layer 0':>16}{'layer 1':>16}{'their sum':>16}")
for name, end in ends.items():
    excess = torch.cat([end, end.mean(1, keepdim=True)], dim=1).amax(-1) * num_experts - 1  # (seeds, 3)
    print(f"{name:34}" + "".join(f"{low:>9.2f} to {high:.2f}" for low, high in zip(excess.amin(0), excess.amax(0), strict=True)))

show(figures.layers_stacked({name: end[0] for name, end in ends.items()}))
of_layers, of_pooled = (end.amax((1, 2)).mean() * num_experts - 1 for end in ends.values())
record(max_violation_apart=of_layers, max_violation_pooled=of_pooled)  # of the worse layer

# %% [markdown]
# **MaxVio** is the largest load over the mean load, minus 1: 0 is even, 1 means that the busiest expert has twice its
# share.
#
# **What just happened.** With pooled layers the *sum* is as even as you could wish, and each layer is not: what one
# gives to an expert, the other withholds from the expert of the same number. But these two experts are different
# networks. Even if they share a device, the layers run one after the other, and each has a busiest expert of its own
# to wait for. `transformers` 5 pools the layers of Mixtral and its relatives in this way, and [people
# noticed](https://github.com/huggingface/transformers/issues/28255).
#
# ## 8. A second loss: keep logits small
#
# The softmax does not care about the level of the logits. Low precision does. bfloat16 keeps 8 significant bits, so
# near 128 its steps are 1 wide. [ST-MoE](https://arxiv.org/abs/2202.08906) gives this example:

# %% tags=["nbval-check-output"]
large = torch.tensor([128.0] * 10 + [128.5])
small = large - 128
for name, values in (("near 128", large), ("near 0", small)):
    exact, rounded = (z.softmax(0)[-1] for z in (values, values.bfloat16().float()))
    print(f"{name:10} probability of the best: float32 {exact:.3f}, after rounding to bfloat16 {rounded:.3f}")

# %% [markdown]
# The same differences survive near 0. So ST-MoE keeps logits there with the **router z-loss**:
#
# $$L_z = \frac{1}{T} \sum_{t=1}^{T} \Big( \ln \sum_{i=1}^{E} e^{z_{ti}} \Big)^2 ,$$
#
# with a weight of 0.001. In ST-MoE's runs, the baseline was stable in 4 of 6, with the z-loss in 3 of 3. Mind the
# square; retellings often lose it.
#
# ### Exercise: the router z-loss
#
# Padding does not count here either.

# %% exercise="04.router_z_loss"
def router_z_loss(logits: Float[Tensor, "T E"], token_mask: Bool[Tensor, "T"] | None = None) -> Float[Tensor, ""]:
    """The mean over tokens of the squared logsumexp of their logits.

    Args:
        logits: router logits, (T, E), of any floating dtype and size.
        token_mask: True for tokens that count, False for padding, (T,). None: all count.

    Returns:
        A scalar in float32; 0 if no token counts.
    """
    ### BEGIN SOLUTION
    z = logits.float().logsumexp(dim=-1)
    if token_mask is not None:
        z = z[token_mask]
    return z.square().sum() / max(len(z), 1)
    ### END SOLUTION

# %% check="04.router_z_loss"
router_z_loss = check(router_z_loss)

# %% tags=["nbval-check-output"]
level = torch.tensor([[1.0, 0.0, -1.0]])
print("all logits shifted by   " + "".join(f"{shift:>8}" for shift in (-4, -2, -1.4, 0, 2, 4)))
print("z-loss                  " + "".join(f"{router_z_loss(level + s):>8.2f}" for s in (-4, -2, -1.4, 0, 2, 4)))
print("without the square      " + "".join(f"{(level + s).logsumexp(-1).mean():>8.2f}" for s in (-4, -2, -1.4, 0, 2, 4)))

# %% [markdown]
# **What just happened.** With the square there is a valley, near logsumexp = 0. Without it, the loss falls for ever:
# logits would run away to minus infinity.
#
# ## 9. Watch it in your own training
#
# You would not train a large MoE without a look at its loads. A counter seems easy: a few lines in the layer. Public
# code shows three ways to get it wrong.
#
# - It goes on counting in **evaluation**, and the validation set shifts what you steer by.
# - **Activation checkpointing** saves memory by throwing activations away and running the layer *again* inside the
#   backward pass. The counter counts again too.
# - **Gradient accumulation** spreads a step over several micro-batches. The imbalance of the step is that of the
#   summed load; an average of the micro-batches' imbalance is too large.
#
# ### Exercise: count each token once
#
# You get the choices of several calls of one layer, and two flags for each: was the model in training mode, and did
# the call happen inside a backward pass?

# %% exercise="04.watch_load"
def watch_load(
    expert_ids: Int64[Tensor, "C T K"], num_experts: int, training: Bool[Tensor, "C"], in_backward: Bool[Tensor, "C"]
) -> tuple[Int64[Tensor, "E"], Float[Tensor, ""], Bool[Tensor, "E"]]:
    """The load of a layer over the training calls, each token counted once.

    Args:
        expert_ids: the choices of each of C calls, (C, T, K).
        num_experts: number of experts E.
        training: True for calls in training mode, (C,).
        in_backward: True for calls inside a backward pass, which compute an earlier call again, (C,).

    Returns:
        loads: choices of each expert over all calls that count, (E,).
        max_violation: largest load / mean load − 1, a scalar; 0 if there is no load.
        dead: True for experts that no token chose, (E,).
    """
    ### BEGIN SOLUTION
    counted = expert_ids[training & ~in_backward]
    loads = torch.bincount(counted.flatten(), minlength=num_experts)
    max_violation = loads.max() / loads.float().mean() - 1 if loads.any() else torch.tensor(0.0)
    return loads, max_violation, loads == 0
    ### END SOLUTION

# %% check="04.watch_load"
watch_load = check(watch_load)

# %% [markdown]
# `moe_course.training.ExpertMonitor` does this for any model whose layers return a `Routing`, by hooks and without a
# change to the model. Here is a model with everything that breaks counters: checkpointing, two micro-batches a step,
# and an evaluation after every fifth step. A naive counter runs beside the monitor.

# %%
from torch.utils.checkpoint import checkpoint

from moe_course.layers import MoELayer, model_balance_loss
from moe_course.training import ExpertMonitor


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sizes = (d_model, d_ff, num_experts, top_k)
        self.first, self.second = (MoELayer(*sizes, renormalize=False) for _ in range(2))
        self.head = nn.Linear(d_model, NUM_LABELS)

    def forward(self, x: Tensor):
        routings = []
        for layer in (self.first, self.second):
            out, routing = checkpoint(layer, x, use_reentrant=False)
            x = x + out
            routings.append(routing)
        return self.head(x), routings

# %%
def train_watched(model: nn.Module, weight: float, steps: int) -> None:
    """Two micro-batches a step, an evaluation after every fifth step."""
    task, optimizer = Task(seed, offset), torch.optim.Adam(model.parameters(), lr=learning_rate)
    for step in range(steps):
        for _ in range(2):
            x, labels = task.draw(batch_size // 2)
            logits, routings = model(x)
            (F.cross_entropy(logits, labels) + weight * model_balance_loss(routings)).div(2).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 4:
            with torch.no_grad():
                model.eval()(task.draw(512)[0])
            model.train()

# %%
naive = torch.zeros(num_experts, dtype=torch.int64)


def count_always(module: nn.Module, inputs: tuple, routing) -> None:
    """A counter as one writes it first: whatever passes, counts."""
    naive.add_(routing.tokens_per_expert)


model = TwoLayers()
model.first.router.register_forward_hook(count_always)
with ExpertMonitor(model) as monitor:
    train_watched(model, alpha, 20)
print("choices in 20 steps: ", 20 * batch_size * top_k)
print("the naive counter:   ", naive.sum().item())
print("the monitor:         ", sum(monitor.layers()[0].tokens_per_expert))

# %% [markdown]
# The naive counter saw each training token twice, and the evaluation as well. Now use the monitor for what it is for:
# the same model in 40 steps, without the balance loss and with it.

# %%
for weight in (0.0, alpha):
    torch.manual_seed(seed)
    model = TwoLayers()
    with ExpertMonitor(model) as monitor:
        train_watched(model, weight, 40)
    print(f"α = {weight:g}\n{monitor}\n")

# %% [markdown]
# In your own loop it looks like this:
#
# ```python
# with ExpertMonitor(model) as monitor:
#     for step, batch in enumerate(batches):
#         train_step(model, batch)
#         if step % 100 == 99:
#             print(monitor)          # or monitor.layers(), one row a layer, to log it
#             monitor.reset()
# ```
#
# One more trap with checkpointing, and it is silent. The older, *re-entrant* kind runs the forward pass without a
# graph and attaches gradients to returned *tensors* only. A routing is an object. **Predict** what happens to the
# balance loss, then run:

# %% tags=["nbval-check-output"]
x = torch.randn(8, d_model).requires_grad_()
layer = MoELayer(d_model, d_ff, num_experts, top_k, renormalize=False)
for reentrant in (False, True):
    out, routing = checkpoint(layer, x, use_reentrant=reentrant)
    loss = model_balance_loss([routing])
    print(f"use_reentrant={reentrant!s:6} output has a gradient: {out.requires_grad}, balance loss: {loss.requires_grad}")

# %% [markdown]
# With `use_reentrant=True` the balance loss is a constant. Training runs, the number is printed, and the router never
# feels it.
#
# ## 10. In production
#
# | model or code | balance | note |
# |---|---|---|
# | [Switch](https://arxiv.org/abs/2101.03961) | $E \sum f P$, α = 0.01, each layer's loss added | eq. 4 to 6 |
# | [ST-MoE](https://arxiv.org/abs/2202.08906) | a balance loss, and the z-loss with 0.001 | |
# | [MegaBlocks](https://github.com/databricks/megablocks/blob/main/megablocks/layers/moe.py) | each layer, mean over layers, divided by K | even = 1 |
# | [transformers](https://github.com/huggingface/transformers/blob/main/src/transformers/models/mixtral/modeling_mixtral.py): Mixtral, OLMoE, Qwen3-MoE | layers pooled, not divided by K, padding left out | even = K; Mixtral's [config](https://huggingface.co/mistralai/Mixtral-8x7B-Instruct-v0.1/blob/main/config.json): α = 0.02 |
# | [OLMoE](https://arxiv.org/abs/2409.02060) | balance 0.01, z-loss 0.001 | |
# | [Qwen3-MoE](https://aclanthology.org/2025.acl-long.249/) | $f$ over the *global* batch | see below |
# | [DeepSeek-V3](https://arxiv.org/abs/2412.19437) | a bias for each expert, moved after each step; and a balance loss for each sequence, with a very small weight | a later lesson |
#
# Why they differ:
#
# - *What is a batch?* With many GPUs each sees a few sequences. A loss on those asks for balance within a page of
#   code or a poem, and so works against experts that specialise. [Qiu and
#   others](https://arxiv.org/abs/2501.11873) count $f$ over all GPUs' tokens instead, and report better models.
# - *Does the loss hurt?* Its gradient has nothing to do with the task, and you saw the bill at α = 10. The [loss-free
#   method](https://arxiv.org/abs/2408.15664) adds a bias to the scores for the selection alone, raises it for idle
#   experts and lowers it for busy ones: balance without a gradient.
# - *What is an even load worth?* For experts spread over GPUs the busiest one sets the pace. With a fixed capacity for
#   each expert, an uneven load drops tokens: lesson 07.
#
# ## 11. Pitfalls
#
# The checks of this lesson know these by name:
#
# | mistake | consequence |
# |---|---|
# | *P over the renormalised top-k weights* | with K = 1 the loss has no gradient |
# | *softmax of probabilities* | every P near 1/E: the loss is blind |
# | *f in both factors, or P detached* | a fine number, no gradient |
# | *P in both factors* | never looks at the choices |
# | *the factor E missing, or squared* | α depends on the number of experts |
# | *f not divided by K, or twice* | α is K times too strong or too weak |
# | *padding counted*, in f, in P or in one of them | the loss fights a load that does not exist |
# | *the mask put on logits* | padding gets 1/E of each expert |
# | *layers pooled before the product* | layers excuse each other |
# | *the square of the z-loss lost* | logits run to minus infinity |
# | *0/0 for a batch of padding* | one NaN, and the model is gone |
# | *counters in evaluation, or under recomputation* | loads that never happened |
#
# ## 12. Recap
#
# - A router left alone may collapse: busy experts learn, and learning makes them busier.
# - $E \sum f P$ multiplies what happened by what the router thinks. $P$ carries the gradient, $f$ directs it.
# - An even load costs 1 (or $K$, if $f$ is not divided by $K$). Below 1 is possible: read it together with the loads.
# - More α, more balance. For the task there is an optimum, and if it does not need the experts, the optimum is 0.
# - Each layer has to be balanced for itself. Average last.
# - The z-loss keeps logits where low precision can tell them apart.
# - Count each token once: in training, in the forward pass, summed over the micro-batches.

# %% tags=["hide-input"]
quiz(
    Question(
        "Why does the loss use the full softmax for P, and not only the weights of the chosen experts?",
        [
            "It is cheaper to compute",
            "So that experts that nobody chose get a gradient that lifts them",
            "So that P sums to K",
        ],
        1,
        [
            "Both cost next to nothing.",
            "Their f is 0, so all tokens raise their logits. Among the chosen only, they would not occur.",
            "Over the full softmax P sums to 1.",
        ],
    ),
    Question(
        "You move a model with K = 8 from code that divides f by K to code that does not. Which α gives the same training?",
        ["8 times the old one", "the same", "an eighth of the old one"],
        2,
        [
            "The new loss is 8 times as large already.",
            "The new loss is 8 times as large.",
            "α · 8 L = (8 α) · L: divide α by 8.",
        ],
    ),
    Question(
        "The balance loss of a trained model is 0.97. What do you know?",
        [
            "There is a bug: it cannot be below 1",
            "The load is even",
            "Little: look at the loads",
        ],
        2,
        [
            "1 is the minimum only where f = P.",
            "f and P may be uneven in ways that cancel.",
            "The product can be below 1 when busy experts win narrowly. The loads tell.",
        ],
    ),
    Question(
        "A dashboard shows twice as many routed tokens as the data loader delivered. What do you suspect first?",
        [
            "The router sends tokens twice",
            "Activation checkpointing runs the layers again in the backward pass",
            "The batch size is set wrongly",
        ],
        1,
        "Recomputation runs every hook and counter again. Exactly twice is its signature; K = 2 would be the other "
        "suspect, where choices are shown as tokens.",
    ),
)

# %% [markdown]
# **Words of this lesson.** *Load*: the choices that fall on an expert. *Collapse*: a few experts get most of the load.
# *Dead expert*: one that gets none. *f*: fraction of the load. *P*: mean probability over the full softmax. *Balance
# loss*, *auxiliary loss*: $E \sum f P$. *α*: its weight. *Padding*: tokens that only fill up a batch. *Router
# z-loss*: mean square of logsumexp. *MaxVio*: excess of the busiest expert over the mean. *Micro-batch*: a part of a
# step's tokens. *Activation checkpointing*: computing activations again in the backward pass instead of storing them.
