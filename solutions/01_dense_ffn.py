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
#     title: The dense FFN
#     promise: >-
#       Two matrices hold most of a transformer. Build them, count them, time them, and see why you would want to use
#       only a part of them.
#     objectives:
#       - Build the feed-forward network of a transformer, with GELU and with SwiGLU.
#       - Count parameters and FLOPs, of one layer and of a whole published model, to the last parameter.
#       - Draw the roofline of your own machine, predict the time of an FFN from it, and measure.
#       - Tell active from total parameters, and say what an MoE layer saves and what it does not.
#     prerequisites:
#       - Matrix products in PyTorch
#       - The parts of a transformer block (attention, feed-forward network, residual connections)
#     minutes: 90
#     difficulty: 1
# ---

# %% tags=["parameters"]
seed: int = 0  # of weights, tokens and random routing
rounds: int = 7  # samples of each timing, of which the median counts
d_model: int = 2048  # D of the FFN that is timed
d_ff: int = 8192  # F of the FFN that is timed
max_tokens: int = 256  # largest batch that is timed

# %%
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from moe_course import Question, check, quiz, record, show, sliders
from moe_course.figures import lesson_01 as figures

# %% [markdown]
# ## 1. Two matrices and a bend
#
# A transformer is a stack of blocks, and a block has two parts. **Attention** lets tokens look at each other. Then a
# **feed-forward network**, the FFN, works on each token alone. It is the simplest network there is: up to a wider
# space, through an activation, and down again.
#
# $$\mathrm{FFN}(x) = W_\text{out} \; \mathrm{GELU}(W_\text{in} \, x)$$
#
# A token $x$ has $D$ numbers (`d_model`). $W_\text{in}$ has shape $(F, D)$ and $W_\text{out}$ has shape $(D, F)$.
# $F$ (`d_ff`) is the hidden width: 14 336 in Mistral 7B, 3.5 times its $D$ of 4096. Its FFN has no biases, and the
# FFNs of this course have none either.
#
# GELU bends: $\mathrm{GELU}(h) = h \cdot \Phi(h)$, where $\Phi$ is the distribution function of the normal
# distribution, $\Phi(h) = \tfrac12\big(1 + \mathrm{erf}(h / \sqrt 2)\big)$. **Predict**, before you read on:

# %% tags=["hide-input"]
quiz(
    Question(
        "You leave the GELU out. What can the FFN still compute?",
        [
            "The same as before, only with a larger error",
            "Any linear map from D to D numbers, whatever F ≥ D is",
            "Nothing useful: the two matrices cancel",
        ],
        1,
        [
            "No amount of training brings the bend back: two linear maps in a row are one linear map.",
            "The product of the two matrices is one matrix of shape (D, D). The width F buys nothing without a bend "
            "in between.",
            "They do not cancel; they multiply out to one matrix of shape (D, D).",
        ],
    )
)

# %% [markdown]
# ### Exercise: the dense FFN
#
# Write it. PyTorch stores tokens as rows, so the formula reads
# $\mathrm{GELU}(x W_\text{in}^\top) W_\text{out}^\top$. A real batch is `(B, S, D)`: keep whatever leading
# dimensions `x` has. `*tokens` in the signature stands for any number of them, none included.

# %% exercise="01.gelu_ffn"
def gelu_ffn(
    x: Float[Tensor, "*tokens D"], w_in: Float[Tensor, "F D"], w_out: Float[Tensor, "D F"]
) -> Float[Tensor, "*tokens D"]:
    """A dense FFN with the exact GELU.

    Args:
        x: tokens, (…, D).
        w_in: weight of the first linear map, (F, D).
        w_out: weight of the second, (D, F).

    Returns:
        One output for each token, (…, D).
    """
    ### BEGIN SOLUTION
    return F.gelu(x @ w_in.T) @ w_out.T
    ### END SOLUTION

# %% check="01.gelu_ffn"
gelu_ffn = check(gelu_ffn)

# %% tags=["nbval-check-output"]
generator = torch.Generator().manual_seed(seed)
x = torch.randn(6, 8, generator=generator)  # six tokens of width 8
w_in = torch.randn(32, 8, generator=generator) / 8**0.5
w_out = torch.randn(8, 32, generator=generator) / 32**0.5

y = gelu_ffn(x, w_in, w_out)
order = torch.tensor([3, 1, 5, 0, 4, 2])
shuffled = gelu_ffn(x[order], w_in, w_out)
alone = gelu_ffn(x[4], w_in, w_out)
print("shuffled tokens give shuffled outputs: ", torch.allclose(shuffled, y[order], atol=1e-6))
print("token 4 alone gives what it gave before:", torch.allclose(alone, y[4], atol=1e-6))

