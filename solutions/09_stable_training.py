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
#     title: Training that stays stable
#     promise: >-
#       Logits that outgrow bfloat16, micro-batches that change the loss, experts that live on a handful of tokens: find
#       each in a measurement, and write the lines that prevent it.
#     objectives:
#       - Compute a router's logits in float32 under bfloat16 and autocast, and say what the level of the logits decides.
#       - Accumulate gradients over micro-batches and get the balance loss of the whole step, to the last bit that matters.
#       - Recompute experts, and nothing else, in the backward pass, and measure the memory this saves.
#       - Measure the noise of an expert's gradient against its tokens, and what Adam makes of rare gradients.
#       - Read a profile of a training step, and stop and resume a run without a trace.
#     prerequisites:
#       - Lesson 04, the load-balancing loss
#       - Lesson 08, an MoE transformer
#     minutes: 120
#     difficulty: 3
# ---

# %% tags=["parameters"]
seed: int = 0  # of the first run; further runs count up from it
num_seeds: int = 4  # runs of each setting, 2 at least
z_weights: list = [0.0, 0.001, 0.01]  # weights of the router z-loss compared, 0 among them
levels: list = [0.0, 128.0, 512.0]  # of the logits at the start, where precision is compared
learning_rates: list = [0.01, 0.1, 0.2]  # Adam's, where warm-ups are compared
warm_ups: list = [0, 60]  # steps, likewise
num_experts: int = 8  # E
top_k: int = 2  # K, experts per token
d_model: int = 16  # D of the small layer that is trained many times
d_ff: int = 8  # F, hidden width of one of its experts
batch_size: int = 128  # tokens in one of its training steps
steps: int = 240  # of its training, 30 at least
alpha: float = 0.01  # weight of the balance loss
noise_batches: int = 48  # over which the noise of gradients is estimated

# %%
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from moe_course import Question, check, quiz, record, show, sliders
from moe_course.figures import lesson_09 as figures

torch.set_num_threads(1)  # many small tensors: a second thread would only get in the way

# %% [markdown]
# ## 1. Eight bits for a decision
#
# Large models are trained in **bfloat16**: half the memory of float32, and several times the arithmetic. It keeps
# float32's range and gives up its precision: 8 significant bits. Between 128 and 256 its numbers are 1 apart.
#
# For a weight or an activation that is an error of 0.4 % at most. A router *decides*. It compares logits, and
# the softmax looks at their differences. [ST-MoE](https://arxiv.org/abs/2202.08906) gives the example that you met in
# lesson 04: ten experts with a logit of 128, one with 128.5. Move the level and the lead of the best expert:

# %%
def rounded_logits(level: float, lead: float):
    """Ten experts at a level, spread a little, and one that leads."""
    around = torch.linspace(-0.2, 0.2, 10)
    return figures.rounding(torch.cat([level + around, torch.tensor([level + 0.2 + lead])]))


sliders(rounded_logits, level=([0, 1, 4, 16, 32, 64, 128, 256, 512], 128), lead=(0.0, 2.0, 0.1, 0.5))

# %% [markdown]
# Things to look for:
#
# 1. At which level do the ten experts become one?
# 2. At level 128, how much lead does the best expert need to survive? And at 512?
# 3. Find a setting where rounding makes the lead *larger*.
#
# **Predict**, before you go on. All logits are multiplied by 10, as after an initialisation with larger weights:

# %% tags=["hide-input"]
quiz(
    Question(
        "All logits of a router grow to ten times their size, their differences as well. Does bfloat16 now choose other "
        "experts more often?",
        [
            "Yes, ten times as often: steps are wider for larger numbers",
            "No: steps grow with the numbers, and so do the differences",
            "Yes, and if a constant is added to all logits it does not",
        ],
        1,
        [
            "The steps grow by ten, and the leads of the experts grow by ten too.",
            "A floating-point number is rounded relative to its size. Scale does no harm to a choice. A *level* does: "
            "it widens the steps and leaves the differences as they are.",
            "It is the other way round.",
        ],
    )
)

# %% [markdown]
# Switch calls its remedy **selective precision**: the model in bfloat16, the router alone in float32. It costs little, for the
# router is small. Their figures, as [negative log perplexity](https://arxiv.org/abs/2101.03961), higher is better:
#
# | Switch | quality | examples a second |
# |---|---|---|
# | everything in float32 | −1.718 | 1160 |
# | everything in bfloat16 | −3.780, diverged | 1390 |
# | the router in float32, the rest in bfloat16 | −1.716 | 1390 |
#
# It sounds like one `.float()`. Where it stands decides, and `torch.autocast` has a say: under autocast PyTorch rounds
# the *operands* of every matrix product to bfloat16, whatever their dtype.
#
# ### Exercise: logits in float32
#
# The tokens and the weight may come in float32 or in bfloat16, and autocast may be on.

# %% exercise="09.precise_router_logits"
def precise_router_logits(x: Float[Tensor, "T D"], weight: Float[Tensor, "E D"]) -> Float[Tensor, "T E"]:
    """Router logits, multiplied and added up in float32.

    Args:
        x: tokens, (T, D), in float32 or bfloat16.
        weight: one row for each expert, (E, D), in float32 or bfloat16.

    Returns:
        x · weightᵀ, (T, E), in float32, the same whether autocast is on or off.
    """
    ### BEGIN SOLUTION
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), weight.float())
    ### END SOLUTION

# %% check="09.precise_router_logits"
precise_router_logits = check(precise_router_logits)

# %% tags=["nbval-check-output"]
def cast_after(x: Tensor, weight: Tensor) -> Tensor:
    """The usual line: the product in the model's dtype, then float32 for the softmax."""
    return F.linear(x, weight).float()


arrows = torch.tensor([[1.0, 0.0]] * 10 + [[1.0, 1.0]]).bfloat16()
token = torch.tensor([[128.0, 0.5]]).bfloat16()  # both operands are exact: it is the product that is rounded
for name, logits_of in (("cast after the product", cast_after), ("cast before the product", precise_router_logits)):
    logits = logits_of(token, arrows)
    print(f"{name:26} last logit {logits[0, -1]:.1f}   its probability {logits.softmax(-1)[0, -1]:.3f}")

# %% [markdown]
# This is ST-MoE's example, exact: 0.142 becomes 0.091. No operand was rounded. The product was, when it was stored.
#
# How much of this would you notice? Take random tokens and a random router of 64 experts, and add a level to all
# logits. In exact arithmetic it changes neither the probabilities nor the choice.

