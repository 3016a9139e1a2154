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
#     title: An MoE transformer
#     promise: >-
#       Put your layer into a language model: positions, attention, blocks, loss, generation. Train it next to a dense
#       one of equal active parameters, and test what its experts have specialised in.
#     objectives:
#       - Write rotary positions and causal attention that give the same result with a cache as without.
#       - Put an MoE layer into a pre-norm block, and count what experts in every P-th block cost.
#       - Train on four kinds of text with a loss that returns its parts, and measure each kind on files held out.
#       - Compare MoE and dense at equal active parameters, at equal steps and at equal time, over several seeds.
#       - See which experts serve which text, and tell specialisation from chance and from the bytes themselves.
#     prerequisites:
#       - Lesson 03, the expert layer
#       - Lesson 04, the load-balancing loss
#     minutes: 130
#     difficulty: 3
# ---

# %% tags=["parameters"]
seed: int = 0  # of the first run; further runs count up from it
num_seeds: int = 3  # training runs of each model
threads: int = 1  # that torch computes with; one keeps losses repeatable
models: list = ["dense", "MoE"]  # which to train; the rest of the lesson needs "MoE"
num_experts: int = 8  # E
top_k: int = 2  # K, experts per token
moe_every: int = 1  # every P-th block has an MoE layer
d_model: int = 32  # D
num_layers: int = 2  # blocks
num_heads: int = 2  # H
d_ff: int = 64  # hidden width of a dense FFN; an expert has d_ff / top_k
context: int = 64  # bytes that the model sees
batch_size: int = 8  # sequences in one training step
steps: int = 350  # of training
learning_rate: float = 0.01  # AdamW's after the warm-up, the same for all models
balance_weight: float = 0.01  # α of the balance loss
rounds: int = 999  # random orders in each permutation test

# %%
from dataclasses import replace

import torch
from IPython.display import HTML, display
from jaxtyping import Float, Int64
from jaxtyping import config as shape_checks
from torch import Tensor, nn
from torch.nn import functional as F

from moe_course import Question, check, quiz, record, show, sliders
from moe_course.figures import lesson_08 as figures
from moe_course.figures.lesson_08_text import coloured_text, hover_text

torch.set_num_threads(threads)
shape_checks.update("jaxtyping_disable", True)  # they take a quarter of the time of models this small

# %% [markdown]
# ## 1. Text
#
# A language model predicts the next token of a text. You need text of several kinds, and it must be on every machine
# without a download. What came with your installation will do: Python's language reference, its standard library,
# the C++ headers of PyTorch, and the settings of JupyterLab.
#
# The files of each kind, its **domain**, are split: every eighth is held out. Splitting by *file* matters. Two halves
# of one file share names and phrases, and a model that has seen one half would look too good on the other.

# %%
from moe_course.training import ByteTokenizer, encode_domains, text_domains, train_bpe

domains = text_domains()
names = list(domains)
corpus = encode_domains(domains, ByteTokenizer())
print(f"{'domain':10}{'train bytes':>14}{'held out':>12}   from")
for name, domain in domains.items():
    print(f"{name:10}{len(corpus.train[name]):>14,}{len(corpus.held_out[name]):>12,}   {domain.source}")

# %% [markdown]
# A model reads numbers. The simplest **tokenizer** takes the bytes of the text, so there are 256 tokens and nothing to
# learn. Large models merge bytes that often stand together: **byte-pair encoding**, BPE, starts from bytes and merges
# the commonest pair of neighbours, again and again. Here are both.

# %%
bpe = train_bpe([domain.train for domain in domains.values()], vocab_size=512)
line = "for name in sorted(topics):"
print(f"{len(line.encode())} bytes: ", "|".join(line))
print(f"{len(bpe.encode(line))} tokens:", "|".join(bpe.decode(token[None]) for token in bpe.encode(line)))
print("\nbytes for each token, on held-out text:")
for name, domain in domains.items():
    print(f"{name:10}{len(domain.held_out.encode()) / len(bpe.encode(domain.held_out)):.2f}")

# %% [markdown]
# With 256 merges, a token covers about two bytes, so a context of the same length reaches twice as far. Mixtral's
# tokenizer has 32 000 entries. A loss *per token* then means little by itself: a tokenizer with long tokens has fewer
# and harder guesses. So losses are compared per byte. This lesson stays with bytes.
#
# ## 2. Where a token stands
#
# Attention compares a query with keys by $q \cdot k$. This product does not know where the two tokens stand. **Rotary
# positions** tell it, by turning. The $D_h$ components of a head form pairs, and the pair $i$ of a token at position
# $t$ is turned by the angle
#
# $$\alpha_{t,i} = t \cdot \theta^{-2i/D_h}, \qquad i = 0, \dots, D_h/2 - 1, \qquad
# \begin{pmatrix} a' \\ b' \end{pmatrix} =
# \begin{pmatrix} \cos \alpha & -\sin \alpha \\ \sin \alpha & \cos \alpha \end{pmatrix}
# \begin{pmatrix} a \\ b \end{pmatrix} .$$
#
# Turn two vectors by the same angle, and their product stays. So what counts is the *difference* of the angles, and
# that is the distance of the tokens. The first pairs turn fast and tell neighbours apart, the last ones slowly.
#
# ### Exercise: rotary positions
#
# Which components form a pair is a convention. [The paper](https://arxiv.org/abs/2104.09864) pairs neighbours, (0, 1),
# (2, 3), …. The `transformers` versions of Llama and Mixtral pair component $i$ with $i + D_h/2$, and so do you. Both
# work when trained that way, but [the weights of one are gibberish in the
# other](https://github.com/jzhang38/TinyLlama/issues/24).