# %% [markdown]
# **What just happened.** A token's output depends on that token and on nothing else. Remember this line, for the
# whole course stands on it: *since the FFN treats each token alone, different tokens may go to different FFNs.*
#
# ### SwiGLU: the FFN with a gate
#
# All models that you will count in this lesson replace the bend by a **gate** ([Shazeer,
# 2020](https://arxiv.org/abs/2002.05202)). The token goes up twice, through $W_\text{gate}$ and $W_\text{up}$. One
# of the two decides how much of the other passes:
#
# $$\mathrm{FFN}(x) = W_\text{out} \big( \mathrm{SiLU}(W_\text{gate}\, x) \odot W_\text{up}\, x \big), \qquad
# \mathrm{SiLU}(g) = g \cdot \mathrm{sigmoid}(g) .$$
#
# $\odot$ multiplies value by value. Here are the bends you will meet:

# %%
h = torch.linspace(-4, 3, 141)
curves = {"GELU": F.gelu(h), "SiLU": F.silu(h), "ReLU": F.relu(h), "identity: no bend": h}
show(figures.activations(h, curves))

# %% [markdown]
# ### Exercise: SwiGLU
#
# One large product is faster than two small ones, so gate and up are packed into one matrix `w_in` of shape
# $(2F, D)$: **the gate's rows first, then the rows of up**. Multiply once, split, and go on.

# %% exercise="01.swiglu_ffn"
def swiglu_ffn(
    x: Float[Tensor, "*tokens D"], w_in: Float[Tensor, "2F D"], w_out: Float[Tensor, "D F"]
) -> Float[Tensor, "*tokens D"]:
    """A dense FFN with a SwiGLU.

    Args:
        x: tokens, (…, D).
        w_in: the gate's F rows, then up's F rows, (2F, D).
        w_out: the way down, (D, F).

    Returns:
        One output for each token, (…, D).
    """
    ### BEGIN SOLUTION
    gate, up = (x @ w_in.T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ w_out.T
    ### END SOLUTION

# %% check="01.swiglu_ffn"
swiglu_ffn = check(swiglu_ffn)

# %% [markdown]
# `moe_course.layers.DenseFFN` is both of your functions as a module. It should agree with you:

# %% tags=["nbval-check-output"]
from moe_course.layers import DenseFFN

for activation, mine in (("gelu", gelu_ffn), ("swiglu", swiglu_ffn)):
    layer = DenseFFN(d_model=8, d_ff=32, activation=activation)
    same = torch.allclose(layer(x), mine(x, layer.w_in, layer.w_out), atol=1e-6)
    shapes = f"w_in {tuple(layer.w_in.shape)}, w_out {tuple(layer.w_out.shape)}"
    print(f"{activation:<7} {shapes}: equal to yours: {same}")

# %% [markdown]
# ## 2. What an FFN costs
#
# Two numbers matter. **Parameters** must be stored. **FLOPs**, floating-point operations, must be computed, once
# more for every token. A product of a token with a matrix takes one multiplication and one addition for each entry
# of the matrix: **2 FLOPs**. Activations and biases are not counted here; they are small beside the matrices.
# **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "You swap a GELU FFN for a SwiGLU FFN of the same d_model and d_ff. What happens to its parameters?",
        ["They stay the same", "They grow by half", "They double"],
        1,
        [
            "The gate is a matrix of its own: three matrices in place of two.",
            "Three matrices in place of two. Shazeer therefore shrank F to two thirds of it, from 3072 to 2048, to "
            "compare the two at equal cost.",
            "`w_in` doubles, but `w_out` stays as it is: three matrices in place of two.",
        ],
    )
)

# %% [markdown]
# ### Exercise: count one FFN
#
# Count the parameters, and the FLOPs of a forward pass over a batch of tokens.

# %% exercise="01.ffn_cost"
def ffn_cost(tokens: int, d_model: int, d_ff: int, activation: str) -> tuple[int, int]:
    """Count what an FFN without biases stores and computes.

    Args:
        tokens: number of tokens T in the batch.
        d_model: width D of a token.
        d_ff: hidden width F.
        activation: "gelu" or "swiglu".

    Returns:
        parameters, and FLOPs of the forward pass over all tokens.
    """
    ### BEGIN SOLUTION
    matrices = 3 if activation == "swiglu" else 2
    parameters = matrices * d_model * d_ff
    return parameters, 2 * tokens * parameters
    ### END SOLUTION

# %% check="01.ffn_cost"
ffn_cost = check(ffn_cost)

# %% [markdown]
# Is that much? It depends on the rest of the model. `moe_course.layers` counts a whole transformer part by part,
# from its public config. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "Mistral 7B has 32 blocks, and each has an attention and an FFN. What share of its 7.2 billion parameters "
        "is in the FFNs?",
        ["About a third", "About half", "More than three quarters"],
        2,
        "78 %. In each block, attention has 42 million parameters and the FFN 176 million. Whoever wants to make a "
        "transformer larger, or cheaper, starts with the FFN.",
    )
)

# %%
from moe_course.layers import PUBLISHED, flops_table, parameter_table

mistral = PUBLISHED["mistral-7b"]