# %%
def with_level(level: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """2048 tokens and 64 arrows that share a direction, so that every logit has the level."""
    x, weight = torch.randn(2048, 64, generator=generator), torch.randn(64, 64, generator=generator) / 8
    x[:, 0], weight[:, 0] = 8.0, level / 8
    return x.bfloat16(), weight.bfloat16()


def under_autocast(x: Tensor, weight: Tensor) -> Tensor:
    """Careful, and in vain: autocast takes the float32 away again."""
    precise = x.float(), weight.float()
    with torch.autocast("cpu", torch.bfloat16):
        return F.linear(*precise).float()


ways = {
    "cast before, no autocast": precise_router_logits,
    "cast after the product": cast_after,
    "cast before, under autocast": under_autocast,
}
at_levels = [1, 4, 16, 64, 256, 1024]
elsewhere = {name: torch.zeros(len(at_levels)) for name in ways}
error = {name: torch.zeros(len(at_levels)) for name in ways}
for row, level in enumerate(at_levels):
    x, weight = with_level(level, torch.Generator().manual_seed(seed))
    exact = F.linear(x.double(), weight.double())
    for name, logits_of in ways.items():
        logits = logits_of(x, weight).double()
        elsewhere[name][row] = (logits.argmax(-1) != exact.argmax(-1)).double().mean()
        error[name][row] = (logits.softmax(-1) - exact.softmax(-1)).abs().max()

print(f"{'tokens sent elsewhere, at level':34}" + "".join(f"{level:>8}" for level in at_levels))
for name, shares in elsewhere.items():
    print(f"{name:34}" + "".join(f"{share:>8.1%}" for share in shares))
record(elsewhere_at_level_256=elsewhere["cast after the product"][4].item())
show(figures.by_level(at_levels, elsewhere, error))

# %% [markdown]
# **What just happened.** Two of the three ways are the same, and the one under autocast *looks* careful. At a level of 1
# nearly nobody is sent elsewhere. From some dozens on, rounding decides for a good part of the tokens.
#
# A choice that changes is not the worst of it: such tokens were near a tie. Rounding also returns *equal* logits, and
# `topk` breaks a tie by the expert's number. And the gradient is that of the rounded probabilities.
#
# ## 2. A small start
#
# Where do large logits come from? First, from the start. A logit is a sum over D inputs, so its variance is D times
# that of the weights, for inputs of variance 1. Weights are therefore drawn with a variance of $s / D$, and $s$ is the
# **scale**. The usual value is 1. Switch takes a tenth of it:
#
# | scale | Switch's quality |
# |---|---|
# | $s = 1$ | −3.60 ± 0.68 |
# | $s = 0.1$ | −2.72 ± 0.01 |
#
# Look behind the ±, too. A large start is a lottery.
#
# ### Exercise: scale the start
#
# You get random numbers of variance 1, and scale them. The weight may be one matrix, or a stack of experts.

# %% exercise="09.scaled_start"
def scaled_start(noise: Float[Tensor, "*stack rows fan_in"], scale: float) -> Float[Tensor, "*stack rows fan_in"]:
    """Weights of variance scale / fan_in.

    Args:
        noise: independent draws of variance 1, for one matrix (rows, fan_in) or for a stack of them.
        scale: s, of the *variance*.

    Returns:
        The weights, shaped like `noise`.
    """
    ### BEGIN SOLUTION
    return noise * (scale / noise.shape[-1]) ** 0.5
    ### END SOLUTION

# %% check="09.scaled_start"
scaled_start = check(scaled_start)

# %%
generator = torch.Generator().manual_seed(seed)
x, arrows = torch.randn(4096, 256, generator=generator), torch.randn(64, 256, generator=generator)
print(f"{'scale':>6}{'std of the logits':>20}{'largest logit':>16}{'best probability':>19}{'entropy / ln E':>17}")
for scale in (0.01, 0.1, 1.0, 10.0):
    logits = x @ scaled_start(arrows, scale).T
    probs = logits.softmax(-1)
    entropy = torch.special.entr(probs).sum(-1).mean() / math.log(64)
    print(f"{scale:>6g}{logits.std():>20.2f}{logits.abs().max():>16.2f}{probs.amax(-1).mean():>19.3f}{entropy:>17.2f}")

# %% [markdown]
# **What just happened.** With $s = 1$ a fresh router already gives its favourite seven times its share, for no reason.
# With $s = 0.1$ it starts undecided. With $s = 10$ it has made up its mind before the first token is learnt.
#
# PyTorch's `nn.Linear` starts uniform within $\pm 1/\sqrt{D}$, which is $s = 1/3$; so do the layers of this course.
# `moe_course.layers.variance_scaling_` is the remedy, and `Float32Router` joins both.
#
# ## 3. Logits that grow
#
# Secondly, logits grow in training. The softmax does not feel their level, so nothing holds it. Lesson 04 has the
# **router z-loss** against it, the mean of $(\ln \sum_i e^{z_i})^2$ over tokens. Now measure what it does.
#
# As in lesson 04, clumps of tokens have to be told apart, and many models are trained side by side: every tensor has a
# leading dimension R, for the run. This time each run has settings of its own, its learning rate among them, so Adam is
# written out. You will need to look into it later anyway.

# %%
NUM_CLUMPS, NUM_LABELS, SPREAD, OFFSET = 32, 8, 0.5, 4.0


class Task:
    """A world of its own for each seed: where the clumps lie, and a stream of tokens from it."""

    def __init__(self, run_seed: int) -> None:
        self.generator = torch.Generator().manual_seed(run_seed)
        common = torch.randn(d_model, generator=self.generator)
        self.common = common / common.norm()
        self.centres = torch.randn(NUM_CLUMPS, d_model, generator=self.generator) + OFFSET * self.common

    def draw(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Tokens (T, D) and their labels (T,)."""
        clump = torch.randint(NUM_CLUMPS, (tokens,), generator=self.generator)
        noise = torch.randn(tokens, d_model, generator=self.generator)
        return self.centres[clump] + SPREAD * noise, clump % NUM_LABELS


@dataclass(frozen=True)
class Setting:
    """What may differ between two runs."""

    learning_rate: float = 0.01
    warm_up: int | None = None  # steps; None: the rate is constant
    z_weight: float = 0.0
    level: float = 0.0  # of the logits at the start
    bfloat16: bool = False  # the router's product

# %%
class SideBySide:
    """R independent MoE layers, each with a linear head. Every expert sees every token, and the gates choose."""

    def __init__(self, settings: list[Setting], tasks: list[Task]) -> None:
        def start(scale: float, *shape: int) -> Tensor:
            noise = torch.stack([torch.randn(shape, generator=task.generator) for task in tasks] * len(settings))
            return scaled_start(noise, scale)

        router = start(0.1, num_experts, d_model)
        for run, setting in enumerate(setting for setting in settings for _ in tasks):
            router[run] += setting.level / OFFSET * tasks[run % len(tasks)].common  # the same for all experts
        w_in, w_out = start(1.0, num_experts, d_ff, d_model), start(1.0, num_experts, d_model, d_ff)
        self.parameters = [nn.Parameter(weight) for weight in (router, w_in, w_out, start(1.0, NUM_LABELS, d_model))]
        self.bfloat16 = torch.tensor([setting.bfloat16 for setting in settings for _ in tasks])[:, None, None]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (R, T, D) to logits of the labels, logits of the router (R, T, E) and ids (R, T, K)."""
        router, w_in, w_out, head = self.parameters
        logits = x @ router.mT
        if self.bfloat16.any():
            logits = torch.where(self.bfloat16, (x.bfloat16() @ router.bfloat16().mT).float(), logits)
        best = logits.softmax(-1).topk(top_k, dim=-1)
        gates = torch.zeros_like(logits).scatter(-1, best.indices, best.values)
        hidden = F.gelu(torch.einsum("rtd,refd->rtef", x, w_in))
        out = torch.einsum("rtef,redf->rtd", gates[..., None] * hidden, w_out)
        return out @ head.mT, logits, best.indices

# %%
class Adam:
    """Adam with a learning rate for each run."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.done = parameters, 0
        self.means, self.squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))

    @torch.no_grad()
    def step(self, rates: Tensor) -> None:
        self.done += 1
        for p, mean, square in zip(self.parameters, self.means, self.squares, strict=True):
            mean.lerp_(p.grad, 0.1)  # 0.9 of the old mean, 0.1 of the gradient
            square.lerp_(p.grad.square(), 0.001)
            direction = (mean / (1 - 0.9**self.done)) / ((square / (1 - 0.999**self.done)).sqrt() + 1e-8)
            p -= rates.view(-1, *[1] * (p.dim() - 1)) * direction
            p.grad = None

# %%
@dataclass
class Runs:
    """What S settings × N seeds did."""

    log_sum: Tensor  # mean logsumexp of a token's logits, (S, steps, N)
    loss: Tensor  # of the task, in training, (S, steps, N)
    held_out: Tensor  # loss of the task on tokens that were not trained on, (S, N)
    choices: Tensor  # experts chosen for those tokens at every 30th step, (S, N, points, T, K)


def train(settings: list[Setting]) -> Runs:
    """Train a model for each setting and each seed."""
    tasks = [Task(run_seed) for run_seed in range(seed, seed + num_seeds)]
    each = [setting for setting in settings for _ in tasks]
    model = SideBySide(settings, tasks)
    optimizer, z_weight = Adam(model.parameters), torch.tensor([setting.z_weight for setting in each])

    def batch(tokens: int) -> tuple[Tensor, Tensor]:
        drawn = [task.draw(tokens) for task in tasks] * len(settings)
        return torch.stack([x for x, _ in drawn]), torch.stack([labels for _, labels in drawn])

    def rate(setting: Setting, step: int) -> float:
        peak = setting.learning_rate
        return peak if setting.warm_up is None else learning_rate(step, steps, setting.warm_up, peak, 0.0)

    def loss_of(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        predicted, logits, ids = model(x)
        return F.cross_entropy(predicted.movedim(-1, 1), labels, reduction="none").mean(-1), logits, ids

    held_out, noted, choices = batch(1024), [], []
    for step in range(steps):
        task_loss, logits, ids = loss_of(*batch(batch_size))
        load = F.one_hot(ids, num_experts).sum(2).float().mean(1) / top_k
        balance = num_experts * (load * logits.softmax(-1).mean(1)).sum(-1)
        log_sum = logits.logsumexp(-1)
        (task_loss + alpha * balance + z_weight * log_sum.square().mean(-1)).sum().backward()
        optimizer.step(torch.tensor([rate(setting, step) for setting in each]))
        noted.append(torch.stack([log_sum.mean(-1), task_loss]).detach())
        if step % 30 == 29:
            with torch.no_grad():
                choices.append(loss_of(*held_out)[2])
    with torch.no_grad():
        final = loss_of(*held_out)[0]
    shape = (len(settings), num_seeds)
    log_sum, loss = torch.stack(noted, dim=1).unflatten(2, shape).movedim(1, 2)
    return Runs(log_sum, loss, final.view(shape), torch.stack(choices, dim=1).unflatten(0, shape))

# %% [markdown]
# **Predict** what the z-loss does to the logits and to the loss of the task, in float32:

# %% tags=["hide-input"]
quiz(
    Question(
        "Three weights of the z-loss, 0, 0.001 and 0.01. Everything in float32, learning rates 0.01 and 0.1. What do you "
        "expect on held-out tokens?",
        [
            "The z-loss keeps the logits small, and the loss of the task is much the same",
            "The z-loss keeps the logits small, and the loss of the task is clearly better",
            "Without the z-loss every run diverges",
        ],
        0,
        [
            "float32 does not mind a level of 10. What the z-loss protects from is not in this experiment yet.",
            "By what mechanism? In float32 the level of the logits changes nothing.",
            "Nothing in this small task drives the logits that far.",
        ],
    )
)

# %%
rates_for_z = [0.01, 0.1]
growth = train([Setting(rate, z_weight=weight) for rate in rates_for_z for weight in z_weights])
by_weight = growth.log_sum.unflatten(0, (len(rates_for_z), len(z_weights)))
held_out = growth.held_out.unflatten(0, (len(rates_for_z), len(z_weights)))

print(f"{'learning rate':>14}{'z-loss':>9}{'logsumexp, first step':>24}{'last 20 steps':>16}{'held-out loss':>20}")
for row, rate in enumerate(rates_for_z):
    for col, weight in enumerate(z_weights):
        first, last = by_weight[row, col, 0].mean(), by_weight[row, col, -20:].mean()
        spread = f"{held_out[row, col].mean():.3f} ± {held_out[row, col].std():.3f}"
        print(f"{rate:>14g}{weight:>9g}{first:>24.2f}{last:>16.2f}{spread:>20}")
print(f"means over {num_seeds} seeds, ± the standard deviation of one seed")
record(log_sum_without_z=by_weight[1, 0, -20:].mean().item(), log_sum_with_z=by_weight[1, -1, -20:].mean().item())
curves = {f"weight {weight:g}": by_weight[1, col] for col, weight in enumerate(z_weights)}
show(figures.over_training(curves, f"The z-loss holds the logits (learning rate {rates_for_z[1]:g})", "logsumexp of a token"))

# %% [markdown]
# **What just happened.** Without the z-loss, logsumexp grows, the more so the larger the learning rate. With it,
# logsumexp goes to 0, and the held-out losses lie within the seeds' spread of each other.
#
# So the z-loss did its work, and *nothing improved*. That is as it should be. It protects from rounding, and nothing
# was rounded. ST-MoE needed it in bfloat16: 4 of 6 runs were stable without, 3 of 3 with it, at a weight of 0.001.
#
# Now let rounding in. Give every expert's arrow the same extra component, so that the logits *start* at a level. In
# float32 that is the same model. The router's product is then done in float32 or in bfloat16:

# %%
kinds = {"float32": (False, 0.0), "bfloat16": (True, 0.0), "bfloat16, z-loss 0.01": (True, 0.01)}
by_level = train([Setting(level=level, bfloat16=low, z_weight=z) for low, z in kinds.values() for level in levels])
losses = by_level.held_out.unflatten(0, (len(kinds), len(levels)))
names = [f"router in {kind}" for kind in kinds]
print(f"{'level at the start':32}" + "".join(f"{level:>16g}" for level in levels))
for name, values in zip(names, losses, strict=True):
    print(f"{name:32}" + "".join(f"{v.mean():>8.3f} ± {v.std():.3f}" for v in values))
record(held_out_bfloat16_by_level=losses[1].mean(-1).tolist(), held_out_float32_by_level=losses[0].mean(-1).tolist())
groups = {name: dict(zip(map("{:g}".format, levels), values, strict=True)) for name, values in zip(names, losses, strict=True)}
title = "Small logits forgive bfloat16, large ones do not"
show(figures.by_setting(groups, title, "level of the logits at the start", "held-out loss (nats)"))

# %% [markdown]
# **What just happened.** In float32 the level makes no difference. In bfloat16 it makes none near 0, little at 128, and at
# 512 it doubles the loss. This small task has wide gaps between its clumps and forgives much. Switch's model forgave
# nothing.
#
# The last row is a warning. Where the level is high already, the z-loss makes things *worse*: its gradient grows
# with the level, and drowns that of the task while it brings the level down, for longer than this training lasts. The z-loss
# prevents. It is a poor cure.
#
# So the three remedies are one chain: start small, keep the level down, and do not round what decides. The last alone
# would do for you. The first two protect whoever runs your model in bfloat16 later.
#
# ## 4. Micro-batches
#
# A step of a large model takes more tokens than fit into memory. So a step is cut into **micro-batches**: their
# gradients add up, and the optimiser moves once. That is *supposed* to give the gradient of the large batch. In
# `transformers` it did not, [until October 2024](https://github.com/huggingface/blog/pull/2414): each micro-batch's loss
# was a mean over *its* tokens, and the mean of means is not the mean where sizes differ.
#
# For a balance loss that repair is not enough. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "Two micro-batches of equal size. One is Python code and uses experts 0 to 3 evenly, the other prose and uses 4 "
        "to 7. For the whole step the load is even. What does the balance loss say, E = 8, if you average it over the two?",
        ["1: the load of the step is even", "2: each micro-batch uses half of the experts", "4: it adds up"],
        1,
        [
            "That is the loss of the step as one batch.",
            "Within each micro-batch f and P are 1/4 for four experts: 8 · 4 · 1/16 = 2. The average is 2, and its "
            "gradient pushes code to the experts of prose.",
            "Each is 2, and so is their mean.",
        ],
    )
)

# %% [markdown]
# The loss is a product of two means, $E \sum_i f_i P_i$, and a mean of products is not a product of means. The gap is a
# covariance, over the micro-batches $m$ (of equal size):
#
# $$\frac{1}{M} \sum_m E \sum_i f_i^{(m)} P_i^{(m)} \;=\; E \sum_i f_i P_i \;+\; E \sum_i \mathrm{cov}_m \big(f_i^{(m)}, P_i^{(m)}\big) .$$
#
# It is positive where micro-batches have favourites, and the gradient then fights *having favourites*. Experts that
# specialise on a kind of text are what you might have hoped for.
#
# The way out: $f$ has no gradient. If it is known for the whole step, the loss is a plain sum over tokens. With $N$
# tokens in the step:
#
# $$E \sum_i f_i P_i \;=\; \sum_m \underbrace{\frac{E}{N} \sum_{t \in m} \sum_i f_i \, p_{ti}}_{\text{micro-batch } m} .$$
#
# ### Exercise: the balance loss in parts
#
# Return what each micro-batch contributes, so that the parts *add up* to the loss of the step. Sizes differ: the mask
# says which tokens are real.

# %% exercise="09.accumulated_balance"
def accumulated_balance(
    probs: Float[Tensor, "M T E"], expert_ids: Int64[Tensor, "M T K"], token_mask: Bool[Tensor, "M T"]
) -> Float[Tensor, "M"]:
    """What each of M micro-batches contributes to the balance loss of the whole step.

    Args:
        probs: softmax of each token over all experts, (M, T, E).
        expert_ids: the K experts of each token, (M, T, K).
        token_mask: True for tokens that count, (M, T).

    Returns:
        (M,): their sum is E · Σ f·P over all tokens of the step; 0 for a micro-batch without tokens.
    """
    ### BEGIN SOLUTION
    num_experts, top_k = probs.shape[-1], expert_ids.shape[-1]
    tokens = token_mask.sum().clamp(min=1)
    counts = torch.bincount(expert_ids[token_mask].flatten(), minlength=num_experts)
    fraction = counts / (tokens * top_k)
    kept = torch.where(token_mask[..., None], probs, 0).sum(1)  # (M, E)
    return num_experts * (kept * fraction).sum(-1) / tokens
    ### END SOLUTION

# %% check="09.accumulated_balance"
accumulated_balance = check(accumulated_balance)

# %% [markdown]
# How large is the gap on real text? Train a small transformer for a moment, on prose, Python, C++ and JSON. Then take a
# step of 32 sequences, once in an order that gives each micro-batch one kind of text, once shuffled. One forward pass is
# enough: cutting a step up changes no token's probabilities, only what is averaged with what.

# %%
from moe_course.layers import MoETransformer, TransformerConfig
from moe_course.training import ByteTokenizer, encode_domains, language_model_loss, text_domains

CONTEXT = 64
torch.manual_seed(seed)
corpus = encode_domains(text_domains(60_000), ByteTokenizer())
shape = {"d_model": 64, "num_layers": 2, "num_heads": 2, "num_experts": num_experts, "top_k": top_k}
transformer = MoETransformer(TransformerConfig(vocab_size=256, d_ff_expert=64, context=CONTEXT, **shape))
optimizer = torch.optim.AdamW(transformer.parameters(), lr=3e-3)
for ids in corpus.batches(CONTEXT, 16, steps=40, seed=seed):
    optimizer.zero_grad()
    language_model_loss(transformer, ids).loss.backward()
    optimizer.step()


def by_domain(rows: int, generator: torch.Generator) -> Tensor:
    """Sequences of context + 1 bytes, the same number of each kind of text, one kind after the other."""
    texts = [ids.unfold(0, CONTEXT + 1, 1) for ids in corpus.train.values()]
    drawn = [text[torch.randint(len(text), (rows // len(texts),), generator=generator)] for text in texts]
    return torch.cat(drawn)

# %%
def usual_balance(probs: Tensor, expert_ids: Tensor) -> Tensor:
    """The mean of the micro-batches' own balance losses, (M, T, E) and (M, T, K) to a scalar."""
    alone = [(p[None], i[None], torch.ones(1, len(i), dtype=torch.bool)) for p, i in zip(probs, expert_ids, strict=True)]
    return torch.stack([accumulated_balance(*each).sum() for each in alone]).mean()


def of_step(ids: Tensor, parts: int, loss: Callable[..., Tensor]) -> tuple[float, Tensor]:
    """The balance loss of a step cut into parts, mean over layers, and its gradient by the routers' weights."""
    routings = transformer(ids[:, :-1]).routings.values()
    cut = [[t.unflatten(0, (parts, -1)) for t in (routing.probs, routing.expert_ids)] for routing in routings]
    value = torch.stack([loss(*each) for each in cut]).mean()
    routers = [block.ffn.router.weight for block in transformer.blocks]
    return value.item(), torch.cat([g.flatten() for g in torch.autograd.grad(value, routers)])


def whole(probs: Tensor, expert_ids: Tensor) -> Tensor:
    """The loss of the step, as the sum of its parts."""
    return accumulated_balance(probs, expert_ids, torch.ones(probs.shape[:2], dtype=torch.bool)).sum()

# %%
cuts = [1, 2, 4, 8, 16]
excess, gap = ({name: {str(m): [] for m in cuts} for name in ("one kind of text each", "shuffled")} for _ in range(2))
for run in range(num_seeds):
    generator = torch.Generator().manual_seed(seed + run)
    sorted_ids = by_domain(32, generator)
    for name, ids in (("one kind of text each", sorted_ids), ("shuffled", sorted_ids[torch.randperm(32, generator=generator)])):
        right_value, right = of_step(ids, 1, whole)
        for parts in cuts:
            value, gradient = of_step(ids, parts, usual_balance)
            excess[name][str(parts)].append(value - right_value)
            gap[name][str(parts)].append(100 * ((gradient - right).norm() / right.norm()).item())
gap = {name: {parts: torch.tensor(values) for parts, values in of_name.items()} for name, of_name in gap.items()}
print(f"{'':26}" + "".join(f"{parts:>12}" for parts in cuts) + "   micro-batches")
for name in gap:
    print(f"{name:26}" + "".join(f"{v.mean():>7.1f} ±{v.std():>3.1f}" for v in gap[name].values()) + "   gradient off by, %")
    print(f"{'':26}" + "".join(f"{torch.tensor(v).mean():>+12.3f}" for v in excess[name].values()) + "   loss too large by")
record(gap_one_kind=gap["one kind of text each"]["4"].mean().item(), gap_shuffled=gap["shuffled"]["4"].mean().item())
title = "The usual balance loss of micro-batches has another gradient"
show(figures.by_setting(gap, title, "micro-batches in a step", "difference of the routers' gradient (%)"))

# %% [markdown]
# **What just happened.** The gap is there from two micro-batches on, and grows with their number. Up to eight it is larger
# where each has its own kind of text. In large trainings every GPU is a micro-batch of few sequences. [Qiu and
# others](https://arxiv.org/abs/2501.11873) therefore share $f$ over all GPUs, and report better models and experts that
# specialise more.
#
# In a real step you need $f$ before the first backward pass. The exact way is two passes: count under `no_grad`, then
# train. It costs a forward pass, about a third more. `moe_course.training.accumulate` does that. Is it exact? In float64
# you can tell:

# %%
from moe_course.training import accumulate

transformer.double()


def forward(ids: Tensor) -> tuple[Tensor, list]:
    """The mean loss of a micro-batch's tokens, and the routing of each MoE layer."""
    output = transformer(ids[:, :-1])
    return F.cross_entropy(output.logits.flatten(0, 1), ids[:, 1:].flatten()), list(output.routings.values())


def all_gradients(backward: Callable[[], object]) -> Tensor:
    transformer.zero_grad()
    backward()
    return torch.cat([p.grad.flatten() for p in transformer.parameters()])


ids = by_domain(12, torch.Generator().manual_seed(seed))
pieces = [ids[:1], ids[1:6], ids[6:]]  # of 1, 5 and 6 sequences
large = all_gradients(lambda: accumulate(forward, [ids], balance_weight=1.0))
exact = all_gradients(lambda: accumulate(forward, pieces, balance_weight=1.0))


def usual() -> None:
    for piece in pieces:
        result = language_model_loss(transformer, piece, balance_weight=1.0)
        (result.loss / len(pieces)).backward()


print(f"two passes, f of the step:          gradient off by {(exact - large).norm() / large.norm():.0e}")
print(f"the usual way, loss / micro-batches: gradient off by {(all_gradients(usual) - large).norm() / large.norm():.0e}")
transformer = transformer.float()

# %% [markdown]
# The first is rounding of float64. The second makes both mistakes: each part has its own $f$, and a token of the smallest
# part weighs six times as much as one of the largest.
#
# Cheaper, and nearly right, is the $f$ that the step has counted *so far*: no second pass. Loads change slowly.
#
# ## 5. Keep less, compute again
#
# The backward pass needs what the forward pass computed. In an MoE layer the bulk are the hidden activations of the
# experts, K · T · F numbers. **Activation checkpointing** throws them away and runs the layer *again* when its gradient
# is due.
#
# Which part again? Wrapping the whole layer is one line. The router then runs twice as well. **Predict** the damage:

# %% tags=["hide-input"]
quiz(
    Question(
        "Under whole-layer checkpointing the router runs a second time, in the backward pass. What can go wrong?",
        [
            "Nothing: the same input gives the same output",
            "It may decide otherwise: noise, or rounding on a GPU where two experts all but tie",
            "The router's gradient is counted twice",
        ],
        1,
        [
            "On one machine and without noise, often. Sums on a GPU depend on their order, and that may change.",
            "Then an expert gets a token fewer than before, and PyTorch stops for shapes that differ: [a known "
            "failure](https://github.com/NVIDIA-NeMo/Automodel/pull/2635). Or it goes on, with a gradient of a pass "
            "that never was.",
            "The first run keeps no graph, so there is one gradient.",
        ],
    )
)

# %% [markdown]
# ### Exercise: checkpoint the experts
#
# `router(x)` returns weights and ids; `experts(x, weights, expert_ids)` returns the output. Both are given. Use
# `torch.utils.checkpoint.checkpoint`, which is imported as `checkpoint`.

# %% exercise="09.checkpointed_moe"
def checkpointed_moe(
    x: Float[Tensor, "T D"], router: Callable[..., tuple[Tensor, Tensor]], experts: Callable[..., Tensor]
) -> tuple[Float[Tensor, "T D"], Int64[Tensor, "T K"]]:
    """An MoE layer that keeps no hidden activation, and routes once.

    Args:
        x: tokens, (T, D); with or without a gradient.
        router: x → weights (T, K) and expert_ids (T, K). May be noisy.
        experts: x, weights, expert_ids → output (T, D). May use dropout.

    Returns:
        The output, (T, D), and expert_ids, (T, K).
    """
    ### BEGIN SOLUTION
    weights, expert_ids = router(x)
    out = checkpoint(experts, x, weights, expert_ids, use_reentrant=False)
    return out, expert_ids
    ### END SOLUTION

# %% check="09.checkpointed_moe"
checkpointed_moe = check(checkpointed_moe)

# %% [markdown]
# Measure it on the course's own layer. Autograd tells what it keeps, through *hooks* on saved tensors. A naive load
# counter on the router goes along, and the course's monitor.

# %%
from moe_course.layers import DenseFFN, MoELayer
from moe_course.training import ExpertMonitor, saved_for_backward

TOKENS, WIDTH, HIDDEN = 4096, 256, 512


def plain(layer: nn.Module, x: Tensor) -> Tensor:
    out = layer(x)
    return out[0] if isinstance(out, tuple) else out


def whole_layer(layer: MoELayer, x: Tensor) -> Tensor:
    return checkpoint(layer, x, use_reentrant=False)[0]


def experts_alone(layer: MoELayer, x: Tensor) -> Tensor:
    def router(tokens: Tensor) -> tuple[Tensor, Tensor]:
        routing = layer.router(tokens)
        return routing.weights, routing.expert_ids

    def experts(tokens: Tensor, weights: Tensor, expert_ids: Tensor) -> Tensor:
        return layer.experts(tokens, expert_ids, weights)

    return checkpointed_moe(x, router, experts)[0]

# %%
torch.manual_seed(seed)
x = torch.randn(TOKENS, WIDTH, requires_grad=True)
moe, dense = MoELayer(WIDTH, HIDDEN, num_experts, top_k), DenseFFN(WIDTH, HIDDEN * top_k)
ways = {
    "dense, equal FLOPs": (dense, plain),
    "MoE": (moe, plain),
    "MoE, whole layer checkpointed": (moe, whole_layer),
    "MoE, experts checkpointed": (moe, experts_alone),
}
megabytes, counted = {}, []


def count(module: nn.Module, inputs: tuple, routing: object) -> None:
    """A counter as one writes it first: whatever passes, counts."""
    counted.append(len(routing.probs))


hook = moe.router.register_forward_hook(count)
print(f"{'':32}{'kept':>10}{'tokens routed':>16}{'naive counter':>16}{'ExpertMonitor':>16}")
for name, (layer, run) in ways.items():
    counted.clear()
    with ExpertMonitor(layer) as monitor:
        with saved_for_backward(x, layer) as saved:
            out = run(layer, x)
        out.square().mean().backward()
    megabytes[name] = saved.megabytes
    line = f"{name:32}{saved.megabytes:>7.1f} MB"
    if layer is moe:
        line += f"{TOKENS:>16}{sum(counted):>16}{sum(row.tokens for row in monitor.layers()):>16}"
    print(line)
hook.remove()
record(kept_megabytes=[{"layer": name, "megabytes": value} for name, value in megabytes.items()])
show(figures.memory(megabytes, top_k * TOKENS * HIDDEN * 4 / 1e6))

# %% [markdown]
# **What just happened.** A dense layer keeps its hidden activations twice, before and after the GELU. The MoE layer of this
# course keeps them once, $K \cdot T \cdot F$ numbers, and little else. With checkpointed experts the router's probabilities
# and some ids are left. The whole-layer kind saves those as well, and they are next to nothing.
#
# The naive counter counts twice under the whole-layer kind: the router ran twice. `ExpertMonitor` knows of recomputation
# and counts once either way. But it cannot help a router that decides otherwise the second time. For noise, PyTorch
# puts the random generator back before the second run. For sums on a GPU there is nothing to put back.
#
# Time is the price: the experts' forward pass is done twice. `moe_course.training.checkpoint_experts(model)` does this to
# every MoE layer of a model.
#
# ## 6. Rare gradients and the learning rate
#
# An expert sees a token now and then. A dense weight has a gradient in every step; an expert with little load has one
# in every tenth. Adam divides the mean gradient by the root of the mean *square*. **Predict** what it makes of that:

# %% tags=["hide-input"]
quiz(
    Question(
        "Two weights get gradients of the same size, one in each step, the other in every 100th. How far does one "
        "gradient move the second weight, compared to the first?",
        ["The same distance", "About 10 times as far", "About 100 times as far"],
        1,
        [
            "That would be SGD.",
            "The mean square is 100 times smaller, its root 10. One gradient in 100 steps therefore counts for 10.",
            "The mean square is 100 times smaller. Adam takes the root.",
        ],
    )
)

# %%
every = [1, 3, 10, 30, 100, 300]
weights = nn.Parameter(torch.zeros(len(every)))
adam = Adam([weights])
for step in range(6000):
    if step == 3000:
        start = weights.detach().clone()  # from here on it is a habit
    weights.grad = torch.tensor([float(step % n == 0) for n in every])
    adam.step(torch.ones(1))
received = torch.tensor([sum(step % n == 0 for step in range(3000, 6000)) for n in every])
moved = {"Adam": (start - weights.detach()) / received, "SGD": torch.ones(len(every)), "√n": torch.tensor(every).sqrt()}
print("a gradient every … steps        " + "".join(f"{n:>8}" for n in every))
print("moves the weight, learning rates" + "".join(f"{distance:>8.1f}" for distance in moved["Adam"]))
record(adam_moves=moved["Adam"])
show(figures.rare_gradients(every, moved))

# %% [markdown]
# **What just happened.** The rarer a gradient, the farther Adam carries its weight, by $\sqrt n$. So a starved expert takes
# *large* steps on *few* tokens. (It also drifts on: momentum moves it in steps in which it saw nothing. And with AdamW
# weight decay shrinks it all the while.)
#
# At the very start Adam's mean square is an estimate from a handful of steps, and for rare gradients from one. This is
# an argument for **warm-up**: small rates while the estimates are poor. Afterwards the rate falls, mostly along a
# cosine, to a floor.
#
# ### Exercise: warm-up and cosine
#
# Steps are counted from 0. The first step has `peak / warm_up`, the last step of the warm-up has `peak`, the last step
# of all has `floor`, and so has any step after it.

# %% exercise="09.learning_rate"
def learning_rate(step: int, steps: int, warm_up: int, peak: float, floor: float) -> float:
    """The learning rate of one step.

    Args:
        step: counted from 0; may lie beyond the last.
        steps: number of steps in all.
        warm_up: the number of them in which the rate rises, in a line; 0: none.
        peak: the largest rate.
        floor: the rate in the last step.

    Returns:
        The rate, from `peak` to `floor` along half a period of a cosine after the warm-up.
    """
    ### BEGIN SOLUTION
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = min((step + 1 - warm_up) / max(steps - warm_up, 1), 1)
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2
    ### END SOLUTION

# %% check="09.learning_rate"
learning_rate = check(learning_rate)

# %%
def rates(steps: int, warm_up: int, floor: float):
    """A whole schedule, with a peak of 1."""
    return figures.schedule([learning_rate(step, steps, min(warm_up, steps), 1.0, floor) for step in range(steps)], warm_up)


sliders(rates, steps=(10, 200, 10, 100), warm_up=(0, 50, 5, 10), floor=(0.0, 0.5, 0.05, 0.1))

# %% [markdown]
# Is warm-up worth it? Try three learning rates, the last of them too large, each with and without.

# %%
warmed = train([Setting(rate, warm_up=warm_up) for rate in learning_rates for warm_up in warm_ups])
results = warmed.held_out.unflatten(0, (len(learning_rates), len(warm_ups)))
print(f"{'held-out loss':16}" + "".join(f"{f'warm-up {w}':>18}" for w in warm_ups))
for rate, row in zip(learning_rates, results, strict=True):
    print(f"{f'rate {rate:g}':16}" + "".join(f"{f'{v.mean():.3f} ± {v.std():.3f}':>18}" for v in row))
record(held_out_by_rate_and_warm_up=results.mean(-1))
groups = {f"warm-up {w}": {f"{r:g}": results[i, j] for i, r in enumerate(learning_rates)} for j, w in enumerate(warm_ups)}
title = "Here the learning rate decides, not the warm-up"
show(figures.by_setting(groups, title, "learning rate", "held-out loss (nats)", log=True))

# %% [markdown]
# **What just happened.** Nothing that you could tell from the seeds. At the two smaller rates warm-up neither
# helps nor hurts. At the third all runs are poor, with and without. This small layer has no need of it. A large
# transformer may: look at the first steps of *your* curves before you copy the habit, or drop it.
#
# The *fall* matters more here. In section 3 the rate was constant, and 0.1 gave a held-out loss some three times as large
# as the same rate gives now. At 0.01 it is the other way round: the constant rate had time to go farther.
#
# ## 7. Clip once, for all
#
# The last guard against one bad batch is **clipping**: if the gradient is too long, shorten it. Too long is the gradient
# of the *model*, over all parameters. In an MoE it is tempting to do it expert by expert.
#
# ### Exercise: clip by the joint norm
#
# Scale all gradients by one factor, so that their joint norm is at most `max_norm`. Do not lengthen short ones.

# %% exercise="09.clip_gradients"
def clip_gradients(gradients: dict[str, Tensor], max_norm: float) -> tuple[dict[str, Tensor], Float[Tensor, ""]]:
    """Clip the gradient of a model.

    Args:
        gradients: of every parameter, by name.
        max_norm: largest joint norm allowed.

    Returns:
        clipped: the gradients to use, by name.
        norm: the joint norm before clipping, a scalar.
    """
    ### BEGIN SOLUTION
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    factor = (max_norm / norm.clamp(min=1e-12)).clamp(max=1)
    return {name: gradient * factor for name, gradient in gradients.items()}, norm
    ### END SOLUTION

# %% check="09.clip_gradients"
clip_gradients = check(clip_gradients)

# %%
transformer.zero_grad()
language_model_loss(transformer, by_domain(16, torch.Generator().manual_seed(seed))).loss.backward()
found = {name: p.grad for name, p in transformer.named_parameters()}
clipped, norm = clip_gradients(found, 0.1)
one_by_one = {name: clip_gradients({name: g}, 0.1)[0][name] for name, g in found.items()}


def flat(gradients: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradients.values()])


print(f"joint norm {norm:.2f}, {len(found)} tensors, clipped to 0.1")
for name, result in (("one factor", clipped), ("each tensor by itself", one_by_one)):
    angle = math.degrees(math.acos(min(1.0, F.cosine_similarity(flat(result), flat(found), dim=0).item())))
    print(f"{name:24} joint norm {flat(result).norm():.2f}, direction turned by {angle:.0f}°")

# %% [markdown]
# **What just happened.** One factor keeps the direction. Tensor by tensor, the step turns, and it is longer than you
# allowed. With experts on different GPUs the norm needs a sum over all of them: a GPU that clips by the norm of its own
# experts does the wrong thing, and no number looks strange.
#
# ## 8. Small batches starve experts
#
# A step of 1024 tokens with K = 2 and E = 8 gives an expert 256 of them, if the load is even. How good is a gradient
# from so few? Take gradients $g_1 \dots g_N$ of the same expert from $N$ batches. What they have in common is the
# **signal**, what they do not is **noise**:
#
# $$\text{noise} = \sum_j \mathrm{var}(g_{\cdot j}) , \qquad
# \text{signal} = \Big\| \frac{1}{N} \sum_n g_n \Big\|^2 - \frac{\text{noise}}{N} .$$
#
# $j$ runs over the expert's parameters, and the variance is over batches, with $N - 1$. The mean of N noisy gradients is
# a little too long: even pure noise would have one of squared length noise / N. So that is subtracted. The ratio of the
# two, times the batch size, is the *simple noise scale* of [McCandlish and others](https://arxiv.org/abs/1812.06162).
# At a ratio of 1 a step is as much luck as knowledge.
#
# ### Exercise: the noise of a gradient
#
# Return noise / signal for each expert, and infinity where no signal is seen: where it comes out at 0 or below.

# %% exercise="09.gradient_noise"
def gradient_noise(gradients: Float[Tensor, "N E P"]) -> Float[Tensor, "E"]:
    """How much of each expert's gradient is the luck of the batch.

    Args:
        gradients: of the P parameters of each of E experts, from N batches of the same size, (N, E, P).

    Returns:
        noise / signal, (E,); infinity where the signal is not above 0, as for an expert without tokens.
    """
    ### BEGIN SOLUTION
    noise = gradients.var(dim=0).sum(-1)
    signal = gradients.mean(dim=0).square().sum(-1) - noise / len(gradients)
    return torch.where(signal > 0, noise / signal, torch.inf)
    ### END SOLUTION

# %% check="09.gradient_noise"
gradient_noise = check(gradient_noise)

# %%
from moe_course.layers import load_balancing_loss


class Small(nn.Module):
    """An MoE layer or a dense one, and a linear head."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(d_model, NUM_LABELS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(plain(self.layer, x))


def measured_noise(model: Small, weight: nn.Parameter, experts: int, task: Task, tokens: int) -> Tensor:
    """Noise / signal of the gradient of each expert's part of `weight`, (experts,)."""
    gradients = []
    for _ in range(noise_batches):
        x, labels = task.draw(tokens)
        gradients.append(torch.autograd.grad(F.cross_entropy(model(x), labels), weight)[0].reshape(experts, -1))
    return gradient_noise(torch.stack(gradients))


def trained(layer: nn.Module) -> tuple[Small, Task]:
    """A model after 60 steps, and the task that it learns."""
    torch.manual_seed(seed)
    task, model = Task(seed), Small(layer)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        x, labels = task.draw(512)
        loss = F.cross_entropy(model(x), labels)
        if isinstance(layer, MoELayer):
            routing = layer.router(x)
            loss = loss + alpha * load_balancing_loss(routing.probs, routing.expert_ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, task

# %%
batch_sizes = [256, 1024, 4096]
moe, dense = (trained(layer) for layer in (MoELayer(d_model, d_ff, num_experts, top_k), DenseFFN(d_model, d_ff * top_k)))
shares = moe[0].layer.router(moe[1].draw(8192)[0]).tokens_per_expert / 8192
load = shares * torch.tensor(batch_sizes)[:, None]  # (batch sizes, E)
noise = torch.stack([measured_noise(moe[0], moe[0].layer.experts.w_in, num_experts, moe[1], n) for n in batch_sizes])
dense_noise = torch.cat([measured_noise(dense[0], dense[0].layer.w_in, 1, dense[1], n) for n in batch_sizes])

print(f"{'':10}{'tokens of 4096':>16}" + "".join(f"{f'noise at {n}':>16}" for n in batch_sizes))
for expert in load[-1].argsort(descending=True).tolist():
    print(f"{f'expert {expert}':10}{load[-1, expert]:>16.0f}" + "".join(f"{v:>16.2f}" for v in noise[:, expert]))
print(f"{'dense':10}{4096:>16}" + "".join(f"{v:>16.2f}" for v in dense_noise))
print(f"{'median expert / dense':26}" + "".join(f"{v:>16.1f}" for v in noise.median(dim=1).values / dense_noise))
record(noise_at_1024=noise[1].median().item(), dense_noise_at_1024=dense_noise[1].item())
show(figures.noise(load, noise, batch_sizes, dense_noise.tolist()))

# %% [markdown]
# **What just happened.** Follow one line: with four times the tokens the noise falls to about a quarter. Now compare
# experts with the dense layer at the same number of *their* tokens. They lie on its line or below it: an expert learns
# as much from a token as a dense layer does, or more. But at the same batch a typical expert has $K/E$ of the tokens, and
# several times the noise. A batch that is ample for a dense model starves an MoE, its least loaded experts first.
#
# Put this together with section 6. Experts with few tokens have the noisiest gradients, *and* Adam gives them the longest
# steps. Balance, larger batches and a rate that falls all work against it. So does clipping, once.
#
# ## 9. When has a router settled?
#
# [OLMoE](https://arxiv.org/abs/2409.02060) watches training with **router saturation**: take the same tokens through a
# checkpoint and through the last one, and ask for the share of choices they have in common. Lesson 05 used the function
# of the course. This time it is yours.
#
# ### Exercise: router saturation over training
#
# A choice is a *set* of K experts.

# %% exercise="09.saturation_curve"
def saturation_curve(expert_ids: Int64[Tensor, "C T K"]) -> Float[Tensor, "C"]:
    """How far each checkpoint's choices agree with those of the last one.

    Args:
        expert_ids: the K distinct experts of each of T tokens, at each of C checkpoints, (C, T, K).

    Returns:
        (C,), in float32: the share of the T · K choices that the last checkpoint makes too; 1 for the last.
    """
    ### BEGIN SOLUTION
    same = expert_ids[..., :, None] == expert_ids[-1][..., None, :]  # (C, T, K, K)
    return same.any(-1).float().mean((1, 2))
    ### END SOLUTION

# %% check="09.saturation_curve"
saturation_curve = check(saturation_curve)

# %%
points = list(range(30, steps + 1, 30))
curves = {}
for row, rate in enumerate(learning_rates):
    for col in dict.fromkeys([0, len(warm_ups) - 1]):
        choices = warmed.choices[row * len(warm_ups) + col]  # (seeds, points, T, K)
        curves[f"rate {rate:g}, warm-up {warm_ups[col]}"] = torch.stack([saturation_curve(ids) for ids in choices], dim=1)
print(f"{'router saturation at step':28}" + "".join(f"{point:>7}" for point in points))
for name, values in curves.items():
    print(f"{name:28}" + "".join(f"{v:>7.0%}" for v in values.mean(1)))
print(f"means over {num_seeds} seeds; choices at random: {top_k / num_experts:.0%}")
record(saturation=[{"run": name, "halfway": v[len(points) // 2 - 1].mean().item()} for name, v in curves.items()])
show(figures.over_training(curves, "A router settles early if the rate lets it", "share of the final choices", points, band=False))

# %% [markdown]
# **What just happened.** After an eighth of the training the routers have made seven to nine tenths of their final choices.
# What comes later is mostly experts learning for tokens that are theirs by then. So what happens early, a bad start or a
# collapse, stays. With warm-up they settle later: less has been learnt by then.
#
# Read the end of such a curve with care. It compares with the last checkpoint, so it *ends* at 100 % by definition, and
# with a cosine to 0 nothing moves near the end.
#
# ## 10. Where the time goes
#
# A profile of a training step, forward, backward and update, of three transformers of one block: dense, an MoE with two large
# experts a token, and one with eight small ones. All do the same number of FLOPs for a token. `profile_steps` charges
# every operation of PyTorch's profiler to a part of the model; in the backward pass to the part whose forward pass made
# the autograd node.

# %%
from moe_course.training import profile_steps

shapes = {
    "dense, F = 512": {"moe_every": 0, "d_ff": 512},
    "MoE, 2 of 8, F = 256": {"num_experts": 8, "top_k": 2, "d_ff_expert": 256},
    "MoE, 8 of 32, F = 64": {"num_experts": 32, "top_k": 8, "d_ff_expert": 64},
}
ids = by_domain(8, torch.Generator().manual_seed(seed))  # 8 × 64 tokens
one_step = {}
for name, shape in shapes.items():
    torch.manual_seed(seed)
    model = MoETransformer(TransformerConfig(vocab_size=256, d_model=128, num_layers=1, num_heads=4, context=CONTEXT, **shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer) -> None:
        optimizer.zero_grad()
        language_model_loss(model, ids).loss.backward()
        optimizer.step()

    one_step[name] = (step, model)

costs = profile_steps(one_step, repeats=5)  # in turn; of each operation the least time counts

# %%
def by_part(rows: list) -> dict[str, float]:
    """Milliseconds of each part; what experts and FFN do besides matrix products stands by itself."""
    names = ["attention", "FFN: matrix products", "FFN: moving tokens", "FFN: other", "router", "the rest", "optimizer"]
    total = dict.fromkeys(names, 0.0)
    for row in rows:
        total[f"FFN: {row.kind}" if row.part in ("experts", "dense FFN") else row.part] += row.milliseconds
    return total


parts = {name: by_part(rows) for name, rows in costs.items()}
whole_step = sum(parts["dense, F = 512"].values())
print(f"{'time, dense step = 100':24}" + "".join(f"{name:>24}" for name in parts))
for part in parts["dense, F = 512"]:
    print(f"{part:24}" + "".join(f"{100 * of_model[part] / whole_step:>24.0f}" for of_model in parts.values()))
print(f"{'all':24}" + "".join(f"{100 * sum(of_model.values()) / whole_step:>24.0f}" for of_model in parts.values()))
record(step_against_dense=[sum(of_model.values()) / whole_step for of_model in parts.values()])
show(figures.step_costs(parts))

# %% [markdown]
# **What just happened.** All three do the same FLOPs. For a dense model that is matrix products for the most part. An MoE has
# work around them: activations and buffers handled in many small pieces ("other"), tokens moved to experts and back, and
# a few per cent for the router. It grows with the number of experts a token.
#
# These are times on a clock. If something else keeps your machine busy, its slices of time are in the bars, in the longest
# operations first: look again when it is quiet.
#
# On a GPU the picture shifts, and with experts on several GPUs there is a new part, communication. So profile *your*
# step before you improve it.
#
# ## 11. Stop, and go on
#
# A long run is killed sooner or later. What a checkpoint must hold is more than weights: Adam's means and squares, the
# number of the step, for schedule and bias correction, the place in the data, and the state of the random generators.
# Miss one and the run goes on, and is another run.
#
# `moe_course.training.Trainer` keeps all of it. Put it to the test: a process of its own trains a small transformer, and
# in the middle of step 23 it kills itself, as a power cut would.

# %%
PROGRAM = """
import os, signal, sys
import torch
from moe_course.layers import MoETransformer, TransformerConfig
from moe_course.training import ByteTokenizer, Trainer, encode_domains, language_model_loss, text_domains

corpus = encode_domains(text_domains(30_000), ByteTokenizer())


def run(folder, killed_at=None):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = MoETransformer(TransformerConfig(256, d_model=32, num_layers=2, num_heads=2, d_ff_expert=32, context=32))
    calls = 0

    def loss(model, ids):
        nonlocal calls
        calls += 1
        if calls == killed_at:
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        return language_model_loss(model, ids)

    batches = corpus.batches(context=32, batch_size=8, steps=40, seed=1)
    history = Trainer(model, loss, batches, steps=40, learning_rate=3e-3, folder=folder, checkpoint_every=10).fit()
    return model, history, calls


if __name__ == "__main__":
    run(sys.argv[1], killed_at=23)
"""

folder = tempfile.TemporaryDirectory()
program = Path(folder.name, "program.py")
program.write_text(PROGRAM)
runs = Path(folder.name, "run")
ended = subprocess.run([sys.executable, program, runs], env=os.environ | {"MPLBACKEND": "agg"})
rows = (runs / "steps.csv").read_text().splitlines()
print(f"the process ended with code {ended.returncode}; steps written before: {len(rows) - 1}")
print("left behind:", ", ".join(sorted(path.name for path in runs.iterdir() if not path.name.startswith("events"))))

# %%
namespace = {"__name__": "program"}
exec(PROGRAM, namespace)
resumed, history, calls = namespace["run"](runs)
whole_run, undisturbed, _ = namespace["run"](None)

pairs = zip(resumed.parameters(), whole_run.parameters(), strict=True)
losses = [[row["loss"] for row in each.steps] for each in (history, undisturbed)]
print(f"resumed: {calls} of 40 steps were left to do, from the checkpoint at step {40 - calls}")
print("same losses, to the last bit: ", losses[0] == losses[1])
print("same weights, to the last bit:", all(torch.equal(a, b) for a, b in pairs))
record(resumed_bit_for_bit=losses[0] == losses[1])

# %% [markdown]
# **What just happened.** Steps 21 and 22 were trained twice, from the checkpoint at step 20, and came out the same. The
# rows that the dead process had written for them were replaced. Losses and weights equal those of a run that nothing
# disturbed.
#
# ## 12. In production
#
# | what | who | |
# |---|---|---|
# | router in float32 | [Switch](https://arxiv.org/abs/2101.03961), [torchtitan](https://github.com/pytorch/torchtitan/pull/2389) | the product too, not only the softmax |
# | bfloat16 operands, float32 *result* | [sglang](https://github.com/sgl-project/sglang/issues/38695) | "the precision that matters is in the output store": the sum inside a product is float32 anyway |
# | scale 0.1 | [Switch](https://arxiv.org/abs/2101.03961) | |
# | z-loss 0.001 | [ST-MoE](https://arxiv.org/abs/2202.08906), [OLMoE](https://arxiv.org/abs/2409.02060) | |
# | $f$ over the global batch | [Qwen3-MoE](https://arxiv.org/abs/2501.11873) | |
# | tokens of the step as the divisor | [transformers](https://github.com/huggingface/blog/pull/2414), since October 2024 | before: a mean of means |
# | the router left out of checkpointing | [NeMo Automodel](https://github.com/NVIDIA-NeMo/Automodel/pull/2635) | by default since 2026, after runs that stopped in their first step |
# | more dropout in experts | [Switch](https://arxiv.org/abs/2101.03961) | 0.4 in experts against 0.1 elsewhere |
#
# Why the second row is no contradiction to the first: in your example both operands were exact, and what was lost was
# lost when the sum was *stored*. A product that returns float32 keeps it, at bfloat16's speed.
#
# ## 13. Pitfalls
#
# The checks of this lesson know these by name:
#
# | mistake | consequence |
# |---|---|
# | *cast after the product* | float32 keeps numbers that are rounded already |
# | *autocast still on* | your float32 is taken away again |
# | *scale taken for the standard deviation* | weights start √10 times smaller than meant |
# | *fan-in of the stack* | experts start far too small |
# | *each micro-batch with its own f* | a loss that fights specialisation |
# | *not divided by the tokens of the step*, or twice | M times the gradient, or a part of it |
# | *router checkpointed too* | counters count twice, choices may change |
# | *re-entrant checkpointing* | frozen inputs: no gradient for the experts |
# | *first step at rate 0*, *a cosine that rises again* | a batch wasted; a resumed run lost |
# | *clipped tensor by tensor* | the step turns |
# | *signal not corrected for noise* | pure noise seems to know something |
# | *saturation by position* | a router that only swaps its two experts seems restless |
#
# ## 14. Recap
#
# - bfloat16 rounds relative to size. A router compares differences: it is the *level* of the logits that hurts.
# - Convert before the product, and switch autocast off around it.
# - Start with a small variance. The z-loss keeps logsumexp near 0. In float32 that changes nothing else.
# - A balance loss per micro-batch is another loss, larger by a covariance. With the $f$ of the step it adds up exactly.
# - Recompute experts, route once.
# - Noise of an expert's gradient falls with *its* tokens, and Adam takes larger steps the rarer they are.
# - A checkpoint holds weights, optimiser, step, place in the data and generators.

# %% tags=["hide-input"]
quiz(
    Question(
        "A colleague writes `logits = self.gate(x).float()` in a bfloat16 model. What does the `.float()` change?",
        [
            "Logits are exact from there on",
            "The softmax is computed in float32, on logits that were rounded before",
            "Nothing at all",
        ],
        1,
        [
            "They were rounded when the product was stored.",
            "It helps the softmax. Two logits that became equal stay equal.",
            "The softmax itself is better in float32.",
        ],
    ),
    Question(
        "You go from 1 to 8 micro-batches and keep α and the step's tokens. The balance loss in your log rises from 1.10 to "
        "1.15. What is the likely reason?",
        [
            "The router has become worse",
            "Each micro-batch's loss contains its own favourites: a covariance is added",
            "The loss is not divided by 8",
        ],
        1,
        [
            "The weights are the same at the first step, and the number is another one already there.",
            "The same tokens, the same choices, another average.",
            "Then it would be 8.8.",
        ],
    ),
    Question(
        "The dashboard shows each token twice since you switched activation checkpointing on. What is the best repair?",
        [
            "Divide by two",
            "Count only in evaluation",
            "Leave the router out of the checkpoint: only experts are worth recomputing",
        ],
        2,
        [
            "Until somebody switches it off, or checkpoints every second layer.",
            "Then you do not see what training does.",
            "It costs next to no memory, and choices cannot change between the two runs.",
        ],
    ),
    Question(
        "You double E and keep K, the batch and the learning rate. What happens to an expert's gradient, on average?",
        [
            "Half the tokens: about twice the noise over signal",
            "Nothing: the batch is the same",
            "Half the tokens: half the noise",
        ],
        0,
        [
            "K · T / E tokens an expert. Grow the batch with E if you want the same gradients.",
            "The batch is; the expert's share is not.",
            "Fewer tokens, more luck.",
        ],
    ),
)

# %% [markdown]
# **Words of this lesson.** *bfloat16*: float32's range with 8 significant bits. *Autocast*: PyTorch's choice of a dtype
# for each operation. *Selective precision*: float32 for the router alone. *Level*: what all logits of a token have in
# common. *Scale* of a start: variance times fan-in. *Micro-batch*: a part of a step's tokens. *Gradient accumulation*:
# adding gradients up over micro-batches. *Activation checkpointing*: computing activations again in the backward pass.
# *Warm-up*: small rates first. *Clipping*: a limit for the joint norm. *Signal* and *noise* of a gradient: what batches
# agree on, and what not. *Router saturation*: the share of choices that are final. *Checkpoint* of a run: all that is
# needed to go on as if nothing had happened.