# %% exercise="08.apply_rotary"
def apply_rotary(
    x: Float[Tensor, "B H S Dh"], positions: Int64[Tensor, "S"], theta: float = 10_000.0
) -> Float[Tensor, "B H S Dh"]:
    """Turn each pair of components, i and i + Dh/2, by position · theta^(−2i/Dh).

    Args:
        x: queries or keys of B sequences and H heads, (B, H, S, Dh). Dh is even.
        positions: of the S tokens, (S,).
        theta: how slow the slowest pair is.

    Returns:
        Shaped like x, in its dtype. Angles are computed in float32, also for bfloat16 x.
    """
    ### BEGIN SOLUTION
    head_dim = x.shape[-1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    rate = theta ** (-torch.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    angle = positions[:, None] * rate
    cos, sin = angle.cos(), angle.sin()
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
    ### END SOLUTION

# %% check="08.apply_rotary"
apply_rotary = check(apply_rotary)

# %%
generator = torch.Generator().manual_seed(seed)
q, k = torch.randn(2, 1, 1, 1, 16, generator=generator)
everywhere = torch.arange(24)
turned_q, turned_k = (apply_rotary(x.expand(1, 1, 24, 16), everywhere) for x in (q, k))
show(figures.scores_by_position((turned_q @ turned_k.mT)[0, 0]))

# %% [markdown]
# **What just happened.** The same query and the same key, put at all pairs of positions. Each diagonal has one colour:
# only the distance counts.
#
# ## 3. Attention, with a memory
#
# In causal attention each token gathers values from itself and the tokens before it:
#
# $$\text{mixed}_i = \sum_{j \le i} \operatorname{softmax}_j \Big( \frac{q_i \cdot k_j}{\sqrt{D_h}} \Big) \, v_j .$$
#
# In training the whole text is there at once. In generation it grows by one token at a time, and the keys and values
# of old tokens never change: no token looks ahead. So they are kept, in the **KV cache**, and each call brings only the
# new tokens. **Predict** what that does to the mask:

# %% tags=["hide-input"]
quiz(
    Question(
        "Four old tokens are in the cache, three new ones come in. How many keys may the first of the new tokens see?",
        ["1", "4", "5", "7"],
        2,
        [
            "That is what `is_causal=True` of PyTorch's attention gives it: its mask starts at the top left corner.",
            "And itself.",
            "The four old ones and itself. The mask starts at the bottom right corner: the last new token sees all 7.",
            "Two of these come after it.",
        ],
    )
)

# %% [markdown]
# ### Exercise: causal attention with a cache
#
# You get queries, keys and values of S new tokens, and the keys and values of P old ones; the old keys have been
# rotated. Rotate the new queries and keys, attend, and return the mixed values and the caches for the next call.
#
# `F.scaled_dot_product_attention(q, k, v, mask)` divides by $\sqrt{D_h}$ itself; `mask` is True where a query may look.

# %% exercise="08.cached_attention"
def cached_attention(
    q: Float[Tensor, "B H S Dh"],
    k: Float[Tensor, "B H S Dh"],
    v: Float[Tensor, "B H S Dh"],
    past_keys: Float[Tensor, "B H P Dh"],
    past_values: Float[Tensor, "B H P Dh"],
) -> tuple[Float[Tensor, "B H S Dh"], Float[Tensor, "B H P+S Dh"], Float[Tensor, "B H P+S Dh"]]:
    """Attend from S new tokens to P old ones and to each other, causally.

    Args:
        q, k, v: of the new tokens, not rotated yet, (B, H, S, Dh).
        past_keys: of the old tokens, rotated, (B, H, P, Dh). P may be 0.
        past_values: of the old tokens, (B, H, P, Dh).

    Returns:
        mixed: values gathered by each new token, (B, H, S, Dh).
        keys, values: of old and new tokens, (B, H, P + S, Dh), the keys rotated.
    """
    ### BEGIN SOLUTION
    past, new = past_keys.shape[2], q.shape[2]
    positions = torch.arange(past, past + new)
    keys = torch.cat([past_keys, apply_rotary(k, positions)], dim=2)
    values = torch.cat([past_values, v], dim=2)
    visible = torch.ones(new, past + new, dtype=torch.bool).tril(past)
    mixed = F.scaled_dot_product_attention(apply_rotary(q, positions), keys, values, visible)
    return mixed, keys, values
    ### END SOLUTION

# %% check="08.cached_attention"
cached_attention = check(cached_attention)

# %% [markdown]
# The proof of a cache is that nobody can tell that there is one. Read ten tokens at once, and then in three portions:

# %% tags=["nbval-check-output"]
q, k, v = torch.randn(3, 1, 2, 10, 16, generator=torch.Generator().manual_seed(seed))
nothing = torch.zeros(1, 2, 0, 16)
at_once, *_ = cached_attention(q, k, v, nothing, nothing)
keys, values, portions = nothing, nothing, []
for part in (slice(0, 6), slice(6, 9), slice(9, 10)):
    mixed, keys, values = cached_attention(q[:, :, part], k[:, :, part], v[:, :, part], keys, values)
    portions.append(mixed)
print("at once and in portions agree:", torch.allclose(at_once, torch.cat(portions, dim=2), atol=1e-5))

# %% [markdown]
# ## 4. A block
#
# A transformer is a stack of blocks around a **residual stream**, the vector of each token that every part adds to:
#
# $$x \leftarrow x + \operatorname{attention}(\operatorname{norm}_1(x)), \qquad
# x \leftarrow x + \operatorname{MoE}(\operatorname{norm}_2(x)) .$$
#
# The norm is RMSNorm: divide by the root mean square of the components, multiply by a learnt gain. It stands *before*
# each part, and never on the stream itself: this is **pre-norm**. Attention is the only place where tokens meet. The
# MoE layer treats each by itself, and the router decides by what is in the stream: the token, and what attention added.
#
# ### Exercise: the block
#
# The parts are given. `CausalSelfAttention` is your attention with its projections, `MoELayer` the layer of lesson 03
# and `DenseFFN` that of lesson 01. Write `forward`. An `MoELayer` returns its output and a routing. Hand the routing
# on: the block keeps nothing.

# %% exercise="08.MyBlock"
from moe_course.layers import CausalSelfAttention, DenseFFN, MoELayer, Routing


class MyBlock(nn.Module):
    """Attention, then an MoE layer or a dense FFN, each on normalised tokens and added to the stream.

    Args:
        d_model: width D of a token.
        num_heads: attention heads.
        d_ff: hidden width of one expert, or of the dense FFN.
        num_experts: number of experts E; 0 for a dense FFN.
        top_k: experts per token K.
    """

    def __init__(self, d_model: int, num_heads: int, d_ff: int, num_experts: int, top_k: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(d_model, 1e-5)
        self.attention = CausalSelfAttention(d_model, num_heads)
        self.ffn_norm = nn.RMSNorm(d_model, 1e-5)
        self.ffn = MoELayer(d_model, d_ff, num_experts, top_k) if num_experts else DenseFFN(d_model, d_ff)

    def forward(self, x: Float[Tensor, "B S D"]) -> tuple[Float[Tensor, "B S D"], Routing | None]:
        """Apply the block.

        Args:
            x: S tokens of B sequences, (B, S, D).

        Returns:
            The tokens, (B, S, D), and the Routing of the MoE layer; None if the FFN is dense.
        """
        ### BEGIN SOLUTION
        x = x + self.attention(self.attention_norm(x))
        out = self.ffn(self.ffn_norm(x))
        out, routing = out if isinstance(out, tuple) else (out, None)
        return x + out, routing
        ### END SOLUTION

# %% check="08.MyBlock"
MyBlock = check(MyBlock)

# %% [markdown]
# An embedding below the blocks, a norm and a head above them: that is a language model.
# `moe_course.layers.MoETransformer` is just this, from a config. With your weights its blocks do what yours does:

# %% tags=["nbval-check-output"]
from moe_course.layers import KVCache, MoETransformer, TransformerConfig

config = TransformerConfig(
    vocab_size=256, d_model=d_model, num_layers=num_layers, num_heads=num_heads, context=context,
    d_ff=d_ff, moe_every=moe_every, num_experts=num_experts, top_k=top_k, d_ff_expert=d_ff // top_k,
    renormalize=top_k > 1,  # a single weight would be a constant 1, and the router would learn nothing: lesson 02
)
torch.manual_seed(seed)
mine = MyBlock(d_model, num_heads, 32, 4, 2)
whole = MoETransformer(replace(config, moe_every=1, num_experts=4, d_ff_expert=32, top_k=2, renormalize=True, activation="gelu"))
whole.blocks[0].load_state_dict(mine.state_dict())
x = torch.randn(2, 5, d_model)
print("my block equals the model's:", torch.allclose(mine(x)[0], whole.blocks[0](x)[0], atol=1e-5))
print([name for name, _ in whole.named_children()])

# %% [markdown]
# ## 5. Experts in which blocks?
#
# Not every block needs experts. **Hybrids** have an MoE layer in every $P$-th block, and dense FFNs in the others. The
# $P$-th block is number $P - 1$, so that a stack of $P$ begins with the dense ones.
#
# ### Exercise: what a hybrid costs
#
# Name the blocks with experts, and count the parameters of all FFNs and MoE layers: the total, and those that one
# token uses. Sizes of the parts are given as numbers.

# %% exercise="08.hybrid_cost"
def hybrid_cost(
    num_layers: int, moe_every: int, dense_ffn: int, expert: int, router: int, num_experts: int, top_k: int
) -> tuple[list[int], int, int]:
    """Blocks with an MoE layer, and what FFNs and MoE layers cost.

    Args:
        num_layers: number of blocks.
        moe_every: every P-th block has an MoE layer in place of its dense FFN; 0: none has.
        dense_ffn, expert, router: parameters of one dense FFN, one expert, one router.
        num_experts: experts in an MoE layer, E.
        top_k: experts per token, K.

    Returns:
        moe_blocks: indices of the blocks with an MoE layer, counted from 0, in rising order.
        total, active: parameters of all blocks' FFNs and MoE layers, and of those that one token uses.
    """
    ### BEGIN SOLUTION
    moe_blocks = list(range(moe_every - 1, num_layers, moe_every)) if moe_every else []
    dense = (num_layers - len(moe_blocks)) * dense_ffn
    total = dense + len(moe_blocks) * (router + num_experts * expert)
    active = dense + len(moe_blocks) * (router + top_k * expert)
    return moe_blocks, total, active
    ### END SOLUTION

# %% check="08.hybrid_cost"
hybrid_cost = check(hybrid_cost)

# %% [markdown]
# Take Mixtral's sizes, and let a dense FFN be as wide as the K experts that a token uses. Then the active parameters
# hardly change with P, and the total does. Things to try:
#
# 1. `moe_every` from 1 to 4: how much of the memory goes, and how much of the compute?
# 2. What do 64 experts in every fourth block have in common with 16 in every block?
# 3. `top_k` = 8 of 8 experts: what is left of the idea?

# %%
from moe_course.layers import PUBLISHED, ffn_parameters, parameter_table

mixtral = PUBLISHED["mixtral-8x7b"]
outside = parameter_table(mixtral)


def hybrid_figure(moe_every: int, num_experts: int, top_k: int):
    """Mixtral's shape with experts in every P-th block."""
    expert, router = ffn_parameters(mixtral.d_model, mixtral.d_ff, "swiglu"), num_experts * mixtral.d_model
    k = min(top_k, num_experts)
    blocks, total, active = hybrid_cost(mixtral.num_layers, moe_every, k * expert, expert, router, num_experts, k)
    parts = {
        "embedding and head": outside["embedding"] + outside["head"],
        "attention": outside["attention"],
        "dense FFNs": (mixtral.num_layers - len(blocks)) * k * expert,
        "experts a token uses": len(blocks) * k * expert,
        "idle experts": total - active,
        "routers and norms": len(blocks) * router + outside["norms"],
    }
    everything, idle = sum(parts.values()), parts["idle experts"]
    title = f"{everything / 1e9:.1f} billion parameters, {(everything - idle) / 1e9:.1f} for a token"
    return figures.hybrid(parts, blocks, mixtral.num_layers, title)


sliders(hybrid_figure, moe_every=[1, 2, 3, 4, 8], num_experts=([4, 8, 16, 32, 64], 8), top_k=([1, 2, 4, 8], 2))

# %% [markdown]
# ## 6. The loss
#
# Two parts. The **cross-entropy** of the next token: position $s$ has read the tokens up to $s$ and predicts token
# $s + 1$. And the **balance loss** of lesson 04, for each MoE layer, averaged:
#
# $$L = -\frac{1}{B S} \sum_{b, s} \ln p_{b,s}\big(\text{id}_{b,s+1}\big)
# \; + \; \alpha \, \frac{1}{N} \sum_{l=1}^{N} L_\text{balance}^{(l)} .$$
#
# A batch has rows of $S + 1$ ids. The model reads the first $S$ of each, so the targets are the last $S$. That is one
# shift. A second one, hidden in a library, makes a model that predicts the token *after* the next, and nothing crashes:
# it happened in [an MoE model](https://github.com/huggingface/transformers/pull/37830) of `transformers`, among others.
#
# ### Exercise: the loss of the whole model
#
# Return the loss and its two parts. Nothing is stored on a module, so nothing can go stale. A dense model has no MoE
# layers: then `probs` has length 0, and the balance is 0. Compute in float32, also for bfloat16 logits.

# %% exercise="08.training_loss"
from moe_course.layers import load_balancing_loss


def training_loss(
    logits: Float[Tensor, "B S V"],
    ids: Int64[Tensor, "B S+1"],
    probs: Float[Tensor, "N T E"],
    expert_ids: Int64[Tensor, "N T K"],
    balance_weight: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """The loss of a language model with N MoE layers, and its parts.

    Args:
        logits: what the model predicts after each of ids[:, :-1], (B, S, V).
        ids: the text, one token longer, (B, S + 1).
        probs: softmax over all experts in each MoE layer, (N, T, E), T = B·S; N may be 0.
        expert_ids: the choices in each MoE layer, (N, T, K).
        balance_weight: α.

    Returns:
        loss: cross_entropy + α · balance.
        cross_entropy: mean over all B·S predictions, in nats.
        balance: mean over layers of `load_balancing_loss`, not weighted; 0 without layers.
    """
    ### BEGIN SOLUTION
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    cross_entropy = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    losses = [load_balancing_loss(p, chosen) for p, chosen in zip(probs, expert_ids, strict=True)]
    balance = torch.stack(losses).mean() if losses else cross_entropy.new_zeros(())
    return cross_entropy + balance_weight * balance, cross_entropy, balance
    ### END SOLUTION

# %% check="08.training_loss"
training_loss = check(training_loss)

# %% [markdown]
# A new model should know nothing, and its loss say so. **Predict** the number before you run the cell: 256 bytes, all
# about equally probable.

# %%
from moe_course.training import LanguageModelLoss, Trainer, evaluate_domains


def loss_of(model: nn.Module, ids: Tensor) -> LanguageModelLoss:
    """The loss and its parts, by your function. Without the z-loss of lesson 04."""
    out = model(ids[:, :-1])
    routings = list(out.routings.values())
    probs = torch.stack([r.probs for r in routings]) if routings else torch.zeros(0, 1, 1)
    chosen = torch.stack([r.expert_ids for r in routings]) if routings else torch.zeros(0, 1, 1, dtype=torch.int64)
    return LanguageModelLoss(*training_loss(out.logits, ids, probs, chosen, balance_weight), torch.zeros(()))


held_out = corpus.held_out_rows(context, rows=24)
torch.manual_seed(seed)
first = loss_of(MoETransformer(config), torch.cat(list(held_out.values())))
print(f"a new model: {first.cross_entropy:.2f} nats a byte, balance {first.balance:.2f}")
print(f"ln 256:      {torch.tensor(256.0).log():.2f}")

# %% [markdown]
# A little above $\ln 256$: random weights are not quite indifferent. A loss far above it would point to an
# initialisation that is too large, one far below it to a target that leaked into the input.
#
# ## 7. Dense against MoE
#
# Now the comparison that lesson 03 made for a single layer. Both models have the same attention, and a token meets the
# same number of FFN parameters, routers aside:
#
# | | FFN | parameters in FFNs | active for a token |
# |---|---|---|---|
# | dense | width $KF$ | 1 | 1 |
# | **MoE** | $K$ of $E$ experts of width $F$ | $E/K$ | 1, and the router |
#
# Compare them at **equal steps**: what is learnt from the same text? And at **equal time**: what should you use? An MoE
# step takes longer, for small products run less efficiently. There are several seeds, because a single pair of runs
# proves nothing. **Predict** who is ahead, at equal steps and at equal time, and how sure you are.

# %%
from moe_course.layers import active_parameters, model_config, total_parameters

shapes = {"dense": replace(config, moe_every=0), "MoE": config}
print(f"{'':8}{'total':>10}{'active':>10}")
for name, shape in shapes.items():
    counted = model_config(shape)
    print(f"{name:8}{total_parameters(counted):>10,}{active_parameters(counted):>10,}")

# %% [markdown]
# The `Trainer` runs AdamW; lesson 09 opens it up. The learning rate rises over the first tenth of the steps and then
# stays. It would usually fall at the end, and gain a little. But where it stays, each point of a curve is a fair end,
# and one run answers both questions. Each evaluation measures all four domains on files that were held out.

# %%
def untrained(shape: TransformerConfig, run_seed: int) -> MoETransformer:
    torch.manual_seed(run_seed)
    return MoETransformer(shape)


def fit(shape: TransformerConfig, run_seed: int) -> tuple[MoETransformer, list[dict]]:
    """A trained model and its evaluations."""
    model = untrained(shape, run_seed)
    trainer = Trainer(
        model, loss_of, corpus.batches(context, batch_size, steps, run_seed), steps=steps, progress=False,
        learning_rate=learning_rate, schedule=lambda done: min(done / 0.1, 1.0),
        evaluate=lambda model: evaluate_domains(model, held_out), evaluations=7,
    )
    return model, trainer.fit().evaluations


def fit_all(name: str) -> dict[str, list]:
    """One run for each seed, under the model's name; nothing if it was not asked for."""
    seeds = range(seed, seed + num_seeds)
    return {name: [fit(shapes[name], run_seed) for run_seed in seeds]} if name in models else {}


runs = fit_all("dense")

# %%
runs |= fit_all("MoE")

# %%
def measured(name: str) -> Tensor:
    """Held-out losses of a model's runs, (seeds, evaluations, domains)."""
    return torch.tensor([[[row[domain] for domain in names] for row in rows] for _, rows in runs[name]])


losses = {name: measured(name).mean(-1) for name in runs}  # every domain counts alike
at_steps = [int(row["step"]) for row in runs["MoE"][0][1]]
print(f"{'nats a byte':12}" + "".join(f"{f'seed {seed + run}':>9}" for run in range(num_seeds)) + f"{'mean':>9}")
for name, loss in losses.items():
    row = "".join(f"{end:>9.3f}" for end in loss[:, -1].tolist())
    print(f"{name:12}{row}{loss[:, -1].mean():>9.3f}")

# %% [markdown]
# The runs were minutes apart, and your machine may have been busy in between. So the time of a step is measured as in
# lesson 03: forward and backward, one model after the other, many rounds, the median of the ratios.

# %%
from moe_course.bench.timing import interleave, median_ratio

batch = next(corpus.batches(context, batch_size, 1, seed))
fresh = {name: untrained(shape, seed) for name, shape in shapes.items()}
samples = interleave({name: lambda m=m: loss_of(m, batch).loss.backward() for name, m in fresh.items()}, rounds=15)
pace = {"dense": 1.0, "MoE": median_ratio(samples["MoE"], samples["dense"])}
print(f"one step of the MoE takes {pace['MoE']:.2f} times as long")
show(figures.training(at_steps, losses, pace))

# %%
def after(name: str, time: float) -> Tensor:
    """Losses of all seeds after a time, in steps of the dense model; a straight line between two evaluations."""
    place = min(time / pace[name] / steps, 1.0) * len(at_steps) - 1
    low, high = losses[name][:, int(place)], losses[name][:, min(int(place) + 1, len(at_steps) - 1)]
    return low + (place - int(place)) * (high - low)


record(loss=losses["MoE"][:, -1].mean().item(), total_parameters=total_parameters(model_config(config)))
if "dense" in runs:
    behind = {
        "at equal steps": losses["dense"][:, -1] - losses["MoE"][:, -1],  # paired: a seed draws the same text for both
        "at equal time": losses["dense"][:, -1] - after("MoE", steps),
    }
    for when, gain in behind.items():
        print(f"{when:16} the MoE is ahead by " + ", ".join(f"{each:+.3f}" for each in gain.tolist()))
    record(ahead_at_equal_steps=behind["at equal steps"], ahead_at_equal_time=behind["at equal time"])

# %% [markdown]
# **What just happened.** Look at the seeds, not at the means. At equal steps the two are a tie: the MoE is behind on two
# seeds and ahead on one. At equal time it is behind on every seed, by roughly 0.1 nats a byte. A step of the MoE takes
# 1.4 to 1.6 times as long here, for eight small products run less efficiently than one larger one.
#
# So in this short training eight experts are no use, and an honest report says so. Why? Capacity pays where there is
# more to learn than the dense model can hold. After 350 steps, both have seen 180 000 bytes, each expert a quarter of
# them, and both have learnt little more than which byte follows which.
#
# More training changes the picture. This is what the sweep `sweeps/08_experts.toml` found, this lesson run by
# `moe-course batch` with 600 steps (losses in nats a byte, by seed):
#
# | 600 steps | parameters | seed 0 | seed 1 | seed 2 |
# |---|---|---|---|---|
# | dense, as one expert that every token uses | 37 088 | 2.187 | 2.198 | 2.129 |
# | 4 experts, top-2 | 49 568 | 2.127 | 2.117 | 2.148 |
# | 16 experts, top-2 | 124 064 | 2.103 | 2.142 | 2.096 |
# | 4 experts, top-1 | 74 144 | 2.187 | 2.169 | 2.158 |
# | 16 experts, top-1 | 222 368 | 2.235 | 2.176 | 2.179 |
#
# Now, at equal steps, 16 experts with top-2 are ahead on every seed, by 0.03 to 0.08, and 4 experts on two of three.
# Top-1 is not: it has the most parameters of all, and 16 such experts are behind the dense model on two seeds. Each of
# them sees half as many bytes as with top-2, and a token's answer is multiplied by one gate that starts near 1/16.
#
# With twice the blocks the advantage is gone. This is `sweeps/08_hybrids.toml`: four blocks, 8 experts, top-2.
#
# | 600 steps, four blocks | parameters | seed 0 | seed 1 | seed 2 |
# |---|---|---|---|---|
# | dense, as one expert that every token uses | 57 760 | 2.083 | 2.066 | 2.055 |
# | experts in every fourth block | 76 320 | 2.088 | 2.097 | 2.033 |
# | experts in every second block | 95 008 | 2.088 | 2.079 | 2.047 |
# | experts in every block | 132 384 | 2.099 | 2.123 | 2.042 |
#
# All hybrids lie within 0.06 of the dense model, and on no line are all seeds ahead. Depth has brought more than
# experts: the dense model with four blocks beats every model with two. So at this size, spend on depth first.
#
# And with a larger model and more training? In a larger run of the same comparison (D = 128, context 128, 900 steps,
# the prose alone, a learning rate that falls, measured with an earlier version of this code) three dense runs ended
# between 1.67 and 1.74, and three with 8 experts and top-2 between 1.44 and 1.47. With the MoE's time, two dense runs
# reached 1.57 and 1.59. So the gain grows with size and training, and whether it outweighs the time depends on both.
# Measure yours.
#
# By domain:

# %%
print(f"{'nats a byte':16}" + "".join(f"{name:>18}" for name in names))
for name in runs:
    ends = measured(name)[:, -1]
    spans = [f"{low:.2f} to {high:.2f}" for low, high in zip(ends.amin(0), ends.amax(0), strict=True)]
    print(f"{name:16}" + "".join(f"{span:>18}" for span in spans))

# %% [markdown]
# JSON is the easiest to guess, C++ the hardest. No domain hides an advantage: the spans of the two models overlap or
# touch everywhere.
#
# ## 8. Writing
#
# The model writes as it reads: predict, pick a token, append it, predict again. The cache makes each token cost one
# token.
#
# ### Exercise: write text, reading each token once
#
# `model(ids, cache).logits` are the logits after each of `ids`, which continue what the cache holds. Take the most
# probable token each time.

# %% exercise="08.generate_greedy"
def generate_greedy(model: nn.Module, cache: KVCache, ids: Int64[Tensor, "B S"], new_tokens: int) -> Int64[Tensor, "B N"]:
    """Continue B prompts by the most probable tokens.

    Args:
        model: `model(ids, cache).logits` is (B, S, V): the logits after each of the S tokens that it reads.
        cache: empty at first; the model adds what it reads.
        ids: the prompts, (B, S), S ≥ 1.
        new_tokens: how many tokens to write; may be 0.

    Returns:
        Prompts and what was written, (B, S + new_tokens). The model has read each token at most once.
    """
    ### BEGIN SOLUTION
    unread = ids
    for _ in range(new_tokens):
        logits = model(unread, cache).logits[:, -1]
        unread = logits.argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, unread], dim=1)
    return ids
    ### END SOLUTION

# %% check="08.generate_greedy"
generate_greedy = check(generate_greedy)

# %%
from moe_course.layers import generate

model = runs["MoE"][0][0].eval()
half = context // 2
prompts = torch.stack([rows[3, :half] for rows in held_out.values()])
with torch.no_grad():
    written = generate_greedy(model, KVCache(num_layers, context), prompts, context - half)
    slowly = generate(model, prompts, context - half, use_cache=False)
print("with the cache and without, the same bytes:", torch.equal(written, slowly), "\n")
for name, row in zip(names, written, strict=True):
    text = ByteTokenizer().decode(row).replace("\n", "⏎")
    print(f"{name:8}{text[:half]} → {text[half:]}")

# %% [markdown]
# **What just happened.** The cache changes nothing but the work. And the text gets stuck: the most probable byte is a
# safe choice each time, and safe choices go round in circles. So text is usually *drawn*, by the probabilities, with a
# **temperature** that divides the logits: below 1 it prefers the likely ones. `generate` of `moe_course.layers` does
# both. Here it writes on with temperature 0.8, and you see who worked on each byte.

# %%
drawn = generate(model, prompts, context - half, temperature=0.8, generator=torch.Generator().manual_seed(seed))


def as_tokens(row: Tensor) -> list[str]:
    """One piece of text for each byte."""
    return [bytes([byte]).decode("latin-1") for byte in row.tolist()]


with torch.no_grad():
    routings = model(drawn).routings
per_layer = {
    f"block {i}": (r.expert_ids.view(*drawn.shape, -1), r.weights.view(*drawn.shape, -1)) for i, r in routings.items()
}
show(hover_text({n: as_tokens(row) for n, row in zip(names, drawn, strict=True)}, per_layer, num_experts, half))

# %% [markdown]
# **Hover** over the text. The figure works without a kernel, too. Things to look for:
#
# 1. Do the same bytes have the same experts, in all four texts?
# 2. Is the second block's choice as predictable from the byte as the first block's?
# 3. Where are the weights near 0.5 each, and where does one expert do nearly all?
#
# ## 9. What do the experts do?
#
# It is tempting to name experts: the Python expert, the comma expert. Start with a table.
#
# ### Exercise: experts by domain
#
# You get the choices of N windows of text, and the domain of each. Which share of a domain's choices falls on each
# expert?

# %% exercise="08.expert_by_domain"
def expert_by_domain(
    expert_ids: Int64[Tensor, "N S K"], domains: Int64[Tensor, "N"], num_experts: int, num_domains: int
) -> Float[Tensor, "M E"]:
    """Which share of each domain's choices fell on each expert.

    Args:
        expert_ids: the K experts of each of S tokens in N windows, (N, S, K).
        domains: the domain of each window, (N,).
        num_experts: number of experts E.
        num_domains: number of domains M.

    Returns:
        (M, E), in float32: each row sums to 1; zeros for a domain without windows.
    """
    ### BEGIN SOLUTION
    rows = []
    for domain in range(num_domains):
        chosen = expert_ids[domains == domain].flatten()
        rows.append(torch.bincount(chosen, minlength=num_experts) / max(chosen.numel(), 1))
    return torch.stack(rows)
    ### END SOLUTION

# %% check="08.expert_by_domain"
expert_by_domain = check(expert_by_domain)

# %%
rows = corpus.held_out_rows(context, rows=48)
ids = torch.cat([each[:, :-1] for each in rows.values()])
domain_of = torch.arange(len(rows)).repeat_interleave(48)


@torch.no_grad()
def choices(model: MoETransformer) -> dict[str, Tensor]:
    """The experts of every held-out token, (N, S, K), by block."""
    return {f"block {i}": r.expert_ids.view(*ids.shape, -1) for i, r in model.eval()(ids).routings.items()}


chosen = choices(model)
show(
    figures.experts_by_domain(
        {block: expert_by_domain(each, domain_of, num_experts, len(names)) for block, each in chosen.items()}, names
    )
)

# %%
common = torch.bincount(ids.flatten(), minlength=256).topk(48).indices
shares = {
    block: torch.stack([torch.bincount(each[ids == byte].flatten(), minlength=num_experts).double() for byte in common])
    for block, each in chosen.items()
}
shares = {block: counts / counts.sum(1, keepdim=True) for block, counts in shares.items()}
show(figures.experts_by_token(shares, [{" ": "␣", "\n": "⏎"}.get(chr(byte), chr(byte)) for byte in common.tolist()]))

# %%
first_block = next(iter(chosen.values()))
samples = {name: (as_tokens(ids[48 * i + 7]), first_block[48 * i + 7, :, 0]) for i, name in enumerate(names)}
display(HTML(coloured_text(samples, num_experts, "Held-out text, coloured by the first expert of the first MoE layer")))

# %% [markdown]
# **What just happened.** Look at the bytes first. In block 0 most bytes have a favourite: with K = 2, an expert that
# always takes part has 50 % of a byte's choices, and many come near. Its router is close to a look-up table. In block 1
# the favourites are others, for experts of the same number share nothing.
#
# Now the domains. They use the experts unevenly, JSON most of all, and the largest share is about twice the even one.
# But no expert belongs to one domain, and spaces, brackets and capitals are spread unevenly over domains as well. Is
# this specialisation, or are these only the bytes? And is it more than chance?
#
# ### Is it beyond chance?
#
# Some difference between domains would show up for any router, by chance alone. A **permutation test** asks how much.
# Take one number that says how strongly experts and domains are tied: the **mutual information**, what the expert of a
# choice tells about the domain of its text, in nats. It is 0 if all domains use the experts alike. Compute it for the
# true labels. Then shuffle the labels, many times, and see how often chance does as well:
#
# $$p = \frac{1 + \#\{\text{orders with at least as much information}\}}{1 + R} .$$
#
# What may be shuffled? Only what could have been otherwise. Bytes of one window come from one file and resemble each
# other, so a shuffle of single bytes would call *anything* significant. The unit is the window.
#
# ### Exercise: the p-value
#
# `loads_of_domains(loads, labels, num_domains)` sums the loads of each domain's windows, and `mutual_information` does
# what it says. Shuffle the labels: `domains[order]`.

# %% exercise="08.permutation_p_value"
from moe_course.training.specialisation import loads_of_domains, mutual_information


def permutation_p_value(
    loads: Int64[Tensor, "N E"], domains: Int64[Tensor, "N"], permutations: Int64[Tensor, "R N"]
) -> Float[Tensor, ""]:
    """How often labels in random order tell at least as much about the experts as the true ones do.

    Args:
        loads: choices of each expert in each of N windows, (N, E).
        domains: the domain of each window, (N,); every domain occurs.
        permutations: R random orders of the N windows, (R, N).

    Returns:
        p, a scalar or a number: 1 / (R + 1) where no order tells as much as the true labels.
    """
    ### BEGIN SOLUTION
    num_domains = int(domains.max()) + 1
    observed = mutual_information(loads_of_domains(loads, domains, num_domains))
    shuffled = [mutual_information(loads_of_domains(loads, domains[order], num_domains)) for order in permutations]
    as_large = sum(information >= observed for information in shuffled)
    return torch.as_tensor((1 + as_large) / (1 + len(permutations)), dtype=torch.float32)
    ### END SOLUTION

# %% check="08.permutation_p_value"
permutation_p_value = check(permutation_p_value)

# %% [markdown]
# Test the trained model, and beside it a control: the same model before its first step. **Predict** its p-value:

# %% tags=["hide-input"]
quiz(
    Question(
        "A router that has learnt nothing yet, random weights throughout. Does the permutation test find its experts "
        "specialised by domain?",
        ["No, p will be anywhere between 0 and 1", "Yes, p will be as small as it can be"],
        1,
        [
            "Its weights are random, but the text is not.",
            "A random router is still a function of the token. JSON has braces, C++ has colons, and each byte goes to "
            "its own experts.",
        ],
    )
)

# %%
from moe_course.training.specialisation import window_loads

generator = torch.Generator().manual_seed(seed)
orders = torch.stack([torch.randperm(len(ids), generator=generator) for _ in range(rounds)])
observed, shuffled = {}, {}
print(f"{'':26}{'information':>14}{'p':>9}")
for when, each_model in (("before training", untrained(config, seed)), ("after training", model)):
    for block, each in choices(each_model).items():
        loads = window_loads(each, num_experts)
        name = f"{block}, {when}"
        observed[name] = mutual_information(loads_of_domains(loads, domain_of, len(names))).item()
        shuffled[name] = torch.stack(
            [mutual_information(loads_of_domains(loads, domain_of[order], len(names))) for order in orders[:300]]
        )
        print(f"{name:26}{observed[name]:>14.4f}{permutation_p_value(loads, domain_of, orders):>9.3f}")
show(figures.chance(observed, shuffled))

# %% [markdown]
# **What just happened.** The smallest p that 999 orders can give, everywhere, and for the untrained router as well. A
# small p excludes chance, and nothing else. It does not say that anything was *learnt*. The size of the information
# says more: with this seed it about doubled in training, and it is small. Naming the domain would take $\ln 4 = 1.39$
# nats.
#
# ### Beyond the bytes
#
# So the question has to be sharper. Suppose a router looked at the byte alone. It would still treat domains
# differently, because they have different bytes. `expected_from_tokens` computes the loads of this imagined router:
# each byte gets its mean loads, whatever surrounds it. How much of the information does it have?

# %%
from moe_course.training.specialisation import expected_from_tokens


def beyond_bytes(each: Tensor) -> tuple[float, float, float]:
    """Information of the choices (N, S, K), that of the bytes alone, and p of what is left."""
    loads, expected = window_loads(each, num_experts), expected_from_tokens(each, ids, num_experts, 256)
    total, by_byte = (mutual_information(loads_of_domains(x, domain_of, len(names))).item() for x in (loads, expected))

    def left(labels: Tensor) -> Tensor:
        """What the surroundings changed, summed by domain."""
        return loads_of_domains(loads - expected, labels, len(names)).square().sum()

    as_large = sum(int(left(domain_of[order]) >= left(domain_of)) for order in orders)
    return total, by_byte, (1 + as_large) / (1 + len(orders))


subjects = {"before training": untrained(config, seed)}
subjects |= {f"trained, seed {seed + run}": trained for run, (trained, _) in enumerate(runs["MoE"])}
print(f"{'':26}{'all':>9}{'bytes alone':>13}{'share':>8}{'p of the rest':>16}")
table = []
for name, subject in subjects.items():
    for block, each in choices(subject).items():
        total, by_byte, p = beyond_bytes(each)
        print(f"{f'{name}, {block}':26}{total:>9.4f}{by_byte:>13.4f}{by_byte / max(total, 1e-9):>8.0%}{p:>16.3f}")
        table.append({"model": name, "block": block, "information": total, "bytes_alone": by_byte, "p_of_the_rest": p})
after_training = next(row for row in table if row["model"] != "before training")  # the first seed's first MoE layer
record(specialisation=table, information=after_training["information"])

# %% [markdown]
# **What just happened.** Before training, the bytes account for nearly all of it. After training, with every seed and in
# both blocks, they account for a quarter to a half. The rest came from the surroundings, which attention has put into the stream: the routers have learnt to look at
# more than the byte, and differently in different domains. So there is specialisation beyond chance and beyond bytes.
# It is weak, and nobody would call any of these experts "the Python expert".
#
# Two reservations. The windows of one file resemble each other as well, so the file would be the stricter unit. And
# this is a small model after a short training.
#
# ## 10. In production
#
# | model | experts in | note |
# |---|---|---|
# | [GShard](https://arxiv.org/abs/2006.16668), [GLaM](https://arxiv.org/abs/2112.06905) | every second block | |
# | [Switch](https://arxiv.org/abs/2101.03961) | every second block in most sizes | |
# | [Mixtral 8x7B](https://huggingface.co/mistralai/Mixtral-8x7B-v0.1/blob/main/config.json) | every block | 8 experts, top-2 |
# | [OLMoE](https://arxiv.org/abs/2409.02060), [Qwen3-30B-A3B](https://huggingface.co/Qwen/Qwen3-30B-A3B/blob/main/config.json), [gpt-oss](https://huggingface.co/openai/gpt-oss-120b/blob/main/config.json) | every block | 64, 128 and 128 experts |
# | [DeepSeek-V3](https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/config.json) | all blocks but the first three | 256 experts and one shared |
# | Llama 4 Maverick | every second block, by the [metadata of a converted checkpoint](https://ollama.com/aravhawk/llama4:maverick-q4_K_M/blobs/b0fe8943b3e4) | 128 experts, top-1, and a shared one |
#
# Why they differ:
#
# - *Memory and traffic.* Each MoE layer multiplies the parameters, and with experts on several devices it costs two
#   exchanges between all of them. Every second block halves both. Your sliders showed the first.
# - *What experts learn.* [Mixtral's authors](https://arxiv.org/abs/2401.04088) (section 5) looked for topics in their
#   experts and found no obvious pattern, but found that syntax and position matter. [OLMoE's](https://arxiv.org/abs/2409.02060)
#   (section 5) found experts of domains and of vocabulary, more than in Mixtral. Your two tests are a small version of
#   theirs.
#
# ## 11. Pitfalls
#
# The checks of this lesson know these by name, but for the shuffled bytes. The linked ones were found in public code.
#
# - **Neighbours paired for halves**, or both mixed: [Llama weights turn to
#   gibberish](https://github.com/jzhang38/TinyLlama/issues/24), and [people wonder which is
#   right](https://github.com/huggingface/transformers/issues/25199).
# - **Positions that start at 0 again** behind a cache, or old keys rotated a second time.
# - **`is_causal=True` with a cache**: [the mask starts at the wrong
#   corner](https://github.com/pytorch/pytorch/issues/144858).
# - **A cache that changes the text**: [with the cache on, junk](https://github.com/lucidrains/x-transformers/issues/219).
#   Compare with the uncached model, byte for byte.
# - **The norm on the stream**, or after the sum; **no residual**; the **routing dropped**.
# - **Blocks 0, P, 2P** for P − 1, 2P − 1: another model, and another checkpoint.
# - **Targets shifted twice**: [JetMoe](https://github.com/huggingface/transformers/pull/37830),
#   [GIT](https://github.com/huggingface/transformers/issues/47394). **Not shifted at all**: a loss near zero.
# - **`reshape` for `transpose`** before the cross-entropy: no error, a loss that never falls.
# - **The balance loss stashed on a module**: the last layer wins, or the last batch.
# - **The prompt's last token read twice.** The text still looks plausible.
# - **A table normalised by column**, or **shuffled bytes** in a test: everything looks specialised.
# - **p = 0.** No finite test can say that.
#
# ## 12. Recap
#
# - Rotary positions turn queries and keys; only distances remain. A cache keeps turned keys.
# - Attention and MoE layer read the normalised stream and add to it. Routings are returned.
# - Experts in every P-th block: active parameters stay, total parameters fall.
# - One shift between logits and targets. Balance as a mean over layers.
# - Compare models at equal active parameters, at equal steps *and* at equal time, over seeds, paired.
# - "Specialised beyond chance" is easy: a random router passes. Ask what is left once the tokens are accounted for.

# %% tags=["hide-input"]
quiz(
    Question(
        "You generate with a cache and without, from the same prompt, at temperature 0. From the third new token on, the "
        "texts differ. What do you look at first?",
        ["The random seed", "Positions and mask of tokens that come in behind a cache", "The router's noise"],
        1,
        [
            "At temperature 0 nothing is drawn.",
            "Reading the prompt is the case without a cache. It goes wrong as soon as old tokens are there.",
            "In evaluation there is none.",
        ],
    ),
    Question(
        "A model with experts in every second block has 24 blocks. Which are its MoE blocks, by the convention of this "
        "lesson?",
        ["0, 2, …, 22", "1, 3, …, 23", "12 to 23"],
        1,
        "Every P-th block, and the P-th is number P − 1.",
    ),
    Question(
        "The training loss falls below 0.1 nats a byte within 100 steps. What has happened?",
        [
            "The MoE has unusual capacity",
            "The targets leak into the input: no shift, or a mask that shows the next token",
            "The learning rate is just right",
        ],
        1,
        "No small model predicts text it has never seen with such certainty. Copying is easy to learn.",
    ),
    Question(
        "Two models, three seeds each. The gains of one over the other, seed by seed, are +0.03, −0.01 and +0.02. What do "
        "you report?",
        [
            "It is better by 0.013",
            "The three numbers, and that they do not decide",
            "The best seed of each",
        ],
        1,
        "A mean without its spread hides that one seed of three went the other way.",
    ),
    Question(
        "A permutation test says p = 0.001 for expert and domain. Which conclusion holds?",
        [
            "The experts have learnt the domains",
            "Expert choice and domain are tied; tokens alone may explain it",
            "The probability that the experts are not specialised is 0.1 %",
        ],
        1,
        [
            "The untrained router had the same p.",
            "The test excludes chance, and nothing else.",
            "p is the probability of such data if there were no tie, not of the tie.",
        ],
    ),
)

# %% [markdown]
# **Words of this lesson.** *Domain*: a kind of text. *Held out*: never trained on. *Tokenizer*: turns text into ids.
# *BPE*: merges bytes that often stand together. *Rotary positions, RoPE*: queries and keys turned by their position.
# *KV cache*: keys and values of what was read. *Residual stream*: the vector of a token that every part adds to.
# *Pre-norm*: normalise what a part reads, not the stream. *Hybrid*: experts in every P-th block. *Cross-entropy*: mean
# of −ln of the probability of the right token, here in nats a byte. *Greedy*: always the most probable token. *Mutual
# information*: what one thing tells about another. *Permutation test*: compare with labels in random order. *p-value*:
# how often chance does as well.