def mistral_shares(context: int):
    """Parameters and FLOPs of Mistral 7B for a token that attends to `context` tokens."""
    flops = flops_table(mistral, context=context)
    return figures.shares(mistral.name, parameter_table(mistral), flops, context)


sliders(mistral_shares, context=([0, 1024, 2048, 4096, 8192, 16_384, 32_768], 2048))

# %% tags=["nbval-check-output"]
ffn, _ = ffn_cost(1, mistral.d_model, mistral.dense_d_ff, "swiglu")
total = sum(parameter_table(mistral).values())
all_ffns = mistral.num_layers * ffn
print(f"one FFN: {ffn / 1e6:.0f} million parameters")
print(f"all 32:  {all_ffns / 1e9:.2f} of {total / 1e9:.2f} billion, {all_ffns / total:.0%}")
record(ffn_share=all_ffns / total)

# %% [markdown]
# **What just happened.** The FFNs hold 78 % of the parameters, and about as much of the work, until the context gets
# long: then the attention scores take over, since they grow with every token attended to. Mistral 7B caps them with
# a window of 4096 tokens.
#
# The embedding is the odd one out. It is stored, but a look-up costs no FLOPs. Keep it in mind for section 5.
#
# The line with the grey edge comes from `record`. It keeps a lesson's main results in the notebook, so that many runs
# of it, with other seeds and settings, can be gathered into one table. You will see it again; there is nothing for you
# to do.
#
# ## 3. Why not simply make it wider?
#
# A wider FFN can hold more. So why stop? Take Mistral's FFNs and widen them. Three budgets feel it:
#
# - **compute**: the FLOPs of every token;
# - **memory** to run it: 2 bytes a parameter in bfloat16;
# - **memory** to train it: with Adam in float32, 16 bytes a parameter: the weight, its gradient and two moments, 4
#   bytes each.

# %% tags=["nbval-check-output"]
print("d_ff of 32 FFNs   billion parameters   GFLOP per token   GB to run   GB to train")
for width in (1, 4, 16, 64):
    parameters, flops = (32 * cost / 1e9 for cost in ffn_cost(1, 4096, width * 14_336, "swiglu"))
    memory = f"{2 * parameters:11.0f} {16 * parameters:13.0f}"
    print(f"{width:>4} × 14 336 {parameters:22.1f} {flops:17.1f} {memory}")

# %% [markdown]
# All columns grow together. That is what **dense** means: every parameter works on every token, so nothing can be
# added to the store without adding as much to the work. But how bad is that? That depends on the machine. So measure
# yours.
#
# ### The roofline of this machine
#
# A processor has two speeds: how many FLOPs it computes per second (**peak**), and how many bytes it fetches from
# memory per second (**bandwidth**). Fetching and computing go on at the same time, so the slower of the two decides:
#
# $$\text{time} \;\geq\; \max\left( \frac{\text{FLOPs}}{\text{peak}}, \;
# \frac{\text{bytes}}{\text{bandwidth}} \right) .$$
#
# Which one it is depends on the **arithmetic intensity**, FLOPs per byte. This picture of a machine is called the
# *roofline model*.
#
# First the two speeds. A large matrix product reuses each number many times: it shows the peak. A product of a large
# matrix with one vector uses each weight once: it shows the bandwidth. Both on *one* thread. `interleave` takes the
# samples in turn and counts this process's CPU time, so other programs on your machine disturb as little as
# possible.

# %%
from statistics import median

from moe_course.bench.timing import interleave, one_thread


def cpu_seconds(calls: dict) -> dict:
    """Median CPU seconds of each call, on one thread, sampled in turn: A B C A B C …"""
    with torch.inference_mode(), one_thread():
        samples = interleave(calls, rounds=rounds)
    return {name: median(sample.cpu for sample in of_one) for name, of_one in samples.items()}


n = 1024
square = torch.randn(n, n)
tall, vector = torch.randn(32_768, 2048), torch.randn(2048)  # 268 MB: more than most caches hold
seconds = cpu_seconds({"peak": lambda: square @ square, "bandwidth": lambda: tall @ vector})
peak = 2 * n**3 / seconds["peak"]  # FLOP per second
bandwidth = tall.numel() * 4 / seconds["bandwidth"]  # bytes per second
print(f"peak {peak / 1e9:.0f} GFLOP/s, bandwidth {bandwidth / 1e9:.1f} GB/s")
print(f"{peak / bandwidth:.1f} FLOP in the time of fetching one byte")

# %% [markdown]
# The last number is the machine's corner, or *ridge*. Work of lower intensity is **bound by memory**: the processor
# waits for data. Work of higher intensity is **bound by compute**.
#
# ### Exercise: a roofline for the FFN
#
# Work out the intensity of a GELU FFN for a batch of $T$ tokens, and the least time it can take. For the bytes
# assume the best: both weights are fetched once for the whole batch, each token is read once and its output written
# once, and the hidden values never leave the cache.

# %% exercise="01.ffn_roofline"
def ffn_roofline(
    tokens: int, d_model: int, d_ff: int, peak: float, bandwidth: float, bytes_per_number: int = 4
) -> tuple[float, float]:
    """Bound the time of a GELU FFN's forward pass from below.

    Args:
        tokens: number of tokens T in the batch.
        d_model: width D of a token.
        d_ff: hidden width F.
        peak: FLOP per second that the machine can compute.
        bandwidth: bytes per second that it can move.
        bytes_per_number: 4 for float32, 2 for bfloat16.

    Returns:
        intensity in FLOP per byte, and the least time in seconds.
    """
    ### BEGIN SOLUTION
    parameters, flops = ffn_cost(tokens, d_model, d_ff, "gelu")
    traffic = bytes_per_number * (parameters + 2 * tokens * d_model)
    return flops / traffic, max(flops / peak, traffic / bandwidth)
    ### END SOLUTION

# %% check="01.ffn_roofline"
ffn_roofline = check(ffn_roofline)

# %%
batch_sizes = [2**power for power in range(max_tokens.bit_length())]  # 1, 2, 4, …, max_tokens
bounds = {tokens: ffn_roofline(tokens, d_model, d_ff, peak, bandwidth) for tokens in batch_sizes}
intensity = {tokens: bound[0] for tokens, bound in bounds.items()}
least_time = {tokens: bound[1] for tokens, bound in bounds.items()}

show(figures.roofline(peak, bandwidth, intensity))

# %% [markdown]
# With few tokens the intensity is about $T/2$ in float32: $4TDF$ FLOPs over $8DF$ bytes. The picture now makes a
# claim about your machine. **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "One token through this FFN takes a certain time. How long will a batch of 256 tokens take?",
        ["About as long", "Some 10 to 40 times as long", "About 256 times as long"],
        1,
        [
            "Up to the corner a larger batch is nearly free, but 256 tokens lie far beyond it.",
            "For one token the time is that of fetching the weights. Tokens are nearly free up to the corner, and only "
            "from there on the time grows in proportion.",
            "That would be so if each token had to fetch the weights for itself. The batch fetches them once.",
        ],
    )
)

# %% [markdown]
# Now measure:

# %%
layer = DenseFFN(d_model, d_ff)
batches = {tokens: torch.randn(tokens, d_model) for tokens in batch_sizes}
measured = cpu_seconds({tokens: lambda x=x: layer(x) for tokens, x in batches.items()})

print("  T   intensity   least possible    measured   of the roof")
for tokens in batch_sizes:
    least, took = 1e3 * least_time[tokens], 1e3 * measured[tokens]
    print(f"{tokens:>3} {intensity[tokens]:11.1f} {least:13.1f} ms {took:8.1f} ms {least / took:13.0%}")
show(figures.batch_times(least_time, measured))

# %%
flops = {tokens: ffn_cost(tokens, d_model, d_ff, "gelu")[1] for tokens in batch_sizes}
speeds = {tokens: flops[tokens] / measured[tokens] for tokens in batch_sizes}
largest = batch_sizes[-1]
print(f"{largest} tokens take {measured[largest] / measured[1]:.0f} times as long as one token")
show(figures.roofline(peak, bandwidth, intensity, speeds))
record(peak_gflops=peak / 1e9, bandwidth_gb=bandwidth / 1e9, batch_over_one=measured[largest] / measured[1])

# %% [markdown]
# **What just happened.** At its two ends the claim holds: one token costs about the fetching of all weights, and a
# large batch runs near the peak. In between, the measurement lies well above the bound; on the machine this was
# written on, by a factor of up to 5 at 8 tokens. A likely reason: for a batch, matrix libraries first copy the
# weights into an order that suits the processor. That moves them twice more, and a small batch cannot pay it off. A
# roofline is a bound, not a forecast.
#
# So dense scaling hits two limits. Far right, compute: twice the parameters, twice the time. Far left, where a model
# writes one token after the other, memory: all parameters must be fetched for each token.
#
# ## 4. Use a part of it: total and active parameters
#
# Section 1 found the way out. Tokens are independent, so give the layer $E$ FFNs, called **experts**, and send each
# token through only $K$ of them. A small matrix of shape $(E, D)$, the **router**, scores all experts for each token
# and picks. This is a **Mixture-of-Experts** layer, MoE. How the router chooses is the subject of lesson 02; here
# you count.
#
# - **Total parameters**: all that must be stored.
# - **Active parameters**: those that one token is multiplied by.
#
# Some models add $S$ **shared experts**, which every token goes through, on top of its $K$.
#
# ### Exercise: count an MoE layer
#
# Count an MoE layer whose experts are FFNs without biases, all of the same width. The FLOPs are those of a forward
# pass over the whole batch. Don't forget the router.

# %% exercise="01.moe_cost"
def moe_cost(
    tokens: int,
    d_model: int,
    d_ff: int,
    num_experts: int,
    top_k: int,
    num_shared: int,
    activation: str,
) -> tuple[int, int, int]:
    """Count what an MoE layer stores, what one token uses, and what a batch computes.

    Args:
        tokens: number of tokens T in the batch.
        d_model: width D of a token.
        d_ff: hidden width F of one expert, routed or shared.
        num_experts: routed experts E.
        top_k: routed experts per token K.
        num_shared: shared experts S.
        activation: "gelu" or "swiglu".

    Returns:
        total parameters, active parameters, and FLOPs of the forward pass over all tokens.
    """
    ### BEGIN SOLUTION
    expert, _ = ffn_cost(tokens, d_model, d_ff, activation)
    router = num_experts * d_model
    total = router + (num_experts + num_shared) * expert
    active = router + (top_k + num_shared) * expert
    return total, active, 2 * tokens * active
    ### END SOLUTION

# %% check="01.moe_cost"
moe_cost = check(moe_cost)

# %% [markdown]
# Now build layers of Mixtral's width, $D = 4096$. The MoE layer stands beside two dense FFNs: one that costs as many
# FLOPs, and one that holds as many parameters. Try:
#
# 1. Double `num_experts`. Which bars move?
# 2. Double `top_k` instead.
# 3. Find the layer of Mixtral (E = 8, K = 2, d_ff = 14 336), then split each expert into eight: E = 64, K = 16, d_ff
#    = 1792. What changes?

# %%
def one_layer(num_experts: int, top_k: int, d_ff: int, activation: str):
    """Budgets of an MoE layer with d_model 4096 and of two dense FFNs."""
    if top_k > num_experts:
        raise ValueError(f"top_k={top_k} is larger than num_experts={num_experts}; choose top_k ≤ E")
    width = f"D = 4096, E = {num_experts}, K = {top_k}, F = {d_ff}"
    return figures.budgets(
        moe_cost(1, 4096, d_ff, num_experts, top_k, 0, activation),
        same_flops=ffn_cost(1, 4096, top_k * d_ff, activation),
        same_size=ffn_cost(1, 4096, num_experts * d_ff, activation),
        title=f"One layer: {width}",
    )


powers = [1, 2, 4, 8, 16, 32, 64, 128, 256]
sliders(
    one_layer,
    num_experts=(powers, 8),
    top_k=([1, 2, 4, 8, 16], 2),
    d_ff=([896, 1792, 3584, 7168, 14_336], 14_336),
    activation=["swiglu", "gelu"],
)

# %% [markdown]
# **What just happened.** `num_experts` moves what is stored, `top_k` moves what is computed, and neither moves the
# other. A dense FFN has one knob for both. Splitting the experts changed neither, but for the router: it gives the
# router more ways to choose, which is what DeepSeekMoE and OLMoE do.
#
# ### Experiment: does an MoE layer save memory?
#
# You will read that MoE models are "efficient" and need "only the active parameters". **Predict:**

# %% tags=["hide-input"]
quiz(
    Question(
        "An MoE layer with E = 64 experts and K = 2 runs beside a dense FFN of equal FLOPs. What will you measure?",
        [
            "About the same memory, and about the same time",
            "32 times the memory, and about the same time",
            "32 times the memory, and 32 times the time",
            "1/32 of the memory, and 1/32 of the time",
        ],
        1,
        [
            "All 64 experts exist in memory, not only the 2 that some token is using.",
            "64 experts are stored where the dense FFN has the size of 2; the work is that of 2.",
            "The work is that of 2 experts for each token, however many there are.",
            "An MoE layer is not a compressed dense layer. It is a larger layer at the same work.",
        ],
    )
)

# %%
from moe_course.layers import MoELayer

torch.manual_seed(seed)
expert_counts = [2, 4, 8, 16, 32, 64]
x = torch.randn(4096, 256)
dense = DenseFFN(d_model=256, d_ff=2 * 512)  # as many FLOPs as K = 2 experts of d_ff = 512
layers = {E: MoELayer(d_model=256, d_ff=512, num_experts=E, top_k=2) for E in expert_counts}


def megabytes(layer) -> float:
    """What the parameters of a layer take up in memory."""
    return sum(parameter.numel() * parameter.element_size() for parameter in layer.parameters()) / 1e6


seconds = cpu_seconds({"dense": lambda: dense(x)} | {E: lambda E=E: layers[E](x) for E in expert_counts})
memory_ratio = [megabytes(layers[E]) / megabytes(dense) for E in expert_counts]
time_ratio = [seconds[E] / seconds["dense"] for E in expert_counts]

# %%
print("layer           memory                time for 4096 tokens")
print(f"dense FFN     {megabytes(dense):5.1f} MB {1e3 * seconds['dense']:24.1f} ms")
for E, more_memory, more_time in zip(expert_counts, memory_ratio, time_ratio, strict=True):
    memory = f"{megabytes(layers[E]):5.1f} MB {more_memory:9.1f} ×"
    print(f"MoE, E = {E:<4} {memory} {1e3 * seconds[E]:12.1f} ms {more_time:6.2f} ×")
show(figures.memory_and_time(expert_counts, memory_ratio, time_ratio))
record(memory_over_dense=memory_ratio[-1], time_over_dense=time_ratio[-1])

# %% [markdown]
# **What just happened.** The memory grows in proportion to $E$. The time does not. It starts somewhat above that of
# the dense FFN, since tokens have to be sorted to their experts. And it creeps up, since each expert gets fewer
# tokens, $T K / E$ on average: that is section 3 again, a small batch for each expert. Lesson 03 looks into both.
#
# Could you keep only the active experts in memory? For one token, yes. But count what a *batch* needs. If $B$ tokens
# choose independently and evenly, the number of different experts among their choices is, on average,
#
# $$E \left( 1 - \left( 1 - \tfrac{K}{E} \right)^{B} \right) .$$

# %% tags=["nbval-check-output"]
def simulate(E: int, K: int, B: int, trials: int = 400) -> float:
    """Different experts among the choices of B tokens, each of K random experts; mean over trials."""
    generator = torch.Generator().manual_seed(seed)
    choices = torch.rand(trials, B, E, generator=generator).argsort(dim=-1)[..., :K]
    return sum(trial.unique().numel() for trial in choices) / trials


batches = [1, 4, 16, 64]
share = {}
print("different experts of one layer in a batch of B tokens, by formula (simulated)")
print(" " * 18 + "".join(f"B = {B:<13}" for B in batches))
for name in ("mixtral-8x7b", "olmoe-1b-7b", "deepseek-v3"):
    model = PUBLISHED[name]
    E, K = model.num_experts, model.top_k
    formula = [E * (1 - (1 - K / E) ** B) for B in batches]
    row = [f"{exact:5.1f} ({simulate(E, K, B):.1f})" for B, exact in zip(batches, formula, strict=True)]
    print(f"{model.name:<16}" + "".join(f"{cell:<17}" for cell in row))
    share[f"{model.name}, E = {E}, K = {K}"] = [count / E for count in formula]

# %%
show(figures.experts_touched(batches, share))

# %% [markdown]
# Four texts at once, and Mixtral needs two thirds of its experts in every layer; sixteen, and it needs nearly all. **An
# MoE saves compute, not memory.** (Real routers do not choose evenly, so real counts are somewhat lower.)
#
# ## 5. Count the published models
#
# Time for the real thing. `PUBLISHED` holds the public configs of six MoE models, and of Mistral 7B as a dense peer.
# You count what this lesson is about, the FFNs and experts. Everything else, which is embedding, attention, norms
# and head, you get as one number: `outside_ffn`.

# %%
OUTSIDE = ("embedding", "attention", "norms", "head")


def config_of(model) -> tuple[dict, int]:
    """A published model as the arguments of `model_parameters`."""
    config = {
        "num_layers": model.num_layers,
        "num_dense_layers": model.num_dense_layers,  # layers with a plain FFN instead
        "d_model": model.d_model,
        "d_ff": model.d_ff,  # of one expert
        "dense_d_ff": model.dense_d_ff,  # of the plain FFNs
        "num_experts": model.num_experts,
        "top_k": model.top_k,
        "num_shared_experts": model.num_shared_experts,
        "activation": model.activation,
        "biases": model.expert_bias,  # gpt-oss: the router and all experts have biases
    }
    table = parameter_table(model)
    return config, sum(table[part] for part in OUTSIDE)


config_of(PUBLISHED["deepseek-v3"])

# %% [markdown]
# ### Exercise: count a published model
#
# Two things beyond `moe_cost`. The first `num_dense_layers` layers have no experts but a plain FFN of width
# `dense_d_ff`; Mistral 7B is all of those. And where `biases` is true, every linear map of router and experts adds
# one bias for each of its outputs: $E$ for a router, and $2F + D$ for a SwiGLU expert. You may call `ffn_cost` and
# `moe_cost`.

# %% exercise="01.model_parameters"
def model_parameters(config: dict, outside_ffn: int) -> tuple[int, int]:
    """Count a whole model.

    Args:
        config: shape of the model, with the keys shown above.
        outside_ffn: parameters of embedding, attention, norms and head; all of them count as active.

    Returns:
        total and active parameters.
    """
    ### BEGIN SOLUTION
    d_model, d_ff, activation = config["d_model"], config["d_ff"], config["activation"]
    num_experts, num_shared = config["num_experts"], config["num_shared_experts"]

    total, active, _ = moe_cost(1, d_model, d_ff, num_experts, config["top_k"], num_shared, activation)
    if config["biases"]:
        expert_bias = (2 * d_ff if activation == "swiglu" else d_ff) + d_model
        total += num_experts + (num_experts + num_shared) * expert_bias
        active += num_experts + (config["top_k"] + num_shared) * expert_bias

    dense_ffn, _ = ffn_cost(1, d_model, config["dense_d_ff"], activation)
    dense = outside_ffn + config["num_dense_layers"] * dense_ffn
    moe_layers = config["num_layers"] - config["num_dense_layers"]
    return dense + moe_layers * total, dense + moe_layers * active
    ### END SOLUTION

# %% check="01.model_parameters"
model_parameters = check(model_parameters)

# %% tags=["nbval-check-output"]
from moe_course.layers import active_parameters, total_parameters

says = {  # what papers and model cards say, in billions: total / active
    "mixtral-8x7b": "46.7 / 12.9",
    "olmoe-1b-7b": "6.9 / 1.3",
    "qwen3-30b-a3b": "30 / 3",
    "gpt-oss-20b": "21 / 3.6",
    "gpt-oss-120b": "117 / 5.1",
    "deepseek-v3": "671 / 37",
    "mistral-7b": "",
}
counts = {}
print("billions            total   active   without embedding   published       to the parameter")
for key, published in says.items():
    model = PUBLISHED[key]
    counts[model.name] = total, active = model_parameters(*config_of(model))
    embedding = parameter_table(model)["embedding"]
    exact = (total, active) == (total_parameters(model), active_parameters(model))
    numbers = f"{total / 1e9:8.3f} {active / 1e9:8.3f} {(active - embedding) / 1e9:19.3f}"
    print(f"{model.name:<16} {numbers}   {published:<15} {'equal' if exact else 'DIFFERENT'}")

# %%
show(figures.published(counts))

# %% [markdown]
# **What just happened.** You reproduced the published sizes from a handful of numbers each, and learnt what is
# behind them:
#
# - **8x7B is not 56B.** Only the experts exist eight times. Attention, embedding and norms are shared, so it is
#   46.7.
# - **Active is not total times K/E.** For Mixtral that would be 11.7. What is outside the experts always works:
#   12.9.
# - **"Active" has two meanings.** OpenAI's 5.1 and 3.6 leave out the input embedding, which is only looked up.
#   Mistral's 12.9 counts it. Compare models only after you know which is meant.
# - The router is negligible: 0.04 % of Qwen3's parameters at most in this table. What decides everything weighs next
#   to nothing.
#
# ## 6. In production
#
# | model | layers | D | F of an expert | E, K, shared | total / active | why |
# |---|---|---|---|---|---|---|
# | [Mistral 7B] | 32 | 4096 | 14 336 | dense | 1 | the shape that Mixtral starts from |
# | [Mixtral 8x7B] | 32 | 4096 | 14 336 | 8, 2, 0 | 3.6 | Mistral's shape with eight FFNs in place of one |
# | [OLMoE-1B-7B] | 16 | 2048 | 1024 | 64, 8, 0 | 5.4 | many narrow experts: F is half of D |
# | [Qwen3-30B-A3B] | 48 | 2048 | 768 | 128, 8, 0 | 9.1 | narrower still |
# | [gpt-oss-20b] | 24 | 2880 | 2880 | 32, 4, 0 | 5.0 | biases on router and experts |
# | [gpt-oss-120b] | 36 | 2880 | 2880 | 128, 4, 0 | 20.5 | the same experts, four times as many |
# | [DeepSeek-V3] | 61, 3 of them dense | 7168 | 2048 | 256, 8, 1 | 17.9 | a dense layer is as wide as nine experts |
#
# [Mistral 7B]: https://arxiv.org/abs/2310.06825
# [Mixtral 8x7B]: https://arxiv.org/abs/2401.04088
# [OLMoE-1B-7B]: https://arxiv.org/abs/2409.02060
# [Qwen3-30B-A3B]: https://arxiv.org/abs/2505.09388
# [gpt-oss-20b]: https://arxiv.org/abs/2508.10925
# [gpt-oss-120b]: https://arxiv.org/abs/2508.10925
# [DeepSeek-V3]: https://arxiv.org/abs/2412.19437
#
# Shapes are those of the public configs; `PUBLISHED[name].source` links each. All of them use a SwiGLU, gpt-oss a
# variant of it. Read down the column of F: after Mixtral, many narrow experts took the place of a few wide ones, and
# models store up to 20 times what a token uses. Three remarks from code:
#
# - *Row order.* Mixtral in
#   [transformers](https://github.com/huggingface/transformers/blob/main/src/transformers/models/mixtral/modeling_mixtral.py)
#   packs the gate's rows first, as you did.
#   [gpt-oss](https://github.com/huggingface/transformers/blob/main/src/transformers/models/gpt_oss/modeling_gpt_oss.py)
#   interleaves gate and up, clamps both, and multiplies by up + 1. The shapes are the same, so a wrong order raises
#   no error.
# - *Before the gate.* The experts of
#   [Switch](https://github.com/huggingface/transformers/blob/main/src/transformers/models/switch_transformers/modeling_switch_transformers.py)
#   are T5's FFNs: two matrices without biases, with a ReLU between them. Your `ffn_cost` counts them as it counts GELU.
# - *Which GELU.*
#   [GPT-2](https://github.com/huggingface/transformers/blob/main/src/transformers/models/gpt2/configuration_gpt2.py)
#   uses the tanh approximation (`gelu_new`). The difference to the exact one is at most 0.0005, small enough to miss
#   and large enough to fail a parity test.

# %% tags=["nbval-check-output"]
h = torch.linspace(-6, 6, 100_001, dtype=torch.float64)
gap = (F.gelu(h, approximate="tanh") - F.gelu(h)).abs()
where = h[gap.argmax()].abs()
print(f"largest difference between the two GELUs: {gap.max():.6f}, at h = ±{where:.2f}")

# %% [markdown]
# ## 7. Pitfalls
#
# The checks of this lesson know these by name:
#
# | mistake | consequence |
# |---|---|
# | *gate and up swapped*, or interleaved rows read as halves | shapes fit, and a loaded checkpoint writes nonsense |
# | *reshaped, not transposed* | the shapes fit and the numbers are scrambled |
# | *no activation*, or the activation after `w_out` | two matrices that amount to one |
# | *GELU with tanh* where the exact one is meant | agrees to three digits, and fails parity tests |
# | *a multiply-add as one FLOP* | half the FLOPs; papers that count MACs differ from papers that count FLOPs by 2 |
# | *SwiGLU as two matrices* | a third of the parameters missing |
# | *weights fetched for each token* | batching looks useless |
# | *MoE saves memory* | the model does not fit on the machine you bought |
# | *scaled by K/E* | router, shared experts and attention work for every token; only routed experts are idle |
# | *the whole model times E* | 56 billion for Mixtral, which has 46.7 |
#
# ## 8. Recap
#
# - An FFN is two matrices around a bend, three with a gate, and it treats each token alone.
# - In a transformer of usual shape, FFNs hold most parameters, 78 % in Mistral 7B, and do most of the work at short
#   contexts.
# - Dense means that total and active parameters are the same: capacity and cost are tied together.
# - A machine has a peak and a bandwidth. With few tokens an FFN waits for its weights; with many it is bound by
#   compute.
# - An MoE layer unties the two: $E$ sets what is stored, $K$ what is computed. It needs *more* memory than a dense
#   layer of equal cost, and larger batches to keep its experts busy.

# %% tags=["hide-input"]
quiz(
    Question(
        "Why is it possible at all to send different tokens of a batch through different FFNs?",
        [
            "Because an FFN's output for a token depends on that token alone",
            "Because the activation is zero for most hidden values",
            "Because the residual connection carries the token past the FFN",
        ],
        0,
        [
            "You saw it when shuffling the tokens shuffled the outputs and did nothing else.",
            "GELU and SiLU are hardly ever exactly zero, and it would not matter: sparsity inside one FFN is another "
            "idea.",
            "It does, but that says nothing about which FFN may be used.",
        ],
    ),
    Question(
        "A model has E = 16 experts, K = 1, and one shared expert, all of the same size. How many experts does one "
        "token go through?",
        ["1", "2", "17"],
        1,
        [
            "The shared expert comes on top of the K routed ones.",
            "One routed and one shared. 17 are stored.",
            "17 are stored. A token uses its K routed ones and the shared one.",
        ],
    ),
    Question(
        "Your laptop holds a dense model of 13 billion parameters, and no larger one. Will Mixtral, with 12.9 billion "
        "active parameters, run on it?",
        [
            "Yes: only the active parameters are needed",
            "No: all 46.7 billion must be stored",
            "Yes, if the batch is small",
        ],
        1,
        [
            "The next token, or the next layer, needs other experts. They must be somewhere within reach.",
            "Total parameters decide about memory, active parameters about compute.",
            "Even a single text needs other experts with every token. A small batch only lowers how many at once.",
        ],
    ),
    Question(
        "You double E and keep K, T and the width of the experts. What happens to the arithmetic intensity of each "
        "expert?",
        ["It doubles", "It stays", "It halves, while few tokens come to each expert"],
        2,
        [
            "The same choices are spread over twice as many experts: each gets fewer tokens, not more.",
            "Each expert is fetched whole, but now for half the tokens.",
            "Each expert gets half as many tokens, T·K/E on average, for the same bytes of weights. Lesson 03 measures "
            "what that costs.",
        ],
    ),
)

# %% [markdown]
# **Glossary**: *FFN*, feed-forward network. *d_model, D*: width of a token. *d_ff, F*: hidden width. *GELU, SiLU*:
# smooth activations. *SwiGLU*: an FFN whose hidden values are gated by a SiLU. *FLOP*: one addition or
# multiplication; a multiply-add is two. *Arithmetic intensity*: FLOPs per byte moved. *Roofline*: the bound on speed
# by peak and bandwidth; its corner is the *ridge*. *Dense*: every parameter works on every token. *Expert*: one FFN
# of an MoE layer. *E, K*: number of experts, and of those a token goes through. *Shared expert*: one that every
# token goes through. *Total, active parameters*: stored, and used by one token.
